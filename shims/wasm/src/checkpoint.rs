//! `brig:unit/checkpoint`: where a command keeps where it is, so that its next run goes on from there.
//!
//! The newest state is a file in the run's directory ([`brig_shim::checkpoint`]): the agent has put the one there that the
//! run before has saved, and takes what this one saves. What a program saves is its own business and reaches no log.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use brig_api::checkpoint::{Checkpoint, INTERFACE, STATE_BYTES_MAX, State};
use brig_shim::checkpoint::{self, CHECKPOINT_NAME};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;
use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker, Lower, WasmList};

use crate::clock::now_ms;
use crate::host::ComponentHost;
use crate::memory::{Charge, MemoryAccount, MemoryExceeded};

/// From one save of a task to the next: each is flushed to the disk, which all tasks of the node share, and goes to the
/// control plane.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// Is told the number of each save.
pub(crate) type OnSaved = Box<dyn Fn(u64) + Send + Sync>;

/// The checkpoint of a task.
pub(crate) struct TaskCheckpoint {
    file: PathBuf,
    is_server: bool,
    on_saved: OnSaved,
    /// Held by who saves.
    last: Mutex<Option<Saved>>,
}

/// The last save of this run.
struct Saved {
    number: u64,
    at: Instant,
}

/// As guests see it.
#[derive(Debug, ComponentType, Lift, Lower)]
#[component(variant)]
enum Error {
    #[component(name = "too-large")]
    TooLarge(u64),
    #[component(name = "other")]
    Other(String),
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::Other(format!("the node's disk: {error}"))
    }
}

impl From<MemoryExceeded> for Error {
    fn from(error: MemoryExceeded) -> Self {
        Self::Other(format!("no memory for a copy of the state: {error}"))
    }
}

impl From<tokio::task::JoinError> for Error {
    fn from(error: tokio::task::JoinError) -> Self {
        Self::Other(error.to_string())
    }
}

impl TaskCheckpoint {
    /// That of a run in this directory.
    pub(crate) fn new(dir: &Path, is_server: bool, on_saved: OnSaved) -> Self {
        Self { file: dir.join(CHECKPOINT_NAME), is_server, on_saved, last: Mutex::default() }
    }

    fn check(&self) -> Result<(), Error> {
        if self.is_server {
            let why = "an http service has many instances and no one place where it is: keep things by wasi:keyvalue";
            return Err(Error::Other(why.to_owned()));
        }
        Ok(())
    }

    /// The turn to save, not too soon after the last one.
    async fn turn(&self) -> MutexGuard<'_, Option<Saved>> {
        let last = self.last.lock().await;
        if let Some(Saved { at, .. }) = *last {
            tokio::time::sleep_until(at + SAVE_EVERY).await;
        }
        last
    }

    /// The newest state, and the charge for it.
    async fn load(&self, memory: &Arc<MemoryAccount>) -> Result<Option<(State, Charge)>, Error> {
        self.check()?;
        let (file, memory) = (self.file.clone(), Arc::clone(memory));
        let found = tokio::task::spawn_blocking(move || {
            let length = match std::fs::symlink_metadata(&file) {
                Ok(metadata) => metadata.len(),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let charge = Charge::new(&memory, length)?;
            Ok(checkpoint::read(&file)?.map(|found| (found.state, charge)))
        });
        found.await?
    }

    async fn write(
        &self,
        mut last: MutexGuard<'_, Option<Saved>>,
        state: State,
        charge: Charge,
    ) -> Result<(), Error> {
        let (file, before) = (self.file.clone(), last.as_ref().map(|saved| saved.number));
        let written = tokio::task::spawn_blocking(move || {
            let _charge = charge;
            let before = match before {
                Some(number) => number,
                None => checkpoint::number(&file)?.unwrap_or(0),
            };
            let number = before.saturating_add(1);
            checkpoint::write(&file, &Checkpoint { number, saved_ms: now_ms(), state })?;
            Ok::<_, Error>(number)
        });
        let number = written.await??;
        *last = Some(Saved { number, at: Instant::now() });
        drop(last);
        (self.on_saved)(number);
        Ok(())
    }
}

type Host<'a> = StoreContextMut<'a, ComponentHost>;

/// Adds the interface. Every component may import it.
pub(crate) fn add_to_linker(linker: &mut Linker<ComponentHost>) -> wasmtime::Result<()> {
    let mut interface = linker.instance(INTERFACE)?;
    interface.func_wrap_async("load", |host: Host<'_>, (): ()| {
        let task = Arc::clone(host.data().checkpoint());
        let memory = Arc::clone(host.data().limiter.account());
        Box::new(async move { Ok((load(&task, &memory).await,)) })
    })?;
    interface.func_wrap_async("save", |host: Host<'_>, (state,): (WasmList<u8>,)| {
        Box::new(async move { Ok((save(host, state).await,)) })
    })
}

async fn load(
    task: &TaskCheckpoint,
    memory: &Arc<MemoryAccount>,
) -> Result<Option<Vec<u8>>, Error> {
    // The charge ends here, where the state is about to be copied into the guest's own memory.
    let found = task.load(memory).await?;
    Ok(found.map(|(state, _charge)| state.into_bytes()))
}

async fn save(host: Host<'_>, state: WasmList<u8>) -> Result<(), Error> {
    // Before anything of it is copied.
    if state.len() > STATE_BYTES_MAX {
        return Err(Error::TooLarge(bytes(STATE_BYTES_MAX)));
    }
    let task = Arc::clone(host.data().checkpoint());
    task.check()?;
    let turn = task.turn().await;
    let charge = Charge::new(host.data().limiter.account(), bytes(state.len()))?;
    let state = State::new(state.as_le_slice(&host).to_vec())
        .map_err(|_| Error::TooLarge(bytes(STATE_BYTES_MAX)))?;
    task.write(turn, state, charge).await
}

fn bytes(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(bytes: &[u8]) -> State {
        State::new(bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_copy_is_charged_while_it_is_held_and_refused_beyond_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(CHECKPOINT_NAME);
        let before = Checkpoint { number: 7, saved_ms: 1, state: state(&[1; 1_000]) };
        checkpoint::write(&file, &before).unwrap();
        let task = TaskCheckpoint::new(dir.path(), false, Box::new(|_| ()));
        let refused = task.load(&MemoryAccount::new(1_000)).await;
        assert!(matches!(refused, Err(Error::Other(why)) if why.contains("no memory")));
        let memory = MemoryAccount::new(2_000);
        let (found, charge) = task.load(&memory).await.unwrap().unwrap();
        assert_eq!((found, memory.now()), (before.state, 1_016));
        drop(charge);
        let charge = Charge::new(&memory, 3).unwrap();
        task.write(task.turn().await, state(b"new"), charge).await.unwrap();
        assert_eq!((memory.now(), checkpoint::number(&file).unwrap()), (0, Some(8)));
    }

    #[tokio::test]
    async fn what_is_told_is_on_the_disk_and_a_server_saves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(CHECKPOINT_NAME);
        let told = {
            let file = file.clone();
            move |number| assert_eq!(checkpoint::number(&file).unwrap(), Some(number))
        };
        let task = TaskCheckpoint::new(dir.path(), false, Box::new(told));
        let memory = MemoryAccount::new(1 << 20);
        assert!(task.load(&memory).await.unwrap().is_none());
        let charge = Charge::new(&memory, 1).unwrap();
        task.write(task.turn().await, state(b"x"), charge).await.unwrap();
        assert_eq!(checkpoint::number(&file).unwrap(), Some(1));
        let server = TaskCheckpoint::new(dir.path(), true, Box::new(|_| ()));
        assert!(matches!(server.check(), Err(Error::Other(why)) if why.contains("wasi:keyvalue")));
    }
}
