//! Which artifacts the node holds whole, and what a control plane is told of that: a hint for its scheduler.
//!
//! ```text
//! <data>/artifacts/held/<runtime>-<hex>    what the reference with that digest needs of the disk; its time says when it
//!                                          was used last
//! ```
//!
//! What is written down outlives the agent, not what it names: files are looked for now and then, and what lacks one is held
//! no longer. Only references with a digest count; what a tag names today nobody else need mean.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use brig_api::Digest;
use brig_api::reference::Reference;
use brig_api::session::{FromNode, HELD_ARTIFACTS_MAX, HeldArtifact};
use brig_api::unit_spec::Runtime;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc};
use tokio::time::MissedTickBehavior;

use crate::clock::now_ms;
use crate::compiled::CompiledCode;
use crate::program::Fetched;

/// Changes are told together, so often at most.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// So often is looked whether what was held is still there.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// That an artifact was used is written down so often.
const MARK_EVERY_MS: i64 = 600_000;
/// Largest record: an image may have 127 layers, each of a path.
const RECORD_BYTES_MAX: u64 = 256 << 10;

/// What the node holds. Cheap to clone.
#[derive(Clone)]
pub(crate) struct HeldArtifacts {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    compiled: CompiledCode,
    known: Mutex<HashMap<Name, Known>>,
    changed: Notify,
}

/// What a unit's reference names, for the runtime that it is for.
pub(crate) type Name = (Digest, Runtime);

/// All that an artifact needs of the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    files: Vec<PathBuf>,
    /// Of wasm, what is compiled.
    program: Option<Digest>,
}

#[derive(Debug, Clone)]
struct Known {
    record: Record,
    /// When it was used last, as far as was noted.
    used_ms: i64,
    is_ready: bool,
}

/// Each artifact, and whether it is ready to run.
type Told = BTreeMap<Name, bool>;

impl HeldArtifacts {
    /// Reads what an agent before this one wrote down in `<data>/artifacts/held`. What can't be read is not known: it will
    /// be once it is used again.
    pub(crate) fn open(data: &Path, compiled: CompiledCode) -> Self {
        let dir = data.join("artifacts/held");
        let known = read_all(&dir).unwrap_or_else(|error| {
            tracing::warn!(path = %dir.display(), %error, "what the node holds can't be read");
            HashMap::new()
        });
        let inner = Inner { dir, compiled, known: Mutex::new(known), changed: Notify::new() };
        Self { inner: Arc::new(inner) }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Name, Known>> {
        self.inner.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `reference` names is there. Of wasm it may have to be compiled yet; see [`Self::ready`].
    pub(crate) fn fetched(
        &self,
        reference: &str,
        runtime: Runtime,
        fetched: &Fetched,
    ) -> Option<Name> {
        let digest = reference.parse::<Reference>().ok()?.digest?;
        let record = match fetched {
            Fetched::Wasm { path, digest } => {
                Record { files: vec![path.clone()], program: Some(digest.clone()) }
            }
            Fetched::Image { layers, .. } => Record { files: layers.clone(), program: None },
        };
        let name = (digest, runtime);
        let now_ms = now_ms();
        let mut known = self.known();
        let before = known.get_mut(&name).filter(|known| known.record == record);
        if let Some(before) = before {
            if now_ms.saturating_sub(before.used_ms) < MARK_EVERY_MS {
                return Some(name);
            }
            before.used_ms = now_ms;
        } else {
            if known.len() >= HELD_ARTIFACTS_MAX {
                self.forget_oldest(&mut known);
            }
            let is_ready = record.program.is_none();
            known.insert(name.clone(), Known { record: record.clone(), used_ms: now_ms, is_ready });
            self.inner.changed.notify_one();
        }
        drop(known);
        if let Err(error) = self.write(&name, &record) {
            tracing::debug!(path = %self.path(&name).display(), %error, "what is held is not written down");
        }
        Some(name)
    }

    /// Nothing is left to be done before it runs.
    pub(crate) fn ready(&self, name: &Name) {
        if let Some(known) = self.known().get_mut(name)
            && !std::mem::replace(&mut known.is_ready, true)
        {
            self.inner.changed.notify_one();
        }
    }

    fn forget_oldest(&self, known: &mut HashMap<Name, Known>) {
        let oldest = known.iter().min_by_key(|(_, known)| known.used_ms);
        if let Some(name) = oldest.map(|(name, _)| name.clone()) {
            known.remove(&name);
            let _ = std::fs::remove_file(self.path(&name));
        }
    }

    fn path(&self, (digest, runtime): &Name) -> PathBuf {
        self.inner.dir.join(format!("{}-{}", runtime.as_str(), digest.hex()))
    }

    /// A file that was only half written is no record, and is removed when it is read.
    fn write(&self, name: &Name, record: &Record) -> io::Result<()> {
        std::fs::create_dir_all(&self.inner.dir)?;
        std::fs::write(self.path(name), serde_json::to_vec(record)?)
    }

    /// Looks whether everything is still there, the compiled code too.
    async fn look(&self) {
        let has_code = self.inner.compiled.finder().await;
        let before: Vec<_> =
            self.known().iter().map(|(name, known)| (name.clone(), known.record.clone())).collect();
        let looked = tokio::task::spawn_blocking(move || {
            let state = |(name, record): (Name, Record)| {
                let is_there = record.files.iter().all(|file| file.exists());
                let is_ready = record.program.as_ref().is_none_or(&has_code);
                (name, record, is_there, is_ready)
            };
            before.into_iter().map(state).collect::<Vec<_>>()
        });
        let looked = looked.await.unwrap_or_default();
        let mut known = self.known();
        for (name, record, is_there, is_ready) in looked {
            // Another one may have come meanwhile.
            let Some(now) = known.get_mut(&name).filter(|known| known.record == record) else {
                continue;
            };
            now.is_ready = is_ready;
            if !is_there {
                known.remove(&name);
                let _ = std::fs::remove_file(self.path(&name));
            }
        }
    }

    fn now(&self) -> Told {
        self.known().iter().map(|(name, known)| (name.clone(), known.is_ready)).collect()
    }

    /// Tells a control plane: everything first, then what changes. Ends with the session.
    pub(crate) async fn tell(&self, outgoing: mpsc::WeakSender<FromNode>) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        look.tick().await;
        self.look().await;
        let mut told = None;
        loop {
            let now = self.now();
            if let Some(message) = difference(told.as_ref(), &now) {
                let Some(session) = outgoing.upgrade() else { return };
                if session.send(message).await.is_err() {
                    return;
                }
            }
            told = Some(now);
            tokio::time::sleep(TELL_EVERY).await;
            tokio::select! {
                () = self.inner.changed.notified() => {}
                _ = look.tick() => self.look().await,
            }
        }
    }
}

/// What is to be told to somebody who was told that much; nothing at all before.
fn difference(told: Option<&Told>, now: &Told) -> Option<FromNode> {
    let empty = Told::new();
    let before = told.unwrap_or(&empty);
    let held: Vec<_> = now
        .iter()
        .filter(|(name, is_ready)| before.get(name) != Some(is_ready))
        .map(|((digest, runtime), is_ready)| HeldArtifact {
            digest: digest.clone(),
            runtime: *runtime,
            is_ready: *is_ready,
        })
        .collect();
    let gone: Vec<_> = before.keys().filter(|name| !now.contains_key(name)).cloned().collect();
    let is_complete = told.is_none();
    (is_complete || !held.is_empty() || !gone.is_empty()).then_some(FromNode::Artifacts {
        is_complete,
        held,
        gone,
    })
}

fn read_all(dir: &Path) -> io::Result<HashMap<Name, Known>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HashMap::new()),
        entries => entries?,
    };
    let mut all = Vec::new();
    for entry in entries {
        let path = entry?.path();
        match read(&path) {
            Some(known) => all.push((path, known)),
            None => {
                let _ = std::fs::remove_file(&path);
            }
        }
    }
    all.sort_by_key(|(_, (_, known))| std::cmp::Reverse(known.used_ms));
    for (path, _) in all.drain(HELD_ARTIFACTS_MAX.min(all.len())..) {
        let _ = std::fs::remove_file(path);
    }
    Ok(all.into_iter().map(|(_, known)| known).collect())
}

/// The record in a file, if it is one. Nothing counts as ready before it was looked for.
fn read(path: &Path) -> Option<(Name, Known)> {
    let (runtime, hex) = path.file_name()?.to_str()?.split_once('-')?;
    let all = [Runtime::Wasm, Runtime::Oci];
    let runtime = all.into_iter().find(|known| known.as_str() == runtime)?;
    let digest = Digest::new(format!("sha256:{hex}")).ok()?;
    let file = File::open(path).ok()?;
    let metadata = file.metadata().ok().filter(|metadata| metadata.len() <= RECORD_BYTES_MAX)?;
    let record: Record = serde_json::from_reader(io::BufReader::new(file)).ok()?;
    let used = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    let used_ms = i64::try_from(used.as_millis()).ok()?;
    let is_ready = record.program.is_none();
    Some(((digest, runtime), Known { record, used_ms, is_ready }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::ImageConfig;

    fn digest(number: u8) -> Digest {
        Digest::of_sha256(&[number; 32])
    }

    fn open(data: &Path) -> HeldArtifacts {
        let shim = crate::tests::fake_compiler::make(data);
        HeldArtifacts::open(data, CompiledCode::new(shim, data.join("wasm-cache")))
    }

    fn reference(number: u8) -> String {
        format!("team/app:1@{}", digest(number))
    }

    fn image(data: &Path) -> Fetched {
        let layer = data.join("layer");
        std::fs::create_dir_all(&layer).unwrap();
        Fetched::Image { config: ImageConfig::default(), layers: vec![layer] }
    }

    fn program(data: &Path, number: u8) -> Fetched {
        let path = data.join(format!("{number}.wasm"));
        std::fs::write(&path, "wasm").unwrap();
        Fetched::Wasm { path, digest: digest(number) }
    }

    fn list(held: &HeldArtifacts) -> Vec<(Name, bool)> {
        held.now().into_iter().collect()
    }

    #[tokio::test]
    async fn what_is_held_outlives_the_agent_and_not_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path();
        let held = open(data);
        assert_eq!(held.fetched("redis:7", Runtime::Oci, &image(data)), None, "it has no digest");
        held.fetched(&reference(1), Runtime::Oci, &image(data)).unwrap();
        let wasm = held.fetched(&reference(2), Runtime::Wasm, &program(data, 2)).unwrap();
        let (first, second) = ((digest(1), Runtime::Oci), (digest(2), Runtime::Wasm));
        assert_eq!(list(&held), [(first.clone(), true), (second.clone(), false)]);
        held.ready(&wasm);
        assert_eq!(list(&held), [(first.clone(), true), (second.clone(), true)]);

        std::fs::write(data.join("artifacts/held/wasm-nonsense"), "{}").unwrap();
        std::fs::write(data.join(format!("artifacts/held/oci-{}", digest(3).hex())), "{").unwrap();
        let again = open(data);
        again.look().await;
        assert_eq!(list(&again), [(first.clone(), true), (second.clone(), false)], "no code");
        assert_eq!(std::fs::read_dir(data.join("artifacts/held")).unwrap().count(), 2);
        let code = brig_shim::code::path(&data.join("wasm-cache"), "aa", &digest(2));
        std::fs::create_dir_all(code.parent().unwrap()).unwrap();
        std::fs::write(code, "code").unwrap();
        again.look().await;
        assert_eq!(list(&again), [(first, true), (second.clone(), true)]);
        std::fs::remove_dir(data.join("layer")).unwrap();
        again.look().await;
        assert_eq!(list(&again), [(second, true)]);
        std::fs::remove_file(data.join("2.wasm")).unwrap();
        again.look().await;
        assert_eq!((list(&again), list(&open(data))), (vec![], vec![]));
    }

    #[test]
    fn what_was_used_longest_ago_is_forgotten_beyond_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let held = open(dir.path());
        let mut names = Vec::new();
        for number in 0..=HELD_ARTIFACTS_MAX {
            let mut sum = [0; 32];
            sum[..8].copy_from_slice(&(number as u64).to_be_bytes());
            let reference = format!("app@{}", Digest::of_sha256(&sum));
            names.extend(held.fetched(&reference, Runtime::Oci, &image(dir.path())));
            if let [first] = &names[..] {
                held.known().get_mut(first).unwrap().used_ms -= 1;
            }
        }
        let now = held.now();
        assert_eq!(now.len(), HELD_ARTIFACTS_MAX);
        assert!(!now.contains_key(&names[0]) && now.contains_key(&names[HELD_ARTIFACTS_MAX]));
    }

    #[test]
    fn only_news_is_told_and_everything_at_first() {
        let (one, two) = ((digest(1), Runtime::Wasm), (digest(2), Runtime::Oci));
        let first = Told::from([(one.clone(), false)]);
        let second = Told::from([(two.clone(), true)]);
        let third = Told::from([(two.clone(), false)]);
        let held = |(digest, runtime): &Name, is_ready| HeldArtifact {
            digest: digest.clone(),
            runtime: *runtime,
            is_ready,
        };
        let told = |is_complete, held, gone| Some(FromNode::Artifacts { is_complete, held, gone });
        assert_eq!(difference(None, &Told::new()), told(true, vec![], vec![]));
        assert_eq!(difference(None, &first), told(true, vec![held(&one, false)], vec![]));
        assert_eq!(difference(Some(&first), &first), None);
        let news = told(false, vec![held(&two, true)], vec![one]);
        assert_eq!(difference(Some(&first), &second), news);
        let news = told(false, vec![held(&two, false)], vec![]);
        assert_eq!(difference(Some(&second), &third), news);
    }
}
