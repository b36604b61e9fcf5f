//! Compilation, in a process of its own that can do nothing else.
//!
//! ```text
//! agent ─▶ brig-shim-wasm compile ─▶ brig-shim-wasm transform
//!          checks the digest,         module in, compiled code out;
//!          keeps the code             no files, no network, limits
//! ```
//!
//! Compiling takes a thousand times the memory of its input and may be made to take longer than anyone waits, and an input
//! may be made to find a fault of the compiler. So it happens where it takes nobody along and reaches nothing.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use brig_api::Digest;
use brig_api::lifecycle::Reason;
use brig_api::unit_spec::Isolation;
use brig_shim::code::{Compatibilities, Compiled};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, pidfd_open};
use sha2::Digest as _;

use crate::code_store::{BinaryKind, CodeStore};
use crate::engine::{self, Concurrency, Settings};
use crate::interfaces::speaks_wasi_0_3;
use crate::lockdown;
use crate::outcome::{Refusal, refusal};

/// Largest module, in bytes.
const MODULE_BYTES_MAX: u64 = 256 << 20;
/// Longest compilation. A module of 16 MiB takes 12 to 23 seconds on two cores.
const COMPILE_TIME_MAX: Duration = Duration::from_secs(600);
/// Address space of the compiler: an input of 16 MiB takes about 1 GiB.
const COMPILE_ADDRESS_BYTES_MAX: u64 = 8 << 30;
/// Largest compiled code.
pub(crate) const CODE_BYTES_MAX: u64 = 4 << 30;
/// Running programs go before compilers.
const COMPILE_NICE: i32 = 10;
/// The most that a process can ask for to be killed before others.
const OOM_FIRST: &str = "1000";
/// Longest answer of a compiler.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// What is to be compiled.
#[derive(Debug, Clone)]
pub(crate) struct CompileJob {
    pub(crate) module: PathBuf,
    pub(crate) digest: Digest,
    pub(crate) cache: PathBuf,
    pub(crate) isolation: Isolation,
}

/// Sees to it that a program's code is in the store, and says on standard output whether it is.
pub(crate) fn run(job: &CompileJob) -> anyhow::Result<()> {
    let answer = make_ready(job, transform_apart);
    let mut stdout = io::stdout().lock();
    serde_json::to_writer(&mut stdout, &answer)?;
    Ok(stdout.flush()?)
}

/// Compiles a module with these settings into the file.
type Transform = fn(&[u8], Settings, &File) -> Result<(), Refusal>;

fn make_ready(job: &CompileJob, transform: Transform) -> Result<Compiled, Refusal> {
    let bytes = read_verified(&job.module, &job.digest)?;
    let invalid = |what: String| {
        refusal(Reason::InvalidArtifact, format!("{}: {what}", job.module.display()))
    };
    let kind = BinaryKind::detect(&bytes).ok_or_else(|| invalid(not_wasm(&bytes)))?;
    let concurrency = match kind {
        BinaryKind::Component if speaks_wasi_0_3(&bytes) => Concurrency::On,
        BinaryKind::Component | BinaryKind::Module => Concurrency::Off,
    };
    let settings = Settings { concurrency, isolation: job.isolation };
    let cache = job.cache.display();
    let unkept = |error: io::Error| {
        let reason = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Reason::DiskFull,
            _ => Reason::CreateFailed,
        };
        refusal(reason, format!("compiled code can't be kept in {cache}: {error}"))
    };
    let compatibility = compatibility(settings)
        .map_err(|error| refusal(Reason::CreateFailed, format!("{error:#}")))?;
    let store = CodeStore::open(&job.cache, &compatibility).map_err(unkept)?;
    if store.fetch(&job.digest).map_err(unkept)?.is_some() {
        return Ok(Compiled { compatibility, is_new: false });
    }
    let code = store.incomplete().map_err(unkept)?;
    transform(&bytes, settings, code.as_file()).map_err(|refused| {
        let named = format!("{}: {}", job.module.display(), refused.message);
        refusal(refused.reason, named)
    })?;
    store.put(&job.digest, kind, code).map_err(unkept)?;
    Ok(Compiled { compatibility, is_new: true })
}

/// Lets another process compile, and waits for it.
fn transform_apart(module: &[u8], settings: Settings, code: &File) -> Result<(), Refusal> {
    let failed =
        |what: &str| refusal(Reason::CreateFailed, format!("it could not be compiled: {what}"));
    let child = start_transform(module, settings, code).map_err(|error| failed(&error.to_string()));
    let mut child = child?;
    match wait(&mut child, COMPILE_TIME_MAX) {
        Ok(()) => {}
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed(&error.to_string()));
        }
    }
    let mut answer = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        // What is of no use as an answer is told as its status.
        let _ = stderr.take(ANSWER_BYTES_MAX).read_to_end(&mut answer);
    }
    let status = child.wait().map_err(|error| failed(&error.to_string()))?;
    match serde_json::from_slice::<Option<Refusal>>(&answer) {
        Ok(None) if status.success() => Ok(()),
        Ok(Some(refused)) => Err(refused),
        _ => Err(failed(&format!(
            "the compiler ended with {status}; it may take {} of memory",
            brig_api::Bytes(COMPILE_ADDRESS_BYTES_MAX)
        ))),
    }
}

fn start_transform(module: &[u8], settings: Settings, code: &File) -> io::Result<Child> {
    let mut input = File::from(rustix::fs::memfd_create("module", MemfdFlags::CLOEXEC)?);
    input.write_all(module)?;
    input.rewind()?;
    // Not by name: after an upgrade another program has it.
    Command::new("/proc/self/exe")
        .args(["transform", "--concurrency", settings.concurrency.as_str()])
        .args(["--isolation", settings.isolation.as_str()])
        .env_clear()
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(code.try_clone()?))
        .stderr(Stdio::piped())
        .spawn()
}

/// Waits until the process has ended.
fn wait(child: &mut Child, time_max: Duration) -> io::Result<()> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("it has no process id"))?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let seconds = i64::try_from(time_max.as_secs()).unwrap_or(i64::MAX);
    let mut ended = [PollFd::new(&process, PollFlags::IN)];
    loop {
        match poll(&mut ended, Some(&Timespec { tv_sec: seconds, tv_nsec: 0 })) {
            Ok(0) => return Err(io::Error::other(format!("it takes longer than {time_max:?}"))),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The process that compiles: from standard input to standard output, and what was wrong, or `null`, to standard error.
pub(crate) fn transform(settings: Settings) -> anyhow::Result<()> {
    // Whoever started this may have set lower ones.
    let limit = |resource, most: u64| {
        let most = rustix::process::getrlimit(resource).maximum.map_or(most, |set| set.min(most));
        rustix::process::setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
    };
    limit(Resource::As, COMPILE_ADDRESS_BYTES_MAX)?;
    limit(Resource::Fsize, CODE_BYTES_MAX)?;
    limit(Resource::Core, 0)?;
    rustix::process::nice(COMPILE_NICE)?;
    // On a machine with less memory than that, the kernel takes this process first and no running program. To be
    // refused that changes nothing else.
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_FIRST);
    lockdown::for_compiling().context("giving up everything but compiling")?;
    let mut module = Vec::new();
    io::stdin().lock().take(MODULE_BYTES_MAX).read_to_end(&mut module)?;
    let refused = transform_here(&module, settings, io::stdout().lock()).err();
    let answer = serde_json::to_vec(&refused)?;
    let end = usize::try_from(ANSWER_BYTES_MAX).map_or(answer.len(), |max| answer.len().min(max));
    Ok(io::stderr().lock().write_all(&answer[..end])?)
}

fn transform_here(module: &[u8], settings: Settings, mut out: impl Write) -> Result<(), Refusal> {
    let compiled =
        engine::for_compiling(settings).and_then(|engine| match BinaryKind::detect(module) {
            Some(BinaryKind::Component) => engine.precompile_component(module),
            Some(BinaryKind::Module) | None => engine.precompile_module(module),
        });
    let code = compiled.map_err(|error| {
        refusal(
            Reason::InvalidArtifact,
            format!(
                "is not valid here: {error:#}. Programs may use WebAssembly 2.0 without threads, memory64, exceptions \
                 and garbage collection"
            ),
        )
    })?;
    out.write_all(&code).and_then(|()| out.flush()).map_err(|error| {
        let reason = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Reason::DiskFull,
            _ => Reason::CreateFailed,
        };
        refusal(reason, format!("its compiled code can't be written: {error}"))
    })
}

/// Code that travels between the stores of two nodes, through the agents.
#[derive(Debug, Clone)]
pub(crate) struct CodeJob {
    pub(crate) digest: Digest,
    pub(crate) cache: PathBuf,
    /// One of those that this program compiles for.
    pub(crate) compatibility: String,
}

/// Writes to standard output what this node has compiled.
pub(crate) fn export(job: &CodeJob) -> anyhow::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    Ok(open_store(job)?.export(&job.digest, &mut out)?)
}

/// Takes from standard input what another node has compiled; the agent has checked that one did.
pub(crate) fn import(job: &CodeJob) -> anyhow::Result<()> {
    Ok(open_store(job)?.import(&job.digest, &mut io::stdin().lock())?)
}

fn open_store(job: &CodeJob) -> anyhow::Result<CodeStore> {
    let ours = compatibilities()?;
    let is_ours = [ours.namespace, ours.unit].concat().contains(&job.compatibility);
    anyhow::ensure!(is_ours, "nothing is compiled for `{}` here", job.compatibility);
    Ok(CodeStore::open(&job.cache, &job.compatibility)?)
}

/// Says on standard output what this program compiles for.
pub(crate) fn print_compatibilities() -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    serde_json::to_writer(&mut stdout, &compatibilities()?)?;
    Ok(stdout.flush()?)
}

fn compatibilities() -> anyhow::Result<Compatibilities> {
    let both = |isolation| {
        let name = |concurrency| compatibility(Settings { concurrency, isolation });
        anyhow::Ok([name(Concurrency::Off)?, name(Concurrency::On)?])
    };
    Ok(Compatibilities { namespace: both(Isolation::Namespace)?, unit: both(Isolation::Unit)? })
}

fn compatibility(settings: Settings) -> anyhow::Result<String> {
    let engine = engine::for_compiling(settings).map_err(anyhow::Error::from)?;
    Ok(engine::compatibility(&engine))
}

/// Reads the module once, so that what is compiled is what was checked.
fn read_verified(module: &Path, digest: &Digest) -> Result<Vec<u8>, Refusal> {
    let mut bytes = Vec::new();
    File::open(module)
        .and_then(|file| file.take(MODULE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| {
            let message = format!("{} can't be read: {error}", module.display());
            refusal(Reason::InvalidArtifact, message)
        })?;
    let invalid =
        |what: String| refusal(Reason::InvalidArtifact, format!("{} {what}", module.display()));
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MODULE_BYTES_MAX {
        return Err(invalid(format!("is larger than {}", brig_api::Bytes(MODULE_BYTES_MAX))));
    }
    let found = Digest::of_sha256(&sha2::Sha256::digest(&bytes).into());
    if found != *digest {
        return Err(invalid(format!(
            "is corrupt: it should be {digest} and is {found}; remove the file and pull the artifact again"
        )));
    }
    Ok(bytes)
}

/// What a file that is no wasm may be, and what was meant.
fn not_wasm(bytes: &[u8]) -> String {
    let looks_like = match bytes {
        [] => "it is empty",
        [0x7f, b'E', b'L', b'F', ..] => "it looks like a native program; run it from an OCI image",
        [b'#', b'!', ..] => "it looks like a script",
        [b'(', ..] => "it looks like the text form; turn it into a binary with `wasm-tools parse`",
        [0, b'a', b's', b'm', ..] => "it is of another version of wasm",
        _ => "it does not begin with the bytes of one",
    };
    format!(
        "is no WebAssembly program: {looks_like}. Expected a module or component, for instance from \
         `cargo build --target wasm32-wasip2`"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(cache: &Path, bytes: &[u8]) -> CompileJob {
        let module = cache.join("module.wasm");
        std::fs::write(&module, bytes).unwrap();
        let digest = Digest::of_sha256(&sha2::Sha256::digest(bytes).into());
        CompileJob { module, digest, cache: cache.join("cache"), isolation: Isolation::Namespace }
    }

    /// Without a process of its own, which would be this test.
    fn compile(job: &CompileJob) -> Result<Compiled, Refusal> {
        make_ready(job, |module, settings, code| transform_here(module, settings, code))
    }

    #[test]
    fn what_is_no_wasm_is_refused_by_name_with_a_guess() {
        let dir = tempfile::tempdir().unwrap();
        for (bytes, says) in [
            (&b""[..], "empty"),
            (b"\x7fELF....", "native program"),
            (b"(module)", "text form"),
            (b"\0asm\x01\0\0\0\xff", "not valid"),
        ] {
            let refusal = compile(&job(dir.path(), bytes)).unwrap_err();
            assert_eq!(refusal.reason, Reason::InvalidArtifact);
            assert!(refusal.message.contains(says), "{refusal}");
            assert!(refusal.message.contains("module.wasm"), "{refusal}");
        }
    }

    #[test]
    fn a_corrupt_file_is_refused_with_both_digests() {
        let dir = tempfile::tempdir().unwrap();
        let mut job = job(dir.path(), b"\0asm\x01\0\0\0");
        let found = job.digest.clone();
        job.digest = Digest::of_sha256(&[7; 32]);
        let refusal = compile(&job).unwrap_err();
        assert_eq!(refusal.reason, Reason::InvalidArtifact);
        assert!(refusal.message.contains(found.as_str()), "{refusal}");
        assert!(refusal.message.contains(job.digest.as_str()), "{refusal}");
    }

    #[test]
    fn a_module_is_compiled_into_the_store_once_for_each_kind_of_shim() {
        let dir = tempfile::tempdir().unwrap();
        let mut job = job(dir.path(), b"\0asm\x01\0\0\0");
        let first = compile(&job).unwrap();
        assert!(first.is_new);
        let store = CodeStore::open(&job.cache, &first.compatibility).unwrap();
        assert_eq!(store.fetch(&job.digest).unwrap().unwrap().kind, BinaryKind::Module);
        assert!(!compile(&job).unwrap().is_new);
        job.isolation = Isolation::Unit;
        let other = compile(&job).unwrap();
        assert!(other.is_new && other.compatibility != first.compatibility);
    }
}
