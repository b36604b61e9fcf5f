//! What a shim has set up, on disk in its directory, so that `cleanup` can undo it after the shim was killed.

use std::io;
use std::path::{Path, PathBuf};

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

/// The record in the shim's directory.
const RECORD_NAME: &str = "container.json";
/// Largest record that is read back, in bytes.
const RECORD_BYTES_MAX: u64 = 64 << 10;

/// What a shim has set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The name of its cgroups.
    pub(crate) cgroup: String,
    /// Holds the overlay's upper directory.
    pub(crate) scratch: PathBuf,
    /// The container's first process, once there is one.
    pub(crate) init: Option<Process>,
}

/// A process, told apart from a later one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// When it started, in clock ticks since boot.
    pub(crate) start_ticks: u64,
}

impl Record {
    /// Replaces the record.
    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        let new = dir.join("container.json.new");
        std::fs::write(&new, serde_json::to_vec(self)?)?;
        std::fs::rename(new, dir.join(RECORD_NAME))
    }

    /// The record; None when nothing was set up.
    pub(crate) fn read(dir: &Path) -> io::Result<Option<Self>> {
        let path = dir.join(RECORD_NAME);
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
            Ok(metadata) if metadata.len() > RECORD_BYTES_MAX => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "record is too large"));
            }
            Ok(_) => {}
        }
        Ok(Some(serde_json::from_slice(&std::fs::read(path)?)?))
    }

    /// Says that nothing is left.
    pub(crate) fn remove(dir: &Path) -> io::Result<()> {
        match std::fs::remove_file(dir.join(RECORD_NAME)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Process {
    /// The process of that number that runs now.
    pub(crate) fn of(pid: Pid) -> io::Result<Self> {
        let pid = pid.as_raw_nonzero().get();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start_ticks = start_ticks(&stat)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unreadable /proc stat"))?;
        Ok(Self { pid, start_ticks })
    }

    /// The number, if it is still the same process.
    pub(crate) fn if_still_there(&self) -> Option<Pid> {
        let pid = Pid::from_raw(self.pid)?;
        (Self::of(pid).ok()? == *self).then_some(pid)
    }
}

/// Field 22 of /proc/PID/stat; field 2 is a name in parentheses that may hold anything.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    after_name.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_and_removed_twice_without_harm() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(dir.path()).unwrap(), None);
        let init = Process::of(rustix::process::getpid()).unwrap();
        let record =
            Record { cgroup: "u1.main.0-1".into(), scratch: "/s".into(), init: Some(init) };
        record.write(dir.path()).unwrap();
        assert_eq!(Record::read(dir.path()).unwrap(), Some(record));
        Record::remove(dir.path()).unwrap();
        Record::remove(dir.path()).unwrap();
    }

    #[test]
    fn a_process_is_told_from_a_later_one_of_its_number() {
        let me = Process::of(rustix::process::getpid()).unwrap();
        assert_eq!(me.if_still_there(), Some(rustix::process::getpid()));
        assert_eq!(Process { start_ticks: me.start_ticks + 1, ..me }.if_still_there(), None);
        assert_eq!(start_ticks("1 (a) b) c) S 1 2 3"), None);
    }
}
