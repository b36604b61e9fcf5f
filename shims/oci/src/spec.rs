//! The runtime spec of a container: what it gets, and what it is kept from. Pure: the host's facts are inputs.
//!
//! The environment is not in it (the spec is written to disk, and environment may hold secrets): the launcher
//! carries it in memory.

use std::path::PathBuf;

use brig_api::lifecycle::Reason;
use brig_shim::message::{BindMount, Limits, StartOci, StartTask};
use brig_shim::worker::Worker;
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capabilities, Capability, Linux, LinuxBuilder, LinuxCapabilities, LinuxCapabilitiesBuilder,
    LinuxCpuBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxIdMappingBuilder,
    LinuxMemoryBuilder, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType,
    LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder, Mount, MountBuilder, PosixRlimit,
    PosixRlimitBuilder, PosixRlimitType, Process, ProcessBuilder, RootBuilder, Spec, SpecBuilder,
    UserBuilder,
};

use crate::capabilities;
use crate::cgroup::Hierarchies;
use crate::failure::Failure;
use crate::program::PATH_DEFAULT;
use crate::rootfs::host_name;
use crate::user::Identity;

/// The version of the runtime spec that is written.
const OCI_VERSION: &str = "1.1.0";
/// The parent of every container's cgroup.
pub(crate) const CGROUP_PARENT: &str = "/brig";
/// Below this, setting a container up would itself be killed for memory.
pub(crate) const MEMORY_BYTES_MIN: u64 = 6 << 20;
/// libcontainer needs two processes for a moment.
const PIDS_MIN: u32 = 2;
/// The period of the cpu limit, in microseconds: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// The smallest quota that the kernel takes, in microseconds.
const CPU_QUOTA_US_MIN: u64 = 1_000;
/// Open files of a container, where the host allows so many.
pub(crate) const OPEN_FILES_MAX: u64 = 65_536;
/// The first of the users that containers get, how many each gets, and how many ranges there are.
const USERS_FIRST: u32 = 1 << 30;
const USERS_COUNT: u32 = 1 << 16;
const USERS_RANGES: u32 = 1 << 14;
/// /dev/shm, as container engines have it.
const SHM_SIZE: &str = "size=67108864";

/// Most threads of a wasm shim that serves a namespace: far more than it has on any machine.
const WORKER_THREADS_MAX: i64 = 4_096;
/// The namespaces that every container has of its own.
const NAMESPACES: [LinuxNamespaceType; 5] = [
    LinuxNamespaceType::Pid,
    LinuxNamespaceType::Ipc,
    LinuxNamespaceType::Uts,
    LinuxNamespaceType::Mount,
    LinuxNamespaceType::Cgroup,
];

/// Hidden, because they tell about or act on the host.
const MASKED_PATHS: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/system/cpu/cpu0/thermal_throttle",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
/// Readable, not writable.
const READ_ONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What the spec needs to know about this machine.
#[derive(Debug, Clone, Default)]
pub(crate) struct Host {
    /// Hard limit of open files: raising it needs a capability that even root may lack.
    pub(crate) open_files_max: u64,
    /// The kernel counts swap per cgroup.
    pub(crate) limits_swap: bool,
    /// Directories below /sys/fs/cgroup that the library mounts (none with the unified hierarchy).
    pub(crate) cgroup_directories: Vec<String>,
}

impl Host {
    /// This machine.
    pub(crate) fn of_this_machine(hierarchies: &Hierarchies) -> Self {
        let limits_swap = hierarchies.is_unified()
            || hierarchies
                .mount_points()
                .any(|mount| mount.join("memory.memsw.limit_in_bytes").exists());
        let open_files = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
        Self {
            open_files_max: open_files.unwrap_or(OPEN_FILES_MAX),
            limits_swap,
            cgroup_directories: hierarchies.names_in_container(),
        }
    }
}

/// The users of a container in a user namespace of its own: from 0 on inside, from `first` on outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Users {
    pub(crate) first: u32,
    pub(crate) count: u32,
}

impl Users {
    /// One of the ranges that containers get. They lie above those that a machine gives to its own users
    /// (`/etc/subuid`), and below what signed numbers can't say.
    pub(crate) fn numbered(number: u32) -> Self {
        Self { first: USERS_FIRST + number % USERS_RANGES * USERS_COUNT, count: USERS_COUNT }
    }
}

/// Makes the spec of a container for a wasm shim: a root that holds what was mounted there, and a capability over the files
/// that it was given, whose owners may be others.
pub(crate) fn build_worker(
    worker: &Worker,
    users: Users,
    host: &Host,
    cgroup: &str,
    root: &std::path::Path,
) -> Result<Spec, OciSpecError> {
    let mount = |kind: &str, at: &str, options: &[&str]| {
        let options = options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>();
        MountBuilder::default().typ(kind).destination(at).source(kind).options(options).build()
    };
    let mounts = vec![
        mount("proc", "/proc", &["nosuid", "noexec", "nodev"])?,
        mount("tmpfs", "/dev", &["nosuid", "noexec", "mode=755", "size=64k"])?,
    ];
    let granted: Capabilities = [Capability::DacOverride, Capability::Fowner].into();
    let process = ProcessBuilder::default()
        .terminal(false)
        .user(UserBuilder::default().uid(0_u32).gid(0_u32).build()?)
        .args(worker.args.clone())
        .env(vec![format!("PATH={PATH_DEFAULT}"), "HOME=/".to_owned()])
        .cwd("/")
        .capabilities(capability_sets(granted.clone(), granted)?)
        .rlimits(rlimits(host)?)
        .no_new_privileges(true)
        .build()?;
    let own = [LinuxNamespaceType::User, LinuxNamespaceType::Network];
    let ids = LinuxIdMappingBuilder::default()
        .container_id(0_u32)
        .host_id(users.first)
        .size(users.count)
        .build()?;
    let resources = match &worker.limits {
        Some(limits) => resources(limits, host)?,
        None => LinuxResourcesBuilder::default()
            .pids(LinuxPidsBuilder::default().limit(WORKER_THREADS_MAX).build()?)
            .devices(vec![no_device()?])
            .build()?,
    };
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces(own.into_iter().chain(NAMESPACES))?)
        .uid_mappings(vec![ids])
        .gid_mappings(vec![ids])
        .resources(resources)
        .cgroups_path(format!("{CGROUP_PARENT}/{cgroup}"))
        .masked_paths(MASKED_PATHS.map(str::to_owned))
        .readonly_paths(READ_ONLY_PATHS.map(str::to_owned))
        .build()?;
    linux.set_rootfs_propagation(Some("private".to_owned()));
    SpecBuilder::default()
        .version(OCI_VERSION)
        .root(RootBuilder::default().path(root).readonly(true).build()?)
        .process(process)
        .hostname(host_name(&worker.title))
        .mounts(mounts)
        .linux(linux)
        .build()
}

/// Everything that the spec of one container is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan<'a> {
    pub(crate) start: &'a StartTask,
    pub(crate) program: &'a StartOci,
    pub(crate) identity: &'a Identity,
    pub(crate) host: &'a Host,
    pub(crate) host_name: &'a str,
    /// The name of its cgroups.
    pub(crate) cgroup: &'a str,
    /// The mounted overlay.
    pub(crate) root: &'a std::path::Path,
    /// Files that every container gets, before the unit's own mounts.
    pub(crate) files: &'a [BindMount],
}

/// Makes the spec.
pub(crate) fn build(plan: Plan<'_>) -> Result<Spec, Failure> {
    let memory = plan.start.limits.memory_bytes;
    if memory < MEMORY_BYTES_MIN {
        return Err(Failure::new(
            Reason::LimitTooSmall,
            format!(
                "the memory limit of {} is too small for a container: give it at least {}",
                brig_api::Bytes(memory),
                brig_api::Bytes(MEMORY_BYTES_MIN)
            ),
        ));
    }
    build_checked(plan)
        .map_err(|error| Failure::create(format!("making the runtime spec: {error}")))
}

fn build_checked(plan: Plan<'_>) -> Result<Spec, OciSpecError> {
    let root =
        RootBuilder::default().path(plan.root).readonly(plan.program.read_only_root).build()?;
    let mut mounts = own_mounts()?;
    for bind in plan.files.iter().chain(&plan.start.mounts) {
        mounts.push(bind_mount(bind)?);
    }
    SpecBuilder::default()
        .version(OCI_VERSION)
        .root(root)
        .process(process(plan)?)
        .hostname(plan.host_name)
        .mounts(mounts)
        .linux(linux(plan)?)
        .build()
}

fn process(plan: Plan<'_>) -> Result<Process, OciSpecError> {
    let identity = plan.identity;
    let user = UserBuilder::default()
        .uid(identity.uid)
        .gid(identity.gid)
        .additional_gids(identity.groups.clone())
        .build()?;
    // Who is not root inside has none; what the bounding set leaves can't be had without new privileges.
    let granted = if identity.is_root() { capabilities::in_spec() } else { Capabilities::new() };
    ProcessBuilder::default()
        .terminal(false)
        .user(user)
        .args(plan.program.args.clone())
        // The library wants PATH, and without HOME it would load code from the image to find one.
        .env(vec![format!("PATH={PATH_DEFAULT}"), format!("HOME={}", identity.home)])
        .cwd(&plan.program.working_dir)
        .capabilities(capability_sets(capabilities::in_spec(), granted)?)
        .rlimits(rlimits(plan.host)?)
        .no_new_privileges(true)
        .build()
}

/// Nothing is inherited.
fn capability_sets(
    bounding: Capabilities,
    granted: Capabilities,
) -> Result<LinuxCapabilities, OciSpecError> {
    let mut sets = LinuxCapabilitiesBuilder::default()
        .bounding(bounding)
        .effective(granted.clone())
        .permitted(granted)
        .build()?;
    sets.set_inheritable(None);
    sets.set_ambient(None);
    Ok(sets)
}

fn rlimits(host: &Host) -> Result<Vec<PosixRlimit>, OciSpecError> {
    let rlimit =
        |kind, limit: u64| PosixRlimitBuilder::default().typ(kind).hard(limit).soft(limit).build();
    Ok(vec![
        rlimit(PosixRlimitType::RlimitNofile, OPEN_FILES_MAX.min(host.open_files_max))?,
        rlimit(PosixRlimitType::RlimitCore, 0)?,
    ])
}

fn namespaces(
    kinds: impl IntoIterator<Item = LinuxNamespaceType>,
) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    kinds.into_iter().map(|kind| LinuxNamespaceBuilder::default().typ(kind).build()).collect()
}

fn linux(plan: Plan<'_>) -> Result<Linux, OciSpecError> {
    let mut read_only: Vec<String> = READ_ONLY_PATHS.map(str::to_owned).into();
    if !plan.host.cgroup_directories.is_empty() {
        // The library mounts these writable, and root inside could raise its own limits.
        read_only.push("/sys/fs/cgroup".to_owned());
        let below = plan.host.cgroup_directories.iter();
        read_only.extend(below.map(|name| format!("/sys/fs/cgroup/{name}")));
    }
    let mut linux = LinuxBuilder::default()
        // No network namespace: the network is the host's.
        .namespaces(namespaces(NAMESPACES)?)
        .resources(resources(&plan.start.limits, plan.host)?)
        .cgroups_path(format!("{CGROUP_PARENT}/{}", plan.cgroup))
        .masked_paths(MASKED_PATHS.map(str::to_owned))
        .readonly_paths(read_only)
        .build()?;
    linux.set_rootfs_propagation(Some("private".to_owned()));
    Ok(linux)
}

fn resources(limits: &Limits, host: &Host) -> Result<LinuxResources, OciSpecError> {
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let mut memory = LinuxMemoryBuilder::default().limit(signed(limits.memory_bytes));
    if host.limits_swap {
        // Memory and swap together: no swap beyond the limit.
        memory = memory.swap(signed(limits.memory_bytes));
    }
    let mut cpu = LinuxCpuBuilder::default().shares(shares(limits.cpu_request_milli));
    if limits.cpu_limit_milli > 0 {
        let quota = limits.cpu_limit_milli.saturating_mul(CPU_PERIOD_US / 1_000);
        cpu = cpu.quota(signed(quota.max(CPU_QUOTA_US_MIN))).period(CPU_PERIOD_US);
    }
    let pids = LinuxPidsBuilder::default().limit(i64::from(limits.pids.max(PIDS_MIN))).build()?;
    LinuxResourcesBuilder::default()
        .memory(memory.build()?)
        .cpu(cpu.build()?)
        .pids(pids)
        .devices(vec![no_device()?])
        .build()
}

/// Denies all devices; the library adds null, zero and their like.
fn no_device() -> Result<LinuxDeviceCgroup, OciSpecError> {
    LinuxDeviceCgroupBuilder::default().allow(false).access("rwm".to_owned()).build()
}

/// Cpu shares: 1024 for a whole core, within what the kernel takes.
pub(crate) fn shares(cpu_request_milli: u64) -> u64 {
    (cpu_request_milli.saturating_mul(1_024) / 1_000).clamp(2, 262_144)
}

fn own_mounts() -> Result<Vec<Mount>, OciSpecError> {
    let mount = |kind: &str, at: &str, source: &str, options: &[&str]| {
        MountBuilder::default()
            .typ(kind)
            .destination(at)
            .source(source)
            .options(options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
            .build()
    };
    Ok(vec![
        mount("proc", "/proc", "proc", &["nosuid", "noexec", "nodev"])?,
        mount("tmpfs", "/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        mount(
            "devpts",
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        )?,
        mount("tmpfs", "/dev/shm", "shm", &["nosuid", "noexec", "nodev", "mode=1777", SHM_SIZE])?,
        mount("mqueue", "/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?,
        mount("sysfs", "/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"])?,
        mount(
            "cgroup",
            "/sys/fs/cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"],
        )?,
    ])
}

fn bind_mount(bind: &BindMount) -> Result<Mount, OciSpecError> {
    let mut options = vec!["rbind".to_owned(), "rnosuid".to_owned(), "rnodev".to_owned()];
    options.push(if bind.read_only { "rro" } else { "rw" }.to_owned());
    MountBuilder::default()
        .typ("bind")
        .source(&bind.source)
        .destination(PathBuf::from(&bind.at))
        .options(options)
        .build()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use brig_shim::message::{LogTarget, StartProgram, TaskKey};
    use serde_json::{Value, json};

    use super::*;

    fn start(memory_bytes: u64) -> StartTask {
        let program = StartOci {
            layers: vec!["/layers/a".into()],
            scratch: "/scratch".into(),
            args: vec!["redis-server".to_owned()],
            user: "redis".to_owned(),
            working_dir: "/data".to_owned(),
            read_only_root: true,
            stop_signal: None,
        };
        StartTask {
            key: TaskKey("u1.main.0".to_owned()),
            namespace: brig_api::NamespacePath::default_namespace(),
            title: "cache/main".to_owned(),
            dir: "/tasks/u1.main.0".into(),
            log: LogTarget { path: "/log".into(), bytes_max: 1, files_kept: 0 },
            env: BTreeMap::from([("PASSWORD".to_owned(), "secret".to_owned())]),
            limits: Limits { cpu_request_milli: 250, cpu_limit_milli: 500, memory_bytes, pids: 1 },
            stdin: false,
            mounts: vec![BindMount { source: "/srv".into(), at: "/data".into(), read_only: true }],
            program: StartProgram::Oci(program),
        }
    }

    fn spec(uid: u32, host: &Host, memory_bytes: u64) -> Result<Value, Failure> {
        let start = start(memory_bytes);
        let StartProgram::Oci(program) = &start.program else { panic!("a container") };
        let identity = Identity { uid, gid: 102, groups: vec![4], home: "/home/redis".to_owned() };
        let plan = Plan {
            start: &start,
            program,
            identity: &identity,
            host,
            host_name: "cache-main",
            cgroup: "u1.main.0-1",
            root: std::path::Path::new("/scratch/root"),
            files: &[],
        };
        build(plan).map(|spec| serde_json::to_value(spec).unwrap())
    }

    #[test]
    fn a_spec_holds_what_was_asked_for_and_no_environment() {
        let host = Host {
            open_files_max: 20_000,
            limits_swap: true,
            cgroup_directories: vec!["memory".to_owned()],
        };
        let spec = spec(101, &host, 64 << 20).unwrap();
        for (at, expected) in [
            ("/root", json!({"path": "/scratch/root", "readonly": true})),
            ("/hostname", json!("cache-main")),
            ("/process/args", json!(["redis-server"])),
            ("/process/cwd", json!("/data")),
            ("/process/user", json!({"uid": 101, "gid": 102, "additionalGids": [4]})),
            ("/process/noNewPrivileges", json!(true)),
            ("/process/rlimits/0/hard", json!(20_000)),
            ("/process/capabilities/effective", json!([])),
            ("/linux/cgroupsPath", json!("/brig/u1.main.0-1")),
            ("/linux/resources/memory", json!({"limit": 64 << 20, "swap": 64 << 20})),
            ("/linux/resources/cpu", json!({"shares": 256, "quota": 50_000, "period": 100_000})),
            ("/linux/resources/pids/limit", json!(2)),
        ] {
            assert_eq!(spec.pointer(at), Some(&expected), "{at}: {spec:#}");
        }
        let kinds = spec["linux"]["namespaces"].as_array().unwrap();
        let kinds: Vec<_> = kinds.iter().map(|namespace| &namespace["type"]).collect();
        assert_eq!(kinds, ["pid", "ipc", "uts", "mount", "cgroup"]);
        let mounts = spec["mounts"].as_array().unwrap();
        let data = mounts.last().unwrap();
        assert_eq!(data["options"], json!(["rbind", "rnosuid", "rnodev", "rro"]), "{data}");
        let read_only = spec["linux"]["readonlyPaths"].as_array().unwrap();
        assert!(read_only.contains(&json!("/sys/fs/cgroup/memory")));
        assert!(!spec.to_string().contains("secret"));
    }

    #[test]
    fn root_has_the_default_capabilities_and_none_that_break_out() {
        let spec = spec(0, &Host::default(), 64 << 20).unwrap();
        let effective = spec["process"]["capabilities"]["effective"].as_array().unwrap();
        assert_eq!(effective.len(), 12);
        for refused in
            ["CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_SYS_PTRACE", "CAP_NET_ADMIN", "CAP_NET_RAW"]
        {
            assert!(!effective.contains(&json!(refused)), "{refused}");
        }
        assert_eq!(spec["linux"]["resources"]["memory"].get("swap"), None);
    }

    #[test]
    fn a_limit_that_no_container_fits_in_is_refused() {
        let failure = spec(0, &Host::default(), MEMORY_BYTES_MIN - 1).unwrap_err();
        assert_eq!(failure.reason, Reason::LimitTooSmall);
    }

    #[test]
    fn shares_follow_the_request_within_what_the_kernel_takes() {
        for (milli, expected) in [(0, 2), (250, 256), (1_000, 1_024), (u64::MAX, 262_144)] {
            assert_eq!(shares(milli), expected);
        }
    }
}
