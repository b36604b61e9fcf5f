//! How a task ended, recorded on disk by rename before anybody is told, so that no exit is lost or told twice.

use std::io;
use std::path::Path;

use brig_api::lifecycle::Reason;
use brig_api::usage::Usage;
use serde::{Deserialize, Serialize};

use crate::file;

/// The record's file in the task's directory.
pub const EXIT_NAME: &str = "exit.json";
/// Largest record that is read back, in bytes; a message is cut to fit long before.
const EXIT_BYTES_MAX: u64 = 256 << 10;
/// Longest message in a record, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 4 << 10;

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The exit code: the program's own, 128 + signal for a signal, 137 when ended for memory, 1 for a trap.
    pub code: i32,
    /// None when the program ended by itself with code 0 or was asked to end.
    pub reason: Option<Reason>,
    /// A sentence for people, where the code does not say everything.
    pub message: Option<String>,
    /// When, Unix milliseconds.
    pub finished_ms: i64,
    /// What it used in all.
    pub usage: Usage,
}

impl ExitRecord {
    /// Writes the record so that it is there whole or not at all, also after a crash of the machine.
    ///
    /// # Errors
    /// Those of the filesystem; a full disk for instance.
    pub fn write(&self, task_dir: &Path) -> io::Result<()> {
        let temporary = task_dir.join("exit.json.new");
        let bytes = serde_json::to_vec(self)?;
        let file = std::fs::File::create(&temporary)?;
        io::Write::write_all(&mut &file, &bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, task_dir.join(EXIT_NAME))
    }

    /// Reads the record of a task; None when it has not ended.
    ///
    /// # Errors
    /// Those of the filesystem, and `InvalidData` for a file that is no record.
    pub fn read(task_dir: &Path) -> io::Result<Option<Self>> {
        match file::read(&task_dir.join(EXIT_NAME), EXIT_BYTES_MAX) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_and_its_absence_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(ExitRecord::read(dir.path()).unwrap(), None);
        let record = ExitRecord {
            code: 137,
            reason: Some(Reason::OutOfMemory),
            message: Some("wanted 65 MiB, limit 64 MiB".into()),
            finished_ms: 17,
            usage: Usage::default(),
        };
        record.write(dir.path()).unwrap();
        assert_eq!(ExitRecord::read(dir.path()).unwrap(), Some(record));
        std::fs::write(dir.path().join(EXIT_NAME), b"{").unwrap();
        assert!(ExitRecord::read(dir.path()).is_err());
    }
}
