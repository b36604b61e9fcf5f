//! Compilation in a process of its own: this program, started once per module with `compile`.
//!
//! Compiling takes a thousand times the memory of its input and may be made to take longer than anyone waits, so
//! the process has limits of its own and takes nobody along when it dies.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use brig_api::Digest;
use brig_api::lifecycle::Reason;
use rustix::process::{Resource, Rlimit};
use sha2::Digest as _;
use wasmtime::Engine;

use crate::code_store::{BinaryKind, CodeStore};
use crate::engine::{self, Concurrency};
use crate::interfaces::speaks_wasi_0_3;
use crate::outcome::Refusal;

/// Largest module, in bytes.
const MODULE_BYTES_MAX: u64 = 256 << 20;
/// Longest compilation. A module of 16 MiB takes 12 to 23 seconds on two cores.
const COMPILE_TIME_MAX: Duration = Duration::from_secs(600);
/// Address space of the compiler: an input of 16 MiB takes about 1 GiB.
const COMPILE_ADDRESS_BYTES_MAX: u64 = 8 << 30;
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
}

/// Starts a compiler and waits for it. Afterwards the code is in the store.
pub(crate) async fn compile(job: &CompileJob) -> Result<(), Refusal> {
    // Not by name: after an upgrade another program has it.
    let mut command = tokio::process::Command::new("/proc/self/exe");
    command
        .arg("compile")
        .arg("--module")
        .arg(&job.module)
        .arg("--digest")
        .arg(job.digest.as_str())
        .arg("--cache")
        .arg(&job.cache)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let failed = |what: &str| {
        let message = format!("{} could not be compiled: {what}", job.module.display());
        Refusal::new(Reason::CreateFailed, message)
    };
    let child = command.spawn().map_err(|error| failed(&error.to_string()))?;
    let output = tokio::time::timeout(COMPILE_TIME_MAX, child.wait_with_output())
        .await
        .map_err(|_| failed(&format!("it takes longer than {COMPILE_TIME_MAX:?}")))?
        .map_err(|error| failed(&error.to_string()))?;
    match serde_json::from_slice::<Option<Refusal>>(&output.stdout) {
        Ok(None) if output.status.success() => {
            tracing::info!(module = %job.digest, "a program was compiled");
            Ok(())
        }
        Ok(Some(refusal)) => Err(refusal),
        _ => Err(failed(&format!(
            "the compiler ended with {}; it may take {} of memory",
            output.status,
            brig_api::Bytes(COMPILE_ADDRESS_BYTES_MAX)
        ))),
    }
}

/// The compiler process: compiles into the store and says on standard output what was wrong, or `null`.
pub(crate) fn run(job: &CompileJob) -> std::io::Result<()> {
    let limit = Some(COMPILE_ADDRESS_BYTES_MAX);
    rustix::process::setrlimit(Resource::As, Rlimit { current: limit, maximum: limit })?;
    rustix::process::nice(COMPILE_NICE)?;
    // On a machine with less memory than that, the kernel takes this process first and no running program. To be
    // refused that changes nothing else.
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_FIRST);
    let answer = serde_json::to_vec(&compile_here(job).err())?;
    let mut stdout = std::io::stdout().lock();
    let end = usize::try_from(ANSWER_BYTES_MAX).map_or(answer.len(), |max| answer.len().min(max));
    stdout.write_all(&answer[..end])?;
    stdout.flush()
}

fn compile_here(job: &CompileJob) -> Result<(), Refusal> {
    let bytes = read_verified(&job.module, &job.digest)?;
    let invalid = |what: String| {
        Refusal::new(Reason::InvalidArtifact, format!("{}: {what}", job.module.display()))
    };
    let kind = BinaryKind::detect(&bytes).ok_or_else(|| invalid(not_wasm(&bytes)))?;
    let concurrency = match kind {
        BinaryKind::Component if speaks_wasi_0_3(&bytes) => Concurrency::On,
        BinaryKind::Component | BinaryKind::Module => Concurrency::Off,
    };
    let (engine, code) = compile_for(concurrency, kind, &bytes).map_err(|error| {
            invalid(format!(
                "is not valid here: {error:#}. Programs may use WebAssembly 2.0 without threads, memory64, exceptions \
                 and garbage collection"
            ))
    })?;
    store(&job.cache, &engine, &job.digest, kind, &code).map_err(|error| {
        let reason = match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Reason::DiskFull,
            _ => Reason::CreateFailed,
        };
        let cache = job.cache.display();
        Refusal::new(reason, format!("compiled code can't be stored in {cache}: {error}"))
    })
}

fn store(
    cache: &Path,
    engine: &Engine,
    digest: &Digest,
    kind: BinaryKind,
    code: &[u8],
) -> std::io::Result<()> {
    CodeStore::open(cache, &engine::compatibility(engine))?.put(digest, kind, code)
}

fn compile_for(
    concurrency: Concurrency,
    kind: BinaryKind,
    bytes: &[u8],
) -> wasmtime::Result<(Engine, Vec<u8>)> {
    let engine = engine::for_compiling(concurrency)?;
    let code = match kind {
        BinaryKind::Module => engine.precompile_module(bytes)?,
        BinaryKind::Component => engine.precompile_component(bytes)?,
    };
    Ok((engine, code))
}

/// Code that travels between the stores of two nodes, through the agents.
#[derive(Debug, Clone)]
pub(crate) struct CodeJob {
    pub(crate) digest: Digest,
    pub(crate) cache: PathBuf,
}

/// Writes to standard output what this node has compiled.
pub(crate) fn export(job: &CodeJob) -> anyhow::Result<()> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    Ok(open_store(job)?.export(&job.digest, &mut out)?)
}

/// Takes from standard input what another node has compiled; the agent has checked that one did.
pub(crate) fn import(job: &CodeJob) -> anyhow::Result<()> {
    Ok(open_store(job)?.import(&job.digest, &mut std::io::stdin().lock())?)
}

fn open_store(job: &CodeJob) -> anyhow::Result<CodeStore> {
    Ok(CodeStore::open(&job.cache, &compatibility()?)?)
}

/// Says on standard output what this program compiles for.
pub(crate) fn print_compatibility() -> anyhow::Result<()> {
    let text = format!("{}\n", compatibility()?);
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

fn compatibility() -> anyhow::Result<String> {
    // What runs on the other engine is compiled on each node: there is little of it.
    let engine = engine::for_compiling(Concurrency::Off).map_err(anyhow::Error::from)?;
    Ok(engine::compatibility(&engine))
}

/// Reads the module once, so that what is compiled is what was checked.
fn read_verified(module: &Path, digest: &Digest) -> Result<Vec<u8>, Refusal> {
    let mut bytes = Vec::new();
    File::open(module)
        .and_then(|file| file.take(MODULE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| {
            let message = format!("{} can't be read: {error}", module.display());
            Refusal::new(Reason::InvalidArtifact, message)
        })?;
    let invalid = |what: String| {
        Refusal::new(Reason::InvalidArtifact, format!("{} {what}", module.display()))
    };
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
        CompileJob { module, digest, cache: cache.join("cache") }
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
            let refusal = compile_here(&job(dir.path(), bytes)).unwrap_err();
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
        let refusal = compile_here(&job).unwrap_err();
        assert_eq!(refusal.reason, Reason::InvalidArtifact);
        assert!(refusal.message.contains(found.as_str()), "{refusal}");
        assert!(refusal.message.contains(job.digest.as_str()), "{refusal}");
    }

    #[test]
    fn a_module_is_compiled_into_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let job = job(dir.path(), b"\0asm\x01\0\0\0");
        compile_here(&job).unwrap();
        let engine = engine::for_compiling(Concurrency::Off).unwrap();
        let store = CodeStore::open(&job.cache, &engine::compatibility(&engine)).unwrap();
        assert_eq!(store.fetch(&job.digest).unwrap().unwrap().kind, BinaryKind::Module);
    }
}
