//! What a node says of itself: what there is to schedule on, attributes, what it can run.

use std::path::{Path, PathBuf};

use brig_api::object::NodeFacts;
use brig_api::unit_spec::Runtime;
use brig_api::{Bytes, MilliCpu, Resources};

use crate::config::NodeConfig;

/// Longest wait for the check whether containers are possible.
const CHECK_WAIT: std::time::Duration = std::time::Duration::from_secs(10);
/// What `brig-shim-oci check` prints is not longer.
const CHECK_BYTES_MAX: usize = 64 << 10;

/// Finds out everything.
pub(crate) fn gather(config: &NodeConfig, check: &Check) -> NodeFacts {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let uname = rustix::system::uname();
    let text = |bytes: &std::ffi::CStr| bytes.to_string_lossy().into_owned();
    let mut attributes: std::collections::BTreeMap<String, String> = [
        ("arch", architecture().to_owned()),
        ("os", std::env::consts::OS.to_owned()),
        ("kernel", text(uname.release())),
        ("hostname", text(uname.nodename())),
        ("brig.version", env!("CARGO_PKG_VERSION").to_owned()),
        (
            "brig.wasm-isolation",
            if check.holds_workers() { "container" } else { "process" }.to_owned(),
        ),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    attributes.extend(config.attributes.clone());
    let capacity = Resources { scalars: config.scalars.clone(), ..capacity(read, &config.data) };
    NodeFacts {
        allocatable: capacity.saturating_sub(&config.reserved),
        attributes,
        taints: config.taints.clone(),
        volumes: volumes(&config.host_paths),
        runtimes: runtimes(config, check),
        address: config.address.to_string(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: boot_id(),
    }
}

/// Changes with each start of the machine.
pub(crate) fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

/// The architecture by the name that images have it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

/// The directories that units may mount, as they were named and as they really are: a unit may name either. Those that
/// are not there can't be mounted.
fn volumes(host_paths: &[PathBuf]) -> Vec<String> {
    let mut volumes = Vec::new();
    for path in host_paths {
        match path.canonicalize() {
            Ok(real) => {
                volumes.extend(
                    [path, &real].iter().filter_map(|path| path.to_str()).map(str::to_owned),
                );
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), error = %error, "a directory that units may mount is not there");
            }
        }
    }
    volumes.sort();
    volumes.dedup();
    volumes
}

fn runtimes(config: &NodeConfig, check: &Check) -> Vec<Runtime> {
    let mut runtimes = Vec::new();
    let is_wanted = |runtime| config.runtimes.is_empty() || config.runtimes.contains(&runtime);
    if is_wanted(Runtime::Wasm) {
        if config.shim_wasm.is_file() {
            runtimes.push(Runtime::Wasm);
        } else {
            tracing::warn!(path = %config.shim_wasm.display(), "no wasm: its shim is not there");
        }
    }
    if is_wanted(Runtime::Oci) {
        if check.is_usable {
            runtimes.push(Runtime::Oci);
        } else {
            tracing::warn!(why = check.problems.join("; "), "no containers on this node");
        }
    }
    if !check.holds_workers() && runtimes.contains(&Runtime::Wasm) {
        let why = check.no_workers.join("; ");
        tracing::warn!(why, "wasm shims run without containers of their own");
    }
    runtimes
}

/// What `brig-shim-oci check` prints.
#[derive(serde::Deserialize)]
pub(crate) struct Check {
    is_usable: bool,
    #[serde(default)]
    problems: Vec<String>,
    /// Why wasm shims can't have containers of their own, although containers can be run.
    #[serde(default)]
    no_workers: Vec<String>,
}

impl Check {
    /// Checks this node.
    pub(crate) async fn of(config: &NodeConfig) -> Self {
        check(&config.shim_oci, &config.data).await.unwrap_or_else(|why| Self {
            is_usable: false,
            problems: vec![why.clone()],
            no_workers: vec![why],
        })
    }

    /// Wasm shims can be run in containers.
    pub(crate) fn holds_workers(&self) -> bool {
        self.is_usable && self.no_workers.is_empty()
    }
}

/// Tries it in the data directory, whose filesystem may be one that can't carry containers.
async fn check(shim: &Path, data: &Path) -> Result<Check, String> {
    if !shim.is_file() {
        return Err(format!("`{}` is not there", shim.display()));
    }
    let check = tokio::process::Command::new(shim)
        .args(["check", "--dir"])
        .arg(data)
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = match tokio::time::timeout(CHECK_WAIT, check).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(format!("`{}` can't be run: {error}", shim.display())),
        Err(_) => return Err(format!("`{}` check did not end", shim.display())),
    };
    let answer = output.stdout.get(..CHECK_BYTES_MAX).unwrap_or(&output.stdout);
    serde_json::from_slice(answer)
        .map_err(|error| format!("`{} check` did not answer as expected: {error}", shim.display()))
}

fn capacity(read: impl Fn(&str) -> Option<String> + Copy, data: &Path) -> Resources {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let machine_milli = u64::try_from(cores).unwrap_or(u64::MAX).saturating_mul(1_000);
    let limits = cgroup_limits(read);
    let memory = read("/proc/meminfo").as_deref().and_then(memory_total).unwrap_or(0);
    let disk = std::fs::create_dir_all(data)
        .ok()
        .and_then(|()| rustix::fs::statvfs(data).ok())
        .map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    Resources {
        cpu: MilliCpu(machine_milli.min(limits.cpu_milli.unwrap_or(u64::MAX))),
        memory: Bytes(memory.min(limits.memory_bytes.unwrap_or(u64::MAX))),
        disk: Bytes(disk),
        ..Resources::default()
    }
}

/// From `/proc/meminfo`: `MemTotal:  16303124 kB`.
fn memory_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The tightest limits of the agent's own cgroup and those above it.
#[derive(Debug, Default, PartialEq, Eq)]
struct CgroupLimits {
    cpu_milli: Option<u64>,
    memory_bytes: Option<u64>,
}

fn cgroup_limits(read: impl Fn(&str) -> Option<String> + Copy) -> CgroupLimits {
    let mut limits = CgroupLimits::default();
    for line in read("/proc/self/cgroup").unwrap_or_default().lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let lists = |name| controllers.split(',').any(|controller| controller == name);
        for level in levels(path) {
            if controllers.is_empty() {
                for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
                    let file = |name| read(&format!("{root}{level}/{name}"));
                    tighten(&mut limits.cpu_milli, file("cpu.max").and_then(|t| cpu_max(&t)));
                    let memory = file("memory.max").and_then(|text| text.trim().parse().ok());
                    tighten(&mut limits.memory_bytes, memory);
                }
            }
            if lists("memory") {
                let file = format!("/sys/fs/cgroup/memory{level}/memory.limit_in_bytes");
                let memory = read(&file).and_then(|text| text.trim().parse().ok());
                tighten(&mut limits.memory_bytes, memory);
            }
            if lists("cpu") {
                let file = |name| read(&format!("/sys/fs/cgroup/cpu{level}/{name}"));
                let quota = file("cpu.cfs_quota_us").zip(file("cpu.cfs_period_us"));
                let milli = quota
                    .and_then(|(quota, period)| cpu_max(&format!("{} {}", quota.trim(), period)));
                tighten(&mut limits.cpu_milli, milli);
            }
        }
    }
    limits
}

fn tighten(limit: &mut Option<u64>, other: Option<u64>) {
    *limit = [*limit, other].into_iter().flatten().min();
}

/// `/a/b` → `/a/b`, `/a`, and the root as the empty text.
fn levels(path: &str) -> Vec<&str> {
    let mut levels = Vec::new();
    let mut rest = path.trim_end_matches('/');
    loop {
        levels.push(rest);
        match rest.rfind('/') {
            Some(at) => rest = &rest[..at],
            None => return levels,
        }
    }
}

/// `QUOTA PERIOD` in microseconds, as thousandths of a core; None for `max` or -1.
fn cpu_max(text: &str) -> Option<u64> {
    let mut parts = text.split_whitespace();
    let quota = parts.next()?.parse::<u64>().ok()?;
    let period = parts.next()?.parse::<u64>().ok()?;
    quota.checked_mul(1_000)?.checked_div(period)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(
        pairs: &'static [(&'static str, &'static str)],
    ) -> impl Fn(&str) -> Option<String> + Copy {
        move |path| pairs.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned())
    }

    #[test]
    fn the_tightest_limit_of_all_levels_counts() {
        let read = files(&[
            ("/proc/self/cgroup", "0::/a/b\n"),
            ("/sys/fs/cgroup/a/b/cpu.max", "max 100000\n"),
            ("/sys/fs/cgroup/a/cpu.max", "150000 100000\n"),
            ("/sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("/sys/fs/cgroup/a/memory.max", "1048576\n"),
            ("/sys/fs/cgroup/memory.max", "2097152\n"),
        ]);
        let expected = CgroupLimits { cpu_milli: Some(1500), memory_bytes: Some(1 << 20) };
        assert_eq!(cgroup_limits(read), expected);
    }

    #[test]
    fn the_first_version_of_cgroups_is_read_too() {
        let read = files(&[
            ("/proc/self/cgroup", "5:memory:/x\n4:cpu,cpuacct:/x\n"),
            ("/sys/fs/cgroup/memory/x/memory.limit_in_bytes", "4096\n"),
            ("/sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "-1\n"),
            ("/sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000\n"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "25000\n"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ]);
        let expected = CgroupLimits { cpu_milli: Some(250), memory_bytes: Some(4096) };
        assert_eq!(cgroup_limits(read), expected);
    }

    #[test]
    fn allowed_directories_are_told_by_both_their_names_if_they_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap().join("real");
        let link = dir.path().canonicalize().unwrap().join("link");
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let found = volumes(&[link.clone(), real.clone(), dir.path().join("missing")]);
        assert_eq!(found, [text(&link), text(&real)]);
        assert!(volumes(&[]).is_empty());
    }

    #[test]
    fn without_limits_the_machine_counts() {
        assert_eq!(cgroup_limits(files(&[])), CgroupLimits::default());
        assert_eq!(memory_total("MemTotal:       2 kB\nMemFree: 1 kB\n"), Some(2048));
        assert_eq!(memory_total("nothing"), None);
    }
}
