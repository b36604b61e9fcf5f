//! What happens to the copy: nodes that fall silent, nodes that join, objects that are stored, and copies that arrive.

use std::collections::BTreeSet;

use brig_api::Manifest;
use brig_api::object::{Job, JobState, Meta, Node, NodeState, Object, ObjectKey, Service, Unit};
use brig_api::problem::FieldError;
use brig_api::simulate::{ARRIVALS_MAX, CONSTRAINTS_MAX, GROWTH_MAX, Growth, Loss, NODE_RULES_MAX};
use brig_api::{Kind, NamespacePath, NodeName, ResourceName, Revision, UnitId};

use super::ledger::count;
use crate::Model;
use crate::index::OwnerKey;

/// Longest part of a name that copies keep: a number comes behind it, and a name has at most 63 characters.
const NAME_KEPT_MAX: usize = 48;
/// Most values of an attribute that a message lists.
const VALUES_SHOWN_MAX: usize = 10;

/// What happens, all at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scenario {
    /// Nodes that fall silent for good.
    pub lose: Vec<Loss>,
    /// Nodes that join.
    pub grow: Vec<Growth>,
    /// What an apply would store.
    pub put: Vec<Object>,
    /// What arrives in numbers, and where it stands in the request.
    pub arrive: Vec<Arrival>,
}

/// Copies of a unit, service or job that arrive under names of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// Path in the request, such as `add[0]`.
    pub path: String,
    /// What each is like.
    pub manifest: Manifest,
    /// How many.
    pub count: u32,
}

/// What came with a scenario: its units are those of these owners, and these.
#[derive(Debug, Clone, Default)]
pub(super) struct Arrived {
    pub(super) owners: BTreeSet<OwnerKey>,
    pub(super) units: BTreeSet<UnitId>,
    /// How many nodes joined.
    pub(super) nodes: u32,
}

impl Scenario {
    /// The nodes that are lost, if everything it names exists and nothing is too much.
    pub(super) fn check(&self, model: &Model) -> Result<Vec<NodeName>, Vec<FieldError>> {
        let mut faults = Vec::new();
        let mut fault = |path: String, message: String| faults.push(FieldError { path, message });
        let is_empty = self.lose.is_empty() && self.grow.is_empty();
        if is_empty && self.put.is_empty() && self.arrive.is_empty() {
            let message =
                "nothing happens: give nodes to `lose`, manifests to `add` or nodes to `grow`";
            fault(String::new(), message.to_owned());
        }
        for (field, found) in [("lose", self.lose.len()), ("grow", self.grow.len())] {
            if found > NODE_RULES_MAX {
                let message = format!("expected at most {NODE_RULES_MAX} entries, found {found}");
                fault(field.to_owned(), message);
                return Err(faults);
            }
        }
        let mut lost = BTreeSet::new();
        for (index, loss) in self.lose.iter().enumerate() {
            match lost_nodes(model, loss) {
                Ok(nodes) => lost.extend(nodes),
                Err((field, message)) => fault(format!("lose[{index}]{field}"), message),
            }
        }
        for (index, growth) in self.grow.iter().enumerate() {
            if model.node(&growth.like).is_none() {
                fault(format!("grow[{index}].like"), no_such_node(&growth.like));
            }
        }
        for (index, arrival) in self.arrive.iter().enumerate() {
            let is_counted =
                matches!(arrival.manifest.kind(), Kind::Unit | Kind::Service | Kind::Job);
            let path = format!("{}.count", arrival.path);
            if !is_counted {
                let kind = arrival.manifest.kind();
                fault(path, format!("a {kind} arrives once: leave `count` out"));
            } else if arrival.count == 0 {
                fault(path, "expected at least 1".to_owned());
            } else if sum(self.arrive[..=index].iter().map(|arrival| arrival.count))
                > ARRIVALS_MAX.into()
            {
                let message = format!(
                    "more than {ARRIVALS_MAX} documents arrive: ask for fewer, or for one service with so many `replicas`"
                );
                fault(path, message);
                break;
            }
        }
        if sum(self.grow.iter().map(|growth| growth.count)) > GROWTH_MAX.into() {
            fault("grow".to_owned(), format!("more than {GROWTH_MAX} nodes join: ask for fewer"));
        }
        if faults.is_empty() { Ok(lost.into_iter().collect()) } else { Err(faults) }
    }

    /// Everything but the loss of nodes.
    pub(super) fn happen(&self, model: &mut Model, now_ms: i64) -> Arrived {
        let mut arrived = Arrived::default();
        let mut number = 0;
        for growth in &self.grow {
            for _ in 0..growth.count {
                arrived.nodes += u32::from(join(model, &growth.like, &mut number));
            }
        }
        for object in &self.put {
            arrived.note(object);
            model.put(object.clone());
        }
        for arrival in &self.arrive {
            let mut number = 0;
            for _ in 0..arrival.count {
                let object = loop {
                    number += 1;
                    let id = UnitId::of_revision(Revision(u64::MAX), arrived.units.len());
                    let object = copy(model, &arrival.manifest, number, id, now_ms);
                    if object.as_ref().is_none_or(|object| !is_taken(model, object)) {
                        break object;
                    }
                };
                let Some(object) = object else { break };
                arrived.note(&object);
                model.put(object);
            }
        }
        arrived
    }
}

impl Arrived {
    fn note(&mut self, object: &Object) {
        match object {
            Object::Unit(unit) => {
                self.units.insert(unit.id.clone());
            }
            Object::Service(Service { spec, .. }) => {
                self.owners.insert((spec.namespace.clone(), Kind::Service, spec.name.clone()));
            }
            Object::Job(Job { spec, .. }) => {
                self.owners.insert((spec.namespace.clone(), Kind::Job, spec.name.clone()));
            }
            _ => {}
        }
    }

    /// How many units that came with the scenario, or are of what did, are so.
    pub(super) fn count(&self, model: &Model, is_so: impl Fn(&Unit) -> bool) -> u32 {
        let alone = self.units.iter().filter_map(|id| model.unit(id));
        let owned = self.owners.iter().flat_map(|owner| model.index.units_of(owner));
        count(alone.chain(owned.map(|(_, unit)| &**unit)).filter(|unit| is_so(unit)))
    }

    /// Did anything come that has units?
    pub(super) fn is_empty(&self) -> bool {
        self.units.is_empty() && self.owners.is_empty()
    }
}

fn sum(counts: impl Iterator<Item = u32>) -> u64 {
    counts.map(u64::from).sum()
}

fn no_such_node(name: &NodeName) -> String {
    format!("there is no node `{name}`: `brig node ls` lists them")
}

/// The nodes that a loss names, or what is wrong with it: the field and a message.
fn lost_nodes(model: &Model, loss: &Loss) -> Result<Vec<NodeName>, (&'static str, String)> {
    match (&loss.node, loss.constraints.as_slice()) {
        (Some(name), []) => match model.node(name) {
            Some(_) => Ok(vec![name.clone()]),
            None => Err((".node", no_such_node(name))),
        },
        (None, constraints) if constraints.len() > CONSTRAINTS_MAX => {
            let found = constraints.len();
            let message = format!("expected at most {CONSTRAINTS_MAX} constraints, found {found}");
            Err((".constraints", message))
        }
        (None, constraints @ [first, ..]) => {
            for (constraint, fault) in constraints.iter().map(|one| (one, one.fault())) {
                if let Some(fault) = fault {
                    return Err((".constraints", format!("{constraint}: {fault}")));
                }
            }
            let is_met = |node: &&Node| {
                constraints.iter().all(|wanted| wanted.is_met_by(&node.facts.attributes))
            };
            let nodes: Vec<_> =
                model.nodes().filter(is_met).map(|node| node.name.clone()).collect();
            if nodes.is_empty() {
                let wanted: Vec<_> = constraints.iter().map(ToString::to_string).collect();
                let known = known_values(model, &first.attribute);
                return Err((
                    ".constraints",
                    format!("no node has {}: {known}", wanted.join(" and ")),
                ));
            }
            Ok(nodes)
        }
        _ => Err(("", "expected either `node` or `constraints`".to_owned())),
    }
}

/// What an attribute is on the nodes, for who asked for another value.
fn known_values(model: &Model, attribute: &str) -> String {
    let values = model.nodes().filter_map(|node| node.facts.attributes.get(attribute));
    let values: BTreeSet<_> = values.collect();
    let shown: Vec<_> =
        values.iter().take(VALUES_SHOWN_MAX).map(|value| format!("`{value}`")).collect();
    match values.len() {
        0 => format!("no node has the attribute `{attribute}`"),
        many if many > VALUES_SHOWN_MAX => {
            format!(
                "`{attribute}` is {} or one of {} more",
                shown.join(", "),
                many - VALUES_SHOWN_MAX
            )
        }
        _ => format!("`{attribute}` is {}", shown.join(", ")),
    }
}

/// A further node like `like` joins, under a name with the next number that is free.
fn join(model: &mut Model, like: &NodeName, number: &mut u64) -> bool {
    let Some(mut node) = model.node(like).cloned() else { return false };
    let name = loop {
        *number += 1;
        match NodeName::new(format!("{}-more-{number}", kept(like.as_str()))) {
            Ok(name) if model.node(&name).is_some() => {}
            Ok(name) => break name,
            Err(_) => return false,
        }
    };
    // What names the machine names the new one.
    for value in node.facts.attributes.values_mut().filter(|value| **value == like.as_str()) {
        *value = name.to_string();
    }
    node.name = name;
    node.state = NodeState::Ready;
    model.put(Object::Node(node));
    true
}

fn kept(name: &str) -> &str {
    let cut = name.get(..NAME_KEPT_MAX).unwrap_or(name);
    cut.trim_end_matches(['-', '.'])
}

/// What `NAME-number` would be stored as.
fn copy(
    model: &Model,
    manifest: &Manifest,
    number: u64,
    id: UnitId,
    now_ms: i64,
) -> Option<Object> {
    let meta = Meta { revision: model.revision, created_ms: now_ms };
    let named =
        |name: &ResourceName| ResourceName::new(format!("{}-{number}", kept(name.as_str()))).ok();
    match manifest {
        Manifest::Service(spec) => {
            let spec = brig_api::spec::ServiceSpec { name: named(&spec.name)?, ..spec.clone() };
            Some(Object::Service(Service { spec, generation: 1, is_deleting: false, meta }))
        }
        Manifest::Job(spec) => {
            let spec = brig_api::spec::JobSpec { name: named(&spec.name)?, ..spec.clone() };
            let (state, succeeded, failed, is_deleting) = (JobState::Active, 0, 0, false);
            Some(Object::Job(Job { spec, state, succeeded, failed, is_deleting, meta }))
        }
        Manifest::Unit(spec) => {
            let unit = Unit { name: named(&spec.name)?, ..Unit::alone(spec, id, meta) };
            Some(Object::Unit(Box::new(unit)))
        }
        Manifest::Namespace(_) | Manifest::Secret(_) | Manifest::Config(_) => None,
    }
}

fn is_taken(model: &Model, object: &Object) -> bool {
    match object {
        Object::Service(Service { spec, .. }) => {
            model.service(&spec.namespace, &spec.name).is_some()
        }
        Object::Job(Job { spec, .. }) => model.job(&spec.namespace, &spec.name).is_some(),
        Object::Unit(unit) => model.index.is_name_taken(&unit.namespace, &unit.name),
        _ => false,
    }
}

/// What names a unit, service or job.
pub(super) fn key(kind: Kind, namespace: &NamespacePath, name: &ResourceName) -> ObjectKey {
    ObjectKey { kind, namespace: Some(namespace.clone()), name: name.to_string() }
}
