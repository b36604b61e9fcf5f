//! Compiled code of wasm programs: a program is compiled before a shim is asked to run it, by whoever is first in the
//! cluster. What another node has compiled is fetched, and what this one has compiled is given to the others.
//!
//! The shims' program owns the form of the code and compiles (`brig-shim-wasm compile`), in a process that can do nothing
//! else; shims only map what is there. Between nodes it is bytes with a sum in front:
//!
//! ```text
//! HMAC-SHA256 (32 bytes) of what follows, of what it was compiled for, and of the program's digest
//! what `brig-shim-wasm export` wrote
//! ```
//!
//! Compiled code runs as the shim, so only code with a right sum reaches the store. The key for it comes with the session
//! and is nowhere on this node's disk. What goes wrong with the others' code costs a compilation and nothing else.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use brig_api::Digest;
use brig_api::lifecycle::Reason;
use brig_api::session::CodeKey;
use brig_api::unit_spec::Isolation;
use brig_client::{Client, ClientError};
use brig_shim::code::{Compatibilities, CompileAnswer, Compiled};
use bytes::Bytes;
use futures::StreamExt as _;
use hmac::{Hmac, KeyInit as _, Mac as _};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW};
use sha2::Sha256;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::Instant;
use tokio_util::io::ReaderStream;

use crate::plan::Fault;

/// What the sum is for, so that it is right for nothing else.
const PURPOSE: &[u8] = b"brig compiled code 1";
/// Bytes of the sum.
const SUM_BYTES: usize = 32;
/// Largest code that is fetched.
const CODE_BYTES_MAX: u64 = 1 << 30;
/// Programs that are remembered; beyond it all are forgotten, and looked for again.
const PROGRAMS_KNOWN_MAX: usize = 4_096;
/// Longest run of the shims' program as a tool that does not compile.
const TOOL_TIME_MAX: Duration = Duration::from_secs(60);
/// Longest compilation, a little more than the tool gives itself.
const COMPILE_TIME_MAX: Duration = Duration::from_secs(660);
/// Compilers at a time. Each uses every core for itself.
const COMPILERS_MAX: usize = 1;
/// Code that is used is marked so often: what was not used for longest makes room for more.
const MARK_EVERY: Duration = Duration::from_secs(600);
/// Hashed in pieces of this size.
const READ_BYTES: usize = 256 << 10;

/// The node's compiled code. Cheap to clone.
#[derive(Clone)]
pub(crate) struct CompiledCode {
    inner: Arc<Inner>,
}

struct Inner {
    /// The wasm shims' program.
    shim: PathBuf,
    /// Where compiled code is kept.
    cache: PathBuf,
    cluster: Mutex<Option<Cluster>>,
    /// What the program compiles for; None when it does not say.
    compatibilities: OnceCell<Option<Compatibilities>>,
    compilers: Semaphore,
    programs: Mutex<HashMap<Wanted, Arc<OnceCell<Ready>>>>,
}

/// What code is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Wanted {
    program: Digest,
    isolation: Isolation,
}

/// Code that is in the store and sound.
struct Ready {
    compatibility: String,
    marked: Mutex<Instant>,
}

/// The control plane of the session.
#[derive(Clone)]
struct Cluster {
    client: Client,
    key: CodeKey,
}

/// Why code was not taken or given.
#[derive(Debug, thiserror::Error)]
enum CodeError {
    #[error(transparent)]
    Cluster(#[from] ClientError),
    #[error("its sum is not one of this cluster")]
    Sum,
    #[error("can't work in the cache: {0}")]
    Io(#[from] io::Error),
    #[error("`brig-shim-wasm {0}` failed")]
    Tool(&'static str),
}

impl CompiledCode {
    pub(crate) fn new(shim: PathBuf, cache: PathBuf) -> Self {
        Self {
            inner: Arc::new(Inner {
                shim,
                cache,
                cluster: Mutex::default(),
                compatibilities: OnceCell::new(),
                compilers: Semaphore::new(COMPILERS_MAX),
                programs: Mutex::default(),
            }),
        }
    }

    /// A session began: code is shared through this control plane from now on.
    pub(crate) fn attach(&self, client: Client, key: CodeKey) {
        *self.inner.cluster.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Cluster { client, key });
    }

    fn cluster(&self) -> Option<Cluster> {
        self.inner.cluster.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sees to it that the code of the program in the file `module` is in the store, for shims of that kind; once for each
    /// program, whoever asks. Returns what it was compiled for.
    ///
    /// # Errors
    /// The program can't be compiled.
    pub(crate) async fn ready(
        &self,
        module: &Path,
        program: &Digest,
        isolation: Isolation,
    ) -> Result<String, Fault> {
        let wanted = Wanted { program: program.clone(), isolation };
        loop {
            let cell = self.cell(&wanted);
            let ready = cell.get_or_try_init(|| self.make(module, &wanted)).await?;
            if self.is_kept(&wanted, ready) {
                return Ok(ready.compatibility.clone());
            }
            // It has made room for other code since.
            let mut programs = self.programs();
            if programs.get(&wanted).is_some_and(|known| Arc::ptr_eq(known, &cell)) {
                programs.remove(&wanted);
            }
        }
    }

    /// What tells, without another process, whether there is code of a program for any of its shims.
    pub(crate) async fn finder(&self) -> impl Fn(&Digest) -> bool + Send + use<> {
        let all = self.compatibilities().await.cloned();
        let code = self.clone();
        move |program| {
            let names = all.iter().flat_map(|all| all.namespace.iter().chain(&all.unit));
            names.into_iter().any(|name| code.path(name, program).exists())
        }
    }

    fn cell(&self, wanted: &Wanted) -> Arc<OnceCell<Ready>> {
        let mut programs = self.programs();
        if programs.len() >= PROGRAMS_KNOWN_MAX {
            programs.clear();
        }
        Arc::clone(programs.entry(wanted.clone()).or_default())
    }

    fn programs(&self) -> std::sync::MutexGuard<'_, HashMap<Wanted, Arc<OnceCell<Ready>>>> {
        self.inner.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_kept(&self, wanted: &Wanted, ready: &Ready) -> bool {
        let path = self.path(&ready.compatibility, &wanted.program);
        let mut marked = ready.marked.lock().unwrap_or_else(PoisonError::into_inner);
        if marked.elapsed() < MARK_EVERY {
            return path.exists();
        }
        *marked = Instant::now();
        // Files of code are never modified, so that the time of that says when one was used last.
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).is_ok()
    }

    fn path(&self, compatibility: &str, program: &Digest) -> PathBuf {
        brig_shim::code::path(&self.inner.cache, compatibility, program)
    }

    async fn make(&self, module: &Path, wanted: &Wanted) -> Result<Ready, Fault> {
        if let Some(cluster) = self.cluster() {
            self.look(&cluster, wanted).await;
        }
        let Compiled { compatibility, is_new } = self.compile(module, wanted).await?;
        if is_new {
            tracing::info!(program = %wanted.program, "a program was compiled");
            let (code, compatibility) = (self.clone(), compatibility.clone());
            let program = wanted.program.clone();
            tokio::spawn(async move {
                match code.give(&compatibility, &program).await {
                    Ok(()) => {
                        tracing::info!(program = %program, "compiled code was given to the cluster");
                    }
                    Err(error) => {
                        tracing::info!(program = %program, %error, "compiled code was not given to the cluster");
                    }
                }
            });
        }
        Ok(Ready { compatibility, marked: Mutex::new(Instant::now()) })
    }

    /// Compiles, unless there is sound code.
    async fn compile(&self, module: &Path, wanted: &Wanted) -> Result<Compiled, Fault> {
        let failed = |what: &str| Fault {
            reason: Reason::CreateFailed,
            message: format!("{} can't be compiled: {what}", module.display()),
        };
        let _permit = self.inner.compilers.acquire().await;
        let mut command = tokio::process::Command::new(&self.inner.shim);
        command
            .arg("compile")
            .arg("--module")
            .arg(module)
            .args(["--digest", wanted.program.as_str()])
            .arg("--cache")
            .arg(&self.inner.cache)
            .args(["--isolation", wanted.isolation.as_str()])
            .env_clear()
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(COMPILE_TIME_MAX, command.output())
            .await
            .map_err(|_| failed("the compiler does not end"))?
            .map_err(|error| failed(&format!("{}: {error}", self.inner.shim.display())))?;
        match serde_json::from_slice::<CompileAnswer>(&output.stdout) {
            Ok(Ok(compiled)) => Ok(compiled),
            Ok(Err(refusal)) => Err(Fault { reason: refusal.reason, message: refusal.message }),
            Err(_) => {
                let said = String::from_utf8_lossy(&output.stderr);
                Err(failed(&format!("the compiler ended with {}; {}", output.status, said.trim())))
            }
        }
    }

    /// Fetches a program's code, if this node has none and the cluster has some.
    async fn look(&self, cluster: &Cluster, wanted: &Wanted) {
        let Some(compatibilities) = self.compatibilities().await else { return };
        let compatibilities = compatibilities.of(wanted.isolation);
        let program = &wanted.program;
        if compatibilities.iter().any(|name| self.path(name, program).exists()) {
            return;
        }
        for compatibility in compatibilities {
            match self.take(cluster, compatibility, program).await {
                Ok(true) => {
                    tracing::info!(program = %program, "compiled code came from the cluster");
                    return;
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(program = %program, %error, "the cluster's compiled code is of no use");
                }
            }
        }
    }

    /// What the shims' program on this machine compiles for.
    async fn compatibilities(&self) -> Option<&Compatibilities> {
        let asked = self.inner.compatibilities.get_or_init(|| async {
            let mut command = tokio::process::Command::new(&self.inner.shim);
            command.arg("compatibility").stdin(Stdio::null()).stderr(Stdio::null());
            command.kill_on_drop(true);
            let output = tokio::time::timeout(TOOL_TIME_MAX, command.output()).await.ok()?.ok()?;
            serde_json::from_slice(&output.stdout).ok()
        });
        asked.await.as_ref()
    }

    async fn take(
        &self,
        cluster: &Cluster,
        compatibility: &str,
        program: &Digest,
    ) -> Result<bool, CodeError> {
        let file = self.scratch()?;
        let mut into = tokio::fs::File::from_std(file);
        let client = &cluster.client;
        if !client.compiled_code_fetch(compatibility, program, &mut into, CODE_BYTES_MAX).await? {
            return Ok(false);
        }
        let file = into.into_std().await;
        let sum = Sum::new(&cluster.key, compatibility, program);
        let file = blocking(move || verified(file, sum)).await?;
        // The tool goes on reading behind the sum.
        self.tool("import", compatibility, program, Stdio::from(file), Stdio::null()).await?;
        Ok(true)
    }

    async fn give(&self, compatibility: &str, program: &Digest) -> Result<(), CodeError> {
        let Some(cluster) = self.cluster() else { return Ok(()) };
        let file = self.scratch()?;
        let out = Stdio::from(file.try_clone()?);
        self.tool("export", compatibility, program, Stdio::null(), out).await?;
        let sum = Sum::new(&cluster.key, compatibility, program);
        let (file, sum) = blocking(move || summed(file, sum)).await?;
        let first = futures::stream::iter([Ok(Bytes::copy_from_slice(&sum))]);
        let rest = ReaderStream::with_capacity(tokio::fs::File::from_std(file), READ_BYTES);
        cluster.client.compiled_code_keep(compatibility, program, first.chain(rest)).await?;
        Ok(())
    }

    /// A file without a name, which goes when it is closed.
    fn scratch(&self) -> io::Result<File> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.inner.cache)?;
        tempfile::tempfile_in(&self.inner.cache)
    }

    async fn tool(
        &self,
        what: &'static str,
        compatibility: &str,
        program: &Digest,
        stdin: Stdio,
        stdout: Stdio,
    ) -> Result<(), CodeError> {
        let mut command = tokio::process::Command::new(&self.inner.shim);
        command
            .arg(what)
            .args(["--digest", program.as_str(), "--compatibility", compatibility])
            .arg("--cache")
            .arg(&self.inner.cache);
        command.stdin(stdin).stdout(stdout).stderr(Stdio::null()).kill_on_drop(true);
        match tokio::time::timeout(TOOL_TIME_MAX, command.status()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            _ => Err(CodeError::Tool(what)),
        }
    }
}

/// The sum over a program's code, in the making.
struct Sum(Hmac<Sha256>);

impl Sum {
    fn new(key: &CodeKey, compatibility: &str, program: &Digest) -> Self {
        #[expect(clippy::expect_used, reason = "HMAC takes keys of every length")]
        let mut sum = Hmac::<Sha256>::new_from_slice(key.bytes()).expect("any length will do");
        for part in [PURPOSE, compatibility.as_bytes(), program.as_str().as_bytes()] {
            sum.update(part);
            sum.update(b"\0");
        }
        Self(sum)
    }

    /// Takes in the rest of the file.
    fn read(mut self, mut file: &File) -> io::Result<Self> {
        let mut piece = vec![0; READ_BYTES];
        loop {
            match file.read(&mut piece)? {
                0 => return Ok(self),
                count => self.0.update(&piece[..count]),
            }
        }
    }
}

/// Checks the sum in front of the code; the file is then at the code's first byte.
fn verified(mut file: File, sum: Sum) -> Result<File, CodeError> {
    file.rewind()?;
    let mut claimed = [0; SUM_BYTES];
    file.read_exact(&mut claimed).map_err(|_| CodeError::Sum)?;
    // In constant time.
    sum.read(&file)?.0.verify_slice(&claimed).map_err(|_| CodeError::Sum)?;
    file.seek(io::SeekFrom::Start(SUM_BYTES as u64))?;
    Ok(file)
}

/// The sum of the code in the file, which is then at its first byte.
fn summed(mut file: File, sum: Sum) -> Result<(File, [u8; SUM_BYTES]), CodeError> {
    file.rewind()?;
    let sum = sum.read(&file)?.0.finalize().into_bytes().into();
    file.rewind()?;
    Ok((file, sum))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CodeError> + Send + 'static,
) -> Result<T, CodeError> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn code_is_believed_for_its_program_its_processor_and_its_cluster_alone() {
        let [key, other_key] = [[1; 32], [2; 32]].map(CodeKey::new);
        let [program, other] = [[1; 32], [2; 32]].map(|sum| Digest::of_sha256(&sum));
        let sum = |key, compatibility, program| Sum::new(key, compatibility, program);
        let (_, right) = summed(file(b"code"), sum(&key, "aa", &program)).unwrap();
        let sent = [&right[..], b"code"].concat();
        let mut taken = verified(file(&sent), sum(&key, "aa", &program)).unwrap();
        let mut code = Vec::new();
        taken.read_to_end(&mut code).unwrap();
        assert_eq!(code, b"code");
        for (sent, sum) in [
            (sent.clone(), sum(&other_key, "aa", &program)),
            (sent.clone(), sum(&key, "ab", &program)),
            (sent.clone(), sum(&key, "aa", &other)),
            ([&right[..], b"cods"].concat(), sum(&key, "aa", &program)),
            ([&right[..], b"code."].concat(), sum(&key, "aa", &program)),
            ([&[0; 32][..], b"code"].concat(), sum(&key, "aa", &program)),
            (sent[..20].to_vec(), sum(&key, "aa", &program)),
            (vec![], sum(&key, "aa", &program)),
        ] {
            assert!(matches!(verified(file(&sent), sum), Err(CodeError::Sum)), "{sent:?}");
        }
    }
}
