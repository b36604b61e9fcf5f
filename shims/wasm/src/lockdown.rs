//! What this program gives up for good before it touches anything of a tenant's: a fault in wasmtime or in the compiler
//! that lets a guest out of its sandbox leads into this one. The container round a shim is another (docs/wasm.md).
//!
//! Both of the following hold for the whole process, because they are taken on before it has a second thread.
//! * seccomp: system calls that are not on the lists fail with EPERM. No programs are started, no namespaces made, nothing
//!   is mounted or traced, and there are no sockets but TCP and UDP.
//! * Landlock, where the kernel has it: signals and abstract sockets reach nobody outside. The compiler opens no file at
//!   all. (A shim is handed the directories of its guests later, so that rules about paths can't be made for it; its
//!   container shows it no others. It denies no access to files at all: a process that is denied any can't move a file from
//!   one directory to another, and guests may. The system calls that it would deny are on no list.)

mod network;

use anyhow::Context;
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, Ruleset,
    RulesetAttr as _, RulesetStatus, Scope,
};
use rustix::process::{Resource, Rlimit, setrlimit};
use seccompiler::{BpfProgram, TargetArch, compile_from_json};
use serde_json::{Value, json};

const COMPUTE: &str = include_str!("lockdown/compute.txt");
const SERVE: &str = include_str!("lockdown/serve.txt");

/// The newest Landlock whose rights are known here; an older kernel's are a part of them.
const LANDLOCK: ABI = ABI::V6;
/// CLONE_THREAD: a new thread, and no new process.
const CLONE_THREAD: u64 = 0x1_0000;
/// Address families of sockets: IPv4 and IPv6.
const FAMILIES: [u64; 2] = [2, 10];
/// The only local sockets are pairs, such as the one that wakes an event loop.
const FAMILY_LOCAL: u64 = 1;
/// `prctl`: the names of threads and of memory, and what the kernel told the program of itself.
const PRCTL: [u64; 4] = [15, 16, 0x5356_4d41, 0x4155_5856];
/// `ioctl`: TCGETS (is it a terminal?), FIONREAD, FIONBIO, and PAGEMAP_SCAN, by which wasmtime finds what a guest wrote to.
const IOCTL: [u64; 4] = [0x5401, 0x541b, 0x5421, 0xc060_6610];
/// Answered as by a kernel that does not have it: its flags lie in memory, where a filter can't look, so that C libraries
/// shall use `clone`.
const CLONE3: &str = "clone3";

/// For a process that compiles: nothing is left to it but memory, threads, and what it has open.
pub(crate) fn for_compiling() -> anyhow::Result<()> {
    let handled = AccessFs::from_all(LANDLOCK);
    landlock(handled, AccessNet::from_all(LANDLOCK))?;
    seccomp(false)
}

/// For a shim.
pub(crate) fn for_serving() -> anyhow::Result<()> {
    // What is in its memory belongs into no file: secrets, for one.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    landlock(BitFlags::EMPTY, BitFlags::EMPTY)?;
    rustix::thread::set_no_new_privs(true)?;
    network::hand_over()?;
    seccomp(true)
}

/// Denies these accesses everywhere.
fn landlock(files: BitFlags<AccessFs>, network: BitFlags<AccessNet>) -> anyhow::Result<()> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .scope(Scope::from_all(LANDLOCK))?;
    if !files.is_empty() {
        rules = rules.handle_access(files)?;
    }
    if !network.is_empty() {
        rules = rules.handle_access(network)?;
    }
    let status = rules.create()?.restrict_self().context("Landlock")?;
    if status.ruleset != RulesetStatus::FullyEnforced {
        tracing::info!(status = ?status.ruleset, "this kernel has not all of Landlock");
    }
    Ok(())
}

fn seccomp(serves: bool) -> anyhow::Result<()> {
    for filter in filters(std::env::consts::ARCH, serves)? {
        seccompiler::apply_filter(&filter).context("seccomp")?;
    }
    Ok(())
}

/// Of what two filters say, the kernel takes the stricter.
fn filters(architecture: &str, serves: bool) -> anyhow::Result<[BpfProgram; 2]> {
    let target = TargetArch::try_from(architecture)
        .with_context(|| format!("there is no seccomp profile for {architecture}"))?;
    let source = json!({
        "list": {
            "mismatch_action": { "errno": 1 }, // EPERM
            "match_action": "allow",
            "filter": rules(architecture, serves),
        },
        "newer": {
            "mismatch_action": "allow",
            "match_action": { "errno": 38 }, // ENOSYS
            "filter": [{ "syscall": CLONE3 }],
        },
    });
    let mut compiled = compile_from_json(source.to_string().as_bytes(), target)?;
    let mut take = |name| compiled.remove(name).context("an empty filter");
    Ok([take("newer")?, take("list")?])
}

fn rules(architecture: &str, serves: bool) -> Vec<Value> {
    let mut rules = listed(COMPUTE, architecture);
    let if_first_is = |name: &str, kind: &str, value: u64| {
        let argument = json!({ "index": 0, "type": kind, "op": "eq", "val": value });
        json!({ "syscall": name, "args": [argument] })
    };
    let is_thread = json!({
        "index": 0, "type": "qword", "op": { "masked_eq": CLONE_THREAD }, "val": CLONE_THREAD
    });
    rules.push(json!({ "syscall": "clone", "args": [is_thread] }));
    rules.push(json!({ "syscall": CLONE3 }));
    rules.extend(PRCTL.map(|option| if_first_is("prctl", "dword", option)));
    let requests = IOCTL.map(|request| {
        let argument = json!({ "index": 1, "type": "dword", "op": "eq", "val": request });
        json!({ "syscall": "ioctl", "args": [argument] })
    });
    rules.extend(requests);
    if serves {
        rules.extend(listed(SERVE, architecture));
        rules.push(if_first_is("socketpair", "dword", FAMILY_LOCAL));
        rules.extend(FAMILIES.map(|family| if_first_is("socket", "dword", family)));
    }
    rules
}

fn listed(list: &str, architecture: &str) -> Vec<Value> {
    let lines = list.lines().filter(|line| !line.starts_with('#'));
    let rules = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        let name = words.next()?;
        words.next().is_none_or(|only| only == architecture).then(|| json!({ "syscall": name }))
    });
    rules.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_compile_for_each_architecture_that_is_supported() {
        for architecture in ["x86_64", "aarch64"] {
            for serves in [false, true] {
                let [newer, list] = filters(architecture, serves).unwrap();
                assert!(!newer.is_empty() && list.len() > 100, "{architecture}");
            }
        }
        assert!(filters("mips", true).unwrap_err().to_string().contains("mips"));
    }

    #[test]
    fn the_lists_leave_out_what_leads_outside() {
        let names = |serves| -> Vec<_> {
            rules("x86_64", serves).iter().map(|rule| rule["syscall"].clone()).collect()
        };
        for refused in [
            "execve",
            "execveat",
            "mknod",
            "mknodat",
            "fork",
            "ptrace",
            "mount",
            "unshare",
            "setns",
            "bpf",
            "keyctl",
            "kill",
            "io_uring_setup",
            "open_by_handle_at",
            "process_vm_readv",
            "pidfd_getfd",
            "userfaultfd",
        ] {
            assert!(!names(true).contains(&json!(refused)), "{refused}");
        }
        for refused in ["openat", "socket", "connect", "unlink"] {
            assert!(names(true).contains(&json!(refused)), "{refused}");
            assert!(!names(false).contains(&json!(refused)), "{refused}");
        }
    }
}
