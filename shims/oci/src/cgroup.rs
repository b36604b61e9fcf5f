//! A container's cgroups: what it used, whether it was killed for memory, ending everything in it, removing it.
//! The same code serves hosts with the unified hierarchy, with the older ones, and with both.

use std::io;
use std::path::{Path, PathBuf};

use brig_api::usage::Usage;
use brig_shim::message::{TaskKey, TaskUsage};
use rustix::process::Pid;

use crate::spec::{self, CGROUP_PARENT};
use crate::{clock, sys};

/// How long the processes of a killed container may take to be gone, in milliseconds.
const KILL_WAIT_MS: i64 = 5_000;
/// Between two looks at that, in nanoseconds.
const KILL_POLL_NS: i64 = 10_000_000;

/// Where cgroup hierarchies are mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Hierarchies {
    mounts: Vec<Hierarchy>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    at: PathBuf,
    is_unified: bool,
}

/// The cgroups of one container, one for each hierarchy that it is in.
#[derive(Debug, Clone)]
pub(crate) struct Cgroups {
    directories: Vec<PathBuf>,
}

impl Hierarchies {
    /// Those of this machine.
    pub(crate) fn of_this_machine() -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read_to_string("/proc/self/mountinfo")?))
    }

    fn parse(mountinfo: &str) -> Self {
        let mut mounts = Vec::new();
        for line in mountinfo.lines() {
            let Some((head, tail)) = line.split_once(" - ") else { continue };
            let is_unified = match tail.split(' ').next() {
                Some("cgroup") => false,
                Some("cgroup2") => true,
                _ => continue,
            };
            let Some(at) = head.split(' ').nth(4) else { continue };
            mounts.push(Hierarchy { at: PathBuf::from(at), is_unified });
        }
        Self { mounts }
    }

    /// There is any.
    pub(crate) fn is_empty(&self) -> bool {
        self.mounts.is_empty()
    }

    /// The unified hierarchy is the only one.
    pub(crate) fn is_unified(&self) -> bool {
        !self.is_empty() && self.mounts.iter().all(|hierarchy| hierarchy.is_unified)
    }

    /// The directories in which cgroups can be made.
    pub(crate) fn mount_points(&self) -> impl Iterator<Item = &Path> {
        self.mounts.iter().map(|hierarchy| hierarchy.at.as_path())
    }

    /// The names below /sys/fs/cgroup under which a container finds the older hierarchies.
    pub(crate) fn names_in_container(&self) -> Vec<String> {
        if self.is_unified() {
            return Vec::new();
        }
        let names = self.mounts.iter().filter_map(|hierarchy| hierarchy.at.file_name()?.to_str());
        names.map(str::to_owned).collect()
    }

    /// The cgroups of that name, as far as they are there.
    pub(crate) fn of_container(&self, name: &str) -> Cgroups {
        let below = Path::new(CGROUP_PARENT.trim_start_matches('/')).join(name);
        let mut directories: Vec<_> = self
            .mounts
            .iter()
            .map(|hierarchy| hierarchy.at.join(&below))
            .filter(|path| path.is_dir())
            .collect();
        directories.dedup();
        Cgroups { directories }
    }
}

impl Cgroups {
    /// The directories, for a process that joins.
    pub(crate) fn directories(&self) -> &[PathBuf] {
        &self.directories
    }

    /// What the container used so far, but for its memory over time: the kernel does not add that up.
    pub(crate) fn usage(&self) -> TaskUsage {
        let unified = self.read("cpu.stat").unwrap_or_default();
        let micro = |name| field(&unified, name).map(|micro| micro.saturating_mul(1_000));
        let memory = self.number("memory.usage_in_bytes").or_else(|| self.number("memory.current"));
        let stat = self.read("memory.stat").unwrap_or_default();
        let cache = field(&stat, "total_inactive_file").or_else(|| field(&stat, "inactive_file"));
        let peak = self.number("memory.max_usage_in_bytes").or_else(|| self.number("memory.peak"));
        let used = Usage {
            cpu_ns: self.number("cpuacct.usage").or_else(|| micro("usage_usec")).unwrap_or(0),
            memory_byte_s: 0,
            memory_peak_bytes: peak.unwrap_or(0),
            throttled_ns: field(&unified, "throttled_time")
                .or_else(|| micro("throttled_usec"))
                .unwrap_or(0),
        };
        // Without the part of the file cache that the kernel would give up first.
        let memory_bytes = memory.unwrap_or(0).saturating_sub(cache.unwrap_or(0));
        TaskUsage { used, memory_bytes }
    }

    /// Sets its share when others want the processor too, in thousandths of a core.
    pub(crate) fn weigh(&self, cpu_milli: u64) -> io::Result<()> {
        let shares = spec::shares(cpu_milli);
        for directory in &self.directories {
            for (name, value) in [("cpu.shares", shares), ("cpu.weight", weight(shares).into())] {
                let file = directory.join(name);
                if file.exists() {
                    std::fs::write(file, value.to_string())?;
                }
            }
        }
        Ok(())
    }

    /// How many of its processes the kernel killed for memory.
    pub(crate) fn memory_kills(&self) -> u64 {
        let older = self.read("memory.oom_control").and_then(|text| field(&text, "oom_kill"));
        let unified = || self.read("memory.events").and_then(|text| field(&text, "oom_kill"));
        older.or_else(unified).unwrap_or(0)
    }

    /// Ends every process in it and waits until they are gone.
    pub(crate) fn kill(&self) -> io::Result<()> {
        let until = clock::steady_ms().saturating_add(KILL_WAIT_MS);
        loop {
            let processes = self.processes();
            if processes.is_empty() {
                return Ok(());
            }
            for pid in processes {
                let _ = sys::kill(pid, libc::SIGKILL);
            }
            if clock::steady_ms() > until {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "processes do not end"));
            }
            pause();
        }
    }

    /// Removes it; nothing runs in it any more.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let until = clock::steady_ms().saturating_add(KILL_WAIT_MS);
        for directory in &self.directories {
            loop {
                match remove_tree(directory) {
                    Ok(()) => break,
                    Err(error) if clock::steady_ms() > until => return Err(error),
                    Err(_) => pause(),
                }
            }
        }
        Ok(())
    }

    fn processes(&self) -> Vec<Pid> {
        let lists = self
            .directories
            .iter()
            .filter_map(|directory| std::fs::read_to_string(directory.join("cgroup.procs")).ok());
        let numbers: Vec<i32> =
            lists.flat_map(|list| list.lines().flat_map(str::parse).collect::<Vec<_>>()).collect();
        numbers.into_iter().filter_map(Pid::from_raw).collect()
    }

    /// A file of whichever cgroup has it, and has something in it.
    fn read(&self, name: &str) -> Option<String> {
        let mut texts = self
            .directories
            .iter()
            .filter_map(|directory| std::fs::read_to_string(directory.join(name)).ok());
        texts.find(|text| !text.is_empty())
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.read(name)?.trim().parse().ok()
    }
}

/// The name of a task's cgroup: its key, and what tells the shims of several nodes on one machine apart.
pub(crate) fn name(key: &TaskKey, shim_dir: &Path) -> String {
    // FNV-1a, the 64 bit form.
    let hash =
        shim_dir.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("{}-{hash:016x}", key.0)
}

/// Shares, 2 to 262,144, as the weights of the unified hierarchy, 1 to 10,000, by the formula that libcontainer and runc have
/// for those of containers (opencontainers/cgroups, change 20): both ends and the defaults, 1,024 and 100, meet.
fn weight(shares: u64) -> u32 {
    let log = f64::from(u32::try_from(shares).unwrap_or(u32::MAX)).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    let wanted = 10_f64.powf(exponent);
    // The least whole number that is not below it.
    (1..10_000).find(|weight| f64::from(*weight) >= wanted).unwrap_or(10_000)
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries.flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    std::fs::remove_dir(directory)
}

fn pause() {
    let time = rustix::time::Timespec { tv_sec: 0, tv_nsec: KILL_POLL_NS };
    let _ = rustix::thread::nanosleep(&time);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_wherever_they_are_mounted() {
        let both = "30 24 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                    31 30 0:27 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n\
                    32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let found = Hierarchies::parse(both);
        assert!(!found.is_unified());
        assert_eq!(found.names_in_container(), ["unified", "memory"]);
        let unified = Hierarchies::parse("31 30 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        assert!(unified.is_unified() && unified.names_in_container().is_empty());
        assert!(Hierarchies::parse("1 0 0:1 / / rw - ext4 /dev/root rw").is_empty());
    }

    #[test]
    fn nodes_on_one_machine_do_not_share_cgroups() {
        let key = TaskKey("u1.main.0".into());
        let [a, b] = ["/a", "/b"].map(|dir| name(&key, Path::new(dir)));
        assert!(a != b && a.starts_with("u1.main.0-"), "{a} {b}");
    }

    #[test]
    fn a_weight_is_set_in_either_kind_of_cgroup() {
        let dir = tempfile::tempdir().unwrap();
        let cgroups = Cgroups { directories: vec![dir.path().into()] };
        for file in ["cpu.shares", "cpu.weight"] {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        for (milli, expected) in
            [(0, ["2", "1"]), (1_000, ["1024", "100"]), (u64::MAX, ["262144", "10000"])]
        {
            cgroups.weigh(milli).unwrap();
            let written = ["cpu.shares", "cpu.weight"].map(|file| cgroups.read(file).unwrap());
            assert_eq!(written, expected);
        }
    }

    #[test]
    fn figures_are_read_from_either_kind_of_cgroup() {
        let dir = tempfile::tempdir().unwrap();
        let cgroups = Cgroups { directories: vec![dir.path().into()] };
        assert_eq!(cgroups.usage(), TaskUsage::default());
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("cpu.stat", "usage_usec 17\nnr_throttled 1\nthrottled_usec 2\n");
        write("memory.current", "100\n");
        write("memory.peak", "200\n");
        write("memory.stat", "anon 60\ninactive_file 40\n");
        write("memory.events", "low 0\noom 3\noom_kill 2\noom_group_kill 0\n");
        let used =
            Usage { cpu_ns: 17_000, memory_byte_s: 0, memory_peak_bytes: 200, throttled_ns: 2_000 };
        let expected = TaskUsage { used, memory_bytes: 60 };
        assert_eq!((cgroups.usage(), cgroups.memory_kills()), (expected, 2));
        write("cpuacct.usage", "5\n");
        write("cpu.stat", "nr_throttled 1\nthrottled_time 7\n");
        write("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n");
        let usage = cgroups.usage().used;
        assert_eq!((usage.cpu_ns, usage.throttled_ns, cgroups.memory_kills()), (5, 7, 1));
    }
}
