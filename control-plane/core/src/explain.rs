//! Explanations: how many nodes each filter turned down, which came nearest, and what would be enough.
//!
//! Two texts for a refused unit. The *status* is kept with the unit and names no amount that comes and goes with other
//! units: it changes only when the kind of obstacle does, so that a long queue does not write to the database with
//! every unit that ends. The *message* of the explanation has the exact numbers of its pass.

use std::collections::BTreeSet;

use brig_api::constraint::Constraint;
use brig_api::explain::Refusal;
use brig_api::lifecycle::Reason;

use crate::filter::{Obstacle, Shape};
use crate::room::{Amount, NodeRoom, Quota, Room, amounts};

/// Longest text about one unit, in bytes: constraints may be long, and there may be thousands of units.
const TEXT_BYTES_MAX: usize = 600;

/// Why a shape was refused.
pub(crate) struct Refused {
    /// For programs.
    pub(crate) reason: Reason,
    /// For the unit's status.
    pub(crate) status: String,
    /// For the explanation: the status and what would be enough.
    pub(crate) message: String,
    /// How many nodes each filter turned down.
    pub(crate) refusals: Vec<Refusal>,
}

/// How many nodes each filter turned down, most first, each with its nearest miss.
pub(crate) fn refusals(
    shape: &Shape<'_>,
    room: &Room<'_>,
    verdicts: &[Result<i64, Obstacle>],
) -> Vec<Refusal> {
    let mut refusals: Vec<_> = Obstacle::ALL
        .into_iter()
        .filter_map(|obstacle| {
            let nodes = turned_down(room, verdicts, obstacle).count();
            let detail = nearest_miss(shape, room, verdicts, obstacle)?.detail;
            let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
            Some(Refusal { filter: obstacle.name().to_owned(), nodes, detail: cut(detail) })
        })
        .collect();
    // Stable: the filters' order decides among equals.
    refusals.sort_by_key(|refusal| std::cmp::Reverse(refusal.nodes));
    refusals
}

/// The refusal of a shape that no node can take.
pub(crate) fn refused(
    shape: &Shape<'_>,
    room: &Room<'_>,
    verdicts: &[Result<i64, Obstacle>],
    refusals: Vec<Refusal>,
) -> Refused {
    let reason = Reason::Unschedulable;
    let lasting = if room.nodes.is_empty() {
        Some("the cluster has no nodes: start one with `brig node`".to_owned())
    } else {
        too_large(shape, room)
    };
    let (status, message) = match lasting {
        Some(text) => (text.clone(), text),
        None => {
            let status = no_node_fits(shape, room, verdicts);
            let nearest = Obstacle::ALL
                .into_iter()
                .rev()
                .find_map(|obstacle| nearest_miss(shape, room, verdicts, obstacle));
            let message = match nearest {
                Some(nearest) => format!("{status}; enough would be {}", nearest.enough),
                None => status.clone(),
            };
            (status, message)
        }
    };
    Refused { reason, status: cut(status), message: cut(message), refusals }
}

/// The refusal of a unit whose namespace, or one above it, has used up its quota.
pub(crate) fn quota_refusal(shape: &Shape<'_>, quota: &Quota<'_>, room: &Room<'_>) -> Refused {
    let resource = quota.short_resource(&shape.request, None).unwrap_or(Amount::Cpu);
    let name = resource.name();
    let wanted = resource.of(&shape.request);
    let limit = resource.limit_in(quota.limit).unwrap_or(0);
    let used = resource.of(&quota.used);
    let namespace = quota.namespace;
    let status = if wanted > limit {
        format!(
            "asks for {}, but the whole quota of namespace `{namespace}` is {}: ask for less, or raise the quota",
            resource.with_name(wanted),
            resource.readable(limit)
        )
    } else {
        format!(
            "asks for {}, and the quota of namespace `{namespace}` ({}) is used up: it starts once others there have ended, or the quota is raised",
            resource.with_name(wanted),
            resource.readable(limit)
        )
    };
    let free = limit.saturating_sub(used);
    let raised = used.saturating_add(wanted);
    let mut message = format!(
        "{status}; {} of {} are in use; enough would be a quota of {}",
        resource.readable(used),
        resource.readable(limit),
        resource.readable_up(raised)
    );
    if free > 0 {
        message.push_str(&format!(" or a request of {}", resource.readable(free)));
    }
    let detail = format!(
        "{name}: wanted {}, {} left of {} (namespace {namespace})",
        resource.readable(wanted),
        resource.readable(free),
        resource.readable(limit)
    );
    let nodes = u32::try_from(room.nodes.len()).unwrap_or(u32::MAX);
    let refusal = Refusal { filter: "quota".to_owned(), nodes, detail: cut(detail) };
    Refused {
        reason: Reason::QuotaExceeded,
        status: cut(status),
        message: cut(message),
        refusals: vec![refusal],
    }
}

/// The node that one filter turned down by the least.
struct NearestMiss {
    /// What was missing.
    detail: String,
    /// What would have let it pass, as it goes on after "enough would be".
    enough: String,
}

fn turned_down<'r, 'a>(
    room: &'r Room<'a>,
    verdicts: &'r [Result<i64, Obstacle>],
    obstacle: Obstacle,
) -> impl Iterator<Item = &'r NodeRoom<'a>> {
    let pairs = room.nodes.iter().zip(verdicts);
    pairs.filter(move |(_, verdict)| **verdict == Err(obstacle)).map(|(node, _)| node)
}

fn nearest_miss(
    shape: &Shape<'_>,
    room: &Room<'_>,
    verdicts: &[Result<i64, Obstacle>],
    obstacle: Obstacle,
) -> Option<NearestMiss> {
    let mut nodes = turned_down(room, verdicts, obstacle);
    // `min_by_key` takes the first of equals, and nodes come by name.
    match obstacle {
        Obstacle::Ready => nodes.next().map(|node| unreachable(node)),
        Obstacle::Runtime => nodes.next().map(|node| lacks_runtime(shape, node)),
        Obstacle::Attributes => {
            nodes.min_by_key(|node| unmet(shape, node).count()).map(|node| differs(shape, node))
        }
        Obstacle::Ports => nodes.next().map(|node| port_taken(shape, node)),
        Obstacle::Resources => {
            nodes.min_by_key(|node| distance(shape, node)).map(|node| too_full(shape, node))
        }
    }
}

fn unreachable(room: &NodeRoom<'_>) -> NearestMiss {
    let name = &room.node.name;
    NearestMiss {
        detail: format!("{name} is out of reach"),
        enough: format!("that `{name}` comes back"),
    }
}

fn lacks_runtime(shape: &Shape<'_>, room: &NodeRoom<'_>) -> NearestMiss {
    let facts = &room.node.facts;
    let missing = shape.runtimes.iter().filter(|runtime| !facts.runtimes.contains(runtime));
    let missing = joined(missing.map(|runtime| runtime.as_str().to_owned()), "and");
    NearestMiss {
        detail: format!("{} can't run {missing}", room.node.name),
        enough: format!("a node that can run {missing}"),
    }
}

fn unmet<'s>(shape: &'s Shape<'_>, room: &'s NodeRoom<'_>) -> impl Iterator<Item = &'s Constraint> {
    let attributes = &room.node.facts.attributes;
    shape.constraints.iter().filter(move |constraint| !constraint.is_met_by(attributes))
}

fn differs(shape: &Shape<'_>, room: &NodeRoom<'_>) -> NearestMiss {
    let name = &room.node.name;
    let wanted = joined(unmet(shape, room).map(Constraint::to_string), "and");
    let found = unmet(shape, room).map(|constraint| {
        let attribute = &constraint.attribute;
        match room.node.facts.attributes.get(attribute) {
            Some(value) => format!("{attribute} is {value}"),
            None => format!("it has no {attribute}"),
        }
    });
    let found = joined(found, "and");
    NearestMiss {
        detail: format!("wanted {wanted}, but {found} ({name})"),
        enough: format!(
            "a node with {wanted} (on `{name}`, {found}), or a unit that does not ask for it"
        ),
    }
}

fn port_taken(shape: &Shape<'_>, room: &NodeRoom<'_>) -> NearestMiss {
    let port = room.taken_port(&shape.ports, shape.service, None).unwrap_or(0);
    let name = &room.node.name;
    NearestMiss {
        detail: format!("port {port} is taken ({name})"),
        enough: format!("that the unit with port {port} on `{name}` ends, or another port"),
    }
}

/// The resources of which a node has too little free: what, how much is free, how much is missing.
fn shortages<'s>(
    shape: &'s Shape<'_>,
    room: &NodeRoom<'_>,
) -> impl Iterator<Item = (Amount<'s>, u64, u64)> {
    let free = room.free();
    amounts(&shape.request).filter_map(move |(resource, wanted)| {
        let free = resource.of(&free);
        (wanted > free).then(|| (resource, free, wanted - free))
    })
}

/// How far a node is from having room: first by how many resources are short, then by the largest missing part.
fn distance(shape: &Shape<'_>, room: &NodeRoom<'_>) -> (usize, u128) {
    let parts = shortages(shape, room).map(|(resource, _, missing)| {
        u128::from(missing) * 1_000_000 / u128::from(resource.of(&shape.request)).max(1)
    });
    parts.fold((0, 0), |(count, largest), part| (count + 1, largest.max(part)))
}

fn too_full(shape: &Shape<'_>, room: &NodeRoom<'_>) -> NearestMiss {
    let name = &room.node.name;
    let details = shortages(shape, room).map(|(resource, free, _)| {
        let wanted = resource.readable(resource.of(&shape.request));
        format!("{}: wanted {wanted}, {} free", resource.name(), resource.readable(free))
    });
    let more = shortages(shape, room).map(|(resource, _, missing)| {
        format!("{} more {}", resource.readable_up(missing), resource.name())
    });
    let mut enough = format!("{} free on `{name}`", joined(more, "and"));
    if shortages(shape, room).all(|(_, free, _)| free > 0) {
        let less = shortages(shape, room)
            .map(|(resource, free, _)| format!("{} {}", resource.readable(free), resource.name()));
        enough.push_str(&format!(", or a request of {}", joined(less, "and")));
    }
    NearestMiss { detail: format!("{} ({name})", joined(details, "and")), enough }
}

/// What to say when the shape is larger than any node that has the right runtimes and attributes.
fn too_large(shape: &Shape<'_>, room: &Room<'_>) -> Option<String> {
    let qualifies = |node: &&NodeRoom<'_>| {
        let runtimes = &node.node.facts.runtimes;
        shape.runtimes.iter().all(|runtime| runtimes.contains(runtime))
            && unmet(shape, node).next().is_none()
    };
    let qualified: Vec<_> = room.nodes.iter().filter(qualifies).collect();
    let is_large_enough =
        |node: &&NodeRoom<'_>| shape.request.fits_in(&node.node.facts.allocatable);
    if qualified.is_empty() || qualified.iter().any(is_large_enough) {
        return None;
    }
    let way_out = "ask for less, or add a larger node";
    for (resource, wanted) in amounts(&shape.request) {
        let capacity = |node: &NodeRoom<'_>| resource.of(&node.node.facts.allocatable);
        let mut largest = *qualified.first()?;
        for node in &qualified {
            if capacity(node) > capacity(largest) {
                largest = node;
            }
        }
        if wanted > capacity(largest) {
            let asked = resource.with_name(wanted);
            return Some(if capacity(largest) == 0 {
                let name = resource.name();
                format!(
                    "asks for {asked}, but no node has any {name}: leave it out, or add a node with it"
                )
            } else {
                let most = resource.readable(capacity(largest));
                let name = &largest.node.name;
                format!("asks for {asked}, but the largest node (`{name}`) has {most}: {way_out}")
            });
        }
    }
    let asked = amounts(&shape.request).filter(|(_, wanted)| *wanted > 0);
    let asked = joined(asked.map(|(resource, wanted)| resource.with_name(wanted)), "and");
    Some(format!("asks for {asked}, which no single node has together: {way_out}"))
}

/// What every node lacks, without amounts that come and go.
fn no_node_fits(shape: &Shape<'_>, room: &Room<'_>, verdicts: &[Result<i64, Obstacle>]) -> String {
    let has = |obstacle| turned_down(room, verdicts, obstacle).next().is_some();
    let faults =
        Obstacle::ALL.into_iter().filter(|obstacle| has(*obstacle)).map(
            |obstacle| match obstacle {
                Obstacle::Ready => "out of reach".to_owned(),
                Obstacle::Runtime => {
                    let runtimes = shape.runtimes.iter().map(|runtime| runtime.as_str().to_owned());
                    format!("unable to run {}", joined(runtimes, "and"))
                }
                Obstacle::Attributes => {
                    let wanted = shape.constraints.iter().map(Constraint::to_string);
                    format!("without {}", joined(wanted, "and"))
                }
                Obstacle::Ports => {
                    let ports = shape.ports.iter().map(|port| port.port.to_string());
                    format!("using port {} already", joined(ports, "or"))
                }
                Obstacle::Resources => {
                    let full = turned_down(room, verdicts, obstacle);
                    let short: BTreeSet<_> = full
                        .flat_map(|node| shortages(shape, node).map(|(resource, ..)| resource))
                        .collect();
                    let names = short.iter().map(|resource| resource.name().to_owned());
                    format!("short of {}", joined(names, "and"))
                }
            },
        );
    let faults = joined(faults, "or");
    let subject = if room.nodes.len() == 1 { "the only node" } else { "every node" };
    let way_out = if has(Obstacle::Resources) || has(Obstacle::Ports) {
        "it starts as soon as there is room"
    } else if has(Obstacle::Ready) {
        "it starts as soon as one that fits is back"
    } else {
        "change the unit, or add a node that fits"
    };
    format!("{subject} is {faults}: {way_out}")
}

/// `a`, `a and b`, `a, b and c`.
fn joined(parts: impl Iterator<Item = String>, last: &str) -> String {
    let parts: Vec<_> = parts.collect();
    match parts.as_slice() {
        [] => String::new(),
        [only] => only.clone(),
        [firsts @ .., end] => format!("{} {last} {end}", firsts.join(", ")),
    }
}

/// No longer than [`TEXT_BYTES_MAX`].
fn cut(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        let end = text.floor_char_boundary(TEXT_BYTES_MAX - '…'.len_utf8());
        text.truncate(end);
        text.push('…');
    }
    text
}
