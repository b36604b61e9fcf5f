//! The program of a container: found in the container's PATH, run, and if it can't be run, why.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use brig_api::lifecycle::Reason;

use crate::failure::{CODE_NOT_EXECUTABLE, CODE_NOT_FOUND, Failure};
use crate::sys;

/// PATH where neither image nor spec sets one.
pub(crate) const PATH_DEFAULT: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program with arguments and environment, ready to be run.
#[derive(Clone)]
pub(crate) struct Program {
    args: Vec<CString>,
    env: Vec<CString>,
    name: String,
    search: String,
}

impl Program {
    /// `args` is not empty. PATH and HOME are added to the environment where they are missing.
    pub(crate) fn new(
        args: &[String],
        env: &BTreeMap<String, String>,
        home: &str,
    ) -> Result<Self, Failure> {
        let without_nul = |text: &str, what: &str| {
            CString::new(text).map_err(|_| Failure::create(format!("{what} contains a NUL byte")))
        };
        let name = args.first().filter(|name| !name.is_empty()).cloned();
        let name = name.ok_or_else(|| {
            Failure::create("there is no program to run: the image names none, set `command`")
        })?;
        let mut env = env.clone();
        env.entry("PATH".to_owned()).or_insert_with(|| PATH_DEFAULT.to_owned());
        env.entry("HOME".to_owned()).or_insert_with(|| home.to_owned());
        let search = env.get("PATH").cloned().unwrap_or_default();
        let args =
            args.iter().map(|text| without_nul(text, "an argument")).collect::<Result<_, _>>()?;
        let env = env
            .iter()
            .map(|(name, value)| {
                without_nul(&format!("{name}={value}"), &format!("environment variable `{name}`"))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { args, env, name, search })
    }

    /// Becomes the program; returns only to say why that is impossible.
    pub(crate) fn execute(&self) -> Failure {
        let mut denied = None;
        for candidate in self.candidates() {
            let Ok(path) = CString::new(candidate.as_bytes()) else { continue };
            let error = sys::execve(&path, &self.args, &self.env);
            let is_there = Path::new(&candidate).exists();
            match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) if !is_there => {}
                Some(libc::EACCES) => denied = denied.or(Some(candidate)),
                _ => return describe(&candidate, &error),
            }
        }
        match denied {
            Some(path) => describe(&path, &std::io::Error::from_raw_os_error(libc::EACCES)),
            None => self.not_found(),
        }
    }

    fn candidates(&self) -> Vec<String> {
        if self.name.contains('/') {
            return vec![self.name.clone()];
        }
        let in_dir = |dir: &str| {
            let dir = if dir.is_empty() { "." } else { dir };
            format!("{dir}/{}", self.name)
        };
        self.search.split(':').map(in_dir).collect()
    }

    fn not_found(&self) -> Failure {
        let place = if self.name.contains('/') {
            "in the image".to_owned()
        } else {
            format!("in any directory of PATH ({})", self.search)
        };
        Failure {
            reason: Reason::CreateFailed,
            message: format!(
                "program `{}` was not found {place}: check `command` and `args`, or the image's entrypoint",
                self.name
            ),
            code: CODE_NOT_FOUND,
        }
    }
}

/// Writes a failure to whoever waits for the program to run. The descriptor closes when the program runs, so that
/// an empty report means success.
pub(crate) fn report(to: &OwnedFd, failure: &Failure) {
    let bytes = serde_json::to_vec(failure).unwrap_or_default();
    let _ = rustix::io::write(to, &bytes);
}

fn describe(path: &str, error: &std::io::Error) -> Failure {
    let failure = |reason, code, message| Failure { reason, message, code };
    match error.raw_os_error() {
        Some(libc::EACCES) => failure(
            Reason::CreateFailed,
            CODE_NOT_EXECUTABLE,
            format!(
                "program `{path}` may not be executed by this user: check its mode, or set `user`"
            ),
        ),
        Some(libc::ENOENT) => failure(
            Reason::InvalidArtifact,
            CODE_NOT_FOUND,
            format!(
                "program `{path}` is there, but not the interpreter or dynamic loader that it names: \
                 the image is incomplete, or was built from another system's libraries"
            ),
        ),
        Some(libc::ENOEXEC) => failure(
            Reason::InvalidArtifact,
            CODE_NOT_EXECUTABLE,
            describe_format(path, &head_of(path)),
        ),
        _ => failure(
            Reason::CreateFailed,
            CODE_NOT_EXECUTABLE,
            format!("program `{path}` can't be run: {error}"),
        ),
    }
}

fn head_of(path: &str) -> Vec<u8> {
    let mut head = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        let _ = file.take(20).read_to_end(&mut head);
    }
    head
}

/// Why the kernel knows no way to run a file that begins with `head`.
fn describe_format(path: &str, head: &[u8]) -> String {
    let here = std::env::consts::ARCH;
    match head {
        [0x7f, b'E', b'L', b'F', _, order, .., low, high] if head.len() == 20 => {
            let bytes = [*low, *high];
            let machine =
                if *order == 2 { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) };
            format!(
                "program `{path}` is for {}, this node is {here}: use an image for {here}, or a node of \
                 the image's architecture",
                machine_name(machine)
            )
        }
        [] => format!("program `{path}` is an empty file: rebuild the image"),
        _ => format!(
            "program `{path}` is neither a program for {here} nor a script that begins with `#!`"
        ),
    }
}

/// The `e_machine` numbers of the ELF specification that images are built for.
fn machine_name(machine: u16) -> String {
    match machine {
        3 => "x86 (32 bit)".to_owned(),
        8 => "mips".to_owned(),
        20 | 21 => "powerpc".to_owned(),
        22 => "s390x".to_owned(),
        40 => "arm (32 bit)".to_owned(),
        62 => "x86_64".to_owned(),
        183 => "aarch64".to_owned(),
        243 => "riscv64".to_owned(),
        258 => "loongarch64".to_owned(),
        other => format!("machine type {other}"),
    }
}

impl std::fmt::Debug for Program {
    /// Environment may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_and_home_are_always_set_and_never_replaced() {
        let env = BTreeMap::from([("PATH".to_owned(), "/opt/bin".to_owned())]);
        let program = Program::new(&["web".into()], &env, "/srv").unwrap();
        assert_eq!(program.env, [c"HOME=/srv".to_owned(), c"PATH=/opt/bin".to_owned()]);
        assert_eq!(program.candidates(), ["/opt/bin/web"]);
    }

    #[test]
    fn what_is_no_program_is_refused_before_anything_is_set_up() {
        assert!(Program::new(&[], &BTreeMap::new(), "/").is_err());
        assert!(Program::new(&[String::new()], &BTreeMap::new(), "/").is_err());
        assert!(Program::new(&["a\0b".into()], &BTreeMap::new(), "/").is_err());
    }

    #[test]
    fn a_program_that_is_not_there_is_named_with_where_it_was_sought() {
        let program = Program::new(&["no-such-program".into()], &BTreeMap::new(), "/").unwrap();
        let failure = program.execute();
        assert_eq!(failure.code, CODE_NOT_FOUND);
        assert!(
            failure.message.contains("`no-such-program`") && failure.message.contains("/usr/bin")
        );
    }

    #[test]
    fn another_architecture_is_recognised() {
        let mut head = *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xb7\0";
        assert!(describe_format("/app", &head).contains("is for aarch64"));
        head[18] = 0xf3;
        assert!(describe_format("/app", &head).contains("is for riscv64"));
        assert!(describe_format("/app", b"hello").contains("neither"));
        assert!(describe_format("/app", b"").contains("empty"));
    }
}
