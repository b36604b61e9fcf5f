//! Names for the units that services and jobs make: readable, unique in the namespace, and DNS labels.

use std::collections::BTreeSet;

use brig_api::id::NAME_BYTES_MAX;
use brig_api::object::Owner;
use brig_api::{NamespacePath, ResourceName, UnitId};

use crate::index::Index;

/// Letters of a suffix. Without vowels no words come about; without 0, 1, i, l and o nothing is misread.
const SUFFIX_LETTERS: &[u8; 27] = b"bcdfghjkmnpqrstvwxyz2345678";
/// Letters in a suffix: 27^5 is 14 million, so a second try is rare at 10,000 units of one service.
const SUFFIX_LENGTH: usize = 5;
/// Tries for a free suffix before a unit is left for the next pass.
const TRIES_MAX: u64 = 64;

/// The names that are taken.
pub(crate) struct Names<'a> {
    index: &'a Index,
    created: BTreeSet<(NamespacePath, ResourceName)>,
}

impl<'a> Names<'a> {
    /// The names of the model's units.
    pub(crate) fn new(index: &'a Index) -> Self {
        Self { index, created: BTreeSet::new() }
    }

    /// A free name for a new unit: `web-x7kqd` for a service, `report-3` for the first attempt at a job's index 3 and
    /// `report-3-r1` for the second. None when nothing free was found.
    pub(crate) fn of_new_unit(
        &mut self,
        namespace: &NamespacePath,
        owner: &Owner,
        id: &UnitId,
    ) -> Option<ResourceName> {
        let plain = match owner {
            Owner::Service { .. } => None,
            Owner::Job { index, attempt: 0, .. } => Some(index.to_string()),
            Owner::Job { index, attempt, .. } => Some(format!("{index}-r{attempt}")),
        };
        let hashed = (0..TRIES_MAX).map(|attempt| suffix(id, attempt));
        let name = plain
            .into_iter()
            .chain(hashed)
            .filter_map(|suffix| joined(owner.name(), &suffix))
            .find(|name| !self.is_taken(namespace, name))?;
        self.created.insert((namespace.clone(), name.clone()));
        Some(name)
    }

    fn is_taken(&self, namespace: &NamespacePath, name: &ResourceName) -> bool {
        self.index.is_name_taken(namespace, name)
            || self.created.contains(&(namespace.clone(), name.clone()))
    }
}

/// `owner-suffix`, the owner's name shortened where the whole would be no DNS label.
fn joined(owner: &ResourceName, suffix: &str) -> Option<ResourceName> {
    let room = NAME_BYTES_MAX.checked_sub(suffix.len() + 1)?;
    // Names are ASCII, so every index is a character boundary.
    let kept = owner.as_str().get(..room).unwrap_or(owner.as_str()).trim_end_matches('-');
    ResourceName::new(format!("{kept}-{suffix}")).ok()
}

/// Letters that follow from the id alone: FNV-1a over the id and the number of the try.
fn suffix(id: &UnitId, attempt: u64) -> String {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let bytes = id.as_str().bytes().chain(attempt.to_le_bytes());
    let mut hash = bytes.fold(OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
    // FNV's high bits mix well, its low bits less so.
    hash ^= hash >> 32;
    let mut letters = String::with_capacity(SUFFIX_LENGTH);
    for _ in 0..SUFFIX_LENGTH {
        let count = SUFFIX_LETTERS.len() as u64;
        let letter = usize::try_from(hash % count).unwrap_or(0);
        letters.push(char::from(SUFFIX_LETTERS[letter]));
        hash /= count;
    }
    letters
}

#[cfg(test)]
mod tests {
    use super::*;
    use brig_api::PlanSequence;

    #[test]
    fn names_are_unique_and_labels_however_long_the_owner() {
        let index = Index::default();
        let mut names = Names::new(&index);
        let namespace = NamespacePath::default_namespace();
        let owner =
            Owner::Service { name: ResourceName::new("x".repeat(63)).unwrap(), generation: 1 };
        let mut seen = BTreeSet::new();
        for index in 0..5_000 {
            let id = UnitId::of_plan(PlanSequence(7), index);
            let name = names.of_new_unit(&namespace, &owner, &id).unwrap();
            assert_eq!(name.as_str().len(), NAME_BYTES_MAX);
            assert!(seen.insert(name));
        }
    }

    #[test]
    fn a_jobs_units_are_named_by_index_and_retry() {
        let index = Index::default();
        let mut names = Names::new(&index);
        let namespace = NamespacePath::default_namespace();
        let mut name = |attempt| {
            let name = ResourceName::new("report").unwrap();
            let id = UnitId::of_plan(PlanSequence(1), 0);
            let owner = Owner::Job { name, index: 3, attempt };
            names.of_new_unit(&namespace, &owner, &id).unwrap().to_string()
        };
        assert_eq!(name(0), "report-3");
        assert_eq!(name(1), "report-3-r1");
        let fallback = name(0);
        assert!(fallback.starts_with("report-") && fallback != "report-3", "{fallback}");
    }
}
