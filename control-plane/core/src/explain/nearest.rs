//! The smallest change that would be enough: for each filter the node that it turned down by the least.

use brig_api::constraint::Constraint;
use brig_api::reference::Reference;
use brig_api::variants::RuntimeSet;

use super::{Findings, LISTED_MAX, asked, joined, name, node_name, readable, readable_up};
use crate::index::shapes::{RuleKind, Shape};
use crate::index::topologies::{NO_DOMAIN, NODE, TopologyId};
use crate::index::{Index, NodeSlot};
use crate::judge::Question;
use crate::obstacle::Obstacle;
use crate::vector::{Entry, Vector};

/// The node that `obstacle` turned down by the least; the first by name among equals.
pub(super) fn nearest(
    index: &Index,
    shape: &Shape,
    obstacle: Obstacle,
    turned_down: &[NodeSlot],
) -> Option<NodeSlot> {
    let nodes = turned_down.iter().copied();
    match obstacle {
        Obstacle::Attributes => nodes.min_by_key(|node| unmet(index, shape, *node).len()),
        Obstacle::Artifacts => {
            nodes.min_by_key(|node| missing_artifacts(index, shape, *node).len())
        }
        Obstacle::Resources => nodes.min_by_key(|node| distance(index, shape, *node)),
        _ => nodes.into_iter().next(),
    }
}

/// What single changes would be enough, at most [`LISTED_MAX`] of them: where only one filter turned a node down, what it
/// would take to pass it. Where there is no such node, all that the nearest one would take.
pub(super) fn ways_out(
    index: &Index,
    question: &Question,
    shape: &Shape,
    findings: &Findings,
) -> Vec<String> {
    let of_one = |obstacle: Obstacle| {
        let alone = findings.iter().filter(|(_, found)| found.as_slice() == [obstacle]);
        let nodes: Vec<_> = alone.map(|(node, _)| *node).collect();
        let node = nearest(index, shape, obstacle, &nodes)?;
        Some(enough(index, question, shape, obstacle, node))
    };
    // Room comes and goes, so it is named first; then what the user can change.
    let order = Obstacle::ALL.into_iter().rev();
    let first = [Obstacle::Resources, Obstacle::Ports];
    let rest = order.filter(|obstacle| !first.contains(obstacle));
    let ways: Vec<_> = first.into_iter().chain(rest).filter_map(of_one).take(LISTED_MAX).collect();
    if !ways.is_empty() {
        return ways;
    }
    let fewest = findings
        .iter()
        .filter(|(_, found)| !found.is_empty())
        .min_by_key(|(node, found)| (found.len(), distance(index, shape, *node)));
    let Some((node, found)) = fewest else { return Vec::new() };
    let all = found.iter().map(|obstacle| enough(index, question, shape, *obstacle, *node));
    vec![joined(all, "and")]
}

/// For a shape that is too large for every node with the properties that it asks for: which of those to drop.
pub(super) fn ways_past_properties(
    index: &Index,
    question: &Question,
    shape: &Shape,
    findings: &Findings,
) -> Option<String> {
    let alone = findings.iter().filter(|(_, found)| found.as_slice() == [Obstacle::Attributes]);
    let nodes: Vec<_> = alone.map(|(node, _)| *node).collect();
    let node = nearest(index, shape, Obstacle::Attributes, &nodes)?;
    let way = enough(index, question, shape, Obstacle::Attributes, node);
    Some(way.trim_start_matches("to ").to_owned())
}

/// What is in the way on one node, in words that go without its name.
pub(crate) fn obstacle_detail(
    index: &Index,
    question: &Question,
    shape: &Shape,
    obstacle: Obstacle,
    node: NodeSlot,
) -> String {
    match obstacle {
        Obstacle::Ready => "out of reach".to_owned(),
        Obstacle::Runtime => format!("can't run {}", missing_runtimes(index, shape, node)),
        Obstacle::Attributes => {
            let unmet = unmet(index, shape, node);
            let wanted = joined(unmet.iter().map(|wanted| wanted.to_string()), "and");
            format!("wanted {wanted}, but {}", found(index, &unmet, node))
        }
        Obstacle::Taints => {
            let taints = joined(taints(index, shape, node).into_iter(), "and");
            format!("{taints} is not tolerated")
        }
        Obstacle::Volumes => {
            let paths = joined(missing_volumes(index, shape, node).into_iter(), "and");
            format!("does not offer {paths}")
        }
        Obstacle::Artifacts if index.nodes.has_told_holdings(node) => {
            format!(
                "does not hold {}",
                joined(missing_artifacts(index, shape, node).into_iter(), "or")
            )
        }
        Obstacle::Artifacts => "has not told which artifacts it holds".to_owned(),
        Obstacle::Ports => {
            let way = shape.way_on(index.nodes.runtimes[node]);
            let port = index.nodes.taken_port(node, &way.ports, shape.port_owner, &[]);
            match port {
                Some(port) => format!("port {port} is taken"),
                None => format!("{} free ports wanted", way.open_ports),
            }
        }
        Obstacle::Resources => resources_detail(index, shape, node),
        Obstacle::Kept => "its free room is kept for a gang that waits".to_owned(),
        Obstacle::Near | Obstacle::Away | Obstacle::Spread => {
            rule_detail(index, question, shape, obstacle, node)
        }
    }
}

fn resources_detail(index: &Index, shape: &Shape, node: NodeSlot) -> String {
    let short = shortages(index, shape, node);
    if short.is_empty() {
        let details = pieces(index, shape, node).into_iter().map(|(entry, wanted, free)| {
            let (wanted, free) = (readable(entry, wanted), readable(entry, free));
            format!("{}: wanted {wanted} in one piece, {free} free so", name(index, entry))
        });
        return joined(details, "and");
    }
    let promised = promised(index, node);
    let details = short.into_iter().map(|(entry, wanted, free)| {
        let (wanted, free) = (readable(entry, wanted), readable(entry, free));
        let text = format!("{}: wanted {wanted}, {free} free", name(index, entry));
        match promised.of(entry) {
            0 => text,
            amount => format!("{text}, {} promised to others", readable(entry, amount)),
        }
    });
    joined(details, "and")
}

/// What of the node's cpu, memory and disk nobody uses, but units wait for with others that leave.
fn promised(index: &Index, node: NodeSlot) -> Vector {
    let mut used = Vector::default();
    for request in index.nodes.units[node].iter().filter_map(|unit| index.request(*unit)) {
        used.add(request);
    }
    used.scalars.clear();
    index.nodes.used.at(node).saturating_sub(&used)
}

/// What would let the shape pass a filter on a node, as it goes on after "enough would be".
fn enough(
    index: &Index,
    question: &Question,
    shape: &Shape,
    obstacle: Obstacle,
    node: NodeSlot,
) -> String {
    let name_of_node = node_name(index, node);
    match obstacle {
        Obstacle::Ready => format!("that `{name_of_node}` comes back"),
        Obstacle::Runtime => {
            format!("a node that can run {}", missing_runtimes(index, shape, node))
        }
        Obstacle::Attributes => {
            let unmet = unmet(index, shape, node);
            let wanted = joined(unmet.iter().map(|wanted| format!("`{wanted}`")), "and");
            let found = found(index, &unmet, node);
            format!("to drop {wanted} (on `{name_of_node}`, {found})")
        }
        Obstacle::Taints => {
            let taints = joined(taints(index, shape, node).into_iter(), "and");
            format!("a toleration of {taints} (for `{name_of_node}`)")
        }
        Obstacle::Volumes => {
            let paths = joined(missing_volumes(index, shape, node).into_iter(), "and");
            format!("that `{name_of_node}` offers {paths}")
        }
        Obstacle::Artifacts => {
            let missing = joined(missing_artifacts(index, shape, node).into_iter(), "and");
            format!(
                "to drop `artifacts: present` (for `{name_of_node}`, which would fetch {missing})"
            )
        }
        Obstacle::Ports => {
            let way = shape.way_on(index.nodes.runtimes[node]);
            let port = index.nodes.taken_port(node, &way.ports, shape.port_owner, &[]);
            match port {
                Some(port) => format!(
                    "that the unit with port {port} on `{name_of_node}` ends, or another port"
                ),
                None => format!("fewer ports on `{name_of_node}`"),
            }
        }
        Obstacle::Resources => resources_enough(index, shape, node),
        Obstacle::Kept if index.nodes.is_kept_end_known => {
            "that the gang has started, or a `max_run_ms` that ends before it can".to_owned()
        }
        Obstacle::Kept => {
            "that the gang has started, or a higher priority than the gang's".to_owned()
        }
        Obstacle::Near | Obstacle::Away | Obstacle::Spread => {
            let rules = broken(index, question, shape, obstacle, node);
            joined(rules.iter().map(Broken::enough), "and")
        }
    }
}

/// What the node does not say it holds, as people name it; each once.
pub(super) fn missing_artifacts(index: &Index, shape: &Shape, node: NodeSlot) -> Vec<String> {
    let missing = index.shapes.missing_artifacts(shape, node, &index.nodes);
    let mut names: Vec<_> = missing
        .map(|text| match text.parse::<Reference>() {
            Ok(reference) => format!("`{}`", reference.short()),
            Err(_) => format!("`{text}`"),
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn resources_enough(index: &Index, shape: &Shape, node: NodeSlot) -> String {
    let name_of_node = node_name(index, node);
    let short = shortages(index, shape, node);
    if short.is_empty() {
        let pieces = pieces(index, shape, node).into_iter().map(|(entry, wanted, _)| {
            format!("{} {} in one piece", readable(entry, wanted), name(index, entry))
        });
        return format!("{} free on `{name_of_node}`", joined(pieces, "and"));
    }
    let more = short.iter().map(|(entry, wanted, free)| {
        format!("{} more {}", readable_up(*entry, wanted - free), name(index, *entry))
    });
    let mut text = format!("{} free on `{name_of_node}`", joined(more, "and"));
    if short.iter().all(|(.., free)| *free > 0) {
        let less = short
            .iter()
            .map(|(entry, _, free)| format!("{} {}", readable(*entry, *free), name(index, *entry)));
        text.push_str(&format!(", or a request of {}", joined(less, "and")));
    }
    text
}

/// A rule about other units that does not hold on a node.
enum Broken {
    /// Nobody of these is there.
    Near { whom: String, place: String, is_anywhere: bool },
    /// Some of these are there.
    Away { whom: String, place: String },
    /// Somebody is there that must be away from these, of which it is one.
    Held { whom: String, place: String },
    /// There are more of these there than may be.
    Spread {
        whom: String,
        over: String,
        max_skew: u32,
        here: String,
        count: u32,
        fewest: Option<u32>,
    },
}

impl Broken {
    fn detail(&self) -> String {
        match self {
            Self::Near { whom, place, is_anywhere: true } => format!("no {whom} {place}"),
            Self::Near { whom, is_anywhere: false, .. } => {
                format!("there are no {whom} on any node")
            }
            Self::Away { whom, place } => format!("there are {whom} {place}"),
            Self::Held { whom, place } => format!("others {place} must be away from {whom}"),
            Self::Spread { whom, over, max_skew, here, count, fewest } => {
                let elsewhere = match fewest {
                    Some(fewest) => format!("{fewest} where there are fewest"),
                    None => "its target is reached".to_owned(),
                };
                format!(
                    "{whom} over {over}, with a skew of {max_skew}: {count} in {here}, {elsewhere}"
                )
            }
        }
    }

    fn enough(&self) -> String {
        match self {
            Self::Near { whom, place, .. } => format!("{whom} {place}"),
            Self::Away { whom, place } => {
                format!("no {whom} {place}, or to drop that rule of `away`")
            }
            Self::Held { whom, place } => {
                format!("that units {place} need not be away from {whom}")
            }
            Self::Spread { over, max_skew, here, .. } => {
                format!("a `max_skew` of more than {max_skew} over {over} (for {here})")
            }
        }
    }
}

fn broken(
    index: &Index,
    question: &Question,
    shape: &Shape,
    obstacle: Obstacle,
    node: NodeSlot,
) -> Vec<Broken> {
    let neighbours = &index.neighbours;
    let topologies = &neighbours.topologies;
    let value = |topology: TopologyId| match topologies.of(topology, node) {
        _ if topology == NODE => node_name(index, node).to_owned(),
        NO_DOMAIN => format!("a node without {}", topologies.key(topology)),
        domain => format!("{} {}", topologies.key(topology), topologies.name(topology, domain)),
    };
    let place = |topology: TopologyId| match topology {
        NODE => format!("on `{}`", node_name(index, node)),
        _ => format!("in {}", value(topology)),
    };
    let of_rule = |(position, found): (usize, Obstacle)| {
        let rule = shape.rules.get(position).filter(|_| found == obstacle)?;
        let whom = neighbours.describe(rule.selector);
        Some(match &rule.kind {
            RuleKind::Near { .. } => {
                let is_anywhere = neighbours.total(rule.selector) > 0;
                Broken::Near { whom, place: place(rule.topology), is_anywhere }
            }
            RuleKind::Away => Broken::Away { whom, place: place(rule.topology) },
            RuleKind::Spread { max_skew, targets } => Broken::Spread {
                whom,
                over: topologies.key(rule.topology).to_owned(),
                max_skew: *max_skew,
                here: value(rule.topology),
                count: neighbours.count(
                    rule.selector,
                    rule.topology,
                    topologies.of(rule.topology, node),
                ),
                fewest: targets.is_empty().then(|| question.fewest(position)),
            },
        })
    };
    let mut all: Vec<_> =
        question.broken_rules(index, shape, node, &[]).filter_map(of_rule).collect();
    if obstacle == Obstacle::Away {
        let held = question.held_against(index, node, &[]);
        let mut held: Vec<_> = held
            .map(|(term, topology)| {
                (neighbours.describe(neighbours.selector_of(term)), place(topology))
            })
            .collect();
        // Terms are numbered as the model came to know them, which another model did otherwise.
        held.sort();
        all.extend(held.into_iter().map(|(whom, place)| Broken::Held { whom, place }));
    }
    all
}

/// What the rules of that kind say that do not hold on the node.
fn rule_detail(
    index: &Index,
    question: &Question,
    shape: &Shape,
    obstacle: Obstacle,
    node: NodeSlot,
) -> String {
    let rules = broken(index, question, shape, obstacle, node);
    joined(rules.iter().map(Broken::detail), "and")
}

/// The resources of which a node has too little free: what, how much is wanted, how much is free.
pub(super) fn shortages(index: &Index, shape: &Shape, node: NodeSlot) -> Vec<(Entry, u64, u64)> {
    let mut taken = index.nodes.used.at(node);
    taken.scalars.clear();
    let mut free = index.nodes.capacity.at(node).saturating_sub(&taken);
    free.scalars = index.nodes.stock[node].iter().map(|(id, stock)| (*id, stock.free())).collect();
    asked(index, &shape.request)
        .into_iter()
        .map(|(entry, wanted)| (entry, wanted, free.of(entry)))
        .filter(|(_, wanted, free)| wanted > free)
        .collect()
}

/// Devices of which a node has enough in all, but not in one piece: what, how much is wanted, how much is free so.
pub(super) fn pieces(index: &Index, shape: &Shape, node: NodeSlot) -> Vec<(Entry, u64, u64)> {
    let free = |entry: Entry, wanted: u64| {
        let Entry::Scalar(id) = entry else { return wanted };
        let stock = index.nodes.stock[node].iter().find(|(other, _)| *other == id);
        stock.map_or(0, |(_, stock)| stock.free_in_pieces(wanted))
    };
    asked(index, &shape.request)
        .into_iter()
        .map(|(entry, wanted)| (entry, wanted, free(entry, wanted)))
        .filter(|(_, wanted, free)| wanted > free)
        .collect()
}

/// How far a node is from having room: first by how many resources are short, then by the largest missing part.
fn distance(index: &Index, shape: &Shape, node: NodeSlot) -> (usize, u128) {
    let short = shortages(index, shape, node);
    let largest = short
        .iter()
        .map(|(_, wanted, free)| u128::from(wanted - free) * 1_000_000 / u128::from(*wanted).max(1))
        .max();
    (short.len(), largest.unwrap_or(0))
}

pub(super) fn unmet<'i>(index: &'i Index, shape: &'i Shape, node: NodeSlot) -> Vec<&'i Constraint> {
    let Some(node) = index.nodes.get(node) else { return Vec::new() };
    let wanted = index.shapes.constraints(shape).iter();
    wanted.filter(|wanted| !wanted.is_met_by(&node.facts.attributes)).collect()
}

/// What the node has instead.
fn found(index: &Index, unmet: &[&Constraint], node: NodeSlot) -> String {
    let Some(node) = index.nodes.get(node) else { return String::new() };
    let found = unmet.iter().map(|wanted| {
        let attribute = &wanted.attribute;
        match node.facts.attributes.get(attribute) {
            Some(value) => format!("{attribute} is {value}"),
            None => format!("it has no {attribute}"),
        }
    });
    joined(found, "and")
}

fn missing_runtimes(index: &Index, shape: &Shape, node: NodeSlot) -> String {
    let has = index.nodes.runtimes[node];
    let wanted = index.shapes.runtimes(shape).iter();
    let missing = wanted.filter(|any_of| !any_of.meets(has));
    joined(missing.map(|runtimes| any_of(*runtimes)), "and")
}

/// `wasm or oci`.
pub(super) fn any_of(runtimes: RuntimeSet) -> String {
    joined(runtimes.iter().map(|runtime| runtime.as_str().to_owned()), "or")
}

pub(super) fn missing_volumes(index: &Index, shape: &Shape, node: NodeSlot) -> Vec<String> {
    let Some(node) = index.nodes.get(node) else { return Vec::new() };
    let missing = index.shapes.missing_volumes(shape, node);
    missing.into_iter().map(|path| format!("`{path}`")).collect()
}

pub(super) fn taints(index: &Index, shape: &Shape, node: NodeSlot) -> Vec<String> {
    let Some(node) = index.nodes.get(node) else { return Vec::new() };
    index.shapes.taints(shape, node).into_iter().map(|taint| format!("`{taint}`")).collect()
}
