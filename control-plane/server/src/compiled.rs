//! Compiled code of wasm programs, kept for the nodes: what one has compiled the others fetch.
//!
//! ```text
//! <data>/registry/compiled/key                        what nodes authenticate code with; readable by the server alone
//! <data>/registry/compiled/<compatibility>/<hex>      code of the program with that digest, as a node sent it
//! ```
//!
//! The server looks at none of it. Code runs natively in whoever maps it, so a node believes only what bears a sum made
//! with the key, which it is told over its session and which no other request gives out. What somebody else puts here is
//! bytes that no node uses, and goes when room is needed. It is a cache: whatever is lost is compiled again.

use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use brig_api::session::CodeKey;
use brig_api::{Code, Digest};
use futures::StreamExt as _;
use http::{StatusCode, header};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::io::ReaderStream;

use crate::app::App;
use crate::extract::PathOf;
use crate::problem::{Answer, Failure};
use crate::route::{Operation, Routes};

/// Largest code of one program: that of an interpreter of 26 MB has some 60 MB.
const CODE_BYTES_MAX: u64 = 1 << 30;
/// Transfers to the store at a time: what came only in part is not among what is kept.
const KEEPS_MAX: usize = 4;
/// Most code that is kept.
const STORE_BYTES_MAX: u64 = 8 << 30;
/// Most programs whose code is kept.
const STORE_PROGRAMS_MAX: usize = 10_000;
/// Time for the next bytes of code to come.
const PIECE_TIME_MAX: Duration = Duration::from_secs(30);
/// A file that came only in part is removed after this time.
const INCOMPLETE_AGE_MAX: Duration = Duration::from_secs(3_600);
/// How the name of a file that came only in part begins.
const INCOMPLETE: &str = ".incomplete-";
/// Longest name of what code was compiled for.
const COMPATIBILITY_BYTES_MAX: usize = 64;
/// Read and sent in pieces of this size.
const READ_BYTES: usize = 256 << 10;

/// The code that is kept, and the key for it.
pub(crate) struct CompiledStore {
    root: PathBuf,
    key: CodeKey,
    keeps: Semaphore,
}

pub(crate) fn routes() -> Routes {
    const PATH: &str = "/v1/compiled-code/{compatibility}/{program}";
    Routes::default()
        .add(
            Operation::get(
                PATH,
                "compiledCodeFetch",
                "A node fetches what another one has compiled",
            )
            .streams("application/octet-stream", "The code, with a sum of its own in front."),
            fetch,
        )
        .add(
            Operation::post(
                PATH,
                "compiledCodeKeep",
                "A node gives what it has compiled to be kept",
            )
            .streams("application/octet-stream", "Nothing, once the code is kept."),
            keep,
        )
}

async fn fetch(
    State(app): State<Arc<App>>,
    PathOf((compatibility, program)): PathOf<(String, String)>,
) -> Answer<Response> {
    let path = app.compiled.path(&compatibility, &program)?;
    let opened = tokio::fs::File::open(&path).await;
    let file = match opened {
        Ok(file) => file.into_std().await,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let detail =
                format!("no code of {program} is kept that was compiled for {compatibility}");
            return Err(Failure::new(Code::NotFound, detail));
        }
        Err(error) => return Err(storage(&error)),
    };
    // The time of last use; that it can't be kept is no matter.
    let _ = file.set_modified(crate::clock::now());
    let length = file.metadata().map_err(|error| storage(&error))?.len();
    let pieces = ReaderStream::with_capacity(tokio::fs::File::from_std(file), READ_BYTES);
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, length.to_string()),
    ];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

async fn keep(
    State(app): State<Arc<App>>,
    PathOf((compatibility, program)): PathOf<(String, String)>,
    body: Body,
) -> Answer<StatusCode> {
    let path = app.compiled.path(&compatibility, &program)?;
    let _turn = app.compiled.turn()?;
    let folder = path.parent().unwrap_or(&app.compiled.root).to_owned();
    tokio::fs::create_dir_all(&folder).await.map_err(|error| storage(&error))?;
    let incomplete = folder.join(format!("{INCOMPLETE}{:032x}", rand::random::<u128>()));
    let received = async {
        receive(&incomplete, body).await?;
        tokio::fs::rename(&incomplete, &path).await.map_err(|error| storage(&error))
    };
    if let Err(failure) = received.await {
        // What stays is removed when it is old.
        let _ = tokio::fs::remove_file(&incomplete).await;
        return Err(failure);
    }
    let root = app.compiled.root.clone();
    let made = tokio::task::spawn_blocking(move || {
        make_room(&root, crate::clock::now(), STORE_BYTES_MAX, STORE_PROGRAMS_MAX)
    });
    if let Ok(Err(error)) = made.await {
        tracing::warn!(%error, "old compiled code could not be removed");
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn receive(path: &Path, body: Body) -> Answer<()> {
    let mut file = tokio::fs::File::create_new(path).await.map_err(|error| storage(&error))?;
    let mut pieces = body.into_data_stream();
    let mut left = CODE_BYTES_MAX;
    loop {
        let next = tokio::time::timeout(PIECE_TIME_MAX, pieces.next()).await;
        let broke = || Failure::new(Code::Invalid, "the code did not come whole: send it again");
        let Some(piece) = next.map_err(|_| broke())? else { break };
        let piece = piece.map_err(|_| broke())?;
        left = left.checked_sub(piece.len() as u64).ok_or_else(|| {
            let detail = format!("compiled code has at most {CODE_BYTES_MAX} bytes here");
            Failure::new(Code::TooLarge, detail)
        })?;
        file.write_all(&piece).await.map_err(|error| storage(&error))?;
    }
    // Not synced: after a power cut a node sees by the sum that it is not whole.
    file.flush().await.map_err(|error| storage(&error))
}

fn storage(error: &io::Error) -> Failure {
    tracing::warn!(%error, "compiled code could not be read or written");
    Failure::new(Code::Unavailable, "compiled code can't be kept just now: compile it on the node")
}

impl CompiledStore {
    /// Opens the folder below the server's data, and makes the key where there is none.
    pub(crate) fn open(data: &Path) -> io::Result<Self> {
        let root = data.join("registry/compiled");
        std::fs::create_dir_all(&root)?;
        let key = read_or_make_key(&root.join("key"))?;
        Ok(Self { root, key, keeps: Semaphore::new(KEEPS_MAX) })
    }

    /// What nodes authenticate code with.
    pub(crate) fn key(&self) -> &CodeKey {
        &self.key
    }

    /// The turn of one transfer. Who gets none compiles again, and loses nothing but time.
    fn turn(&self) -> Answer<SemaphorePermit<'_>> {
        self.keeps.try_acquire().map_err(|_| {
            let detail = format!("{KEEPS_MAX} transfers of compiled code are under way: try later");
            Failure::new(Code::Unavailable, detail)
        })
    }

    fn path(&self, compatibility: &str, program: &str) -> Answer<PathBuf> {
        let is_name = (1..=COMPATIBILITY_BYTES_MAX).contains(&compatibility.len())
            && compatibility.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !is_name {
            let message =
                "expected the name that the node's wasm shim gives itself, in hexadecimal";
            return Err(Failure::field("compatibility", message));
        }
        let program =
            Digest::new(program).map_err(|error| Failure::field("program", error.to_string()))?;
        Ok(self.root.join(compatibility).join(program.hex()))
    }
}

/// Made once: with another key all that is kept would be compiled again.
fn read_or_make_key(path: &Path) -> io::Result<CodeKey> {
    if let Ok(text) = std::fs::read_to_string(path)
        && let Some(key) = CodeKey::from_hex(text.trim())
    {
        return Ok(key);
    }
    let key = CodeKey::new(rand::random());
    let new = path.with_extension("new");
    let _ = std::fs::remove_file(&new);
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(key.to_hex().as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    Ok(key)
}

/// Removes what was not used for longest until so much is left, and what came only in part and is old.
fn make_room(root: &Path, now: SystemTime, bytes_max: u64, programs_max: usize) -> io::Result<()> {
    let mut kept = Vec::new();
    for folder in std::fs::read_dir(root)? {
        let folder = folder?;
        if !folder.file_type()?.is_dir() {
            continue;
        }
        for entry in std::fs::read_dir(folder.path())? {
            let entry = entry?;
            // Somebody else may have removed it meanwhile.
            let Ok(metadata) = entry.metadata() else { continue };
            let used = metadata.modified()?;
            if !entry.file_name().to_string_lossy().starts_with(INCOMPLETE) {
                kept.push((used, metadata.len(), entry.path()));
            } else if now.duration_since(used).is_ok_and(|age| age > INCOMPLETE_AGE_MAX) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
    kept.sort();
    let mut bytes: u64 = kept.iter().map(|(_, length, _)| length).sum();
    let mut count = kept.len();
    for (_, length, path) in kept {
        if bytes <= bytes_max && count <= programs_max {
            break;
        }
        std::fs::remove_file(path)?;
        bytes -= length;
        count -= 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_key_is_made_once_and_for_the_server_alone() {
        let data = tempfile::tempdir().unwrap();
        let first = CompiledStore::open(data.path()).unwrap();
        let again = CompiledStore::open(data.path()).unwrap();
        assert_eq!(first.key.to_hex(), again.key.to_hex());
        let mode = std::fs::metadata(first.root.join("key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let other = CompiledStore::open(tempfile::tempdir().unwrap().path()).unwrap();
        assert_ne!(first.key.to_hex(), other.key.to_hex());
        assert!(!format!("{:?}", first.key).contains(&first.key.to_hex()));
    }

    #[test]
    fn more_transfers_than_there_are_turns_are_refused() {
        let store = CompiledStore::open(tempfile::tempdir().unwrap().path()).unwrap();
        let turns: Vec<_> = (0..KEEPS_MAX).map(|_| store.turn().unwrap()).collect();
        assert_eq!(store.turn().unwrap_err().0.code, Code::Unavailable);
        drop(turns);
        assert!(store.turn().is_ok());
    }

    #[test]
    fn paths_lead_nowhere_else() {
        let data = tempfile::tempdir().unwrap();
        let store = CompiledStore::open(data.path()).unwrap();
        let digest = Digest::of_sha256(&[1; 32]).to_string();
        assert!(store.path("0123abcdef", &digest).unwrap().starts_with(&store.root));
        for bad in ["", "..", "a/b", "key", "A", &"a".repeat(65)] {
            assert!(store.path(bad, &digest).is_err(), "{bad}");
        }
        assert!(store.path("ab", "sha256:..").is_err());
    }

    #[test]
    fn what_was_not_used_for_longest_makes_room() {
        let data = tempfile::tempdir().unwrap();
        let (one, two) = (data.path().join("a"), data.path().join("b"));
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100_000);
        let put = |folder: &Path, name: &str, age: u64| {
            std::fs::create_dir_all(folder).unwrap();
            std::fs::write(folder.join(name), b"0123456789").unwrap();
            let file = std::fs::File::options().append(true).open(folder.join(name)).unwrap();
            file.set_modified(now - Duration::from_secs(age)).unwrap();
        };
        for (folder, name, age) in [
            (&one, "old", 30),
            (&two, "older", 40),
            (&one, "new", 10),
            (&one, ".incomplete-1", 10),
            (&one, ".incomplete-2", 9_000),
        ] {
            put(folder, name, age);
        }
        let left = || {
            let mut names: Vec<_> = [&one, &two]
                .into_iter()
                .flat_map(|folder| std::fs::read_dir(folder).unwrap())
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        make_room(data.path(), now, 1_000, 10).unwrap();
        assert_eq!(left(), [".incomplete-1", "new", "old", "older"]);
        make_room(data.path(), now, 20, 10).unwrap();
        assert_eq!(left(), [".incomplete-1", "new", "old"]);
        make_room(data.path(), now, 20, 1).unwrap();
        assert_eq!(left(), [".incomplete-1", "new"]);
    }
}
