//! How the agent has a wasm shim put into a container: `brig-shim-oci --dir DIR worker` reads this from the shim's
//! directory, becomes the one who looks after that container, and ends with it.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::message::Limits;

/// The file in the shim's directory.
const WORKER_NAME: &str = "worker.json";
/// Largest such file.
const WORKER_BYTES_MAX: u64 = 64 << 10;

/// What runs in the container, and what of the machine's files is there. It finds them under the names that they have
/// here; there are no others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    /// Tells its cgroup from those of others; a safe file name.
    pub name: String,
    /// For people: the container's host name.
    pub title: String,
    /// A number for the range of users that the container gets: who has the same number has the same users.
    pub users: u32,
    /// Program and arguments.
    pub args: Vec<String>,
    /// Files and directories that it may read.
    pub readable: Vec<PathBuf>,
    /// Directories that it may write in, too.
    pub writable: Vec<PathBuf>,
    /// What it may use; the machine without.
    pub limits: Option<Limits>,
}

impl Worker {
    /// Puts it into a shim's directory.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        std::fs::write(dir.join(WORKER_NAME), serde_json::to_vec(self)?)
    }

    /// That of a shim's directory.
    ///
    /// # Errors
    /// Those of the filesystem; `InvalidData`.
    pub fn read(dir: &Path) -> io::Result<Self> {
        let bytes = crate::file::read(&dir.join(WORKER_NAME), WORKER_BYTES_MAX)?;
        Ok(serde_json::from_slice(&bytes)?)
    }
}

/// What a dynamically linked program is run from, as `brig-shim-wasm libraries` says it of itself in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Libraries {
    /// The dynamic loader; None for a program that needs none.
    pub loader: Option<PathBuf>,
    /// The libraries, and the loader.
    pub files: Vec<PathBuf>,
}

impl Libraries {
    /// Of the process whose `/proc/PID/maps` this is, besides its program.
    #[must_use]
    pub fn mapped_in(maps: &str, program: &Path) -> Self {
        // ADDRESSES MODE OFFSET DEVICE INODE PATH
        let paths = maps.lines().filter_map(|line| line.splitn(6, ' ').nth(5));
        let mut files: Vec<_> = paths
            .map(str::trim_start)
            .filter(|path| path.starts_with('/') && Path::new(path) != program)
            .map(PathBuf::from)
            .collect();
        files.sort();
        files.dedup();
        let is_loader = |path: &&PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("ld-") || name.starts_with("ld64") || name.starts_with("ld.so")
        };
        Self { loader: files.iter().find(is_loader).cloned(), files }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_tells_what_it_is_run_from() {
        let maps = "55d0-55d1 r--p 00000000 fe:00 1   /opt/a b/shim\n\
                    7f00-7f01 r-xp 00000000 fe:00 2   /usr/lib/libc.so.6\n\
                    7f01-7f02 rw-p 00001000 fe:00 2   /usr/lib/libc.so.6\n\
                    7f02-7f03 r--p 00000000 fe:00 3   /usr/lib/ld-linux-x86-64.so.2\n\
                    7f03-7f04 rw-p 00000000 00:00 0 \n\
                    7ffd-7ffe r-xp 00000000 00:00 0   [vdso]\n";
        let found = Libraries::mapped_in(maps, Path::new("/opt/a b/shim"));
        let [loader, libc] = ["/usr/lib/ld-linux-x86-64.so.2", "/usr/lib/libc.so.6"];
        assert_eq!(found.loader, Some(loader.into()));
        assert_eq!(found.files, [PathBuf::from(loader), libc.into()]);
        let none = Libraries::mapped_in("1-2 r--p 0 fe:00 1 /opt/shim\n", Path::new("/opt/shim"));
        assert_eq!(none, Libraries::default());
    }
}
