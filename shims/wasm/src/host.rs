//! What a guest finds of its host: exactly what its task was granted.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use brig_api::lifecycle::Reason;
use brig_api::logline::Stream;
use brig_api::unit_spec::Clocks;
use brig_shim::message::{BindMount, StartTask, StartWasm};
use wasmtime::component::ResourceTable;
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_config::{WasiConfig, WasiConfigVariables};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::checkpoint::TaskCheckpoint;
use crate::clock::CoarseClock;
use crate::hosts::AllowedHosts;
use crate::input::{Input, Reader};
use crate::keyvalue;
use crate::memory::{MemoryAccount, MemoryExceeded, MemoryLimiter};
use crate::outcome::{Refusal, refusal};
use crate::outgoing::Outgoing;
use crate::output::{LogStream, TaskLog};
use crate::sockets::{HasSockets, Sockets};

/// Most random bytes that a guest gets in one call.
const RANDOM_BYTES_MAX: u64 = 1 << 20;
/// Most open handles of a guest: files, streams, requests; natively a process has 1,024. What is behind them is
/// in the shim's memory and not in the guest's, up to 128 KiB for one set of http fields.
pub(crate) const HANDLES_MAX: usize = 2_000;

/// What a task was granted.
pub(crate) struct Grants {
    args: Vec<String>,
    env: Vec<(String, String)>,
    /// Each with the directory that was handed over for it.
    mounts: Vec<(BindMount, OwnedFd)>,
    input: Option<Arc<Input>>,
    log: Arc<TaskLog>,
    outgoing: Outgoing,
    sockets: Arc<Sockets>,
    config: Arc<WasiConfigVariables>,
    keyvalue: Option<Arc<keyvalue::Granted>>,
    checkpoint: Arc<TaskCheckpoint>,
    clocks: Clocks,
}

impl Grants {
    /// Those of a start request.
    pub(crate) fn new(
        start: &StartTask,
        wasm: &StartWasm,
        directories: Vec<OwnedFd>,
        log: &Arc<TaskLog>,
        input: Option<&Arc<Input>>,
        stores: &keyvalue::Stores,
        checkpoint: &Arc<TaskCheckpoint>,
    ) -> Self {
        let allowed = Arc::new(AllowedHosts::new(&wasm.allow_hosts));
        Self {
            args: wasm.args.clone(),
            env: start.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            mounts: start.mounts.iter().cloned().zip(directories).collect(),
            input: input.map(Arc::clone),
            log: Arc::clone(log),
            outgoing: Outgoing::new(&allowed, log),
            sockets: Sockets::new(&allowed, &wasm.world.ports, log),
            config: Arc::new(wasm.world.config.clone().into_iter().collect()),
            keyvalue: wasm.world.keyvalue.as_ref().map(|granted| stores.grant(granted, log)),
            checkpoint: Arc::clone(checkpoint),
            clocks: wasm.world.clocks,
        }
    }

    /// The host of a new core guest.
    pub(crate) fn core_host(&self, memory: &Arc<MemoryAccount>) -> Result<CoreHost, Refusal> {
        let mut wasi = self.wasi()?.build_p1();
        wasi.ctx().table.set_max_capacity(HANDLES_MAX);
        Ok(CoreHost { wasi, limiter: MemoryLimiter::new(memory).map_err(no_memory)? })
    }

    /// The host of a new component guest.
    pub(crate) fn component_host(
        &self,
        memory: &Arc<MemoryAccount>,
    ) -> Result<ComponentHost, Refusal> {
        let mut table = ResourceTable::new();
        table.set_max_capacity(HANDLES_MAX);
        Ok(ComponentHost {
            wasi: self.wasi()?.build(),
            http: WasiHttpCtx::new(),
            table,
            outgoing: self.outgoing.clone(),
            sockets: Arc::clone(&self.sockets),
            config: Arc::clone(&self.config),
            keyvalue: self.keyvalue.clone(),
            checkpoint: Arc::clone(&self.checkpoint),
            log: Arc::clone(&self.log),
            limiter: MemoryLimiter::new(memory).map_err(no_memory)?,
        })
    }

    /// Everything that is not granted here stays as it is: closed, empty or denied.
    fn wasi(&self) -> Result<WasiCtxBuilder, Refusal> {
        let mut wasi = WasiCtxBuilder::new();
        wasi.args(&self.args)
            .envs(&self.env)
            .stdout(LogStream::new(&self.log, Stream::Stdout))
            .stderr(LogStream::new(&self.log, Stream::Stderr))
            .max_random_size(RANDOM_BYTES_MAX);
        if let Some(input) = &self.input {
            wasi.stdin(Reader(Arc::clone(input)));
        }
        self.sockets.grant(&mut wasi);
        if self.clocks == Clocks::Coarse {
            wasi.wall_clock(CoarseClock).monotonic_clock(CoarseClock);
        }
        for (mount, directory) in &self.mounts {
            let perms = if mount.read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite };
            // The descriptor that was handed over: the path of its source leads nowhere here.
            let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
            wasi.preopened_dir(path, &mount.at, perms).map_err(|error| {
                let message = format!(
                    "{} can't be mounted at {}: {error:#}",
                    mount.source.display(),
                    mount.at
                );
                refusal(Reason::MountRefused, message)
            })?;
        }
        Ok(wasi)
    }
}

/// Not even a guest without any memory of its own has room.
fn no_memory(exceeded: MemoryExceeded) -> Refusal {
    let message = format!("it can't start within its memory limit: {exceeded}");
    refusal(Reason::LimitTooSmall, message)
}

/// The host of a core module.
pub(crate) struct CoreHost {
    pub(crate) wasi: WasiP1Ctx,
    pub(crate) limiter: MemoryLimiter,
}

impl CoreHost {
    /// One that grants nothing, to ask a linker what it has.
    pub(crate) fn empty() -> Self {
        Self {
            wasi: WasiCtxBuilder::new().build_p1(),
            limiter: MemoryLimiter::of_nobody(&MemoryAccount::new(0)),
        }
    }
}

/// The host of a component.
pub(crate) struct ComponentHost {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    table: ResourceTable,
    outgoing: Outgoing,
    sockets: Arc<Sockets>,
    config: Arc<WasiConfigVariables>,
    keyvalue: Option<Arc<keyvalue::Granted>>,
    checkpoint: Arc<TaskCheckpoint>,
    log: Arc<TaskLog>,
    pub(crate) limiter: MemoryLimiter,
}

impl ComponentHost {
    /// What the guest is configured with.
    pub(crate) fn config(&mut self) -> WasiConfig<'_> {
        WasiConfig::new(&self.config)
    }

    /// What the guest may keep.
    pub(crate) fn keyvalue(&self) -> Option<&keyvalue::Granted> {
        self.keyvalue.as_deref()
    }

    /// Where the guest's task keeps where it is.
    pub(crate) fn checkpoint(&self) -> &Arc<TaskCheckpoint> {
        &self.checkpoint
    }

    /// Appends lines to the log, as if the guest had written them to standard error.
    pub(crate) fn write_to_log(&self, lines: &[u8]) {
        self.log.write(Stream::Stderr, lines);
    }
}

impl HasSockets for ComponentHost {
    fn granted_sockets(&self) -> &Arc<Sockets> {
        &self.sockets
    }
}

impl WasiView for ComponentHost {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for ComponentHost {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.outgoing }
    }
}
