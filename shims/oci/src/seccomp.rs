//! The default seccomp profile of the container engines, compiled to BPF and loaded without a system library.
//!
//! Two filters are stacked. The first answers ENOSYS to `clone3` (its flags lie in memory, where a filter can't
//! look, so that C libraries shall fall back to `clone`) and to calls newer than the list. The second is the
//! list itself: what is not on it fails with EPERM. Of two verdicts the kernel takes the stricter.

use seccompiler::{BpfProgram, TargetArch, compile_from_json, sock_filter};
use serde_json::{Value, json};

/// The list, one system call a line.
const ALLOW: &str = include_str!("seccomp/allow.txt");
/// The newest system call that the list was made with (`mseal`, Linux 6.10). Numbers from 424 on are the same on
/// all architectures.
const NUMBER_KNOWN_MAX: u32 = 462;
/// `clone3` on all architectures.
const NUMBER_CLONE3: u32 = 435;
/// CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}: a container makes no namespaces.
const CLONE_NAMESPACES: u64 = 0x7E02_0000;
/// `personality` values that change no protection: Linux, 32 bit, and the query.
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// Sockets to the hypervisor are no part of any container's network.
const AF_VSOCK: u64 = 40;

/// Why the profile can't be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SeccompError {
    /// This machine's architecture has no profile.
    #[error("there is no seccomp profile for {0}: containers run on x86_64 and aarch64")]
    Architecture(&'static str),
    /// The profile does not compile, or the kernel refuses it.
    #[error("seccomp profile: {0}")]
    Profile(#[from] seccompiler::Error),
}

/// A compiled profile.
#[derive(Debug, Clone)]
pub(crate) struct Profile {
    newer: BpfProgram,
    list: BpfProgram,
}

impl Profile {
    /// Compiles the profile for this machine.
    pub(crate) fn compile() -> Result<Self, SeccompError> {
        Self::compile_for(std::env::consts::ARCH)
    }

    fn compile_for(architecture: &'static str) -> Result<Self, SeccompError> {
        let unknown = |_| SeccompError::Architecture(architecture);
        let target = TargetArch::try_from(architecture).map_err(unknown)?;
        let audit = match target {
            TargetArch::x86_64 => 0xC000_003E,
            TargetArch::aarch64 => 0xC000_00B7,
            TargetArch::riscv64 => return Err(SeccompError::Architecture(architecture)),
        };
        let source = json!({ "list": {
            "mismatch_action": { "errno": libc::EPERM },
            "match_action": "allow",
            "filter": rules(architecture),
        }})
        .to_string();
        let mut compiled = compile_from_json(source.as_bytes(), target)?;
        let list = compiled.remove("list").ok_or(seccompiler::Error::EmptyFilter)?;
        Ok(Self { newer: not_there(audit), list })
    }

    /// Puts the calling thread under the profile for ever. Sets `no_new_privs` too.
    pub(crate) fn apply(&self) -> Result<(), SeccompError> {
        seccompiler::apply_filter(&self.newer)?;
        seccompiler::apply_filter(&self.list)?;
        Ok(())
    }
}

fn rules(architecture: &str) -> Vec<Value> {
    let lines = ALLOW.lines().filter(|line| !line.starts_with('#'));
    let mut rules: Vec<Value> = lines
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next()?;
            let is_there = words.next().is_none_or(|only| only == architecture);
            is_there.then(|| json!({ "syscall": name }))
        })
        .collect();
    let argument = |index: u8, kind: &str, operator: Value, value: u64| json!({ "index": index, "type": kind, "op": operator, "val": value });
    let no_namespaces = argument(0, "qword", json!({ "masked_eq": CLONE_NAMESPACES }), 0);
    rules.push(json!({ "syscall": "clone", "args": [no_namespaces] }));
    // The kernel takes the family for an int: what is in the register above it must not make another number of it.
    let no_hypervisor = argument(0, "dword", json!("ne"), AF_VSOCK);
    rules.push(json!({ "syscall": "socket", "args": [no_hypervisor] }));
    for value in PERSONALITIES {
        let equal = argument(0, "qword", json!("eq"), value);
        rules.push(json!({ "syscall": "personality", "args": [equal] }));
    }
    rules
}

/// ENOSYS for `clone3` and for what is newer than the list; everything else is the second filter's matter.
fn not_there(audit_architecture: u32) -> BpfProgram {
    const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const OFFSET_NUMBER: u32 = 0;
    const OFFSET_ARCHITECTURE: u32 = 4;
    const ALLOWED: u32 = 0x7fff_0000;
    const ENOSYS_ERRNO: u32 = 0x0005_0000 | 38;
    let step = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    vec![
        step(LOAD, 0, 0, OFFSET_ARCHITECTURE),
        step(EQUAL, 0, 3, audit_architecture),
        step(LOAD, 0, 0, OFFSET_NUMBER),
        step(EQUAL, 2, 0, NUMBER_CLONE3),
        step(GREATER, 1, 0, NUMBER_KNOWN_MAX),
        step(RETURN, 0, 0, ALLOWED),
        step(RETURN, 0, 0, ENOSYS_ERRNO),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_compiles_for_each_architecture_that_is_supported() {
        for architecture in ["x86_64", "aarch64"] {
            let profile = Profile::compile_for(architecture).unwrap();
            assert!(profile.list.len() > 500 && profile.list.len() < 4096, "{architecture}");
        }
        assert!(matches!(Profile::compile_for("mips"), Err(SeccompError::Architecture("mips"))));
    }

    #[test]
    fn the_list_holds_what_programs_need_and_leaves_out_what_breaks_out() {
        let names: Vec<_> = rules("x86_64")
            .iter()
            .map(|rule| rule["syscall"].as_str().unwrap().to_owned())
            .collect();
        for needed in ["execve", "futex", "openat", "clone", "socket", "landlock_create_ruleset"] {
            assert!(names.iter().any(|name| name == needed), "{needed}");
        }
        for refused in [
            "mount",
            "unshare",
            "setns",
            "bpf",
            "keyctl",
            "kexec_load",
            "open_by_handle_at",
            "io_uring_setup",
        ] {
            assert!(!names.iter().any(|name| name == refused), "{refused}");
        }
        assert!(!rules("aarch64").iter().any(|rule| rule["syscall"] == "open"));
    }

    #[test]
    fn a_family_of_sockets_is_what_the_kernel_takes_it_for() {
        let rules = rules("x86_64");
        let sockets: Vec<_> = rules.iter().filter(|rule| rule["syscall"] == "socket").collect();
        let [only] = sockets[..] else { panic!("one rule: {sockets:?}") };
        assert_eq!(only["args"][0]["type"], "dword", "an int has 32 bits");
    }
}
