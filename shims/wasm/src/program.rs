//! Programs ready to run: linked against what the host offers, kept in memory by digest.

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use brig_api::lifecycle::Reason;
use brig_api::unit_spec::Isolation;
use brig_api::wasm::{GUEST_BYTES, Misfit};
use brig_api::{Bytes, Digest};
use brig_shim::message::StartWasm;
use tokio::sync::OnceCell;
use wasmtime::component::{Component, Linker as ComponentLinker};
use wasmtime::{InstancePre, Linker, Module, ResourcesRequired};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi::p3::bindings::CommandPre as AsyncCommandPre;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p3::bindings::ServicePre;

use crate::code_store::{BinaryKind, CodeStore, SealedCode};
use crate::engine::{self, Concurrency, Settings};
use crate::host::{ComponentHost, CoreHost};
use crate::http_handler::HandlerPre;
use crate::interfaces::{
    Exports, imports_keyvalue, missing_component_imports, missing_core_imports,
};
use crate::outcome::{Refusal, refusal};
use crate::rig::Rig;
use crate::{checkpoint, keyvalue, logging, sockets};

/// Programs that are kept ready, besides those that run.
const READY_PROGRAMS_MAX: usize = 64;

/// A program, type-checked and linked.
pub(crate) enum Program {
    /// A core module with `_start`.
    Core(InstancePre<CoreHost>),
    /// A `wasi:cli/command` component of WASI 0.2.
    Command(CommandPre<ComponentHost>),
    /// A `wasi:cli/command` component of WASI 0.3.
    AsyncCommand(AsyncCommandPre<ComponentHost>),
    /// A `wasi:http/proxy` component of WASI 0.2, or a `wasi:http/service` of 0.3.
    Http(Arc<HandlerPre>),
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
    isolation: Isolation,
    ready: Mutex<LeastRecentlyUsed>,
}

/// What there is of each engine.
struct Side {
    rig: Rig,
    store: CodeStore,
    linker: ComponentLinker<ComponentHost>,
}

impl Side {
    fn new(settings: Settings, store: CodeStore) -> anyhow::Result<Self> {
        let rig = Rig::new(settings)?;
        let mut linker = ComponentLinker::new(&rig.engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
        wasmtime_wasi_config::add_to_linker(&mut linker, ComponentHost::config)?;
        keyvalue::add_to_linker(&mut linker)?;
        logging::add_to_linker(&mut linker)?;
        checkpoint::add_to_linker(&mut linker)?;
        sockets::add_to_linker(&mut linker)?;
        if settings.concurrency == Concurrency::On {
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
    /// No program is ready yet; compiled code is in `cache`.
    pub(crate) fn new(cache: &Path, isolation: Isolation) -> anyhow::Result<Self> {
        let with = |concurrency| Settings { concurrency, isolation };
        let store = |concurrency| {
            let engine = engine::for_compiling(with(concurrency)).map_err(anyhow::Error::from)?;
            anyhow::Ok(CodeStore::of(cache, &engine::compatibility(&engine)))
        };
        let plain = Side::new(with(Concurrency::Off), store(Concurrency::Off)?)?;
        let mut core = Linker::new(&plain.rig.engine);
        wasmtime_wasi::p1::add_to_linker_async(&mut core, |host: &mut CoreHost| &mut host.wasi)?;
        // The library's own makes a trap of every code above 125, of `exit(-1)` for one.
        core.allow_shadowing(true);
        core.func_wrap("wasi_snapshot_preview1", "proc_exit", proc_exit)?;
        core.allow_shadowing(false);
        Ok(Self {
            core,
            plain,
            concurrent: OnceCell::new(),
            concurrent_store: store(Concurrency::On)?,
            isolation,
            ready: Mutex::default(),
        })
    }

    /// The program of a task: from memory, or its compiled code is mapped now.
    pub(crate) async fn get(&self, wasm: &StartWasm) -> Result<Arc<Ready>, Refusal> {
        let slot = self.ready.lock().unwrap_or_else(PoisonError::into_inner).slot(&wasm.digest);
        slot.get_or_try_init(|| self.load(wasm)).await.map(Arc::clone)
    }

    async fn load(&self, wasm: &StartWasm) -> Result<Arc<Ready>, Refusal> {
        let StartWasm { digest, compatibility, .. } = wasm;
        let side = if *compatibility == self.plain.store.compatibility {
            &self.plain
        } else if *compatibility == self.concurrent_store.compatibility {
            self.concurrent.get_or_try_init(async || self.concurrent()).await?
        } else {
            let message = format!(
                "it was compiled for another version of the shim ({compatibility}): it is started in a new one once \
                 the tasks of this one have ended"
            );
            return Err(refusal(Reason::CreateFailed, message));
        };
        let code = side.store.open_code(digest).map_err(|error| {
            refusal(Reason::CreateFailed, format!("its compiled code can't be read: {error}"))
        })?;
        self.link(side, code).map(Arc::new)
    }

    fn concurrent(&self) -> Result<Side, Refusal> {
        let settings = Settings { concurrency: Concurrency::On, isolation: self.isolation };
        Side::new(settings, self.concurrent_store.clone()).map_err(|error| {
            refusal(Reason::CreateFailed, format!("no room for WASI 0.3: {error:#}"))
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
            return Err(refusal(
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
        // SAFETY: the file was made by our compiler process, or that of a node of the cluster, from this engine's settings
        // (its directory is named after them); `brig-shim-wasm compile` has compared its sum with the seal before the agent
        // named it to us; nobody but the agent can write to the directory, and published files are never modified.
        let module = unsafe { Module::deserialize_open_file(&self.rig.engine, code.file) };
        module.map_err(|error| unusable_code(&error))
    }

    fn map_component(&self, code: &SealedCode) -> Result<Component, Refusal> {
        let path = format!("/proc/self/fd/{}", code.file.as_raw_fd());
        #[expect(unsafe_code, reason = "mapping compiled code")]
        // SAFETY: as for modules; the path leads to the descriptor that was opened, whatever the directory holds meanwhile.
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
            ProxyPre::new(pre).map(|pre| Program::Http(Arc::new(HandlerPre::Proxy(pre))))
        } else if exports.has_async_http {
            ServicePre::new(pre).map(|pre| Program::Http(Arc::new(HandlerPre::Service(pre))))
        } else if exports.has_async_command {
            // Before the one of 0.2, which is a stub where both are there.
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
            (Program::Http(_), None) => Err(refusal(
                Reason::InvalidArtifact,
                "the component is an http service (it exports a handler of wasi:http): ask for `http` in \
                 its spec, or deploy it with --http",
            )),
            _ if self.uses_keyvalue && wasm.world.keyvalue.is_none() => Err(refusal(
                Reason::ImportNotGranted,
                "it imports wasi:keyvalue, and the unit grants no bucket: add those that it opens to the unit's \
                 `keyvalue`, such as `keyvalue: [default]`",
            )),
            (Program::Core(_) | Program::Command(_) | Program::AsyncCommand(_), Some(_)) => {
                Err(refusal(
                    Reason::InvalidArtifact,
                    "`http` was asked for, but the program does not export wasi:http/incoming-handler or \
                     wasi:http/handler: leave `http` out, or build a component that does",
                ))
            }
            _ if self.memory_min.saturating_add(GUEST_BYTES) > memory_limit => {
                let (begins, limit) = (Bytes(self.memory_min), Bytes(memory_limit));
                let message = Misfit::Memory { begins, limit }.to_string();
                Err(refusal(Reason::LimitTooSmall, message))
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
    refusal(Reason::CreateFailed, format!("compiled code can't be mapped: {error:#}"))
}

fn unlinkable(error: &wasmtime::Error) -> Refusal {
    refusal(Reason::ImportNotGranted, format!("the program can't be linked: {error:#}"))
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
