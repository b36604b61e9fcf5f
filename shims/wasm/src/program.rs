//! Programs ready to run: linked against what the host offers, kept in memory by digest.

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use brig_api::lifecycle::Reason;
use brig_api::wasm::{GUEST_BYTES, Misfit};
use brig_api::{Bytes, Digest};
use brig_shim::message::StartWasm;
use tokio::sync::{OnceCell, Semaphore};
use wasmtime::component::{Component, Linker as ComponentLinker};
use wasmtime::{InstancePre, Linker, Module, ResourcesRequired};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi::p3::bindings::CommandPre as AsyncCommandPre;
use wasmtime_wasi_http::p2::bindings::ProxyPre;

use crate::code_store::{BinaryKind, CodeStore, SealedCode};
use crate::compiler::{CompileJob, compile};
use crate::engine::{self, Concurrency};
use crate::host::{ComponentHost, CoreHost};
use crate::interfaces::{
    Exports, imports_keyvalue, missing_component_imports, missing_core_imports,
};
use crate::outcome::Refusal;
use crate::rig::Rig;
use crate::{checkpoint, keyvalue, logging, sockets};

/// Programs that are kept ready, besides those that run.
const READY_PROGRAMS_MAX: usize = 64;
/// Compilers at a time, for one shim. Each uses every core for itself.
const COMPILERS_MAX: usize = 1;

/// A program, type-checked and linked.
pub(crate) enum Program {
    /// A core module with `_start`.
    Core(InstancePre<CoreHost>),
    /// A `wasi:cli/command` component of WASI 0.2.
    Command(CommandPre<ComponentHost>),
    /// A `wasi:cli/command` component of WASI 0.3.
    AsyncCommand(AsyncCommandPre<ComponentHost>),
    /// A `wasi:http/proxy` component.
    Http(ProxyPre<ComponentHost>),
}

/// A program and what it needs at least.
pub(crate) struct Ready {
    pub(crate) program: Program,
    /// Where its guests run.
    pub(crate) rig: Rig,
    /// It imports `wasi:keyvalue`.
    uses_keyvalue: bool,
    /// The largest of its memories when it starts, in bytes.
    memory_min: u64,
}

/// All programs of a shim.
pub(crate) struct Programs {
    core: Linker<CoreHost>,
    plain: Side,
    /// Made when a program needs it first.
    concurrent: OnceCell<Side>,
    concurrent_store: CodeStore,
    cache: PathBuf,
    compilers: Semaphore,
    ready: Mutex<LeastRecentlyUsed>,
}

/// What there is of each engine.
struct Side {
    rig: Rig,
    store: CodeStore,
    linker: ComponentLinker<ComponentHost>,
}

impl Side {
    fn new(concurrency: Concurrency, cache: &Path) -> anyhow::Result<Self> {
        let rig = Rig::new(concurrency)?;
        let store = CodeStore::open(cache, &engine::compatibility(&rig.engine))?;
        let mut linker = ComponentLinker::new(&rig.engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
        wasmtime_wasi_config::add_to_linker(&mut linker, ComponentHost::config)?;
        keyvalue::add_to_linker(&mut linker)?;
        logging::add_to_linker(&mut linker)?;
        checkpoint::add_to_linker(&mut linker)?;
        sockets::add_to_linker(&mut linker)?;
        if concurrency == Concurrency::On {
            wasmtime_wasi::p3::add_to_linker(&mut linker)?;
            wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
            sockets::add_async_to_linker(&mut linker)?;
        }
        Ok(Self { rig, store, linker })
    }
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
    pub(crate) fn new(cache: PathBuf) -> anyhow::Result<Self> {
        let plain = Side::new(Concurrency::Off, &cache)?;
        let mut core = Linker::new(&plain.rig.engine);
        wasmtime_wasi::p1::add_to_linker_async(&mut core, |host: &mut CoreHost| &mut host.wasi)?;
        // The library's own makes a trap of every code above 125, of `exit(-1)` for one.
        core.allow_shadowing(true);
        core.func_wrap("wasi_snapshot_preview1", "proc_exit", proc_exit)?;
        core.allow_shadowing(false);
        let concurrent = engine::compatibility(&engine::for_compiling(Concurrency::On)?);
        let concurrent_store = CodeStore::open(&cache, &concurrent)?;
        Ok(Self {
            core,
            plain,
            concurrent: OnceCell::new(),
            concurrent_store,
            cache,
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
        if let Some(ready) = self.find(&wasm.digest).await? {
            return Ok(ready);
        }
        let _permit = self.compilers.acquire().await;
        // Another shim may have been faster while this one waited.
        if let Some(ready) = self.find(&wasm.digest).await? {
            return Ok(ready);
        }
        let job = CompileJob {
            module: wasm.module.clone(),
            digest: wasm.digest.clone(),
            cache: self.cache.clone(),
        };
        compile(&job).await?;
        self.find(&wasm.digest).await?.ok_or_else(|| {
            let cache = self.cache.display();
            let message = format!("compiled code was removed from {cache} at once");
            Refusal::new(Reason::CreateFailed, message)
        })
    }

    /// The program, if it was compiled for either engine.
    async fn find(&self, digest: &Digest) -> Result<Option<Arc<Ready>>, Refusal> {
        if let Some(code) = self.fetch(&self.plain.store, digest).await? {
            return self.link(&self.plain, code).map(Arc::new).map(Some);
        }
        let Some(code) = self.fetch(&self.concurrent_store, digest).await? else {
            return Ok(None);
        };
        let side = self.concurrent.get_or_try_init(async || {
            Side::new(Concurrency::On, &self.cache).map_err(|error| {
                Refusal::new(Reason::CreateFailed, format!("no room for WASI 0.3: {error:#}"))
            })
        });
        self.link(side.await?, code).map(Arc::new).map(Some)
    }

    async fn fetch(
        &self,
        store: &CodeStore,
        digest: &Digest,
    ) -> Result<Option<SealedCode>, Refusal> {
        let (store, digest) = (store.clone(), digest.clone());
        let fetched = tokio::task::spawn_blocking(move || store.fetch(&digest)).await;
        fetched.map_err(std::io::Error::other).flatten().map_err(|error| {
            let message =
                format!("compiled code in {} can't be read: {error}", self.cache.display());
            Refusal::new(Reason::CreateFailed, message)
        })
    }

    fn link(&self, side: &Side, code: SealedCode) -> Result<Ready, Refusal> {
        match code.kind {
            BinaryKind::Module => self.link_module(side, &side.map_module(code)?),
            BinaryKind::Component => side.link_component(&side.map_component(&code)?),
        }
    }

    fn link_module(&self, side: &Side, module: &Module) -> Result<Ready, Refusal> {
        if module.get_export("_start").is_none() {
            return Err(Refusal::new(
                Reason::InvalidArtifact,
                "the module exports no `_start`: it is a library (a reactor), not a program. Build it as a \
                 command (in Rust a binary crate, in C without -mexec-model=reactor)",
            ));
        }
        let pre = self.core.instantiate_pre(module).map_err(|error| {
            missing_core_imports(&side.rig.engine, &self.core, module)
                .unwrap_or_else(|| unlinkable(&error))
        })?;
        let memory_min = memory_min(&module.resources_required());
        let rig = side.rig.clone();
        Ok(Ready { program: Program::Core(pre), rig, uses_keyvalue: false, memory_min })
    }
}

impl Side {
    fn map_module(&self, code: SealedCode) -> Result<Module, Refusal> {
        #[expect(unsafe_code, reason = "mapping compiled code")]
        // SAFETY: the file was made by our compiler process from this engine's settings (its directory is named
        // after them), its sum was compared with the seal through this very descriptor, and nobody but us can
        // write to the directory; published files are never modified.
        let module = unsafe { Module::deserialize_open_file(&self.rig.engine, code.file) };
        module.map_err(|error| unusable_code(&error))
    }

    fn map_component(&self, code: &SealedCode) -> Result<Component, Refusal> {
        let path = format!("/proc/self/fd/{}", code.file.as_raw_fd());
        #[expect(unsafe_code, reason = "mapping compiled code")]
        // SAFETY: as for modules; the path leads to the descriptor that was checked, whatever the directory holds.
        let component = unsafe { Component::deserialize_file(&self.rig.engine, path) };
        component.map_err(|error| unusable_code(&error))
    }

    fn link_component(&self, component: &Component) -> Result<Ready, Refusal> {
        let engine = &self.rig.engine;
        let exports = Exports::of(engine, component);
        exports.check()?;
        let pre = self.linker.instantiate_pre(component).map_err(|error| {
            missing_component_imports(engine, component).unwrap_or_else(|| unlinkable(&error))
        })?;
        let program = if exports.has_http {
            ProxyPre::new(pre).map(Program::Http)
        } else if exports.has_async_command {
            AsyncCommandPre::new(pre).map(Program::AsyncCommand)
        } else {
            CommandPre::new(pre).map(Program::Command)
        };
        let program = program.map_err(|error| unlinkable(&error))?;
        let memory_min = component.resources_required().as_ref().map_or(0, memory_min);
        let uses_keyvalue = imports_keyvalue(engine, component);
        Ok(Ready { program, rig: self.rig.clone(), uses_keyvalue, memory_min })
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
            _ if self.uses_keyvalue && wasm.world.keyvalue.is_none() => Err(Refusal::new(
                Reason::ImportNotGranted,
                "it imports wasi:keyvalue, and the unit grants no bucket: add those that it opens to the unit's \
                 `keyvalue`, such as `keyvalue: [default]`",
            )),
            (Program::Core(_) | Program::Command(_) | Program::AsyncCommand(_), Some(_)) => {
                Err(Refusal::new(
                    Reason::InvalidArtifact,
                    "`http` was asked for, but the program does not export wasi:http/incoming-handler: leave `http` \
                 out, or build a wasi:http/proxy component",
                ))
            }
            _ if self.memory_min.saturating_add(GUEST_BYTES) > memory_limit => {
                let (begins, limit) = (Bytes(self.memory_min), Bytes(memory_limit));
                let message = Misfit::Memory { begins, limit }.to_string();
                Err(Refusal::new(Reason::LimitTooSmall, message))
            }
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
