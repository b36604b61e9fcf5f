//! Filters: which nodes can't take a unit, and what is in the way.

use std::collections::BTreeMap;

use brig_api::constraint::Constraint;
use brig_api::object::Unit;
use brig_api::unit_spec::{HostPort, Runtime};
use brig_api::{Resources, UnitId};

use crate::room::{NodeRoom, ServiceKey, service_of};

/// What a filter found in the way. The order is the order in which filters are asked; a node is counted for the
/// first that turns it down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Obstacle {
    /// The node is out of touch.
    Ready,
    /// It lacks a runtime.
    Runtime,
    /// A constraint on its attributes does not hold.
    Attributes,
    /// A port is taken.
    Ports,
    /// There is too little of a resource.
    Resources,
}

impl Obstacle {
    /// All of them, in their order.
    pub(crate) const ALL: [Self; 5] =
        [Self::Ready, Self::Runtime, Self::Attributes, Self::Ports, Self::Resources];

    /// The filter's name in explanations.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Runtime => "runtime",
            Self::Attributes => "attributes",
            Self::Ports => "ports",
            Self::Resources => "resources",
        }
    }
}

/// Everything about a unit that decides which nodes can take it. Units of equal shape are filtered and scored once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shape<'a> {
    /// What it asks for.
    pub(crate) request: Resources,
    /// The runtimes it needs.
    pub(crate) runtimes: Vec<Runtime>,
    /// What it requires of attributes.
    pub(crate) constraints: &'a [Constraint],
    /// The ports of the node that it occupies.
    pub(crate) ports: Vec<HostPort>,
    /// Its service, when that matters: when it shares a port.
    pub(crate) service: Option<ServiceKey<'a>>,
}

/// A shape as a key of a map.
pub(crate) type ShapeKey<'a> = (
    [u64; 3],
    BTreeMap<String, u64>,
    Vec<Runtime>,
    &'a [Constraint],
    Vec<HostPort>,
    Option<ServiceKey<'a>>,
);

impl<'a> Shape<'a> {
    /// The shape of a unit.
    pub(crate) fn of(unit: &'a Unit) -> Self {
        let ports = unit.template.host_ports();
        let shares_port = ports.iter().any(|port| port.is_shared_by_service);
        Self {
            request: unit.template.request(),
            runtimes: unit.template.runtimes(),
            constraints: &unit.template.constraints,
            service: service_of(unit).filter(|_| shares_port),
            ports,
        }
    }

    /// Equal for equal shapes.
    pub(crate) fn key(&self) -> ShapeKey<'a> {
        let Resources { cpu, memory, disk, scalars } = &self.request;
        (
            [cpu.0, memory.0, disk.0],
            scalars.iter().map(|(name, amount)| (name.clone(), amount.0)).collect(),
            self.runtimes.clone(),
            self.constraints,
            self.ports.clone(),
            self.service,
        )
    }

    /// What keeps the shape off the node, if anything does.
    pub(crate) fn obstacle_on(&self, room: &NodeRoom<'_>) -> Option<Obstacle> {
        self.obstacle_without(room, None)
    }

    /// What would keep the shape off the node once `leaving` (a unit and its request) had left it.
    pub(crate) fn obstacle_without(
        &self,
        room: &NodeRoom<'_>,
        leaving: Option<(&UnitId, &Resources)>,
    ) -> Option<Obstacle> {
        let facts = &room.node.facts;
        let is_met = |constraint: &Constraint| constraint.is_met_by(&facts.attributes);
        let (leaver, freed) = leaving.unzip();
        if !room.is_ready {
            Some(Obstacle::Ready)
        } else if !self.runtimes.iter().all(|runtime| facts.runtimes.contains(runtime)) {
            Some(Obstacle::Runtime)
        } else if !self.constraints.iter().all(is_met) {
            Some(Obstacle::Attributes)
        } else if room.taken_port(&self.ports, self.service, leaver).is_some() {
            Some(Obstacle::Ports)
        } else if !room.has_room_for(&self.request, freed) {
            Some(Obstacle::Resources)
        } else {
            None
        }
    }
}
