//! A wasm shim with nobody around it: what its units cost is what it costs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use brig_api::unit_spec::Isolation;
use brig_api::usage::Usage;
use brig_api::{Digest, NamespacePath};
use brig_shim::client::{Connected, ShimClient, connect};
use brig_shim::code::CompileAnswer;
use brig_shim::exit::ExitRecord;
use brig_shim::handover;
use brig_shim::message::{
    FromShim, HttpLimits, Limits, LogTarget, Reply, Request, SOCKET_NAME, StartProgram, StartTask,
    StartWasm, StopSignal, TaskKey, WasmWorld,
};
use sha2::Digest as _;
use tempfile::TempDir;
use tokio::sync::mpsc;

/// Memory that a unit may have.
const MEMORY_BYTES: u64 = 64 << 20;

/// A shim and a connection to it. Dropped, it is killed.
#[derive(Debug)]
pub struct Shim {
    child: Child,
    dir: TempDir,
    client: ShimClient,
    events: mpsc::Receiver<FromShim>,
}

impl Shim {
    /// Starts a shim as an agent does; `cache` is for compiled code.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn start(bin: &Path, cache: &Path, isolation: Isolation) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let listener = UnixListener::bind(dir.path().join(SOCKET_NAME))?;
        let child = Command::new(bin.join("brig-shim-wasm"))
            .arg("--dir")
            .arg(dir.path())
            .arg("--cache")
            .arg(cache)
            .args(["--isolation", isolation.as_str()])
            .env("RUST_LOG", "warn")
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stderr(Stdio::null())
            .spawn()
            .context("brig-shim-wasm can't be started")?;
        let Connected { client, events, .. } = connect(dir.path()).await?;
        Ok(Self { child, dir, client, events })
    }

    /// Its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// A program as units run it: without arguments, variables and grants.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn program(
        bin: &Path,
        cache: &Path,
        module: &Path,
        isolation: Isolation,
    ) -> Result<StartWasm> {
        let bytes = std::fs::read(module).with_context(|| module.display().to_string())?;
        let digest = Digest::of_sha256(&sha2::Sha256::digest(bytes).into());
        Ok(StartWasm {
            compatibility: compile(bin, cache, module, &digest, isolation)?,
            digest,
            isolation,
            args: vec!["bench".to_owned()],
            http: None,
            http_limits: HttpLimits::default(),
            allow_hosts: Vec::new(),
            deadline_ms: None,
            world: WasmWorld::default(),
        })
    }

    /// Starts a task and waits until it runs; where its http server listens.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn run(
        &mut self,
        name: &str,
        program: StartWasm,
        cpu_request_milli: u64,
        cpu_limit_milli: u64,
    ) -> Result<Option<SocketAddr>> {
        let dir = self.dir.path().join(name);
        std::fs::create_dir(&dir)?;
        let key = TaskKey(name.to_owned());
        let start = StartTask {
            key: key.clone(),
            namespace: NamespacePath::default_namespace(),
            title: format!("bench/{name}"),
            log: LogTarget { path: dir.join("main.log"), bytes_max: 1 << 20, files_kept: 1 },
            dir,
            env: BTreeMap::new(),
            limits: Limits {
                cpu_request_milli,
                cpu_limit_milli,
                memory_bytes: MEMORY_BYTES,
                pids: 1,
            },
            mounts: Vec::new(),
            stdin: false,
            program: StartProgram::Wasm(program),
        };
        let handed_over = handover::open(&start, self.client.owners())?;
        self.client.start(start, handed_over).await?;
        loop {
            match self.events.recv().await.context("the shim has ended")? {
                FromShim::Running { task, http } if task == key => return Ok(http),
                FromShim::Exited { task, record } if task == key => bail!("{name}: {record:?}"),
                _ => {}
            }
        }
    }

    /// Waits until a task has ended by itself; how.
    ///
    /// # Errors
    /// When the shim has ended.
    pub async fn finished(&mut self, name: &str) -> Result<ExitRecord> {
        loop {
            match self.events.recv().await.context("the shim has ended")? {
                FromShim::Exited { task, record } if task.0 == name => return Ok(record),
                _ => {}
            }
        }
    }

    /// What a task has used.
    ///
    /// # Errors
    /// When the shim has ended.
    pub async fn usage(&self, name: &str) -> Result<Usage> {
        match self.client.request(Request::Usage { after: None }).await? {
            Reply::Usage { tasks } => {
                let found = tasks.into_iter().find(|(key, _)| key.0 == name);
                Ok(found.with_context(|| format!("{name} is not there"))?.1.used)
            }
            other => bail!("expected the usage of {name}, got {other:?}"),
        }
    }

    /// Ends a task and has it forgotten.
    ///
    /// # Errors
    /// When the shim has ended.
    pub async fn end(&mut self, name: &str) -> Result<()> {
        let task = TaskKey(name.to_owned());
        let how = StopSignal::Kill;
        self.client.request(Request::Stop { task: task.clone(), how }).await?;
        loop {
            let event = self.events.recv().await.context("the shim has ended")?;
            if matches!(event, FromShim::Exited { task: ended, .. } if ended == task) {
                break;
            }
        }
        let reply = self.client.request(Request::Remove { task }).await?;
        ensure!(reply == Reply::Done, "{name} was not removed: {reply:?}");
        Ok(std::fs::remove_dir_all(self.dir.path().join(name))?)
    }
}

/// Has a program compiled, as an agent does; what for.
fn compile(
    bin: &Path,
    cache: &Path,
    module: &Path,
    digest: &Digest,
    isolation: Isolation,
) -> Result<String> {
    let mut command = Command::new(bin.join("brig-shim-wasm"));
    command.arg("compile").arg("--module").arg(module).args(["--digest", digest.as_str()]);
    command.args(["--isolation", isolation.as_str()]);
    let output = command.arg("--cache").arg(cache).output()?;
    let answer: CompileAnswer = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok(answer?.compatibility)
}

impl Drop for Shim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
