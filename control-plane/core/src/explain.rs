//! Explanations: how many nodes each filter turned down, which came nearest, and what would be enough.
//!
//! Two texts for a refused unit. The *status* is kept with the unit and names no amount that comes and goes with other
//! units: it changes only when the kind of obstacle does, so that a long queue does not write to the database with
//! every unit that ends. The *message* of the explanation has the exact numbers of its pass.

mod nearest;

use std::collections::BTreeSet;
use std::sync::Arc;

use brig_api::Kind;
use brig_api::constraint::Constraint;
use brig_api::explain::Refusal;
use brig_api::lifecycle::Reason;
use brig_api::object::{JobState, Unit};
use brig_api::placement::{Concurrency, Gang};
use brig_api::{Bytes, Milli, MilliCpu};

use crate::index::shapes::Shape;
use crate::index::tenants::TenantId;
use crate::index::{Index, NodeSlot, OwnerKey, UnitSlot};
use crate::judge::{Question, Without};
use crate::model::Objects;
use crate::obstacle::Obstacle;
use crate::vector::{Entry, Vector};

pub(crate) use nearest::obstacle_detail;

/// Longest text about one unit, in bytes: constraints may be long, and there may be thousands of units.
const TEXT_BYTES_MAX: usize = 600;
/// Longest exact text of an amount of bytes; longer ones are cut to a tenth of the largest unit.
const EXACT_BYTES_TEXT_MAX: usize = 6;
/// Most units or ways out that a text lists.
const LISTED_MAX: usize = 3;

/// Why a unit was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
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

impl Refused {
    fn plain(reason: Reason, text: String) -> Self {
        let text = cut(text);
        Self { reason, status: text.clone(), message: text, refusals: Vec::new() }
    }

    /// For a unit that is in no index.
    pub(crate) fn unknown() -> Self {
        Self::plain(Reason::Unschedulable, "it is not known to the scheduler yet".to_owned())
    }
}

/// `64Gi of memory` and so on.
fn with_name(index: &Index, entry: Entry, amount: u64) -> String {
    format!("{} of {}", readable(entry, amount), name(index, entry))
}

/// `cpu`, `memory`, `disk` or the scalar's name.
fn name(index: &Index, entry: Entry) -> &str {
    match entry {
        Entry::Cpu => "cpu",
        Entry::Memory => "memory",
        Entry::Disk => "disk",
        Entry::Scalar(id) => index.scalars.name(id),
    }
}

/// The amount as people read it; bytes that are no round number are cut to a tenth of the largest unit.
fn readable(entry: Entry, amount: u64) -> String {
    match entry {
        Entry::Cpu => MilliCpu(amount).to_string(),
        Entry::Memory | Entry::Disk => readable_bytes(amount, false),
        Entry::Scalar(_) => Milli(amount).to_string(),
    }
}

/// The same, but never less than `amount`.
fn readable_up(entry: Entry, amount: u64) -> String {
    match entry {
        Entry::Memory | Entry::Disk => readable_bytes(amount, true),
        _ => readable(entry, amount),
    }
}

fn readable_bytes(amount: u64, is_rounded_up: bool) -> String {
    let exact = Bytes(amount).to_string();
    if exact.len() <= EXACT_BYTES_TEXT_MAX {
        return exact;
    }
    let (suffix, shift) = [("Ti", 40), ("Gi", 30), ("Mi", 20)]
        .into_iter()
        .find(|(_, shift)| amount >> shift > 0)
        .unwrap_or(("Ki", 10));
    let tenths = ((u128::from(amount) * 10) >> shift) + u128::from(is_rounded_up);
    format!("{}.{}{suffix}", tenths / 10, tenths % 10)
}

/// Entries of a request that ask for something, scalars by name.
fn asked<'r>(index: &'r Index, request: &'r Vector) -> Vec<(Entry, u64)> {
    let mut entries: Vec<_> = request.entries().filter(|(_, wanted)| *wanted > 0).collect();
    entries.sort_by(|(left, _), (right, _)| match (left, right) {
        (Entry::Scalar(left), Entry::Scalar(right)) => {
            index.scalars.name(*left).cmp(index.scalars.name(*right))
        }
        _ => left.cmp(right),
    });
    entries
}

/// The refusal of a shape that no node can take.
pub(crate) fn refused(index: &Index, question: &Question) -> Refused {
    let Some(shape) = index.shapes.get(question.shape) else { return Refused::unknown() };
    let findings: Vec<_> = index
        .nodes
        .in_order()
        .map(|node| (node, question.obstacles(index, node, Without::default())))
        .collect();
    let refusals = refusals(index, question, shape, &findings);
    let lasting = if findings.is_empty() {
        Some("the cluster has no nodes: start one with `brig node`".to_owned())
    } else {
        too_large(index, shape)
    };
    let (status, message) = match lasting {
        Some(text) => {
            let ways = nearest::ways_past_properties(index, question, shape, &findings);
            let message = ways.map_or_else(|| text.clone(), |ways| format!("{text}, or {ways}"));
            (text, message)
        }
        None => {
            let status = no_node_fits(index, shape, &findings);
            let enough = nearest::ways_out(index, question, shape, &findings);
            let message = if enough.is_empty() {
                status.clone()
            } else {
                format!("{status}; enough would be {}", enough.join(", or "))
            };
            (status, message)
        }
    };
    Refused { reason: Reason::Unschedulable, status: cut(status), message: cut(message), refusals }
}

/// What was found on each node, by name.
type Findings = Vec<(NodeSlot, Vec<Obstacle>)>;

/// How many nodes each filter turned down, most first, each with its nearest miss.
fn refusals(
    index: &Index,
    question: &Question,
    shape: &Shape,
    findings: &Findings,
) -> Vec<Refusal> {
    let mut refusals: Vec<_> = Obstacle::ALL
        .into_iter()
        .filter_map(|obstacle| {
            let turned_down: Vec<_> = findings
                .iter()
                .filter(|(_, found)| found.first() == Some(&obstacle))
                .map(|(node, _)| *node)
                .collect();
            let nearest = nearest::nearest(index, shape, obstacle, &turned_down)?;
            let detail = obstacle_detail(index, question, shape, obstacle, nearest);
            let detail = format!("{detail} ({})", node_name(index, nearest));
            let nodes = u32::try_from(turned_down.len()).unwrap_or(u32::MAX);
            Some(Refusal { filter: obstacle.name().into(), nodes, detail: cut(detail) })
        })
        .collect();
    // Stable: the filters' order decides among equals.
    refusals.sort_by_key(|refusal| std::cmp::Reverse(refusal.nodes));
    refusals
}

/// The refusal of a unit whose namespace, or one above it, has used up its quota.
pub(crate) fn quota(index: &Index, request: &Vector, tenant: TenantId, short: Entry) -> Refused {
    let row = index.tenants.get(tenant);
    // Of several the first by name: the numbers of scalars depend on the order in which things came.
    let is_short = |(entry, wanted): &(Entry, u64)| {
        row.quota.as_ref().is_some_and(|quota| quota.is_exceeded_in(*entry, &row.used, *wanted))
    };
    let short = asked(index, request).into_iter().find(is_short).map_or(short, |(entry, _)| entry);
    let name = name(index, short);
    let wanted = request.of(short);
    let limit = row.quota.as_ref().and_then(|quota| quota.of(short)).unwrap_or(0);
    let used = row.used.of(short);
    let namespace = &row.path;
    let status = if wanted > limit {
        format!(
            "it asks for {}, but the whole quota of namespace `{namespace}` is {}: ask for less, or raise the quota",
            with_name(index, short, wanted),
            readable(short, limit)
        )
    } else {
        format!(
            "it asks for {}, and the quota of namespace `{namespace}` ({}) is used up: it starts once others there have ended, or the quota is raised",
            with_name(index, short, wanted),
            readable(short, limit)
        )
    };
    let free = limit.saturating_sub(used);
    let raised = used.saturating_add(wanted);
    let mut message = format!(
        "{status}; {} of {} are in use; enough would be a quota of {}",
        readable(short, used),
        readable(short, limit),
        readable_up(short, raised)
    );
    if free > 0 {
        message.push_str(&format!(" or a request of {}", readable(short, free)));
    }
    let detail = format!(
        "{name}: wanted {}, {} left of {} (namespace {namespace})",
        readable(short, wanted),
        readable(short, free),
        readable(short, limit)
    );
    let nodes = u32::try_from(index.nodes.count()).unwrap_or(u32::MAX);
    let refusal = Refusal { filter: "quota".into(), nodes, detail: cut(detail) };
    Refused {
        reason: Reason::QuotaExceeded,
        status: cut(status),
        message: cut(message),
        refusals: vec![refusal],
    }
}

/// The same refusal for a unit of a namespace that has all that it is guaranteed: nobody leaves for it.
pub(crate) fn beyond_guarantee(index: &Index, tenant: TenantId, refused: &Refused) -> Refused {
    let namespace = &index.tenants.get(tenant).path;
    let more = format!(
        "it would be more than the guarantee of namespace `{namespace}`, so nobody has to leave for it"
    );
    Refused { message: cut(format!("{}; {more}", refused.message)), ..refused.clone() }
}

/// The namespace has as many units on nodes as it may.
pub(crate) fn too_many_units(index: &Index, tenant: TenantId) -> Refused {
    let row = index.tenants.get(tenant);
    let most = row.max_units.unwrap_or(0);
    let units = if most == 1 { "unit" } else { "units" };
    let text = format!(
        "namespace `{}` has {most} {units} on nodes, the most that it may: it starts once others there have ended, or `max_units` is raised",
        row.path
    );
    Refused::plain(Reason::QuotaExceeded, text)
}

/// What it comes after is not there yet; `serving` units of it are.
pub(crate) fn waits_for(
    objects: &Objects,
    (namespace, kind, name): &OwnerKey,
    serving: u32,
) -> Refused {
    let missing = |kind: &Kind| {
        format!(
            "it comes after {kind} `{name}`, which does not exist: make it, or leave it out of `after`"
        )
    };
    let job = objects.jobs.get(namespace).and_then(|names| names.get(name));
    let service = objects.services.get(namespace).and_then(|names| names.get(name));
    let (status, numbers) = match (kind, job, service) {
        (Kind::Job, Some(job), _) => {
            let again = "delete that and apply one that succeeds, or leave it out of `after`";
            let text = match job.state {
                JobState::Failed => format!("which has failed: {again}"),
                JobState::Stopped => format!("which was stopped: {again}"),
                _ => "and starts once that has succeeded".to_owned(),
            };
            (format!("it comes after job `{name}`, {text}"), None)
        }
        (Kind::Service, _, Some(service)) if service.is_deleting => {
            (format!("it comes after service `{name}`, which is being deleted"), None)
        }
        (Kind::Service, _, Some(service)) => {
            let text =
                format!("it comes after service `{name}`, and starts once all units of it run");
            (text, Some(format!("; {serving} of {} do", service.spec.replicas)))
        }
        (kind, ..) => (missing(kind), None),
    };
    let numbers = numbers.unwrap_or_default();
    Refused {
        message: cut(format!("{status}{numbers}")),
        ..Refused::plain(Reason::DependencyWaits, status)
    }
}

/// As many of its family run as may.
pub(crate) fn family_full(family: &Concurrency) -> Refused {
    let Concurrency { key, limit } = family;
    let text = format!(
        "family `{key}` has as many units on nodes as this one puts up with (`limit: {limit}`): it starts once one of them has ended"
    );
    Refused::plain(Reason::ConcurrencyLimit, text)
}

/// Not all of the gang's units exist.
pub(crate) fn gang_incomplete(gang: &Gang, present: usize) -> Refused {
    let Gang { name, size } = gang;
    let text = format!(
        "gang `{name}` is not complete: it starts once {size} units of it exist, and {present} do"
    );
    Refused::plain(Reason::GangWaits, text)
}

/// There is no room for the whole gang.
pub(crate) fn gang_waits(
    gang: &Gang,
    fitting: usize,
    members: &[(UnitSlot, Arc<Unit>)],
    cause: &Refused,
) -> Refused {
    let status = format!("not all of gang `{}` fits yet; {}", gang.name, cause.status);
    let next = members.get(fitting).map_or("", |(_, unit)| unit.name.as_str());
    let message = format!(
        "not all of gang `{}` fits yet: {fitting} of {} units do, `{next}` does not; {}",
        gang.name,
        members.len(),
        cause.message
    );
    Refused {
        reason: Reason::GangWaits,
        status: cut(status),
        message: cut(message),
        refusals: cause.refusals.clone(),
    }
}

/// Others leave for the gang.
pub(crate) fn gang_promised(index: &Index, unit: &Unit, node: NodeSlot) -> Refused {
    let node = node_name(index, node);
    let gang = unit.template.gang.as_ref().map_or("", |gang| gang.name.as_str());
    let text = format!(
        "it starts on `{node}`, with the rest of gang `{gang}`, as soon as others have left"
    );
    Refused::plain(Reason::RoomPromised, text)
}

/// Others leave for it.
pub(crate) fn promised(index: &Index, node: NodeSlot, leavers: &[UnitSlot]) -> Refused {
    let node = node_name(index, node);
    let mut names: Vec<_> =
        leavers.iter().filter_map(|slot| Some(format!("`{}`", index.unit(*slot)?.name))).collect();
    names.sort_unstable();
    let text = match names.is_empty() {
        true => format!("it starts on `{node}`, where room was made for it"),
        false => {
            let have = if names.len() == 1 { "has" } else { "have" };
            let leavers = few(names, "and");
            format!("it starts on `{node}` as soon as {leavers} {have} left")
        }
    };
    // Who is still leaving changes with each that has left, so the status does not name them.
    let status = format!("it starts on `{node}` as soon as others have left");
    Refused {
        reason: Reason::RoomPromised,
        status: cut(status),
        message: cut(text),
        refusals: Vec::new(),
    }
}

/// For the event of a unit that is stopped for another.
pub(crate) fn makes_room(unit: &Unit) -> String {
    let Unit { name, namespace, template, .. } = unit;
    format!(
        "makes room for unit `{name}` of namespace `{namespace}` (priority {})",
        template.priority
    )
}

fn node_name(index: &Index, node: NodeSlot) -> &str {
    index.nodes.get(node).map_or("", |node| node.name.as_str())
}

/// What to say when the shape is larger than any node that has the right properties.
fn too_large(index: &Index, shape: &Shape) -> Option<String> {
    let fixed = index.shapes.fixed(shape)?;
    let is_wrong = |node: &NodeSlot| {
        matches!(fixed.obstacles[*node], Some(Obstacle::Runtime | Obstacle::Attributes))
    };
    let qualified: Vec<_> = index.nodes.in_order().filter(|node| !is_wrong(node)).collect();
    let asked = asked(index, &shape.request);
    let capacity = |node: NodeSlot, entry: Entry| index.nodes.declared(node).of(entry);
    let is_large_enough =
        |node: &NodeSlot| asked.iter().all(|(entry, wanted)| *wanted <= capacity(*node, *entry));
    if qualified.is_empty() || qualified.iter().any(is_large_enough) {
        return None;
    }
    let way_out = "ask for less, or add a larger node";
    for (entry, wanted) in &asked {
        let mut largest = *qualified.first()?;
        for node in &qualified {
            if capacity(*node, *entry) > capacity(largest, *entry) {
                largest = *node;
            }
        }
        let most = capacity(largest, *entry);
        if *wanted > most {
            let asked = with_name(index, *entry, *wanted);
            return Some(if most == 0 {
                let name = name(index, *entry);
                format!(
                    "it asks for {asked}, but no node has any {name}: leave it out, or add a node with it"
                )
            } else {
                let most = readable(*entry, most);
                let name = node_name(index, largest);
                let suitable = if qualified.len() < index.nodes.count() { "suitable " } else { "" };
                format!(
                    "it asks for {asked}, but the largest {suitable}node (`{name}`) has {most}: {way_out}"
                )
            });
        }
    }
    let asked = asked.iter().map(|(entry, wanted)| with_name(index, *entry, *wanted));
    let asked = joined(asked, "and");
    Some(format!("it asks for {asked}, which no single node has together: {way_out}"))
}

/// What every node lacks, without amounts that come and go.
fn no_node_fits(index: &Index, shape: &Shape, findings: &Findings) -> String {
    let first = |obstacle: Obstacle| {
        findings.iter().filter(move |(_, found)| found.first() == Some(&obstacle))
    };
    let has = |obstacle| first(obstacle).next().is_some();
    let faults =
        Obstacle::ALL.into_iter().filter(|obstacle| has(*obstacle)).map(
            |obstacle| match obstacle {
                Obstacle::Ready => "out of reach".to_owned(),
                Obstacle::Runtime => {
                    let runtimes = index.shapes.runtimes(shape).iter();
                    let runtimes = runtimes.map(|any_of| nearest::any_of(*any_of));
                    format!("unable to run {}", joined(runtimes, "and"))
                }
                Obstacle::Attributes => {
                    let here: Vec<_> = first(obstacle).map(|(node, _)| *node).collect();
                    let unmet = |wanted: &&Constraint| {
                        here.iter().any(|node| nearest::unmet(index, shape, *node).contains(wanted))
                    };
                    let constraints = index.shapes.constraints(shape).iter().filter(unmet);
                    let wanted = constraints.map(|wanted| format!("`{wanted}`"));
                    format!("no match for {}", joined(wanted, "and"))
                }
                Obstacle::Taints => {
                    let taints: BTreeSet<_> = first(obstacle)
                        .flat_map(|(node, _)| nearest::taints(index, shape, *node))
                        .collect();
                    format!("tainted with {}", few(taints.into_iter().collect(), "or"))
                }
                Obstacle::Volumes => {
                    let paths: BTreeSet<_> = first(obstacle)
                        .flat_map(|(node, _)| nearest::missing_volumes(index, shape, *node))
                        .collect();
                    format!("without the directory {}", few(paths.into_iter().collect(), "or"))
                }
                Obstacle::Artifacts => {
                    let missing: BTreeSet<_> = first(obstacle)
                        .flat_map(|(node, _)| nearest::missing_artifacts(index, shape, *node))
                        .collect();
                    format!("without the artifact {}", few(missing.into_iter().collect(), "or"))
                }
                Obstacle::Ports => {
                    let ports: BTreeSet<_> = first(obstacle)
                        .flat_map(|(node, _)| &shape.way_on(index.nodes.runtimes[*node]).ports)
                        .map(|port| port.port)
                        .collect();
                    match ports.is_empty() {
                        true => "without a port to give away".to_owned(),
                        false => {
                            let ports = ports.into_iter().map(|port| port.to_string());
                            format!("using port {} already", joined(ports, "or"))
                        }
                    }
                }
                Obstacle::Resources => {
                    let short: BTreeSet<_> = first(obstacle)
                        .flat_map(|(node, _)| nearest::shortages(index, shape, *node))
                        .map(|(entry, ..)| entry)
                        .collect();
                    let names = asked(index, &shape.request)
                        .into_iter()
                        .filter(|(entry, _)| short.contains(entry))
                        .map(|(entry, _)| name(index, entry).to_owned());
                    let names = joined(names, "and");
                    if names.is_empty() {
                        let pieces: BTreeSet<_> = first(obstacle)
                            .flat_map(|(node, _)| nearest::pieces(index, shape, *node))
                            .map(|(entry, ..)| name(index, entry).to_owned())
                            .collect();
                        format!("short of {} in one piece", joined(pieces.into_iter(), "and"))
                    } else {
                        format!("short of {names}")
                    }
                }
                Obstacle::Kept => "full but for what is kept for a gang that waits".to_owned(),
                Obstacle::Near => "far from the units that it must be near".to_owned(),
                Obstacle::Away => {
                    "too near to units that it must be away from, or they from it".to_owned()
                }
                Obstacle::Spread => "where its spread allows no more of its kind".to_owned(),
            },
        );
    let faults = alternatives(faults.collect());
    let subject = if findings.len() == 1 { "the only node" } else { "every node" };
    let way_out = if has(Obstacle::Resources) || has(Obstacle::Ports) || has(Obstacle::Kept) {
        "it starts as soon as there is room"
    } else if has(Obstacle::Ready) {
        "it starts as soon as one that fits is back"
    } else if has(Obstacle::Away) || has(Obstacle::Spread) {
        "it starts as soon as others have moved, or a node that fits is added"
    } else if has(Obstacle::Near) {
        "it starts as soon as they are there"
    } else if has(Obstacle::Artifacts) {
        "it starts as soon as one that fits holds it"
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

/// `a`, `a, or b`, `a, b, or c`: the parts may have an `and` in them.
fn alternatives(mut parts: Vec<String>) -> String {
    match parts.pop() {
        None => String::new(),
        Some(only) if parts.is_empty() => only,
        Some(last) => format!("{}, or {last}", parts.join(", ")),
    }
}

/// The first few, and how many more there are.
fn few(mut parts: Vec<String>, last: &str) -> String {
    let more = parts.len().saturating_sub(LISTED_MAX);
    parts.truncate(LISTED_MAX);
    if more > 0 {
        parts.push(format!("{more} more"));
    }
    joined(parts.into_iter(), last)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_round_number_are_cut() {
        for (amount, text) in [
            (64 << 20, "64Mi"),
            (0, "0"),
            ((23 << 30) + (512 << 20) + 4096, "23.5Gi"),
            (u64::MAX, "16777215.9Ti"),
            (1_234_567, "1.1Mi"),
        ] {
            assert_eq!(readable_bytes(amount, false), text);
        }
    }
}
