//! The agent's shims: one for the wasm of each namespace, one for each container. Connects to those that are
//! there, starts those that are not, and passes on what they say.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use brig_api::NamespacePath;
use brig_api::unit_spec::{Isolation, Program};
use brig_shim::client::{self, ClientError, Connected, ShimClient};
use brig_shim::message::{
    FromShim, Limits, Request, StartProgram, StartTask, StartWasm, TaskKey, TaskView, WasmWorld,
};
use brig_shim::worker::{Libraries, Worker};
use rustix::fs::{MemfdFlags, SealFlags};
use tokio::sync::{OnceCell, Semaphore, mpsc};

use crate::disk::{Disk, folder_name};
use crate::event::Event;

/// Longest wait for the clean-up after a dead shim: it kills a cgroup and unmounts.
const CLEANUP_WAIT: Duration = Duration::from_secs(30);

/// Longest wait for a cgroup's weight to be set.
const WEIGH_WAIT: Duration = Duration::from_secs(10);

/// Longest wait for a program to say what it is run from.
const LIBRARIES_WAIT: Duration = Duration::from_secs(30);
/// Memory of a shim with one task, besides what its program takes.
const SHIM_MEMORY_BYTES: u64 = 64 << 20;
/// Threads of such a shim: those of its event loops, one for each core, and those that wait for disks.
const SHIM_THREADS_MAX: u32 = 512;
/// How often, and after how long, it is tried again to seal a program that is busy.
const SEAL_TRIES_MAX: u32 = 100;
const SEAL_AGAIN: Duration = Duration::from_millis(10);
/// Clean-ups at a time: after a boot there is one for every container that ran.
const CLEANUPS_MAX: usize = 4;
/// Wait before a shim is looked for again, when it can't be said whether it is there.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Which shim.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ShimId {
    /// Runs the wasm of a namespace.
    Wasm(NamespacePath),
    /// Runs one wasm task, which is isolated from the others of its namespace.
    WasmUnit(NamespacePath, TaskKey),
    /// Runs one container.
    Oci(TaskKey),
}

impl ShimId {
    /// The shim of a run of a task.
    pub(crate) fn of(namespace: &NamespacePath, program: &Program, key: &TaskKey) -> Self {
        match program {
            Program::Wasm(wasm) if wasm.isolation == Isolation::Unit => {
                Self::WasmUnit(namespace.clone(), key.clone())
            }
            Program::Wasm(_) => Self::Wasm(namespace.clone()),
            Program::Oci(_) => Self::Oci(key.clone()),
        }
    }

    /// The run that a shim is for, if it is for one alone; such a shim ends with it.
    pub(crate) fn only_task(&self) -> Option<&TaskKey> {
        match self {
            Self::Wasm(_) => None,
            Self::WasmUnit(_, key) | Self::Oci(key) => Some(key),
        }
    }
}

/// What happens at a shim.
#[derive(Debug)]
pub(crate) enum ShimEvent {
    /// A connection was made; the shim has these tasks.
    Connected(Vec<TaskView>),
    /// The shim said something.
    Heard(FromShim),
    /// The connection ended; perhaps the shim too.
    Closed,
    /// The shim is not there any more, and what it left was cleaned up.
    Gone,
}

/// The programs of the shims.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub wasm: PathBuf,
    pub oci: PathBuf,
    /// Wasm shims run in containers, which `oci` looks after.
    pub holds_workers: bool,
}

/// All shims; clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Shims {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    disk: Arc<Disk>,
    programs: Programs,
    sealed_oci: OnceCell<OwnedFd>,
    events: mpsc::Sender<Event>,
    slots: Mutex<HashMap<ShimId, Slot>>,
    cleanups: Semaphore,
    /// One at a time, so that the last that was asked for is the one that stays.
    weighing: tokio::sync::Mutex<()>,
    libraries: OnceCell<Libraries>,
}

/// The connection to one shim. The lock is held while connecting, so that one shim is started once, and until the
/// agent's loop has been told.
type Slot = Arc<tokio::sync::Mutex<Option<ShimClient>>>;

impl Shims {
    pub(crate) fn new(disk: Arc<Disk>, programs: Programs, events: mpsc::Sender<Event>) -> Self {
        let inner = Inner {
            disk,
            programs,
            sealed_oci: OnceCell::new(),
            events,
            slots: Mutex::default(),
            cleanups: Semaphore::new(CLEANUPS_MAX),
            weighing: tokio::sync::Mutex::default(),
            libraries: OnceCell::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The connection to a shim; the shim is started when it is not there.
    pub(crate) async fn client_or_start(
        &self,
        shim: &ShimId,
        start: &StartTask,
    ) -> Result<ShimClient, ClientError> {
        self.client(shim, Some(start)).await
    }

    /// The connection to a shim that is there.
    pub(crate) async fn client_if_there(&self, shim: &ShimId) -> Result<ShimClient, ClientError> {
        self.client(shim, None).await
    }

    /// Is there a connection now?
    pub(crate) async fn is_connected(&self, shim: &ShimId) -> bool {
        self.slot(shim).lock().await.as_ref().is_some_and(|client| !client.is_closed())
    }

    /// Asks a shim that is there to do something about a task. One that is not there has no task.
    pub(crate) async fn ask(&self, shim: &ShimId, request: Request) {
        if let Ok(client) = self.client_if_there(shim).await
            && let Err(error) = client.request(request).await
        {
            tracing::warn!(shim = ?shim, error = %error, "a shim did not do what it was asked");
        }
    }

    /// Tells what became of a shim whose connection ended: [`ShimEvent::Connected`] when it is there after all,
    /// [`ShimEvent::Gone`] when it is not.
    pub(crate) async fn look_after(&self, shim: &ShimId) {
        let slot = self.slot(shim);
        let mut held = slot.lock().await;
        loop {
            match self.connect(shim, &mut held, None).await {
                Ok(_) => return,
                Err(ClientError::Gone(error)) if !is_absence(&error) => {
                    // Of this agent, not of the shim: too many open files, for one.
                    tracing::warn!(shim = ?shim, error = %error, "can't look after a shim now");
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                Err(error) => {
                    tracing::info!(shim = ?shim, error = %error, "a shim is not there");
                    break;
                }
            }
        }
        self.clean_up(shim).await;
        // Told before the slot is free: tasks that another shim in this place is given are none of those lost.
        self.tell(shim, ShimEvent::Gone).await;
    }

    /// Lets a shim forget a task whose exit is recorded. One that has no other ends then; when it is dead already, what
    /// it left is cleaned up: after this its directory goes, and with that all knowledge of its cgroups.
    pub(crate) async fn dismiss(&self, shim: &ShimId, task: TaskKey) {
        let client = self.client_if_there(shim).await;
        if let (Some(_), Err(_)) = (shim.only_task(), &client) {
            self.clean_up(shim).await;
        }
        let Ok(client) = client else { return };
        let mut requests = vec![Request::Remove { task }];
        if shim.only_task().is_some() {
            requests.push(Request::Shutdown);
        }
        for request in requests {
            if let Err(error) = client.request(request).await {
                tracing::warn!(shim = ?shim, error = %error, "a shim did not do what it was asked");
            }
        }
    }

    /// The connection is dropped; the shim's directory is the agent's.
    pub(crate) fn forget(&self, shim: &ShimId) {
        self.lock().remove(shim);
    }

    /// Every shim with a connection or a failed try at one.
    pub(crate) fn known(&self) -> Vec<ShimId> {
        self.lock().keys().cloned().collect()
    }

    /// With `start` the shim is started for that task when it is not there.
    async fn client(
        &self,
        shim: &ShimId,
        start: Option<&StartTask>,
    ) -> Result<ShimClient, ClientError> {
        let slot = self.slot(shim);
        let mut held = slot.lock().await;
        self.connect(shim, &mut held, start).await
    }

    async fn connect(
        &self,
        shim: &ShimId,
        held: &mut Option<ShimClient>,
        start: Option<&StartTask>,
    ) -> Result<ShimClient, ClientError> {
        if let Some(client) = held.as_ref().filter(|client| !client.is_closed()) {
            return Ok(client.clone());
        }
        let dir = self.inner.disk.shim(shim);
        let connected = match client::connect(&dir).await {
            Ok(connected) => connected,
            Err(ClientError::Gone(error)) if start.is_some() && is_absence(&error) => {
                self.start(shim, &dir, start).await?;
                client::connect(&dir).await?
            }
            Err(error) => return Err(error),
        };
        let Connected { client, tasks, events, .. } = connected;
        *held = Some(client.clone());
        // Told while the slot is held: a task that somebody else starts over this connection is not in the list, and
        // must not be looked for in it.
        self.tell(shim, ShimEvent::Connected(tasks)).await;
        self.listen(shim.clone(), events);
        Ok(client)
    }

    fn listen(&self, shim: ShimId, mut events: mpsc::Receiver<FromShim>) {
        let shims = self.clone();
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                shims.tell(&shim, ShimEvent::Heard(event)).await;
                if shims.inner.events.is_closed() {
                    return;
                }
            }
            shims.tell(&shim, ShimEvent::Closed).await;
        });
    }

    async fn tell(&self, shim: &ShimId, event: ShimEvent) {
        // Nobody listens any more: the agent ends.
        let _ = self.inner.events.send(Event::Shim(shim.clone(), event)).await;
    }

    async fn start(&self, shim: &ShimId, dir: &Path, start: Option<&StartTask>) -> io::Result<()> {
        std::fs::create_dir_all(dir)?;
        let programs = &self.inner.programs;
        let (name, outcome) = match shim {
            ShimId::WasmUnit(..) if !programs.holds_workers => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "`isolation: unit` needs a container for the program, and this node has none (its log says why): \
                     place the unit on a node whose attribute `brig.wasm-isolation` is `container`",
                ));
            }
            ShimId::Wasm(_) | ShimId::WasmUnit(..) if programs.holds_workers => {
                self.worker(shim, dir, start).await?.write(dir)?;
                let outcome = match self.sealed_oci().await {
                    Ok(sealed) => client::spawn(&sealed, dir, &[OsStr::new("worker")]),
                    Err(error) => Err(error),
                };
                (&programs.oci, outcome)
            }
            ShimId::Wasm(namespace) | ShimId::WasmUnit(namespace, _) => {
                self.inner.disk.make_namespace(namespace)?;
                let cache = self.inner.disk.wasm_cache();
                let arguments = [OsStr::new("--cache"), cache.as_os_str()];
                (&programs.wasm, client::spawn(&programs.wasm, dir, &arguments))
            }
            ShimId::Oci(_) => match self.sealed_oci().await {
                Ok(sealed) => (&programs.oci, client::spawn(&sealed, dir, &[])),
                Err(error) => (&programs.oci, Err(error)),
            },
        };
        outcome.map_err(|error| {
            io::Error::new(error.kind(), format!("can't start `{}`: {error}", name.display()))
        })
    }

    /// What a wasm shim is in its container: the program with its libraries, the code that was compiled, and its
    /// namespace's own folders; of one for a single task, that task's.
    async fn worker(
        &self,
        shim: &ShimId,
        dir: &Path,
        start: Option<&StartTask>,
    ) -> io::Result<Worker> {
        let Inner { disk, programs, libraries, .. } = &*self.inner;
        let Libraries { loader, files } =
            libraries.get_or_try_init(|| libraries_of(&programs.wasm)).await?;
        let cache = disk.wasm_cache();
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut args = Vec::new();
        if let Some(loader) = loader {
            // By its name: the place where programs look for it is no more than a link, which is not there.
            let folders: Vec<_> =
                files.iter().filter_map(|file| Some(text(file.parent()?))).collect();
            args = vec![text(loader), "--library-path".to_owned(), folders.join(":")];
        }
        args.push(text(&programs.wasm));
        args.extend(["--dir".to_owned(), text(dir), "--cache".to_owned(), text(&cache)]);
        let (namespace, name, writable, limits) = match (shim, start) {
            (ShimId::WasmUnit(namespace, key), Some(start)) => {
                if let StartProgram::Wasm(StartWasm { isolation, .. }) = &start.program {
                    args.extend(["--isolation".to_owned(), isolation.as_str().to_owned()]);
                }
                (namespace, key.0.clone(), own_folders(start)?, Some(with_room(start.limits)))
            }
            (ShimId::WasmUnit(namespace, _) | ShimId::Wasm(namespace), _) => {
                let name = format!("wasm.{}", folder_name(namespace));
                (namespace, name, disk.make_namespace(namespace)?.into(), None)
            }
            (ShimId::Oci(_), _) => return Err(io::ErrorKind::Unsupported.into()),
        };
        let mut readable = vec![programs.wasm.clone(), cache];
        readable.extend(files.iter().cloned());
        Ok(Worker {
            name,
            title: format!("wasm-{}", folder_name(namespace)),
            users: number_of(namespace),
            args,
            readable,
            writable,
            limits,
        })
    }

    async fn clean_up(&self, shim: &ShimId) {
        let dir = self.inner.disk.shim(shim);
        if !dir.exists() {
            return;
        }
        let _turn = self.inner.cleanups.acquire().await;
        let arguments = [OsStr::new("cleanup"), OsStr::new("--dir"), dir.as_os_str()];
        if let Err(error) = self.run_oci(&arguments, CLEANUP_WAIT).await {
            tracing::warn!(shim = ?shim, error = %error, "could not clean up after a dead shim");
        }
    }

    /// Gives shims that have containers their weights, in thousandths of a core.
    pub(crate) async fn weigh(&self, weights: Vec<(ShimId, u64)>) {
        if !self.inner.programs.holds_workers {
            return;
        }
        let _turn = self.inner.weighing.lock().await;
        for (shim, cpu_milli) in weights {
            let (dir, cpu_milli) = (self.inner.disk.shim(&shim), cpu_milli.to_string());
            let arguments =
                ["weigh".as_ref(), "--dir".as_ref(), dir.as_os_str(), cpu_milli.as_ref()];
            if let Err(error) = self.run_oci(&arguments, WEIGH_WAIT).await {
                tracing::warn!(shim = ?shim, error = %error, "could not set the weight of a shim's container");
            }
        }
    }

    /// Runs the container shim's program as a tool.
    async fn run_oci(&self, arguments: &[&OsStr], time_max: Duration) -> io::Result<()> {
        let tool = tokio::process::Command::new(self.sealed_oci().await?)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .status();
        match tokio::time::timeout(time_max, tool).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(io::Error::other(status.to_string())),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// The program of the container shim as a file in memory that nobody can change: a container that finds a way
    /// to its monitor's executable can do no harm to the file on disk, and all monitors share its pages.
    async fn sealed_oci(&self) -> io::Result<PathBuf> {
        let program = self.inner.programs.oci.clone();
        let sealed = self.inner.sealed_oci.get_or_try_init(|| async move {
            tokio::task::spawn_blocking(move || seal(&program)).await.map_err(io::Error::other)?
        });
        Ok(PathBuf::from(format!("/proc/self/fd/{}", sealed.await?.as_raw_fd())))
    }

    fn slot(&self, shim: &ShimId) -> Slot {
        self.lock().entry(shim.clone()).or_default().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ShimId, Slot>> {
        self.inner.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The folders of a task alone; what it keeps is the namespace's.
fn own_folders(start: &StartTask) -> io::Result<Vec<PathBuf>> {
    let mut folders = vec![start.dir.clone()];
    folders.extend(start.log.path.parent().map(Path::to_owned));
    if let StartProgram::Wasm(StartWasm {
        world: WasmWorld { keyvalue: Some(store), .. }, ..
    }) = &start.program
    {
        folders.extend(store.file.parent().map(Path::to_owned));
    }
    for folder in &folders {
        std::fs::create_dir_all(folder)?;
    }
    Ok(folders)
}

/// A task's limits, with room for the shim round it; what the program takes is limited by the shim.
fn with_room(limits: Limits) -> Limits {
    let memory_bytes = limits.memory_bytes.saturating_add(SHIM_MEMORY_BYTES);
    Limits { memory_bytes, pids: SHIM_THREADS_MAX, ..limits }
}

/// Asks a program which files it is run from.
async fn libraries_of(program: &Path) -> io::Result<Libraries> {
    let mut command = tokio::process::Command::new(program);
    command.arg("libraries").stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(LIBRARIES_WAIT, command.output()).await;
    let output = output.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// A number for the users of a namespace's container: few namespaces have the same, and those are kept apart by all else.
fn number_of(namespace: &NamespacePath) -> u32 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    namespace.as_str().hash(&mut hasher);
    u32::try_from(hasher.finish() >> 32).unwrap_or(0)
}

/// Does the error of connecting say that there is no shim? Nobody listens, or who did has died meanwhile. Any other
/// error says nothing about the shim: to take it for dead would be to start a second one beside it.
fn is_absence(error: &io::Error) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionRefused, ConnectionReset, NotADirectory, NotFound, UnexpectedEof,
    };
    matches!(
        error.kind(),
        NotFound | NotADirectory | ConnectionRefused | ConnectionReset | BrokenPipe | UnexpectedEof
    )
}

fn seal(program: &Path) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = File::from(rustix::fs::memfd_create("brig-shim-oci", flags)?);
    // Not by `io::copy`: what the kernel copies for itself may hold on to pages, and then nothing is sealed.
    io::Write::write_all(&mut copy, &std::fs::read(program)?)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    let mut tries = 0;
    loop {
        match rustix::fs::fcntl_add_seals(&copy, seals) {
            // Somebody else does for a moment: whoever makes large pages of small ones, for one.
            Err(rustix::io::Errno::BUSY) if tries < SEAL_TRIES_MAX => {
                tries += 1;
                std::thread::sleep(SEAL_AGAIN);
            }
            outcome => return outcome.map(|()| copy.into()).map_err(io::Error::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_sealed_program_runs_and_can_not_be_changed() {
        let sealed = seal(Path::new("/bin/sh")).unwrap();
        let path = format!("/proc/self/fd/{}", sealed.as_raw_fd());
        let mut command = tokio::process::Command::new(&path);
        let status = command.args(["-c", "exit 7"]).status().await.unwrap();
        assert_eq!(status.code(), Some(7));
        let mut file = File::options().write(true).open(&path).unwrap();
        assert!(io::Write::write_all(&mut file, b"x").is_err());
    }

    #[tokio::test]
    async fn a_shim_that_can_not_be_looked_for_now_is_not_taken_for_dead() {
        let data = tempfile::tempdir().unwrap();
        let (disk, _lock) = Disk::open(data.path()).unwrap();
        let shim = ShimId::Wasm(NamespacePath::default_namespace());
        // A link to itself: an error, and not the one of a place where nobody is.
        let dir = disk.shim(&shim);
        std::os::unix::fs::symlink(&dir, &dir).unwrap();
        let programs = Programs { wasm: "/none".into(), oci: "/none".into(), holds_workers: false };
        let (events, mut heard) = mpsc::channel(8);
        let shims = Shims::new(Arc::new(disk), programs, events);
        let looks = tokio::spawn(async move { shims.look_after(&shim).await });
        let early = tokio::time::timeout(Duration::from_millis(100), heard.recv()).await;
        assert!(early.is_err(), "{early:?}");
        std::fs::remove_file(&dir).unwrap();
        looks.await.unwrap();
        assert!(matches!(heard.recv().await, Some(Event::Shim(_, ShimEvent::Gone))));
    }
}
