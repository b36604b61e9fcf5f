//! Programs ready to run: linked against what the host offers, kept in memory by digest.

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use brig_api::lifecycle::Reason;
use brig_api::{Bytes, Digest};
use brig_shim::message::StartWasm;
use tokio::sync::{OnceCell, Semaphore};
use wasmtime::component::{Component, Linker as ComponentLinker};
use wasmtime::{Engine, InstancePre, Linker, Module, ResourcesRequired};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi_http::p2::bindings::ProxyPre;

use crate::code_store::{BinaryKind, CodeStore, SealedCode};
use crate::compiler::{CompileJob, compile};
use crate::engine;
use crate::host::{ComponentHost, CoreHost};
use crate::interfaces::{Exports, missing_component_imports, missing_core_imports};
use crate::outcome::Refusal;
use crate::sockets;

/// Programs that are kept ready, besides those that run.
const READY_PROGRAMS_MAX: usize = 64;
/// Compilers at a time, for one shim. Each uses every core for itself.
const COMPILERS_MAX: usize = 1;

/// A program, type-checked and linked.
pub(crate) enum Program {
    /// A core module with `_start`.
    Core(InstancePre<CoreHost>),
    /// A `wasi:cli/command` component.
    Command(CommandPre<ComponentHost>),
    /// A `wasi:http/proxy` component.
    Http(ProxyPre<ComponentHost>),
}

/// A program and what it needs at least.
pub(crate) struct Ready {
    pub(crate) program: Program,
    /// The largest of its memories when it starts, in bytes.
    memory_min: u64,
}

/// All programs of a shim.
pub(crate) struct Programs {
    engine: Engine,
    core: Linker<CoreHost>,
    component: ComponentLinker<ComponentHost>,
    cache: PathBuf,
    store: CodeStore,
    compilers: Semaphore,
    ready: Mutex<LeastRecentlyUsed>,
}

type Slot = Arc<OnceCell<Arc<Ready>>>;

#[derive(Default)]
struct LeastRecentlyUsed {
    uses: u64,
    slots: HashMap<Digest, (u64, Slot)>,
}

impl LeastRecentlyUsed {
    /// The slot for a module; makes room for a new one.
    fn slot(&mut self, digest: &Digest) -> Slot {
        self.uses += 1;
        if !self.slots.contains_key(digest) && self.slots.len() >= READY_PROGRAMS_MAX {
            let oldest = self.slots.iter().min_by_key(|(_, (used, _))| *used);
            if let Some(oldest) = oldest.map(|(digest, _)| digest.clone()) {
                self.slots.remove(&oldest);
            }
        }
        let (used, slot) = self.slots.entry(digest.clone()).or_default();
        *used = self.uses;
        Arc::clone(slot)
    }
}

impl Programs {
    /// No program is ready yet; compiled code is looked for in `cache`.
    pub(crate) fn new(engine: &Engine, cache: PathBuf) -> anyhow::Result<Self> {
        let mut core = Linker::new(engine);
        wasmtime_wasi::p1::add_to_linker_async(&mut core, |host: &mut CoreHost| &mut host.wasi)?;
        // The library's own makes a trap of every code above 125, of `exit(-1)` for one.
        core.allow_shadowing(true);
        core.func_wrap("wasi_snapshot_preview1", "proc_exit", proc_exit)?;
        core.allow_shadowing(false);
        let mut component = ComponentLinker::new(engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut component)?;
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut component)?;
        sockets::add_to_linker(&mut component)?;
        let store = CodeStore::open(&cache, &engine::compatibility(engine))?;
        Ok(Self {
            engine: engine.clone(),
            core,
            component,
            cache,
            store,
            compilers: Semaphore::new(COMPILERS_MAX),
            ready: Mutex::default(),
        })
    }

    /// The program of a task: from memory, from the store, or compiled now.
    pub(crate) async fn get(&self, wasm: &StartWasm) -> Result<Arc<Ready>, Refusal> {
        let slot = self.ready.lock().unwrap_or_else(PoisonError::into_inner).slot(&wasm.digest);
        slot.get_or_try_init(|| self.load(wasm)).await.map(Arc::clone)
    }

    async fn load(&self, wasm: &StartWasm) -> Result<Arc<Ready>, Refusal> {
        if let Some(code) = self.fetch(&wasm.digest).await? {
            return self.link(code).map(Arc::new);
        }
        let _permit = self.compilers.acquire().await;
        // Another shim may have been faster while this one waited.
        if let Some(code) = self.fetch(&wasm.digest).await? {
            return self.link(code).map(Arc::new);
        }
        let job = CompileJob {
            module: wasm.module.clone(),
            digest: wasm.digest.clone(),
            cache: self.cache.clone(),
        };
        compile(&job).await?;
        match self.fetch(&wasm.digest).await? {
            Some(code) => self.link(code).map(Arc::new),
            None => Err(Refusal::new(
                Reason::CreateFailed,
                format!("compiled code was removed from {} at once", self.cache.display()),
            )),
        }
    }

    async fn fetch(&self, digest: &Digest) -> Result<Option<SealedCode>, Refusal> {
        let (store, digest) = (self.store.clone(), digest.clone());
        let fetched = tokio::task::spawn_blocking(move || store.fetch(&digest)).await;
        fetched.map_err(std::io::Error::other).flatten().map_err(|error| {
            let message =
                format!("compiled code in {} can't be read: {error}", self.cache.display());
            Refusal::new(Reason::CreateFailed, message)
        })
    }

    fn link(&self, code: SealedCode) -> Result<Ready, Refusal> {
        match code.kind {
            BinaryKind::Module => self.link_module(&self.map_module(code)?),
            BinaryKind::Component => self.link_component(&self.map_component(&code)?),
        }
    }

    fn map_module(&self, code: SealedCode) -> Result<Module, Refusal> {
        #[expect(unsafe_code, reason = "mapping compiled code")]
        // SAFETY: the file was made by our compiler process from this engine's settings (its directory is named
        // after them), its sum was compared with the seal through this very descriptor, and nobody but us can
        // write to the directory; published files are never modified.
        let module = unsafe { Module::deserialize_open_file(&self.engine, code.file) };
        module.map_err(|error| unusable_code(&error))
    }

    fn map_component(&self, code: &SealedCode) -> Result<Component, Refusal> {
        let path = format!("/proc/self/fd/{}", code.file.as_raw_fd());
        #[expect(unsafe_code, reason = "mapping compiled code")]
        // SAFETY: as for modules; the path leads to the descriptor that was checked, whatever the directory holds.
        let component = unsafe { Component::deserialize_file(&self.engine, path) };
        component.map_err(|error| unusable_code(&error))
    }

    fn link_module(&self, module: &Module) -> Result<Ready, Refusal> {
        if module.get_export("_start").is_none() {
            return Err(Refusal::new(
                Reason::InvalidArtifact,
                "the module exports no `_start`: it is a library (a reactor), not a program. Build it as a \
                 command (in Rust a binary crate, in C without -mexec-model=reactor)",
            ));
        }
        let pre = self.core.instantiate_pre(module).map_err(|error| {
            missing_core_imports(&self.engine, &self.core, module)
                .unwrap_or_else(|| unlinkable(&error))
        })?;
        let memory_min = memory_min(&module.resources_required());
        Ok(Ready { program: Program::Core(pre), memory_min })
    }

    fn link_component(&self, component: &Component) -> Result<Ready, Refusal> {
        let exports = Exports::of(&self.engine, component);
        exports.check()?;
        let pre = self.component.instantiate_pre(component).map_err(|error| {
            missing_component_imports(&self.engine, component).unwrap_or_else(|| unlinkable(&error))
        })?;
        let program = if exports.has_http {
            Program::Http(ProxyPre::new(pre).map_err(|error| unlinkable(&error))?)
        } else {
            Program::Command(CommandPre::new(pre).map_err(|error| unlinkable(&error))?)
        };
        let memory_min = component.resources_required().as_ref().map_or(0, memory_min);
        Ok(Ready { program, memory_min })
    }
}

impl Ready {
    /// Is this what was asked for, and does it fit?
    pub(crate) fn check(&self, wasm: &StartWasm, memory_limit: u64) -> Result<(), Refusal> {
        match (&self.program, wasm.http) {
            (Program::Http(_), None) => Err(Refusal::new(
                Reason::InvalidArtifact,
                "the component is an http service (it exports wasi:http/incoming-handler): ask for `http` in \
                 its spec, or deploy it with --http",
            )),
            (Program::Core(_) | Program::Command(_), Some(_)) => Err(Refusal::new(
                Reason::InvalidArtifact,
                "`http` was asked for, but the program does not export wasi:http/incoming-handler: leave `http` \
                 out, or build a wasi:http/proxy component",
            )),
            _ if self.memory_min > memory_limit => Err(Refusal::new(
                Reason::LimitTooSmall,
                format!(
                    "it needs {} of memory to start, its limit is {}: raise the memory limit",
                    Bytes(self.memory_min),
                    Bytes(memory_limit)
                ),
            )),
            _ => Ok(()),
        }
    }
}

/// Ends a guest with a code of one byte, as processes have it; what does not fit is 255, and never success.
fn proc_exit(code: u32) -> wasmtime::Result<()> {
    let code = u8::try_from(code).unwrap_or(u8::MAX);
    Err(wasmtime::Error::new(I32Exit(i32::from(code))))
}

/// The memory that a program begins with. wasmtime counts in pages.
fn memory_min(resources: &ResourcesRequired) -> u64 {
    const PAGE_BYTES: u64 = 64 << 10;
    resources.max_initial_memory_size.unwrap_or(0).saturating_mul(PAGE_BYTES)
}

fn unusable_code(error: &wasmtime::Error) -> Refusal {
    Refusal::new(Reason::CreateFailed, format!("compiled code can't be mapped: {error:#}"))
}

fn unlinkable(error: &wasmtime::Error) -> Refusal {
    Refusal::new(Reason::ImportNotGranted, format!("the program can't be linked: {error:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_that_was_not_used_for_longest_makes_room() {
        let digest = |byte: usize| Digest::of_sha256(&[u8::try_from(byte).unwrap(); 32]);
        let mut ready = LeastRecentlyUsed::default();
        for index in 0..READY_PROGRAMS_MAX {
            ready.slot(&digest(index));
        }
        let first = ready.slot(&digest(0));
        ready.slot(&digest(200));
        assert_eq!(ready.slots.len(), READY_PROGRAMS_MAX);
        assert!(Arc::ptr_eq(&first, &ready.slot(&digest(0))));
        assert!(!ready.slots.contains_key(&digest(1)));
    }
}
