//! Compiled code of wasm programs, shared by the nodes of a cluster: what another node has compiled is fetched, and what
//! this one has compiled is given to the others.
//!
//! The wasm shim owns the form of the code and knows what it was compiled for; here it is bytes with a sum in front:
//!
//! ```text
//! HMAC-SHA256 (32 bytes) of what follows, of what it was compiled for, and of the program's digest
//! what `brig-shim-wasm export` wrote
//! ```
//!
//! Compiled code runs as the shim, so only code with a right sum reaches the shim's store. The key for it comes with the
//! session and is nowhere on this node's disk. Whatever goes wrong here costs a compilation and nothing else.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek as _};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use brig_api::Digest;
use brig_api::session::CodeKey;
use brig_client::{Client, ClientError};
use bytes::Bytes;
use futures::StreamExt as _;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use tokio::sync::OnceCell;
use tokio_util::io::ReaderStream;

/// What the sum is for, so that it is right for nothing else.
const PURPOSE: &[u8] = b"brig compiled code 1";
/// Bytes of the sum.
const SUM_BYTES: usize = 32;
/// Largest code that is fetched.
const CODE_BYTES_MAX: u64 = 1 << 30;
/// Programs that are remembered; beyond it all are forgotten, and asked for again.
const PROGRAMS_KNOWN_MAX: usize = 4_096;
/// Longest run of the shim's program as a tool.
const TOOL_TIME_MAX: Duration = Duration::from_secs(60);
/// Hashed in pieces of this size.
const READ_BYTES: usize = 256 << 10;

/// The node's share of the cluster's compiled code. Cheap to clone.
#[derive(Clone)]
pub(crate) struct CompiledCode {
    inner: Arc<Inner>,
}

struct Inner {
    /// The wasm shim's program.
    shim: PathBuf,
    /// Where the shims keep compiled code.
    cache: PathBuf,
    cluster: Mutex<Option<Cluster>>,
    /// What the shim compiles for; None when it does not say.
    compatibility: OnceCell<Option<String>>,
    programs: Mutex<HashMap<Digest, Arc<OnceCell<Place>>>>,
}

/// The control plane of the session.
#[derive(Clone)]
struct Cluster {
    client: Client,
    key: CodeKey,
}

/// Where a program's code was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// On this node, or with nobody of use: nothing is left to do.
    Settled,
    /// Neither here nor in the cluster: the shim compiles it, and the cluster gets it then.
    Nowhere,
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
                compatibility: OnceCell::new(),
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

    /// Fetches a program's code, if this node has none and the cluster has some; once for each program, whoever asks.
    pub(crate) async fn ready(&self, program: &Digest) {
        let Some(cluster) = self.cluster() else { return };
        let cell = {
            let mut programs = self.programs();
            if programs.len() >= PROGRAMS_KNOWN_MAX {
                programs.clear();
            }
            Arc::clone(programs.entry(program.clone()).or_default())
        };
        cell.get_or_init(|| self.look(&cluster, program)).await;
    }

    /// The shim runs the program: its code is there. The cluster gets it, if it had none.
    pub(crate) fn share(&self, program: &Digest) {
        {
            let mut programs = self.programs();
            let Some(cell) = programs.get_mut(program) else { return };
            if cell.get() != Some(&Place::Nowhere) {
                return;
            }
            *cell = Arc::new(OnceCell::new_with(Some(Place::Settled)));
        }
        let (code, program) = (self.clone(), program.clone());
        tokio::spawn(async move {
            match code.give(&program).await {
                Ok(()) => {
                    tracing::info!(program = %program, "compiled code was given to the cluster");
                }
                Err(error) => {
                    tracing::info!(program = %program, %error, "compiled code was not given to the cluster");
                }
            }
        });
    }

    fn programs(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Arc<OnceCell<Place>>>> {
        self.inner.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn look(&self, cluster: &Cluster, program: &Digest) -> Place {
        let Some(compatibility) = self.compatibility().await else { return Place::Settled };
        if brig_shim::code::path(&self.inner.cache, compatibility, program).exists() {
            return Place::Settled;
        }
        match self.take(cluster, compatibility, program).await {
            Ok(true) => {
                tracing::info!(program = %program, "compiled code came from the cluster");
                Place::Settled
            }
            Ok(false) => Place::Nowhere,
            Err(error) => {
                tracing::warn!(program = %program, %error, "the cluster's compiled code is of no use");
                Place::Nowhere
            }
        }
    }

    /// What the shim on this machine compiles for.
    async fn compatibility(&self) -> Option<&str> {
        let asked = self.inner.compatibility.get_or_init(|| async {
            let mut command = tokio::process::Command::new(&self.inner.shim);
            command.arg("compatibility").stdin(Stdio::null()).stderr(Stdio::null());
            command.kill_on_drop(true);
            let output = tokio::time::timeout(TOOL_TIME_MAX, command.output()).await.ok()?.ok()?;
            let name = String::from_utf8(output.stdout).ok()?.trim().to_owned();
            let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_hexdigit());
            (output.status.success() && is_name).then_some(name)
        });
        asked.await.as_deref()
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
        // The shim's program goes on reading behind the sum.
        self.tool("import", program, Stdio::from(file), Stdio::null()).await?;
        Ok(true)
    }

    async fn give(&self, program: &Digest) -> Result<(), CodeError> {
        let (Some(cluster), Some(compatibility)) = (self.cluster(), self.compatibility().await)
        else {
            return Ok(());
        };
        let file = self.scratch()?;
        let out = Stdio::from(file.try_clone()?);
        self.tool("export", program, Stdio::null(), out).await?;
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
        program: &Digest,
        stdin: Stdio,
        stdout: Stdio,
    ) -> Result<(), CodeError> {
        let mut command = tokio::process::Command::new(&self.inner.shim);
        command
            .arg(what)
            .arg("--digest")
            .arg(program.as_str())
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
