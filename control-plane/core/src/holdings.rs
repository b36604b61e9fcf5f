//! What nodes hold: which artifacts are on a node already, as it says itself. A hint: a node that is wrong about it, by mistake
//! or on purpose, has to fetch what it said it had.

use std::sync::Arc;

use brig_api::Digest;
use brig_api::session::{HELD_ARTIFACTS_MAX, HeldArtifact};
use brig_api::unit_spec::Runtime;
use serde::{Deserialize, Serialize};

/// Bits of a digest that are kept: ten thousand nodes may hold thousands of artifacts each. Two artifacts with the same
/// first bits would be taken for one another, which costs as much as a node that is wrong.
const DIGEST_BITS: u32 = 62;

/// An artifact for a runtime: the first bits of the digest, then one for the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ArtifactKey(u64);

impl ArtifactKey {
    pub(crate) fn new(digest: &Digest, runtime: Runtime) -> Self {
        let hex = digest.hex().get(..16).unwrap_or_default();
        let first = u64::from_str_radix(hex, 16).unwrap_or_default();
        let kept = first >> (u64::BITS - DIGEST_BITS);
        Self(kept << 1 | u64::from(runtime == Runtime::Oci))
    }
}

/// One artifact that is held: its key, and a bit that says whether it is ready to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Holding(u64);

impl Holding {
    fn of(held: &HeldArtifact) -> Self {
        let ArtifactKey(key) = ArtifactKey::new(&held.digest, held.runtime);
        Self(key << 1 | u64::from(held.is_ready))
    }

    fn key(self) -> ArtifactKey {
        ArtifactKey(self.0 >> 1)
    }

    fn state(self) -> Held {
        if self.0 & 1 == 1 { Held::Ready } else { Held::Fetched }
    }
}

/// How far a node is with an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) enum Held {
    /// It is not there.
    #[default]
    Not,
    /// It is there.
    Fetched,
    /// It could run at once.
    Ready,
}

/// The artifacts that one node holds. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "Vec<Holding>")]
pub struct Holdings(Arc<[Holding]>);

impl From<Vec<Holding>> for Holdings {
    fn from(mut all: Vec<Holding>) -> Self {
        all.sort_unstable();
        // Of one that was told in two states the worse one stays.
        all.dedup_by_key(|holding| holding.key());
        all.truncate(HELD_ARTIFACTS_MAX);
        Self(all.into())
    }
}

impl Holdings {
    /// These, and what a node held before except for what is gone. At most [`HELD_ARTIFACTS_MAX`]: of more, some are not
    /// kept.
    #[must_use]
    pub fn after(&self, held: &[HeldArtifact], gone: &[(Digest, Runtime)]) -> Self {
        let mut new: Vec<_> = held.iter().map(Holding::of).collect();
        new.sort_unstable();
        let mut away: Vec<_> =
            gone.iter().map(|(digest, runtime)| ArtifactKey::new(digest, *runtime)).collect();
        away.sort_unstable();
        let is_new = |key| new.binary_search_by_key(&key, |holding| holding.key()).is_ok();
        let stays = |holding: &&Holding| {
            away.binary_search(&holding.key()).is_err() && !is_new(holding.key())
        };
        let mut all: Vec<_> = self.0.iter().filter(stays).copied().collect();
        all.extend(new);
        all.into()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn find(&self, key: ArtifactKey) -> Held {
        let found = self.0.binary_search_by_key(&key, |holding| holding.key());
        found.ok().and_then(|at| self.0.get(at)).map_or(Held::Not, |holding| holding.state())
    }

    /// What is held in another state than before.
    pub(crate) fn changes_since<'h>(
        &'h self,
        old: &'h Self,
    ) -> impl Iterator<Item = (ArtifactKey, Held)> + 'h {
        let gone = old.0.iter().map(|holding| holding.key());
        let gone = gone.filter(|key| self.find(*key) == Held::Not).map(|key| (key, Held::Not));
        let new = self.0.iter().map(|holding| (holding.key(), holding.state()));
        gone.chain(new.filter(|(key, state)| old.find(*key) != *state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u8) -> Digest {
        Digest::of_sha256(&[number; 32])
    }

    fn held(number: u8, is_ready: bool) -> HeldArtifact {
        HeldArtifact { digest: digest(number), runtime: Runtime::Wasm, is_ready }
    }

    fn state(holdings: &Holdings, number: u8, runtime: Runtime) -> Held {
        holdings.find(ArtifactKey::new(&digest(number), runtime))
    }

    #[test]
    fn what_is_told_adds_up() {
        let none = Holdings::default();
        let first = none.after(&[held(1, true), held(200, false)], &[]);
        assert_eq!(first.len(), 2);
        assert_eq!(state(&first, 1, Runtime::Wasm), Held::Ready);
        assert_eq!(
            state(&first, 1, Runtime::Oci),
            Held::Not,
            "an index may have something for each"
        );
        assert_eq!(state(&first, 200, Runtime::Wasm), Held::Fetched);
        let gone = [(digest(1), Runtime::Wasm), (digest(7), Runtime::Oci)];
        let second = first.after(&[held(200, true), held(3, false)], &gone);
        let states = [1, 200, 3].map(|number| state(&second, number, Runtime::Wasm));
        assert_eq!(states, [Held::Not, Held::Ready, Held::Fetched]);
        let mut changes: Vec<_> = second.changes_since(&first).collect();
        changes.sort_unstable();
        let mut expected: Vec<_> = [(1, Held::Not), (200, Held::Ready), (3, Held::Fetched)]
            .map(|(number, state)| (ArtifactKey::new(&digest(number), Runtime::Wasm), state))
            .into();
        expected.sort_unstable();
        assert_eq!(changes, expected);
        assert_eq!(second.changes_since(&second).count(), 0);
    }

    #[test]
    fn a_node_that_tells_of_too_many_is_not_believed_all() {
        let many: Vec<_> = (0..HELD_ARTIFACTS_MAX + 10)
            .map(|number| {
                let mut sum = [0; 32];
                sum[..8]
                    .copy_from_slice(&u64::try_from(number).unwrap().reverse_bits().to_be_bytes());
                HeldArtifact {
                    digest: Digest::of_sha256(&sum),
                    runtime: Runtime::Oci,
                    is_ready: true,
                }
            })
            .collect();
        let holdings = Holdings::default().after(&many, &[]);
        assert_eq!(holdings.len(), HELD_ARTIFACTS_MAX);
        assert_eq!(holdings.after(&many, &[]), holdings);
    }
}
