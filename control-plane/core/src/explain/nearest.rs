//! The smallest change that would be enough: for each filter the node that it turned down by the least.

use brig_api::constraint::Constraint;

use super::{Findings, LISTED_MAX, asked, joined, name, node_name, readable, readable_up};
use crate::index::shapes::{RuleKind, Shape};
use crate::index::{Index, NodeSlot};
use crate::judge::Question;
use crate::obstacle::Obstacle;
use crate::vector::Entry;

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

/// What was in the way on one node, in words.
pub(crate) fn obstacle_detail(
    index: &Index,
    question: &Question,
    shape: &Shape,
    obstacle: Obstacle,
    node: NodeSlot,
) -> String {
    let name_of_node = node_name(index, node);
    match obstacle {
        Obstacle::Ready => format!("{name_of_node} is out of reach"),
        Obstacle::Runtime => {
            format!("{name_of_node} can't run {}", missing_runtimes(index, shape, node))
        }
        Obstacle::Attributes => {
            let unmet = unmet(index, shape, node);
            let wanted = joined(unmet.iter().map(|wanted| wanted.to_string()), "and");
            format!("wanted {wanted}, but {} ({name_of_node})", found(index, &unmet, node))
        }
        Obstacle::Taints => {
            let taints = taints(index, shape, node);
            format!("does not tolerate {taints} ({name_of_node})")
        }
        Obstacle::Volumes => {
            format!("no {} ({name_of_node})", missing_volumes(index, shape, node))
        }
        Obstacle::Ports if shape.ports.is_empty() => {
            format!("{} free ports wanted ({name_of_node})", shape.open_ports)
        }
        Obstacle::Ports => {
            let port = index.nodes.taken_port(node, &shape.ports, shape.port_owner, &[]);
            match port {
                Some(port) => format!("port {port} is taken ({name_of_node})"),
                None => format!("{} free ports wanted ({name_of_node})", shape.open_ports),
            }
        }
        Obstacle::Resources => {
            let details = shortages(index, shape, node).into_iter().map(|(entry, wanted, free)| {
                let wanted = readable(entry, wanted);
                format!("{}: wanted {wanted}, {} free", name(index, entry), readable(entry, free))
            });
            let details = joined(details, "and");
            if details.is_empty() {
                return format!("no device has enough left ({name_of_node})");
            }
            format!("{details} ({name_of_node})")
        }
        Obstacle::Kept => format!("its free room is kept for a gang ({name_of_node})"),
        Obstacle::Near | Obstacle::Away | Obstacle::Spread => {
            format!("{} ({name_of_node})", rule_text(index, question, shape, obstacle))
        }
    }
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
            let wanted = joined(unmet.iter().map(|wanted| wanted.to_string()), "and");
            let found = found(index, &unmet, node);
            format!(
                "a node with {wanted} (on `{name_of_node}`, {found}), or a unit that does not ask for it"
            )
        }
        Obstacle::Taints => {
            format!("a toleration of {} (`{name_of_node}`)", taints(index, shape, node))
        }
        Obstacle::Volumes => {
            format!("that `{name_of_node}` offers {}", missing_volumes(index, shape, node))
        }
        Obstacle::Ports => {
            let port = index.nodes.taken_port(node, &shape.ports, shape.port_owner, &[]);
            match port {
                Some(port) => format!(
                    "that the unit with port {port} on `{name_of_node}` ends, or another port"
                ),
                None => format!("fewer ports on `{name_of_node}`"),
            }
        }
        Obstacle::Resources => resources_enough(index, shape, node),
        Obstacle::Kept => {
            "that the gang has started, or a `max_run_ms` that ends before it can".to_owned()
        }
        Obstacle::Near => {
            let rule = rule_text(index, question, shape, obstacle);
            format!("such units near `{name_of_node}` ({rule})")
        }
        Obstacle::Away | Obstacle::Spread => {
            let rule = rule_text(index, question, shape, obstacle);
            format!("`{name_of_node}` without the rule \"{rule}\"")
        }
    }
}

fn resources_enough(index: &Index, shape: &Shape, node: NodeSlot) -> String {
    let name_of_node = node_name(index, node);
    let short = shortages(index, shape, node);
    if short.is_empty() {
        return format!("that whole devices are free on `{name_of_node}`");
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

/// How far a node is from having room: first by how many resources are short, then by the largest missing part.
fn distance(index: &Index, shape: &Shape, node: NodeSlot) -> (usize, u128) {
    let short = shortages(index, shape, node);
    let largest = short
        .iter()
        .map(|(_, wanted, free)| u128::from(wanted - free) * 1_000_000 / u128::from(*wanted).max(1))
        .max();
    (short.len(), largest.unwrap_or(0))
}

fn unmet<'i>(index: &'i Index, shape: &'i Shape, node: NodeSlot) -> Vec<&'i Constraint> {
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
    let Some(node) = index.nodes.get(node) else { return String::new() };
    let wanted = index.shapes.runtimes(shape).iter();
    let missing = wanted.filter(|runtime| !node.facts.runtimes.contains(runtime));
    joined(missing.map(|runtime| runtime.as_str().to_owned()), "and")
}

fn missing_volumes(index: &Index, shape: &Shape, node: NodeSlot) -> String {
    let Some(node) = index.nodes.get(node) else { return String::new() };
    let missing = index.shapes.missing_volumes(shape, node);
    joined(missing.into_iter().map(|path| format!("`{path}`")), "and")
}

fn taints(index: &Index, shape: &Shape, node: NodeSlot) -> String {
    let Some(node) = index.nodes.get(node) else { return String::new() };
    let taints = index.shapes.taints(shape, node).into_iter();
    joined(taints.map(|taint| format!("`{taint}`")), "and")
}

/// The shape's own required rules of that kind in words, or those that others hold against it.
fn rule_text(index: &Index, question: &Question, shape: &Shape, obstacle: Obstacle) -> String {
    let neighbours = &index.neighbours;
    let required = shape.rules.iter().filter(|rule| rule.weight.is_none());
    let texts = required.filter_map(|rule| {
        let whom = neighbours.describe(rule.selector);
        let over = neighbours.topologies.key(rule.topology);
        match (&rule.kind, obstacle) {
            (RuleKind::Near { .. }, Obstacle::Near) => Some(format!("near {whom} over {over}")),
            (RuleKind::Away, Obstacle::Away) => Some(format!("away from {whom} over {over}")),
            (RuleKind::Spread { max_skew, .. }, Obstacle::Spread) => {
                Some(format!("{whom} spread over {over} with a skew of {max_skew}"))
            }
            _ => None,
        }
    });
    let own: Vec<_> = texts.collect();
    if !own.is_empty() || obstacle != Obstacle::Away {
        return joined(own.into_iter(), "and");
    }
    let held = question.terms().filter_map(|(term, topology)| {
        let over = neighbours.topologies.key(topology);
        let whom = neighbours.describe(neighbours.selector_of(term));
        (!whom.is_empty()).then(|| format!("others stay away from {whom} over {over}"))
    });
    joined(held, "and")
}
