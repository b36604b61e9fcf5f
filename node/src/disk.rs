//! The agent's data directory: what is where, and how it is written.
//!
//! ```text
//! DATA/lock                       held by the agent that runs
//! DATA/units/ID/assignment.json   what to run, without the texts of secrets
//! DATA/units/ID/state.json        see crate::record
//! DATA/units/ID/logs/TASK.log     and TASK.log.1 …, of containers
//! DATA/units/ID/mounts/…          files of configs
//! DATA/tasks/KEY/                 of one run of a container, its shim's until it was removed
//! DATA/scratch/KEY/               the writable layer of a container
//! DATA/namespaces/NAMESPACE/      all that the wasm shim of a namespace can write; slashes of the namespace are dots
//!   tasks/KEY/                    of one run of a wasm task, the shim's until it was removed
//!   logs/ID/TASK.log              and TASK.log.1 …, of wasm tasks
//!   keyvalue/                     what wasm programs keep by wasi:keyvalue
//! DATA/shims/wasm/NAMESPACE/      the socket and the log of a shim
//! DATA/shims/wasm-unit/NAMESPACE/KEY/  of one that has a single task
//! DATA/shims/oci/KEY/             of that of a container
//! DATA/wasm-cache/                compiled modules
//! DATA/artifacts/                 what was fetched
//! ```
//!
//! What a wasm shim can write may be anything, should a guest ever have got out of its sandbox into the shim: links, pipes,
//! files without end. It is read with [`brig_shim::file`], and nobody but that shim writes there.
//!
//! Files are replaced by rename. That alone survives a killed agent: what a process wrote is there for the next.
//! Only the record of an exit is also flushed to the disk ([`Disk::write_record`]): after it the shim's own record
//! is removed, and if the machine lost power then, nobody would know how the task ended.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use brig_api::session::{Assignment, Texts};
use brig_api::unit_spec::{Runtime, Task};
use brig_api::{NamespacePath, UnitId};
use brig_shim::message::{LogTarget, TaskKey};
use brig_shim::tree;
use rustix::fs::FlockOperation;

use crate::record::UnitRecord;
use crate::shims::ShimId;

/// A log file larger than this is rotated.
pub const LOG_BYTES_MAX: u64 = 8 << 20;
/// Rotated log files kept beside the newest: so a task's logs take at most 32 MiB.
pub const LOG_FILES_KEPT: u32 = 3;
/// Largest file of the agent's own that is read back.
const STATE_BYTES_MAX: u64 = 64 << 20;
/// The magic number of a tmpfs, from statfs(2).
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// The data directory.
#[derive(Debug)]
pub struct Disk {
    root: PathBuf,
    secrets: PathBuf,
}

/// As long as it is held, no other agent gets the data directory.
#[derive(Debug)]
pub struct Lock {
    _file: OwnedFd,
}

/// Why a data directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another agent has it.
    #[error(
        "another agent uses the data directory `{0}`: end that one, or give this one a directory of its own with --data"
    )]
    InUse(PathBuf),
    /// It can't be read or written.
    #[error("can't use the data directory `{path}`")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A unit as it was found on disk.
#[derive(Debug)]
pub struct Loaded {
    /// What to run.
    pub assignment: Assignment,
    /// Where it is.
    pub record: UnitRecord,
}

impl Disk {
    /// Makes the directory where needed and locks it.
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn open(root: &Path) -> Result<(Self, Lock), OpenError> {
        let failed = |source| OpenError::Io { path: root.to_owned(), source };
        std::fs::create_dir_all(root).map_err(failed)?;
        let root = root.canonicalize().map_err(failed)?;
        let lock = File::options().create(true).append(true).open(root.join("lock"));
        let lock = OwnedFd::from(lock.map_err(failed)?);
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(OpenError::InUse(root)),
            Err(error) => return Err(failed(error.into())),
        }
        for dir in ["units", "tasks", "scratch", "shims", "wasm-cache", "artifacts", "namespaces"] {
            let dir = root.join(dir);
            std::fs::create_dir_all(&dir).map_err(failed)?;
            // Images and containers bring programs that run as their owner, root: on the machine itself nobody but
            // the agent may reach them. Nor what units are told and say.
            std::fs::set_permissions(&dir, Permissions::from_mode(0o700)).map_err(failed)?;
        }
        for dir in ["shims/wasm", "shims/wasm-unit", "shims/oci"] {
            std::fs::create_dir_all(root.join(dir)).map_err(failed)?;
        }
        let secrets = secrets_dir(&root);
        Ok((Self { root, secrets }, Lock { _file: lock }))
    }

    /// The data directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of a unit.
    #[must_use]
    pub fn unit(&self, unit: &UnitId) -> PathBuf {
        self.root.join("units").join(unit.as_str())
    }

    /// Where the logs of a unit's tasks of that runtime are.
    #[must_use]
    pub fn logs(&self, assignment: &Assignment, runtime: Runtime) -> PathBuf {
        match runtime {
            Runtime::Wasm => self.wasm_logs(&assignment.namespace, &assignment.unit),
            Runtime::Oci => self.unit(&assignment.unit).join("logs"),
        }
    }

    /// The directories of all logs of a unit.
    #[must_use]
    pub fn log_dirs(&self, assignment: &Assignment) -> BTreeSet<PathBuf> {
        let tasks = assignment.template.tasks.iter();
        tasks.map(|task| self.logs(assignment, task.program().runtime())).collect()
    }

    fn wasm_logs(&self, namespace: &NamespacePath, unit: &UnitId) -> PathBuf {
        self.namespace(namespace).join("logs").join(unit.as_str())
    }

    /// Where a task's output goes.
    #[must_use]
    pub fn log_target(&self, assignment: &Assignment, task: &Task) -> LogTarget {
        let logs = self.logs(assignment, task.program().runtime());
        LogTarget {
            path: logs.join(format!("{}.log", task.name)),
            bytes_max: LOG_BYTES_MAX,
            files_kept: LOG_FILES_KEPT,
        }
    }

    /// Files of a unit's configs.
    #[must_use]
    pub fn mounts(&self, unit: &UnitId) -> PathBuf {
        self.unit(unit).join("mounts")
    }

    /// Files of a unit's secrets, in memory.
    #[must_use]
    pub fn secrets(&self, unit: &UnitId) -> PathBuf {
        self.secrets.join(unit.as_str())
    }

    /// The directory of one run of a task.
    #[must_use]
    pub fn task(&self, shim: &ShimId, key: &TaskKey) -> PathBuf {
        match shim {
            ShimId::Wasm(namespace) | ShimId::WasmUnit(namespace, _) => {
                self.namespace(namespace).join("tasks").join(&key.0)
            }
            ShimId::Oci(_) => self.root.join("tasks").join(&key.0),
        }
    }

    /// All that the wasm shim of a namespace can write.
    #[must_use]
    pub fn namespace(&self, namespace: &NamespacePath) -> PathBuf {
        self.root.join("namespaces").join(folder_name(namespace))
    }

    /// Makes the folders that the wasm shim of a namespace can write in.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub fn make_namespace(&self, namespace: &NamespacePath) -> io::Result<[PathBuf; 3]> {
        let folder = self.namespace(namespace);
        let folders = ["tasks", "logs", "keyvalue"].map(|name| folder.join(name));
        for folder in &folders {
            std::fs::create_dir_all(folder)?;
        }
        Ok(folders)
    }

    /// The writable layer of a container.
    #[must_use]
    pub fn scratch(&self, key: &TaskKey) -> PathBuf {
        self.root.join("scratch").join(&key.0)
    }

    /// Compiled modules.
    #[must_use]
    pub fn wasm_cache(&self) -> PathBuf {
        self.root.join("wasm-cache")
    }

    /// What wasm programs of a namespace keep by `wasi:keyvalue`.
    #[must_use]
    pub fn keyvalue(&self, namespace: &NamespacePath) -> PathBuf {
        self.namespace(namespace).join("keyvalue/entries.db")
    }

    /// A shim's directory.
    #[must_use]
    pub fn shim(&self, shim: &ShimId) -> PathBuf {
        match shim {
            ShimId::Wasm(namespace) => self.root.join("shims/wasm").join(folder_name(namespace)),
            ShimId::WasmUnit(namespace, key) => {
                self.root.join("shims/wasm-unit").join(folder_name(namespace)).join(&key.0)
            }
            ShimId::Oci(key) => self.root.join("shims/oci").join(&key.0),
        }
    }

    /// Every shim that has a directory.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub fn shims(&self) -> io::Result<Vec<ShimId>> {
        let wasm = names(&self.root.join("shims/wasm"))?
            .into_iter()
            .filter_map(|name| NamespacePath::new(name.replace('.', "/")).ok().map(ShimId::Wasm));
        let oci = names(&self.root.join("shims/oci"))?.into_iter().map(TaskKey).map(ShimId::Oci);
        Ok(wasm.chain(self.unit_shims()?).chain(oci).collect())
    }

    fn unit_shims(&self) -> io::Result<Vec<ShimId>> {
        let mut shims = Vec::new();
        let folder = self.root.join("shims/wasm-unit");
        for name in names(&folder)? {
            let Ok(namespace) = NamespacePath::new(name.replace('.', "/")) else { continue };
            let keys = names(&folder.join(name))?.into_iter().map(TaskKey);
            shims.extend(keys.map(|key| ShimId::WasmUnit(namespace.clone(), key)));
        }
        Ok(shims)
    }

    /// Every run of a task that has a directory, and the shim that it belongs to.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub fn tasks(&self) -> io::Result<BTreeSet<(ShimId, TaskKey)>> {
        let mut tasks = BTreeSet::new();
        for dir in ["tasks", "scratch"] {
            let keys = names(&self.root.join(dir))?.into_iter().map(TaskKey);
            tasks.extend(keys.map(|key| (ShimId::Oci(key.clone()), key)));
        }
        for namespace in self.namespaces()? {
            let shim = ShimId::Wasm(namespace.clone());
            let keys = names_if_there(&self.namespace(&namespace).join("tasks"))?;
            tasks.extend(keys.into_iter().map(|key| (shim.clone(), TaskKey(key))));
        }
        for shim in self.unit_shims()? {
            if let Some(key) = shim.only_task().cloned() {
                tasks.insert((shim, key));
            }
        }
        Ok(tasks)
    }

    fn namespaces(&self) -> io::Result<Vec<NamespacePath>> {
        let names = names(&self.root.join("namespaces"))?;
        Ok(names
            .iter()
            .filter_map(|name| NamespacePath::new(name.replace('.', "/")).ok())
            .collect())
    }

    /// Removes what one run of a task has left.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub fn remove_task(&self, shim: &ShimId, key: &TaskKey) -> io::Result<()> {
        if let ShimId::Oci(_) = shim {
            tree::remove(&self.scratch(key))?;
        }
        if shim.only_task().is_some() {
            tree::remove(&self.shim(shim))?;
        }
        // Last: as long as it is there, the run is known to have been.
        tree::remove(&self.task(shim, key))
    }

    /// Removes everything of a unit.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub fn remove_unit(&self, namespace: &NamespacePath, unit: &UnitId) -> io::Result<()> {
        tree::remove(&self.secrets(unit))?;
        tree::remove(&self.wasm_logs(namespace, unit))?;
        tree::remove(&self.unit(unit))
    }

    /// Removes what is left of a unit whose files do not tell its namespace any more.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub fn remove_damaged(&self, unit: &UnitId) -> io::Result<()> {
        for namespace in self.namespaces()? {
            tree::remove(&self.wasm_logs(&namespace, unit))?;
        }
        tree::remove(&self.secrets(unit))?;
        tree::remove(&self.unit(unit))
    }

    /// Removes the logs of wasm tasks of all units but these.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub fn retain_wasm_logs<'a>(
        &self,
        kept: impl IntoIterator<Item = &'a UnitId>,
    ) -> io::Result<()> {
        let kept: BTreeSet<_> = kept.into_iter().map(UnitId::as_str).collect();
        for namespace in self.namespaces()? {
            let logs = self.namespace(&namespace).join("logs");
            for name in names_if_there(&logs)?.iter().filter(|name| !kept.contains(name.as_str())) {
                tree::remove(&logs.join(name))?;
            }
        }
        Ok(())
    }

    /// Removes the files of secrets of all units but these.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub fn retain_secrets<'a>(&self, kept: impl IntoIterator<Item = &'a UnitId>) -> io::Result<()> {
        let kept: BTreeSet<_> = kept.into_iter().map(UnitId::as_str).collect();
        let there = names_if_there(&self.secrets)?;
        for name in there.iter().filter(|name| !kept.contains(name.as_str())) {
            tree::remove(&self.secrets.join(name))?;
        }
        Ok(())
    }

    /// Writes what a unit is to run. The texts of secrets are left out.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub fn write_assignment(&self, assignment: &Assignment) -> io::Result<()> {
        let dir = self.unit(&assignment.unit);
        std::fs::create_dir_all(&dir)?;
        let texts = Texts { configs: assignment.texts.configs.clone(), secrets: BTreeMap::new() };
        let assignment = Assignment { texts, ..assignment.clone() };
        replace(&dir.join("assignment.json"), &serde_json::to_vec(&assignment)?, false)
    }

    /// Writes where a unit is. With `flush` it is on the disk when this returns: see the module's page.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub fn write_record(&self, unit: &UnitId, record: &UnitRecord, flush: bool) -> io::Result<()> {
        replace(&self.unit(unit).join("state.json"), &serde_json::to_vec(record)?, flush)
    }

    /// Reads every unit. Those whose files are damaged are named only.
    ///
    /// # Errors
    /// Those of reading the directory itself.
    pub fn units(&self) -> io::Result<(Vec<Loaded>, Vec<UnitId>)> {
        let (mut units, mut damaged) = (Vec::new(), Vec::new());
        for name in names(&self.root.join("units"))? {
            let Ok(unit) = UnitId::new(name) else { continue };
            match self.unit_read(&unit) {
                Ok(loaded) if loaded.assignment.unit == unit => units.push(loaded),
                Ok(_) => damaged.push(unit),
                Err(error) => {
                    tracing::warn!(unit.id = %unit, error = %error, "a unit's files are damaged");
                    damaged.push(unit);
                }
            }
        }
        Ok((units, damaged))
    }

    fn unit_read(&self, unit: &UnitId) -> io::Result<Loaded> {
        let dir = self.unit(unit);
        let assignment = serde_json::from_slice(&read(&dir.join("assignment.json"))?)?;
        let record = match read(&dir.join("state.json")) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            // Killed between the first file and the second: nothing was begun.
            Err(error) if error.kind() == io::ErrorKind::NotFound => UnitRecord::assigned(),
            Err(error) => return Err(error),
        };
        Ok(Loaded { assignment, record })
    }
}

/// A namespace as the name of a folder: it has no dots of its own, so that two never share one.
pub(crate) fn folder_name(namespace: &NamespacePath) -> String {
    namespace.as_str().replace('/', ".")
}

/// A directory in memory for the files of secrets, named after the data directory; inside that one where the
/// machine has no such filesystem.
fn secrets_dir(root: &Path) -> PathBuf {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    root.hash(&mut hasher);
    let name = format!("brig-{:016x}", hasher.finish());
    match ["/run", "/dev/shm"].into_iter().find(|path| is_memory(path)) {
        Some(memory) => Path::new(memory).join(name).join("secrets"),
        None => root.join("secrets"),
    }
}

fn is_memory(path: &str) -> bool {
    let is_tmpfs = rustix::fs::statfs(path)
        .is_ok_and(|stat| u64::try_from(stat.f_type).is_ok_and(|kind| kind == TMPFS_MAGIC));
    is_tmpfs && rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    if std::fs::metadata(path)?.len() > STATE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is too large"));
    }
    std::fs::read(path)
}

fn replace(path: &Path, bytes: &[u8], flush: bool) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let file = File::create(&temporary)?;
    io::Write::write_all(&mut &file, bytes)?;
    if flush {
        file.sync_data()?;
    }
    std::fs::rename(&temporary, path)
}

fn names_if_there(dir: &Path) -> io::Result<Vec<String>> {
    match names(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        there => there,
    }
}

fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        // A name that is no UTF-8 is not of the agent's making.
        names.extend(entry?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests;
