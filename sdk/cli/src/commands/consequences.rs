//! What `plan` says beside the list of resources: what is asked for anew, what would go where, what would wait, and
//! who would have to leave. Many units of one owner are one line.

use std::collections::BTreeMap;

use brig_api::explain::{Verdict, chosen};
use brig_api::lifecycle::Reason;
use brig_api::object::ObjectKey;
use brig_api::request::{PlanResponse, PlannedEviction, PlannedUnit};
use brig_api::unit_spec::Runtime;
use brig_api::{NodeName, ResourceName};

/// Most lines about the nodes of one owner, and about units that are stopped; `-o json` has all of them.
pub(super) const LINES_MAX: usize = 10;

/// The lines, in the order in which they matter to who reads them.
pub(super) fn consequences(plan: &PlanResponse) -> Vec<String> {
    let mut lines: Vec<String> =
        plan.asks.iter().map(|ask| format!("{} asks for: {ask}", ask.key)).collect();
    stops(plan, &mut lines);
    evictions(&plan.evictions, &mut lines);
    placements(&plan.placements, &mut lines);
    waits(&plan.placements, &mut lines);
    lines
}

/// What they share, and the things.
type Group<'a, K, T> = (K, Vec<&'a T>);

/// Things of one owner that share `K`, in the order of the first of each.
struct Groups<'a, K, T> {
    owners: Vec<(&'a ObjectKey, Vec<Group<'a, K, T>>)>,
}

impl<'a, K: PartialEq, T> Groups<'a, K, T> {
    fn of(things: impl Iterator<Item = (&'a ObjectKey, K, &'a T)>) -> Self {
        let mut places: BTreeMap<&ObjectKey, usize> = BTreeMap::new();
        let mut owners: Vec<(&ObjectKey, Vec<Group<'_, K, T>>)> = Vec::new();
        for (owner, shared, thing) in things {
            let place = *places.entry(owner).or_insert(owners.len());
            if place == owners.len() {
                owners.push((owner, Vec::new()));
            }
            let Some((_, groups)) = owners.get_mut(place) else { continue };
            match groups.iter_mut().find(|(known, _)| *known == shared) {
                Some((_, group)) => group.push(thing),
                None => groups.push((shared, vec![thing])),
            }
        }
        Self { owners }
    }
}

/// `unit `a`` for one, `service `web`: 3 units` for more.
fn subject(owner: &ObjectKey, first: &ObjectKey, count: usize) -> String {
    if count == 1 { first.to_string() } else { format!("{owner}: {count} units") }
}

fn stops(plan: &PlanResponse, lines: &mut Vec<String>) {
    let evicted: std::collections::BTreeSet<_> =
        plan.evictions.iter().map(|eviction| &eviction.key).collect();
    let stops: Vec<_> = plan.stops.iter().filter(|stop| !evicted.contains(stop)).collect();
    lines.extend(stops.iter().take(LINES_MAX).map(|stop| format!("{stop} would be stopped")));
    if stops.len() > LINES_MAX {
        lines.push(format!("… and {} units more would be stopped", stops.len() - LINES_MAX));
    }
}

/// Who has to leave, and for whom.
pub(super) fn evictions(evictions: &[PlannedEviction], lines: &mut Vec<String>) {
    let groups = Groups::of(evictions.iter().map(|eviction| {
        let owner = eviction.owner.as_ref().unwrap_or(&eviction.key);
        (owner, (&eviction.node, eviction.reason), eviction)
    }));
    for (owner, groups) in groups.owners {
        for ((node, reason), group) in groups {
            let Some(first) = group.first() else { continue };
            let who = subject(owner, &first.key, group.len());
            let node = node.as_ref().map(|node| format!(" {node}")).unwrap_or_default();
            let message = first.message.as_deref().map(|message| format!(": {message}"));
            let message = message.unwrap_or_default();
            lines.push(format!("{who} would have to leave{node} ({}){message}", reason.as_str()));
        }
    }
}

fn placements(placements: &[PlannedUnit], lines: &mut Vec<String>) {
    let placed = placements.iter().filter_map(|planned| match &planned.verdict {
        Verdict::Placed { node, variants, .. } => {
            let owner = planned.owner.as_ref().unwrap_or(&planned.key);
            Some((owner, (node, variants), planned))
        }
        Verdict::Refused { .. } => None,
    });
    let groups: Groups<'_, (&NodeName, &BTreeMap<ResourceName, Runtime>), _> = Groups::of(placed);
    for (owner, groups) in groups.owners {
        let (shown, rest) = groups.split_at(groups.len().min(LINES_MAX));
        for ((node, variants), group) in shown {
            let Some(first) = group.first() else { continue };
            let who = subject(owner, &first.key, group.len());
            lines.push(format!("{who} would run on {node}{}", chosen(variants)));
        }
        if !rest.is_empty() {
            let units: usize = rest.iter().map(|(_, group)| group.len()).sum();
            let nodes = rest.len();
            lines.push(format!(
                "{owner}: … and {units} units more would run on {nodes} other nodes"
            ));
        }
    }
}

fn waits(placements: &[PlannedUnit], lines: &mut Vec<String>) {
    let waiting = placements.iter().filter_map(|planned| match &planned.verdict {
        Verdict::Refused { message } => {
            let owner = planned.owner.as_ref().unwrap_or(&planned.key);
            Some((owner, (planned.reason, &planned.promised, message), planned))
        }
        Verdict::Placed { .. } => None,
    });
    for (owner, groups) in Groups::of(waiting).owners {
        for ((reason, promised, message), group) in groups {
            let Some(first) = group.first() else { continue };
            let who = subject(owner, &first.key, group.len());
            let reason = reason.map(|reason: Reason| format!(" ({})", reason.as_str()));
            let reason = reason.unwrap_or_default();
            let promised = promised.as_ref().map(|node| format!(" for room on {node}"));
            let promised = promised.unwrap_or_default();
            lines.push(format!("{who} would wait{promised}{reason}: {message}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use brig_api::asks::{Ask, AskKind};
    use brig_api::{Kind, Revision};

    fn key(kind: Kind, name: &str) -> ObjectKey {
        let namespace = Some(brig_api::NamespacePath::default_namespace());
        ObjectKey { kind, namespace, name: name.to_owned() }
    }

    fn unit(name: &str, owner: Option<&str>, verdict: Verdict) -> PlannedUnit {
        let owner = owner.map(|owner| key(Kind::Service, owner));
        PlannedUnit { key: key(Kind::Unit, name), owner, verdict, reason: None, promised: None }
    }

    fn on(node: &str) -> Verdict {
        let node = NodeName::new(node).unwrap();
        let variants = Default::default();
        Verdict::Placed { node, scores: vec![], total: 0, next: vec![], variants }
    }

    fn as_oci(node: &str) -> Verdict {
        let node = NodeName::new(node).unwrap();
        let variants = [(ResourceName::new("main").unwrap(), Runtime::Oci)].into();
        Verdict::Placed { node, scores: vec![], total: 0, next: vec![], variants }
    }

    fn waits(reason: Reason, message: &str, unit: PlannedUnit) -> PlannedUnit {
        let verdict = Verdict::Refused { message: message.to_owned() };
        PlannedUnit { verdict, reason: Some(reason), ..unit }
    }

    fn response(placements: Vec<PlannedUnit>) -> PlanResponse {
        PlanResponse {
            revision: Revision(1),
            applied: vec![],
            placements,
            stops: vec![],
            evictions: vec![],
            asks: vec![],
        }
    }

    #[test]
    fn a_plan_is_told_by_owner_and_node() {
        let quota = "the quota of namespace `default` (2) is used up";
        let web = |name, node| unit(name, Some("web"), on(node));
        let refused = |name| waits(Reason::QuotaExceeded, quota, unit(name, Some("web"), on("x")));
        let mut plan = response(vec![
            web("web-1", "n1"),
            web("web-2", "n2"),
            web("web-3", "n1"),
            unit("lone", None, as_oci("n2")),
            refused("web-4"),
            refused("web-5"),
        ]);
        plan.asks = vec![Ask {
            key: key(Kind::Service, "web"),
            task: Some("main".into()),
            kind: AskKind::Host,
            text: "outgoing HTTP to api.example.com".into(),
        }];
        plan.stops = vec![key(Kind::Unit, "web-0"), key(Kind::Unit, "batch-1")];
        plan.evictions = vec![PlannedEviction {
            key: key(Kind::Unit, "batch-1"),
            owner: None,
            node: Some(NodeName::new("n1").unwrap()),
            reason: Reason::Preempted,
            message: Some("makes room for unit `web-1`".into()),
        }];
        assert_eq!(
            consequences(&plan),
            [
                "service `web` in namespace `default` asks for: task `main`: outgoing HTTP to api.example.com",
                "unit `web-0` in namespace `default` would be stopped",
                "unit `batch-1` in namespace `default` would have to leave n1 (Preempted): makes room for unit `web-1`",
                "service `web` in namespace `default`: 2 units would run on n1",
                "unit `web-2` in namespace `default` would run on n2",
                "unit `lone` in namespace `default` would run on n2, as oci",
                "service `web` in namespace `default`: 2 units would wait (QuotaExceeded): the quota of namespace `default` (2) is used up",
            ]
        );
    }

    #[test]
    fn a_unit_that_others_make_room_for_says_where_and_a_long_plan_is_cut() {
        let mut first =
            waits(Reason::RoomPromised, "1 unit has to leave first", unit("a", None, on("x")));
        first.promised = Some(NodeName::new("n7").unwrap());
        let spread = (0..50).flat_map(|n| {
            (0..2).map(move |m| unit(&format!("w-{n}-{m}"), Some("w"), on(&format!("n{n}"))))
        });
        let lines = consequences(&response(std::iter::once(first).chain(spread).collect()));
        assert_eq!(lines.len(), LINES_MAX + 2);
        assert_eq!(
            &lines[LINES_MAX..],
            [
                "service `w` in namespace `default`: … and 80 units more would run on 40 other nodes",
                "unit `a` in namespace `default` would wait for room on n7 (RoomPromised): 1 unit has to leave first",
            ]
        );
    }
}
