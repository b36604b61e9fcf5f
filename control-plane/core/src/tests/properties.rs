//! What holds for every model: plans are sound, repeatable, and lead to rest.

use brig_api::session::HeldArtifact;
use proptest::prelude::*;

use super::draws::{any_cluster, any_holdings, any_namespace, any_node, any_unit};
use super::soundness::{assert_sound, objects, shuffled};
use super::*;
use crate::candidates::Search;
use crate::index::{ShapeId, is_waiting};
use crate::judge::{Question, Without};
use crate::obstacle::Obstacle;

/// A cluster that people could have, for which rest is to be reached.
fn plain_cluster() -> impl Strategy<Value = Cluster> {
    let services = proptest::collection::vec((1..4u64, 0..5u32), 0..3);
    let jobs = proptest::collection::vec((1..4u64, 1..4u32, 1..5u32, any::<bool>()), 0..3);
    (1..4usize, services, jobs).prop_map(|(nodes, services, jobs)| {
        let mut cluster = Cluster::new();
        for index in 0..nodes {
            cluster.node(&format!("n{index}"), amount(8, 8));
        }
        for (index, (size, replicas)) in services.into_iter().enumerate() {
            cluster.service(&format!("s{index}"), replicas, wasm(amount(size, size)));
        }
        for (index, (size, parallelism, completions, fails)) in jobs.into_iter().enumerate() {
            let text = format!("j{index}");
            cluster.job(&text, (parallelism, completions, 1), wasm(amount(size, size)));
            let ending = if fails { UnitState::Failed } else { UnitState::Succeeded };
            cluster.endings.insert(text, ending);
        }
        cluster
    })
}

/// What users and machines do to a cluster that has settled.
#[derive(Debug, Clone)]
enum Act {
    Scale(usize, u32),
    Change(usize),
    Silence(usize),
    Return,
}

fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (0..3usize, 0..5u32).prop_map(|(service, replicas)| Act::Scale(service, replicas)),
        (0..3usize).prop_map(Act::Change),
        (0..3usize).prop_map(Act::Silence),
        Just(Act::Return),
    ]
}

impl Act {
    fn happen(&self, cluster: &mut Cluster) {
        let service = |index: &usize| format!("s{index}");
        let exists = |cluster: &Cluster, text: &str| {
            cluster.model.service(&namespace("default"), &name(text)).is_some()
        };
        match self {
            Self::Scale(index, replicas) if exists(cluster, &service(index)) => {
                cluster.change_service(&service(index), |s| s.spec.replicas = *replicas);
            }
            Self::Change(index) if exists(cluster, &service(index)) => {
                cluster.change_service(&service(index), |s| s.generation += 1);
            }
            Self::Scale(..) | Self::Change(_) => {}
            Self::Silence(index) => {
                let name = cluster.model.nodes().nth(*index).map(|node| node.name.clone());
                cluster.moment.silent.extend(name);
            }
            Self::Return => cluster.moment.silent.clear(),
        }
    }
}

/// Anything that the feed may tell of, or time.
#[derive(Debug, Clone)]
enum Event {
    Node(usize, Box<draws::NodeDraw>),
    /// The n-th node tells what it holds, or goes silent about it.
    Holds(usize, Option<Vec<HeldArtifact>>),
    Unit(usize, Box<draws::UnitDraw>),
    Namespace(Box<NamespaceSpec>),
    /// The n-th of all objects goes.
    Gone(usize),
    /// Units go on as their nodes would have them.
    Work,
    Later(i64),
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        1 => (0..5usize, any_node()).prop_map(|(index, draw)| Event::Node(index, Box::new(draw))),
        2 => (0..5usize, any_holdings()).prop_map(|(index, held)| Event::Holds(index, held)),
        2 => (0..16usize, any_unit()).prop_map(|(index, draw)| Event::Unit(index, Box::new(draw))),
        1 => any_namespace().prop_map(|spec| Event::Namespace(Box::new(spec))),
        1 => (0..30usize).prop_map(Event::Gone),
        3 => Just(Event::Work),
        2 => (0..100_000i64).prop_map(Event::Later),
    ]
}

impl Event {
    fn happen(self, cluster: &mut Cluster) {
        match self {
            Self::Node(index, draw) => draws::add_node(cluster, index, *draw),
            Self::Holds(index, held) => draws::tell(cluster, index, held.as_deref()),
            Self::Unit(index, draw) => {
                let text = format!("j1-{index}");
                if !cluster.model.units().any(|unit| unit.name == name(&text)) {
                    draws::add_unit(cluster, index, *draw);
                }
            }
            Self::Namespace(spec) => {
                let path = spec.name.to_string();
                cluster.namespace_like(&path, |to| *to = *spec);
            }
            Self::Gone(index) => {
                let revision = Revision(cluster.model.revision.0 + 1);
                if let Some(object) = objects(&cluster.model).get(index) {
                    let key = object.key();
                    let change = Change { revision, position: 0, key, object: None };
                    cluster.model.apply(&change);
                }
            }
            Self::Work => {
                cluster.nodes_work();
            }
            Self::Later(ms) => {
                cluster.moment.now_ms = cluster.moment.now_ms.saturating_add(ms);
            }
        }
    }
}

/// A plan without what it says anew of units that were refused before: a kept model asks for them again only once something
/// has happened that could help them, and until then their status may name an obstacle less.
fn without_rewording(model: &Model, mut plan: Plan) -> Plan {
    let is_reworded = |id: &UnitId, reason: Reason| {
        let status = model.unit(id).and_then(|unit| unit.status.reason);
        reason == Reason::Unschedulable && status == Some(reason)
    };
    let mut reworded = BTreeSet::new();
    plan.decisions.retain(|decision| match decision {
        Decision::UnitRefuse { unit, reason, promised: None, .. } => {
            let is_kept = !is_reworded(unit, *reason);
            if !is_kept {
                reworded.insert(unit.clone());
            }
            is_kept
        }
        _ => true,
    });
    plan.explanations.retain(|explanation| !reworded.contains(&explanation.unit));
    plan
}

fn text(plan: &Plan) -> String {
    serde_json::to_string(plan).unwrap()
}

/// What each way of asking says of a shape on every node: alone, all together, and as it is explained.
fn assert_judged_alike(model: &Model, shape_id: ShapeId) {
    let index = &model.index;
    let question = Question::new(index, shape_id, false);
    let shape = index.shapes.get(shape_id).unwrap();
    let fixed = index.shapes.fixed(shape).unwrap();
    let topologies = question.topologies(index);
    let on_node = |slot| question.on_node(index, shape, fixed, slot);
    if question.is_plain(shape, fixed) {
        question.on_all_nodes(index, shape, fixed, |slot, judged| {
            assert_eq!(judged, on_node(slot), "{slot}");
        });
    }
    let mut best = Vec::new();
    for slot in index.nodes.in_order() {
        let obstacles = question.obstacles(index, slot, Without::default());
        let domains: Vec<_> =
            topologies.iter().map(|id| index.neighbours.topologies.of(*id, slot)).collect();
        let in_cell = question.in_cell(index, shape, &topologies, &domains);
        let both = on_node(slot).and_then(|score| Ok(score + in_cell?));
        assert_eq!(both.is_ok(), obstacles.is_empty(), "{both:?} {obstacles:?}");
        if let Err(obstacle) = both {
            assert!(obstacles.contains(&obstacle), "{obstacle:?} {obstacles:?}");
            continue;
        }
        let scores = question.scores(index, slot);
        let total: i64 = scores.iter().map(|score| score.points * score.weight).sum();
        best.push((std::cmp::Reverse(total), index.nodes.rank[slot], slot));
    }
    best.sort_unstable();
    // The first time, every node is looked at; the second time, trees are built.
    let mut search = Search::new(index, shape_id, false);
    for _ in 0..2 {
        let (found, counts) = search.best(index, &[]);
        let found: Vec<_> = found.iter().map(|c| (c.score, c.node)).collect();
        let expected: Vec<_> =
            best.iter().take(found.len().max(1)).map(|(total, _, slot)| (total.0, *slot)).collect();
        assert_eq!(found, expected);
        let judged_alone = index.nodes.in_order().filter_map(|slot| on_node(slot).err());
        let mut alone = [0; Obstacle::ALL.len()];
        judged_alone.for_each(|obstacle| alone[obstacle.position()] += 1);
        assert_eq!(counts, alone);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_model_gives_a_sound_plan_and_twice_the_same(cluster in any_cluster(), seed in any::<u64>()) {
        let Cluster { model, moment, .. } = cluster;
        let mut worked = model.clone();
        let first = plan(&mut worked, &moment);
        assert_sound(&model, &moment, &first);
        prop_assert!(worked == model, "what was charged while planning is taken back");
        let dump = serde_json::to_vec(&model).unwrap();
        let mut copy: Model = serde_json::from_slice(&dump).unwrap();
        prop_assert_eq!(text(&first), text(&plan(&mut copy, &moment)));
        let other_order = plan(&mut shuffled(&model, seed), &moment);
        prop_assert_eq!(text(&first), text(&other_order));
        for explanation in &first.explanations {
            prop_assert!(!explanation.render(&name("u")).is_empty());
        }
    }

    #[test]
    fn any_unit_is_told_why(cluster in any_cluster(), seed in any::<u64>()) {
        let Cluster { mut model, moment, .. } = cluster;
        let mut other = shuffled(&model, seed);
        let units: Vec<_> = model.units().map(|unit| (unit.id.clone(), is_waiting(unit))).collect();
        let nodes: Vec<_> = model.nodes().map(|node| node.name.clone()).collect();
        let before = model.clone();
        for (id, is_waiting) in units {
            let answer = crate::why(&mut model, &moment, &id);
            prop_assert_eq!(answer.is_some(), is_waiting, "{}", id);
            prop_assert_eq!(&answer, &crate::why(&mut other, &moment, &id));
            // Each answer goes through the whole queue.
            for node in nodes.iter().take(2) {
                let verdict = crate::why_on(&mut model, &moment, &id, node);
                prop_assert!(verdict.is_some());
                prop_assert_eq!(verdict, crate::why_on(&mut other, &moment, &id, node));
            }
        }
        prop_assert!(model == before);
        // Nor has anything been moved that a plan would see.
        let mut anew = before;
        prop_assert_eq!(text(&plan(&mut model, &moment)), text(&plan(&mut anew, &moment)));
    }

    #[test]
    fn nodes_are_judged_alike_one_by_one_and_all_together(cluster in any_cluster()) {
        let Cluster { mut model, moment, .. } = cluster;
        model.listen(&moment.silent);
        let units = model.index.units().filter(|unit| is_waiting(unit));
        let shapes: BTreeSet<_> =
            units.map(|u| model.index.entry(model.index.slot(&u.id).unwrap()).unwrap().shape).collect();
        for shape in shapes {
            assert_judged_alike(&model, shape);
        }
    }

    #[test]
    fn any_model_can_be_committed_again_and_again(cluster in any_cluster()) {
        let Cluster { mut model, mut moment, .. } = cluster;
        moment.now_ms = 300_000;
        for _ in 0..5 {
            let before = model.clone();
            let plan = plan(&mut model, &moment);
            assert_sound(&before, &moment, &plan);
            commit(&mut model, &plan, moment.now_ms).unwrap();
        }
    }

    #[test]
    fn a_model_that_is_kept_decides_what_one_made_anew_decides(
        mut cluster in any_cluster(),
        events in proptest::collection::vec(any_event(), 1..8),
        seed in any::<u64>(),
    ) {
        cluster.moment.now_ms = 300_000;
        for event in events {
            event.happen(&mut cluster);
            let mut anew = shuffled(&cluster.model, seed);
            let before = cluster.model.clone();
            let kept = without_rewording(&before, cluster.pass());
            let anew = without_rewording(&before, plan(&mut anew, &cluster.moment));
            prop_assert_eq!(text(&kept), text(&anew));
        }
    }

    #[test]
    fn what_is_wanted_comes_to_run_and_what_is_deleted_goes(
        mut cluster in plain_cluster(),
        acts in proptest::collection::vec(any_act(), 0..6),
    ) {
        cluster.settle();
        for act in &acts {
            act.happen(&mut cluster);
            cluster.settle();
        }
        Act::Return.happen(&mut cluster);
        cluster.settle();
        for service in cluster.model.services() {
            let mine: Vec<_> = cluster.model.units().filter(|unit| {
                unit.owner.as_ref().is_some_and(|owner| *owner.name() == service.spec.name)
            }).collect();
            let live = mine.iter().filter(|unit| unit.desired == Desired::Run).count();
            prop_assert!(live >= usize::try_from(service.spec.replicas).unwrap());
            prop_assert_eq!(live, mine.len(), "nothing superfluous is left");
        }
        for job in cluster.model.jobs() {
            let waits = cluster.count(|unit| unit.status.state == UnitState::Pending);
            prop_assert!(job.state.is_final() || waits > 0);
        }
        for text in ["s0", "s1", "s2"] {
            if cluster.model.service(&namespace("default"), &name(text)).is_some() {
                cluster.change_service(text, |service| service.is_deleting = true);
            }
        }
        for text in ["j0", "j1", "j2"] {
            if cluster.model.job(&namespace("default"), &name(text)).is_some() {
                cluster.change_job(text, |job| job.is_deleting = true);
            }
        }
        cluster.settle();
        prop_assert_eq!(cluster.model.unit_count(), 0);
        prop_assert_eq!(cluster.model.services().count(), 0);
        prop_assert_eq!(cluster.model.jobs().count(), 0);
    }
}
