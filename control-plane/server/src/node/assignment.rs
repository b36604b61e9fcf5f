//! What a node is told about its units: from the stored unit to the assignment, and from the change feed to the
//! difference that one node must hear of. Pure, but for the texts of secrets.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use brig_api::change::Change;
use brig_api::lifecycle::UnitState;
use brig_api::object::{Desired, Object, Owner, Unit};
use brig_api::session::{Assignment, Texts};
use brig_api::unit_spec::{EnvValue, UnitTemplate};
use brig_api::{Kind, NamespacePath, NodeName, PlanSequence, UnitId};

use crate::limits::ENDED_UNITS_MAX;

/// What a node was told.
#[derive(Debug)]
pub(crate) struct Told {
    node: NodeName,
    units: BTreeMap<UnitId, ToldUnit>,
}

#[derive(Debug, PartialEq, Eq)]
struct ToldUnit {
    namespace: NamespacePath,
    name: String,
    placed_by: PlanSequence,
    is_wanted: bool,
}

/// What a node must hear after some changes.
#[derive(Debug, Default)]
pub(crate) struct Difference {
    /// New or changed.
    pub(crate) assign: Vec<Unit>,
    /// No longer the node's.
    pub(crate) withdraw: Vec<UnitId>,
}

impl Told {
    pub(crate) fn new(node: NodeName) -> Self {
        Self { node, units: BTreeMap::new() }
    }

    /// The node hears of all of these at once.
    pub(crate) fn all<'a>(&mut self, units: impl Iterator<Item = &'a Unit>) {
        self.units = units.map(|unit| (unit.id.clone(), ToldUnit::of(unit))).collect();
    }

    /// What the node must hear of `changes`, and remembers that it did.
    pub(crate) fn take_over<'a>(
        &mut self,
        changes: impl IntoIterator<Item = &'a Change>,
    ) -> Difference {
        let mut difference = Difference::default();
        for change in changes.into_iter().filter(|change| change.key.kind == Kind::Unit) {
            match &change.object {
                Some(Object::Unit(unit)) => self.changed(unit, &mut difference),
                _ => self.removed(change, &mut difference),
            }
        }
        difference
    }

    fn changed(&mut self, unit: &Unit, difference: &mut Difference) {
        let is_here = unit.node.as_ref() == Some(&self.node);
        let is_known = self.units.contains_key(&unit.id);
        let state = unit.status.state;
        if !is_here || state == UnitState::Lost {
            if self.units.remove(&unit.id).is_some() || is_here {
                difference.withdraw.push(unit.id.clone());
            }
        } else if !state.is_final() {
            let told = ToldUnit::of(unit);
            if !is_known || self.units.get(&unit.id) != Some(&told) {
                self.units.insert(unit.id.clone(), told);
                difference.assign.retain(|other| other.id != unit.id);
                difference.assign.push(unit.clone());
            }
        }
    }

    fn removed(&mut self, change: &Change, difference: &mut Difference) {
        let gone: Vec<UnitId> = self
            .units
            .iter()
            .filter(|(_, told)| {
                told.name == change.key.name
                    && Some(&told.namespace) == change.key.namespace.as_ref()
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in gone {
            self.units.remove(&id);
            difference.assign.retain(|unit| unit.id != id);
            difference.withdraw.push(id);
        }
    }
}

impl ToldUnit {
    fn of(unit: &Unit) -> Self {
        Self {
            namespace: unit.namespace.clone(),
            name: unit.name.as_str().to_owned(),
            placed_by: unit.placed_by.unwrap_or_default(),
            is_wanted: is_wanted(unit),
        }
    }
}

/// The assignment of a unit to its node, which hears only of the variants that were chosen for it.
pub(crate) fn assignment(unit: &Unit, texts: Texts) -> Assignment {
    let template = match unit.template.chosen(unit.grants.runtimes) {
        Cow::Borrowed(_) => Arc::clone(&unit.template),
        Cow::Owned(chosen) => Arc::new(chosen),
    };
    Assignment {
        unit: unit.id.clone(),
        name: unit.name.clone(),
        namespace: unit.namespace.clone(),
        template,
        is_wanted: is_wanted(unit),
        placed_by: unit.placed_by.unwrap_or_default(),
        grants: unit.grants.clone(),
        identity: identity(unit),
        texts,
    }
}

/// Cuts assignments into messages of about `bytes_max` bytes; at least one, which may be empty. One that alone has more
/// than `alone_max` goes without its texts: its node says that they are missing, and the others are not held up.
pub(crate) fn parts(
    assignments: Vec<Assignment>,
    bytes_max: usize,
    alone_max: usize,
) -> Vec<Vec<Assignment>> {
    let bytes_of =
        |assignment: &Assignment| serde_json::to_vec(assignment).map_or(0, |bytes| bytes.len());
    let mut parts = Vec::new();
    let (mut part, mut sum) = (Vec::new(), 0);
    for mut assignment in assignments {
        let mut bytes = bytes_of(&assignment);
        if bytes > alone_max {
            tracing::warn!(unit.id = %assignment.unit, bytes, "a unit's texts are too large for a message");
            assignment.texts = Texts::default();
            bytes = bytes_of(&assignment);
        }
        if sum + bytes > bytes_max && !part.is_empty() {
            parts.push(std::mem::take(&mut part));
            sum = 0;
        }
        sum += bytes;
        part.push(assignment);
    }
    parts.push(part);
    parts
}

/// An ended unit is not to run again, whatever its node remembers of it.
fn is_wanted(unit: &Unit) -> bool {
    unit.desired == Desired::Run && !unit.status.state.is_final()
}

/// The ended units of a node that are still listed, newest first: the node keeps their logs for as long.
pub(crate) fn ended_on<'a>(node: &NodeName, units: impl Iterator<Item = &'a Unit>) -> Vec<Unit> {
    let is_kept = |unit: &&Unit| {
        let state = unit.status.state;
        unit.node.as_ref() == Some(node) && state.is_final() && state != UnitState::Lost
    };
    let mut ended: Vec<&Unit> = units.filter(is_kept).collect();
    ended.sort_by_key(|unit| std::cmp::Reverse(unit.status.finished_ms));
    ended.truncate(ENDED_UNITS_MAX);
    ended.into_iter().cloned().collect()
}

/// Variables by which a program learns who it is.
fn identity(unit: &Unit) -> BTreeMap<String, String> {
    let mut identity = BTreeMap::from([
        ("BRIG_UNIT".to_owned(), unit.name.to_string()),
        ("BRIG_UNIT_ID".to_owned(), unit.id.to_string()),
        ("BRIG_NAMESPACE".to_owned(), unit.namespace.to_string()),
    ]);
    if let Some(node) = &unit.node {
        identity.insert("BRIG_NODE".to_owned(), node.to_string());
    }
    match &unit.owner {
        Some(Owner::Service { name, .. }) => {
            identity.insert("BRIG_SERVICE".to_owned(), name.to_string());
        }
        Some(Owner::Job { name, index, attempt }) => {
            identity.insert("BRIG_JOB".to_owned(), name.to_string());
            identity.insert("BRIG_JOB_INDEX".to_owned(), index.to_string());
            identity.insert("BRIG_JOB_ATTEMPT".to_owned(), attempt.to_string());
        }
        None => {}
    }
    identity
}

/// Whether a template names any secret or config: most don't, and cost no query then.
pub(crate) fn names_texts(template: &UnitTemplate) -> bool {
    template.tasks.iter().any(|task| {
        task.mounts.iter().any(|mount| mount.config.is_some() || mount.secret.is_some())
            || task.values().any(|(_, value)| !matches!(value, EnvValue::Text(_)))
    })
}

#[cfg(test)]
mod tests {
    use brig_api::manifest::{Format, Manifest, parse};
    use brig_api::object::{Meta, UnitStatus};
    use brig_api::{ResourceName, Revision};

    use super::*;

    fn unit(id: &str, node: Option<&str>, state: UnitState) -> Unit {
        let text = "kind: unit\nname: x\nunit: {wasm: {artifact: a/b}}";
        let manifest = parse(text, Format::Yaml, None).unwrap().remove(0).check().unwrap();
        let Manifest::Unit(spec) = manifest else { panic!("a unit") };
        Unit {
            id: UnitId::new(id).unwrap(),
            name: ResourceName::new(id).unwrap(),
            namespace: NamespacePath::default_namespace(),
            owner: Some(Owner::Job { name: spec.name.clone(), index: 3, attempt: 1 }),
            labels: Default::default(),
            template: Arc::new(spec.unit),
            desired: Desired::Run,
            remove_when_done: false,
            node: node.map(|node| NodeName::new(node).unwrap()),
            promised: None,
            grants: Default::default(),
            placed_ms: Some(1),
            placed_by: Some(PlanSequence(4)),
            status: UnitStatus { state, ..UnitStatus::default() },
            meta: Meta::default(),
        }
    }

    fn change(unit: &Unit, is_there: bool) -> Change {
        let object = Object::Unit(Box::new(unit.clone()));
        let key = object.key();
        Change { revision: Revision(1), position: 0, key, object: is_there.then_some(object) }
    }

    #[test]
    fn many_large_assignments_are_several_messages_and_one_too_large_goes_without_its_texts() {
        let config = |bytes: usize| {
            let texts = BTreeMap::from([("key".to_owned(), "x".repeat(bytes))]);
            let configs = BTreeMap::from([(ResourceName::new("c").unwrap(), texts)]);
            Texts { configs, secrets: BTreeMap::new() }
        };
        let sizes = [600, 600, 5_000, 600, 600, 600];
        let all: Vec<_> = sizes
            .iter()
            .enumerate()
            .map(|(index, bytes)| {
                let unit = unit(&format!("u{index}"), Some("n1"), UnitState::Assigned);
                assignment(&unit, config(*bytes))
            })
            .collect();
        let one = serde_json::to_vec(&all[0]).unwrap().len();
        let parts = parts(all.clone(), one * 2, one * 3);
        assert!(parts.iter().all(|part| serde_json::to_vec(part).unwrap().len() <= one * 2 + 10));
        let told: Vec<_> = parts.concat();
        assert_eq!(told.len(), all.len());
        for (index, (told, wanted)) in told.iter().zip(&all).enumerate() {
            assert_eq!(told == wanted, index != 2, "{index}");
        }
        assert_eq!(told[2].texts, Texts::default());
        assert_eq!(super::parts(vec![], 1, 1), [vec![]]);
    }

    fn told() -> Told {
        Told::new(NodeName::new("n1").unwrap())
    }

    #[test]
    fn a_unit_is_assigned_once_and_again_when_something_about_it_changes() {
        let mut told = told();
        let mut placed = unit("u1", Some("n1"), UnitState::Assigned);
        assert_eq!(told.take_over(&[change(&placed, true)]).assign.len(), 1);
        placed.status.state = UnitState::Running;
        assert!(told.take_over(&[change(&placed, true)]).assign.is_empty(), "a status is no news");
        placed.desired = Desired::Stop;
        let difference = told.take_over(&[change(&placed, true)]);
        assert_eq!(difference.assign[0].desired, Desired::Stop);
    }

    #[test]
    fn other_nodes_units_and_pending_ones_are_not_mentioned() {
        let mut told = told();
        let elsewhere = change(&unit("u1", Some("n2"), UnitState::Running), true);
        let pending = change(&unit("u2", None, UnitState::Pending), true);
        let difference = told.take_over(&[elsewhere, pending]);
        assert!(difference.assign.is_empty() && difference.withdraw.is_empty());
    }

    #[test]
    fn a_unit_is_withdrawn_when_it_is_removed_moved_or_lost() {
        for end in ["removed", "moved", "lost"] {
            let mut told = told();
            let mut placed = unit("u1", Some("n1"), UnitState::Running);
            told.all([&placed].into_iter());
            let last = match end {
                "removed" => change(&placed, false),
                "moved" => change(&unit("u1", Some("n2"), UnitState::Assigned), true),
                _ => {
                    placed.status.state = UnitState::Lost;
                    change(&placed, true)
                }
            };
            assert_eq!(told.take_over(&[last]).withdraw, [placed.id.clone()], "{end}");
        }
    }

    #[test]
    fn an_ended_unit_is_withdrawn_only_when_it_is_removed() {
        let mut told = told();
        let mut placed = unit("u1", Some("n1"), UnitState::Running);
        told.all([&placed].into_iter());
        placed.status.state = UnitState::Succeeded;
        let difference = told.take_over(&[change(&placed, true)]);
        assert!(difference.withdraw.is_empty() && difference.assign.is_empty());
        assert_eq!(told.take_over(&[change(&placed, false)]).withdraw.len(), 1);
    }

    #[test]
    fn a_node_keeps_what_ended_but_not_what_was_lost_and_does_not_run_it_again() {
        let units = [
            unit("u1", Some("n1"), UnitState::Succeeded),
            unit("u2", Some("n1"), UnitState::Lost),
            unit("u3", Some("n2"), UnitState::Failed),
            unit("u4", Some("n1"), UnitState::Running),
        ];
        let ended = ended_on(&NodeName::new("n1").unwrap(), units.iter());
        assert_eq!(ended.iter().map(|unit| unit.id.as_str()).collect::<Vec<_>>(), ["u1"]);
        assert!(!assignment(&ended[0], Texts::default()).is_wanted);
    }

    #[test]
    fn a_unit_that_comes_and_goes_in_one_batch_is_not_assigned() {
        let placed = unit("u1", Some("n1"), UnitState::Assigned);
        let difference = told().take_over(&[change(&placed, true), change(&placed, false)]);
        assert!(difference.assign.is_empty());
        assert_eq!(difference.withdraw.len(), 1);
    }

    #[test]
    fn a_node_hears_of_the_variant_that_was_chosen_and_no_other() {
        use brig_api::unit_spec::Runtime;
        let text =
            "kind: unit\nname: x\nunit: {variants: [{wasm: {artifact: a/b}}, {oci: {image: a/c}}]}";
        let manifest = parse(text, Format::Yaml, None).unwrap().remove(0).check().unwrap();
        let Manifest::Unit(spec) = manifest else { panic!("a unit") };
        let mut placed = unit("u1", Some("n1"), UnitState::Assigned);
        placed.template = Arc::new(spec.unit);
        placed.grants.runtimes = [Runtime::Oci].into_iter().collect();
        let told = serde_json::to_value(assignment(&placed, Texts::default())).unwrap();
        let task = &told["template"]["tasks"][0];
        assert_eq!(task["oci"]["image"], "a/c");
        assert!(task.get("wasm").is_none() && task.get("variants").is_none(), "{task}");
    }

    #[test]
    fn a_program_learns_who_it_is_and_what_its_placement_gave_it() {
        let mut placed = unit("u1", Some("n1"), UnitState::Assigned);
        placed.grants.ports = vec![20_000];
        let assignment = assignment(&placed, Texts::default());
        assert_eq!(assignment.grants, placed.grants);
        assert_eq!(assignment.identity["BRIG_JOB_INDEX"], "3");
        assert_eq!(assignment.identity["BRIG_NODE"], "n1");
        assert!(!names_texts(&assignment.template));
    }
}
