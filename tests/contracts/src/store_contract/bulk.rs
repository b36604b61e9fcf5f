//! Plans and reports about many units at once: as if each decision had been carried out by itself.

use brig_api::lifecycle::{Reason, UnitState};
use brig_api::object::{Desired, JobState, NodeState, Object, Owner, Unit};
use brig_api::{Kind, UnitId};
use brig_core::Decision;
use brig_store::Store;
use serde_json::json;

use super::harness::{
    Fresh, NOW, facts, key, lone_unit, manifests, name, namespace, node_name, on_both, place, plan,
    report, unit_now,
};

on_both!(
    a_large_plan_is_carried_out_whole,
    a_name_is_freed_before_it_is_taken,
    a_unit_that_comes_and_goes_in_one_plan_leaves_no_row,
    a_plan_sees_what_it_did_itself,
    many_jobs_and_nodes_change_at_once,
    many_reports_are_taken_over_in_order,
    units_of_one_template_share_it,
);

/// More than fit in one statement, and not a multiple of that.
const MANY: usize = 600;

async fn shop(store: &Store, replicas: usize) {
    let yaml = format!(
        "{{kind: service, name: shop, replicas: {replicas}, unit: {{wasm: {{artifact: a}}}}}}"
    );
    store.apply(&manifests(&yaml), NOW).await.unwrap();
}

/// A unit of the service, as a plan creates it.
fn unit_of_shop(id: &UnitId, unit: &str, like: &Unit) -> Unit {
    let owner = Owner::Service { name: name("shop"), generation: 1 };
    Unit { id: id.clone(), name: name(unit), owner: Some(owner), ..like.clone() }
}

async fn a_large_plan_is_carried_out_whole(Fresh { store, .. }: Fresh) {
    shop(&store, MANY).await;
    for node in ["node-1", "node-2"] {
        store.node_register(&node_name(node), facts(), NOW).await.unwrap();
    }
    let like = store.unit_create(lone_unit("shop-500"), NOW).await.unwrap();
    let mut model = store.model_load().await.unwrap();
    let mut mine = plan(&store, Vec::new()).await;
    let sequence = mine.after.next();
    let ids: Vec<_> = (0..MANY).map(|index| UnitId::of_plan(sequence, index)).collect();
    for (index, id) in ids.iter().enumerate() {
        let unit = unit_of_shop(id, &format!("shop-{index}"), &like);
        mine.decisions.push(Decision::UnitCreate(std::sync::Arc::new(unit)));
    }
    for (index, id) in ids.iter().enumerate() {
        let node = node_name(if index % 2 == 0 { "node-1" } else { "node-2" });
        mine.decisions.push(place(id, &node));
    }
    let committed = store.plan_commit(&mine, NOW).await.unwrap();
    assert_eq!(committed.skipped, [ids[500].clone()], "its name is taken");

    let changes = store.changes_since(model.revision, 10_000).await.unwrap();
    assert_eq!(changes.len(), MANY - 1, "one change of each");
    for (position, change) in changes.iter().enumerate() {
        assert_eq!((change.revision, change.position as usize), (committed.revision, position));
        let Some(Object::Unit(unit)) = &change.object else { panic!("{change:?}") };
        assert_eq!(unit.status.state, UnitState::Assigned);
        assert_eq!((unit.placed_by, unit.placed_ms), (Some(sequence), Some(NOW)));
        let index = if position < 500 { position } else { position + 1 };
        assert_eq!(unit.id, ids[index], "in the order of the decisions");
    }
    for change in &changes {
        model.apply(change);
    }
    let loaded = store.model_load().await.unwrap();
    model.plan = loaded.plan;
    assert_eq!(model, loaded);
    let query = "select reason, count(*), min(position), max(position) from events \
                 where revision = (select max(revision) from events) group by reason order by reason";
    let count = MANY - 1;
    let created = vec![json!("Created"), json!(count), json!(0), json!(count - 1)];
    let placed = vec![json!("Placed"), json!(count), json!(count), json!(2 * count - 1)];
    assert_eq!(store.sql(query, 10).await.unwrap().rows, [created, placed]);

    // All stop at once, then end, then go.
    let stop = |id: &UnitId| Decision::UnitStop {
        unit: id.clone(),
        desired: Desired::Remove,
        reason: Reason::Superseded,
        message: None,
    };
    let stops = plan(&store, ids.iter().map(stop).collect()).await;
    assert_eq!(store.plan_commit(&stops, NOW).await.unwrap().skipped, [ids[500].clone()]);
    let lose = |id: &UnitId| Decision::UnitLose { unit: id.clone(), message: "gone".to_owned() };
    let remove = |id: &UnitId| Decision::UnitRemove { unit: id.clone() };
    let decisions = ids.iter().map(lose).chain(ids.iter().map(remove)).collect();
    let ends = plan(&store, decisions).await;
    let before = store.revision().await.unwrap();
    store.plan_commit(&ends, NOW).await.unwrap();
    let (_, left) = store.object_list(Kind::Unit, None).await.unwrap();
    assert_eq!(left.len(), 1, "the one that was there before");
    let changes = store.changes_since(before, 10_000).await.unwrap();
    assert_eq!(changes.len(), 2 * (MANY - 1), "lost, then gone");
    assert!(changes[..MANY - 1].iter().all(|change| matches!(
        &change.object,
        Some(Object::Unit(unit)) if unit.status.state == UnitState::Lost
    )));
    assert!(changes[MANY - 1..].iter().all(|change| change.object.is_none()));
}

async fn a_name_is_freed_before_it_is_taken(Fresh { store, .. }: Fresh) {
    shop(&store, 1).await;
    let old = store.unit_create(lone_unit("web"), NOW).await.unwrap();
    let mut mine = plan(&store, Vec::new()).await;
    let new = UnitId::of_plan(mine.after.next(), 0);
    mine.decisions = vec![
        Decision::UnitEnd { unit: old.id.clone(), reason: Reason::Requested },
        Decision::UnitRemove { unit: old.id.clone() },
        Decision::UnitCreate(std::sync::Arc::new(unit_of_shop(&new, "web", &old))),
    ];
    let before = store.revision().await.unwrap();
    let committed = store.plan_commit(&mine, NOW).await.unwrap();
    assert_eq!(committed.skipped, []);
    let changes = store.changes_since(before, 10).await.unwrap();
    let seen: Vec<_> = changes
        .iter()
        .map(|change| match &change.object {
            Some(Object::Unit(unit)) => Some((unit.id.clone(), unit.status.state)),
            _ => None,
        })
        .collect();
    let expected =
        [Some((old.id, UnitState::Stopped)), None, Some((new.clone(), UnitState::Pending))];
    assert_eq!(seen, expected);
    assert!(changes.iter().all(|change| change.key == key(Kind::Unit, "web")));
    assert_eq!(unit_now(&store, &new).await.name, name("web"));
}

async fn a_unit_that_comes_and_goes_in_one_plan_leaves_no_row(Fresh { store, .. }: Fresh) {
    shop(&store, 1).await;
    let like = store.unit_create(lone_unit("alone"), NOW).await.unwrap();
    let mut mine = plan(&store, Vec::new()).await;
    let id = UnitId::of_plan(mine.after.next(), 0);
    mine.decisions = vec![
        Decision::UnitCreate(std::sync::Arc::new(unit_of_shop(&id, "short", &like))),
        Decision::UnitEnd { unit: id.clone(), reason: Reason::Superseded },
        Decision::UnitRemove { unit: id.clone() },
        Decision::UnitEnd { unit: id.clone(), reason: Reason::Superseded },
    ];
    let before = store.revision().await.unwrap();
    let committed = store.plan_commit(&mine, NOW).await.unwrap();
    assert_eq!(committed.skipped, std::slice::from_ref(&id), "it was gone for the last");
    assert_eq!(store.unit_by_id(&id).await.unwrap(), None);
    let changes = store.changes_since(before, 10).await.unwrap();
    let states: Vec<_> = changes
        .iter()
        .map(|change| match &change.object {
            Some(Object::Unit(unit)) => Some(unit.status.state),
            _ => None,
        })
        .collect();
    assert_eq!(states, [Some(UnitState::Stopped), None]);
}

/// Later decisions are about what earlier ones left.
async fn a_plan_sees_what_it_did_itself(Fresh { store, .. }: Fresh) {
    shop(&store, 1).await;
    let node = node_name("node-1");
    store.node_register(&node, facts(), NOW).await.unwrap();
    let like = store.unit_create(lone_unit("alone"), NOW).await.unwrap();
    let last = store.unit_create(lone_unit("last"), NOW).await.unwrap();
    store.object_delete(&key(Kind::Service, "shop"), NOW).await.unwrap();
    let mut mine = plan(&store, Vec::new()).await;
    let late = UnitId::of_plan(mine.after.next(), 0);
    mine.decisions = vec![
        Decision::NodeState { node: node.clone(), state: NodeState::Unreachable },
        place(&like.id, &node),
        Decision::NodeState { node: node.clone(), state: NodeState::Ready },
        place(&last.id, &node),
        place(&last.id, &node),
        Decision::ServiceRemove { namespace: namespace("default"), name: name("shop") },
        Decision::UnitCreate(std::sync::Arc::new(unit_of_shop(&late, "late", &like))),
    ];
    let committed = store.plan_commit(&mine, NOW).await.unwrap();
    let mut expected = vec![like.id.clone(), last.id.clone(), late];
    expected.sort();
    assert_eq!(committed.skipped, expected, "unreachable; placed already; the service is gone");
    assert_eq!(unit_now(&store, &last.id).await.status.state, UnitState::Assigned);
    let model = store.model_load().await.unwrap();
    assert_eq!(model.node(&node).unwrap().state, NodeState::Ready);
    assert!(model.service(&namespace("default"), &name("shop")).is_none());

    // A job goes in the plan that removes its last unit, and not before.
    let yaml = "{kind: job, name: report, unit: {wasm: {artifact: a}}}";
    store.apply(&manifests(yaml), NOW).await.unwrap();
    let owner = Owner::Job { name: name("report"), index: 0, attempt: 0 };
    let mut create = plan(&store, Vec::new()).await;
    let id = UnitId::of_plan(create.after.next(), 0);
    let unit = Unit { owner: Some(owner), ..unit_of_shop(&id, "report-0", &like) };
    create.decisions = vec![Decision::UnitCreate(std::sync::Arc::new(unit))];
    store.plan_commit(&create, NOW).await.unwrap();
    store.object_delete(&key(Kind::Job, "report"), NOW).await.unwrap();
    let leave = Decision::JobRemove { namespace: namespace("default"), name: name("report") };
    let end = Decision::UnitEnd { unit: id.clone(), reason: Reason::Superseded };
    let early = plan(&store, vec![end, leave.clone()]).await;
    store.plan_commit(&early, NOW).await.unwrap();
    let model = store.model_load().await.unwrap();
    assert!(model.job(&namespace("default"), &name("report")).is_some(), "its unit is there");
    let both = plan(&store, vec![Decision::UnitRemove { unit: id }, leave]).await;
    store.plan_commit(&both, NOW).await.unwrap();
    let model = store.model_load().await.unwrap();
    assert!(model.job(&namespace("default"), &name("report")).is_none());
}

async fn many_jobs_and_nodes_change_at_once(Fresh { store, .. }: Fresh) {
    const SOME: usize = 5;
    let yaml: Vec<_> = (0..SOME)
        .map(|index| {
            format!(
                "{{kind: job, name: j{index}, completions: 9, unit: {{wasm: {{artifact: a}}}}}}"
            )
        })
        .collect();
    store.apply(&manifests(&yaml.join("\n---\n")), NOW).await.unwrap();
    let mut decisions = Vec::new();
    for index in 0..SOME {
        let node = node_name(&format!("node-{index}"));
        store.node_register(&node, facts(), NOW).await.unwrap();
        decisions.push(Decision::NodeState { node, state: NodeState::Unreachable });
        let succeeded = u32::try_from(index).unwrap();
        let progress = |succeeded| Decision::JobProgress {
            namespace: namespace("default"),
            name: name(&format!("j{index}")),
            state: if succeeded == 4 { JobState::Succeeded } else { JobState::Active },
            succeeded,
            failed: 1,
        };
        decisions.extend([progress(succeeded), progress(succeeded)]);
    }
    let mut model = store.model_load().await.unwrap();
    let revision = model.revision;
    store.plan_commit(&plan(&store, decisions).await, NOW + 9).await.unwrap();
    let changes = store.changes_since(revision, 100).await.unwrap();
    assert_eq!(changes.len(), 2 * SOME);
    for change in &changes {
        model.apply(change);
    }
    let loaded = store.model_load().await.unwrap();
    model.plan = loaded.plan;
    assert_eq!(model, loaded);
    assert!(loaded.nodes().all(|node| node.state == NodeState::Unreachable));
    let counts: Vec<_> = loaded.jobs().map(|job| (job.state, job.succeeded, job.failed)).collect();
    assert_eq!(counts[3..], [(JobState::Active, 3, 1), (JobState::Succeeded, 4, 1)]);
}

async fn many_reports_are_taken_over_in_order(Fresh { store, .. }: Fresh) {
    shop(&store, MANY).await;
    let node = node_name("node-1");
    store.node_register(&node, facts(), NOW).await.unwrap();
    let like = store.unit_create(lone_unit("alone"), NOW).await.unwrap();
    let mut mine = plan(&store, Vec::new()).await;
    let ids: Vec<_> = (0..MANY).map(|index| UnitId::of_plan(mine.after.next(), index)).collect();
    for (index, id) in ids.iter().enumerate() {
        let unit = unit_of_shop(id, &format!("shop-{index}"), &like);
        mine.decisions.extend([Decision::UnitCreate(std::sync::Arc::new(unit)), place(id, &node)]);
    }
    store.plan_commit(&mine, NOW).await.unwrap();
    let before = store.revision().await.unwrap();
    // The first speaks three times, once of the past; the last not at all.
    let mut reports = vec![
        report(&ids[0], 1, UnitState::Preparing),
        report(&ids[0], 2, UnitState::Running),
        report(&ids[0], 1, UnitState::Failed),
    ];
    reports.extend(ids[1..MANY - 1].iter().map(|id| report(id, 1, UnitState::Running)));
    let acknowledged = store.statuses_report(&node, &reports, NOW).await.unwrap();
    assert_eq!(acknowledged.len(), reports.len());
    let changes = store.changes_since(before, 10_000).await.unwrap();
    assert_eq!(changes.len(), MANY - 1);
    assert_eq!(changes[0].key.name, "shop-0");
    let first = unit_now(&store, &ids[0]).await;
    assert_eq!((first.status.state, first.status.sequence), (UnitState::Running, 2));
    assert_eq!(first.meta.revision, changes[0].revision);
    assert_eq!(unit_now(&store, &ids[MANY - 1]).await.status.state, UnitState::Assigned);
    let query = "select reason from events where name = 'shop-0' order by revision, position";
    let reasons: Vec<_> = store.sql(query, 10).await.unwrap().rows.into_iter().flatten().collect();
    assert_eq!(reasons, ["Created", "Placed", "Preparing", "Started"].map(|reason| json!(reason)));
}

async fn units_of_one_template_share_it(Fresh { store, .. }: Fresh) {
    for unit in ["a", "b"] {
        store.unit_create(lone_unit(unit), NOW).await.unwrap();
    }
    let model = store.model_load().await.unwrap();
    let templates: Vec<_> = model.units().map(|unit| &unit.template).collect();
    assert!(std::sync::Arc::ptr_eq(templates[0], templates[1]), "read once");
}
