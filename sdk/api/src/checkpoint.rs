//! What a wasm program saves through `brig:unit/checkpoint`, to go on from there in its next run.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{ResourceName, UnitId};

/// The interface by the name that components import it by.
pub const INTERFACE: &str = "brig:unit/checkpoint@0.1.0";
/// Most bytes of a state: one fits a message of a node's session many times over, and a row of the database.
pub const STATE_BYTES_MAX: usize = 1 << 20;
/// Characters of the largest state in base64.
const STATE_TEXT_MAX: usize = STATE_BYTES_MAX.div_ceil(3) * 4;

/// A state as its program saved it: at most [`STATE_BYTES_MAX`] bytes, in JSON as base64. It may be anything, a secret too:
/// `Debug` shows its length alone.
#[derive(Clone, PartialEq, Eq)]
pub struct State(Vec<u8>);

/// A state is larger than is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a state of {0} bytes is too large: at most {STATE_BYTES_MAX}")]
pub struct StateTooLarge(pub usize);

impl State {
    /// A state of these bytes.
    ///
    /// # Errors
    /// [`StateTooLarge`]
    pub fn new(bytes: Vec<u8>) -> Result<Self, StateTooLarge> {
        if bytes.len() > STATE_BYTES_MAX {
            Err(StateTooLarge(bytes.len()))
        } else {
            Ok(Self(bytes))
        }
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, taken.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "State({} bytes)", self.0.len())
    }
}

impl Serialize for State {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for State {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.len() > STATE_TEXT_MAX {
            return Err(serde::de::Error::custom("the state is too large"));
        }
        // What the decoder says quotes a byte of the state.
        let bytes = STANDARD.decode(text).map_err(|_| serde::de::Error::custom("not base64"))?;
        Self::new(bytes).map_err(serde::de::Error::custom)
    }
}

/// A saved state of one task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Counts the saves of a task, over all its runs: of two the one with the larger number is newer.
    pub number: u64,
    /// When, Unix milliseconds, by the clock of its node.
    pub saved_ms: i64,
    /// What.
    pub state: State,
}

/// The newest checkpoint of a task, as its node tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointReport {
    /// The task's unit.
    pub unit: UnitId,
    /// The task.
    pub task: ResourceName,
    /// What it saved.
    pub checkpoint: Checkpoint,
}

/// What is told of the newest checkpoint of a task: everything but the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CheckpointView {
    /// The task.
    pub task: ResourceName,
    /// See [`Checkpoint::number`].
    pub number: u64,
    /// When it was saved, Unix milliseconds.
    pub saved_ms: i64,
    /// How large the state is.
    pub bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_back_and_never_shown() {
        for bytes in [vec![], vec![0, 255, 10], vec![7; STATE_BYTES_MAX]] {
            let state = State::new(bytes.clone()).unwrap();
            let text = serde_json::to_string(&state).unwrap();
            assert!(text.len() <= STATE_TEXT_MAX + 2);
            assert_eq!(serde_json::from_str::<State>(&text).unwrap().into_bytes(), bytes);
        }
        let state = State::new(b"hunter2".to_vec()).unwrap();
        let checkpoint = Checkpoint { number: 1, saved_ms: 2, state };
        assert!(format!("{checkpoint:?}").contains("State(7 bytes)"), "{checkpoint:?}");
    }

    #[test]
    fn what_is_too_large_or_no_state_is_refused_without_repeating_it() {
        assert_eq!(
            State::new(vec![0; STATE_BYTES_MAX + 1]),
            Err(StateTooLarge(STATE_BYTES_MAX + 1))
        );
        let large = serde_json::to_string(&STANDARD.encode(vec![0; STATE_BYTES_MAX + 1])).unwrap();
        for text in [large.as_str(), "\"hunter2!\"", "7", "\"====\""] {
            let error = serde_json::from_str::<State>(text).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
