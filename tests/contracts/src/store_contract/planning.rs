//! Nodes, reports and plans: what the control plane decides and what nodes answer.

use brig_api::explain::{Explanation, Verdict};
use brig_api::lifecycle::{Reason, UnitState};
use brig_api::object::{Desired, JobState, NodeState, Owner, Unit, UnitStatus};
use brig_api::{Kind, Object, PlanSequence, Revision, UnitId};
use brig_core::Decision;
use brig_store::{Store, StoreError};

use super::harness::{
    Fresh, NOW, facts, key, lone_unit, manifests, name, namespace, node_name, on_both, place,
    placed_unit, plan, plan_after, report, unit_now,
};

on_both!(
    a_node_registers_once,
    a_node_in_use_stays,
    a_report_is_taken_over_exactly_once,
    a_final_state_stays,
    reports_about_others_units_change_nothing,
    hostile_reports_are_bounded,
    a_plan_places_units,
    of_two_plans_one_loses,
    decisions_without_their_premise_are_left_out,
    an_owner_gets_units_and_goes_after_them,
    a_lost_unit_ends,
    explanations_are_kept_per_unit,
    an_empty_plan_takes_no_number,
    the_model_is_what_was_written,
);

async fn events(store: &Store, unit: &str) -> Vec<String> {
    let filter = brig_store::EventFilter {
        kind: Some(Kind::Unit),
        name: Some(unit.to_owned()),
        ..Default::default()
    };
    store.event_list(&filter).await.unwrap().into_iter().map(|event| event.reason).collect()
}

async fn a_node_registers_once(Fresh { store, .. }: Fresh) {
    let name = node_name("node-1");
    let node = store.node_register(&name, facts(), NOW).await.unwrap();
    assert_eq!((node.state, node.facts.attributes["zone"].as_str()), (NodeState::Ready, "a"));
    let again = store.node_register(&name, facts(), NOW + 1).await.unwrap();
    assert_eq!(again, node, "nothing new");
    let Object::Node(stored) = store.object_get(&key(Kind::Node, "node-1")).await.unwrap() else {
        panic!("a node")
    };
    assert_eq!(stored, node);

    let away = Decision::NodeState { node: name.clone(), state: NodeState::Unreachable };
    store.plan_commit(&plan(&store, vec![away]).await, NOW + 2).await.unwrap();
    let mut other = facts();
    other.attributes.remove("zone");
    let back = store.node_register(&name, other, NOW + 3).await.unwrap();
    assert_eq!((back.state, back.state_since_ms), (NodeState::Ready, NOW + 3));
    assert_eq!(back.facts.attributes.len(), 1);
    assert_eq!(store.model_load().await.unwrap().node(&name), Some(&back));
}

async fn a_node_in_use_stays(Fresh { store, .. }: Fresh) {
    let unit = placed_unit(&store, "web", "node-1").await;
    let node = key(Kind::Node, "node-1");
    let refused = async |why: &str| {
        let error = store.object_delete(&node, NOW).await.unwrap_err();
        assert!(
            matches!(&error, StoreError::InUse { message, .. } if message.contains(why)),
            "{error}"
        );
    };
    refused("ready").await;
    let away = Decision::NodeState { node: node_name("node-1"), state: NodeState::Unreachable };
    store.plan_commit(&plan(&store, vec![away]).await, NOW).await.unwrap();
    refused("`web`").await;
    let lose = Decision::UnitLose { unit: unit.id, message: "gone".to_owned() };
    store.plan_commit(&plan(&store, vec![lose]).await, NOW).await.unwrap();
    store.object_delete(&node, NOW).await.unwrap();
    assert!(store.object_get(&node).await.is_err());
}

async fn a_report_is_taken_over_exactly_once(Fresh { store, .. }: Fresh) {
    let unit = placed_unit(&store, "web", "node-1").await;
    let node = node_name("node-1");
    let running = report(&unit.id, 1, UnitState::Running);
    let acknowledged =
        store.statuses_report(&node, std::slice::from_ref(&running), NOW).await.unwrap();
    assert_eq!(acknowledged, [(unit.id.clone(), 1)]);
    let revision = store.revision().await.unwrap();
    assert_eq!(unit_now(&store, &unit.id).await.status, running.status);

    let acknowledged =
        store.statuses_report(&node, std::slice::from_ref(&running), NOW).await.unwrap();
    assert_eq!(acknowledged, [(unit.id.clone(), 1)], "acknowledged again");
    assert_eq!(store.revision().await.unwrap(), revision, "but taken over once");

    // The newer one first, the older one late.
    let mut killed = report(&unit.id, 3, UnitState::Backoff);
    killed.status.reason = Some(Reason::OutOfMemory);
    killed.status.exit_code = Some(137);
    let late = report(&unit.id, 2, UnitState::Running);
    let acknowledged = store.statuses_report(&node, &[killed.clone(), late], NOW).await.unwrap();
    assert_eq!(acknowledged, [(unit.id.clone(), 3), (unit.id.clone(), 2)]);
    assert_eq!(unit_now(&store, &unit.id).await.status, killed.status);
    assert_eq!(events(&store, "web").await, ["Created", "Placed", "Started", "OutOfMemory"]);
}

async fn a_final_state_stays(Fresh { store, .. }: Fresh) {
    let unit = placed_unit(&store, "web", "node-1").await;
    let node = node_name("node-1");
    let reports = [
        report(&unit.id, 1, UnitState::Succeeded),
        report(&unit.id, 2, UnitState::Running),
        report(&unit.id, 3, UnitState::Failed),
    ];
    let acknowledged = store.statuses_report(&node, &reports, NOW).await.unwrap();
    assert_eq!(acknowledged.len(), 3);
    assert_eq!(unit_now(&store, &unit.id).await.status.state, UnitState::Succeeded);
    assert_eq!(store.node_assignments(&node).await.unwrap(), []);
}

async fn reports_about_others_units_change_nothing(Fresh { store, .. }: Fresh) {
    let unit = placed_unit(&store, "web", "node-1").await;
    let unknown = UnitId::new("u-unknown").unwrap();
    let reports = [report(&unit.id, 1, UnitState::Failed), report(&unknown, 9, UnitState::Failed)];
    let before = store.revision().await.unwrap();
    let acknowledged = store.statuses_report(&node_name("node-2"), &reports, NOW).await.unwrap();
    assert_eq!(acknowledged, [(unit.id.clone(), 1), (unknown, 9)]);
    assert_eq!(store.revision().await.unwrap(), before);
    let waiting = store.unit_create(lone_unit("waiting"), NOW).await.unwrap();
    let reports = [report(&waiting.id, 1, UnitState::Running)];
    store.statuses_report(&node_name("node-1"), &reports, NOW).await.unwrap();
    assert_eq!(unit_now(&store, &waiting.id).await.status.state, UnitState::Pending);
}

async fn hostile_reports_are_bounded(Fresh { store, .. }: Fresh) {
    let unit = placed_unit(&store, "web", "node-1").await;
    let mut hostile = report(&unit.id, 1, UnitState::Failed);
    hostile.status.message = Some("\0'; DROP TABLE units; --".repeat(10_000));
    store.statuses_report(&node_name("node-1"), &[hostile], NOW).await.unwrap();
    let message = unit_now(&store, &unit.id).await.status.message.unwrap();
    assert!(message.len() < 10_000 && !message.contains('\0'));
    let mut endless = report(&unit.id, u64::MAX, UnitState::Failed);
    endless.status.restarts = u32::MAX;
    store.statuses_report(&node_name("node-1"), &[endless], NOW).await.unwrap();
}

async fn a_plan_places_units(Fresh { store, .. }: Fresh) {
    let unit = placed_unit(&store, "web", "node-1").await;
    assert_eq!(unit.status.state, UnitState::Assigned);
    assert_eq!(unit.node, Some(node_name("node-1")));
    assert_eq!(unit.placed_by, Some(PlanSequence(1)));
    assert_eq!(store.node_assignments(&node_name("node-1")).await.unwrap(), [unit]);
    let answer = store
        .sql("select node, sum(cpu_milli) from units where state in ('running', 'assigned') group by node", 10)
        .await
        .unwrap();
    assert_eq!(answer.rows, [[serde_json::json!("node-1"), serde_json::json!(100)]]);
}

async fn of_two_plans_one_loses(fresh: Fresh) {
    let (store, rival) = (fresh.store.clone(), fresh.another().await);
    let node = node_name("node-1");
    store.node_register(&node, facts(), NOW).await.unwrap();
    let mut won = 0;
    for round in 0..5 {
        let unit = store.unit_create(lone_unit(&format!("u{round}")), NOW).await.unwrap();
        let place = place(&unit.id, &node);
        let mine = plan(&store, vec![place]).await;
        let (one, other) =
            tokio::join!(store.plan_commit(&mine, NOW), rival.plan_commit(&mine, NOW));
        let outcomes = [one, other];
        won += outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        let lost = outcomes.iter().any(|outcome| {
            matches!(outcome, Err(StoreError::PlanLost { newest }) if *newest == mine.after.next())
        });
        assert!(lost, "{outcomes:?}");
    }
    assert_eq!(won, 5, "each round one of them");
    let answer = store.sql("select count(*), max(sequence) from plans", 10).await.unwrap();
    assert_eq!(answer.rows, [[5, 5]]);
    rival.close().await;
}

async fn decisions_without_their_premise_are_left_out(Fresh { store, .. }: Fresh) {
    let placed = placed_unit(&store, "placed", "node-1").await;
    let stopped = store.unit_create(lone_unit("stopped"), NOW).await.unwrap();
    store.unit_stop(&namespace("default"), &name("stopped"), NOW).await.unwrap();
    let waiting = store.unit_create(lone_unit("waiting"), NOW).await.unwrap();
    let node = node_name("node-1");
    let nowhere = node_name("nowhere");
    let gone = UnitId::new("u-gone").unwrap();
    let decisions = vec![
        place(&placed.id, &node),
        place(&stopped.id, &node),
        place(&waiting.id, &nowhere),
        place(&gone, &node),
        Decision::UnitRemove { unit: placed.id.clone() },
        Decision::UnitEnd { unit: stopped.id.clone(), reason: Reason::Requested },
    ];
    let committed = store.plan_commit(&plan(&store, decisions).await, NOW).await.unwrap();
    let mut expected = vec![placed.id.clone(), stopped.id.clone(), waiting.id, gone];
    expected.sort();
    assert_eq!(committed.skipped, expected);
    assert_eq!(unit_now(&store, &placed.id).await, placed);
    let ended = unit_now(&store, &stopped.id).await;
    assert_eq!((ended.status.state, ended.status.finished_ms), (UnitState::Stopped, Some(NOW)));
}

fn owned(id: &UnitId, name_: &str, owner: Owner, template: &Unit) -> std::sync::Arc<Unit> {
    std::sync::Arc::new(Unit {
        id: id.clone(),
        name: name(name_),
        owner: Some(owner),
        ..template.clone()
    })
}

async fn an_owner_gets_units_and_goes_after_them(Fresh { store, .. }: Fresh) {
    let yaml = "{kind: job, name: report, completions: 2, unit: {wasm: {artifact: a}}}";
    store.apply(&manifests(yaml), NOW).await.unwrap();
    store.node_register(&node_name("node-1"), facts(), NOW).await.unwrap();
    let template = store.unit_create(lone_unit("alone"), NOW).await.unwrap();
    let mut mine = plan(&store, Vec::new()).await;
    let sequence = mine.after.next();
    let (first, taken) = (UnitId::of_plan(sequence, 0), UnitId::of_plan(sequence, 1));
    let owner = |index| Owner::Job { name: name("report"), index, attempt: 0 };
    mine.decisions = vec![
        Decision::UnitCreate(owned(&first, "report-0", owner(0), &template)),
        place(&first, &node_name("node-1")),
        Decision::UnitCreate(owned(&taken, "alone", owner(1), &template)),
        place(&taken, &node_name("node-1")),
        Decision::JobProgress {
            namespace: namespace("default"),
            name: name("report"),
            state: JobState::Active,
            succeeded: 1,
            failed: 2,
        },
    ];
    let before = store.revision().await.unwrap();
    let committed = store.plan_commit(&mine, NOW).await.unwrap();
    assert_eq!(committed.skipped, [taken], "its name is taken");
    let unit = unit_now(&store, &first).await;
    assert_eq!((unit.status.state, unit.owner), (UnitState::Assigned, Some(owner(0))));
    let changes = store.changes_since(before, 100).await.unwrap();
    assert_eq!(changes.len(), 2, "created and placed is one change: {changes:?}");

    store.object_delete(&key(Kind::Job, "report"), NOW).await.unwrap();
    let remove = Decision::JobRemove { namespace: namespace("default"), name: name("report") };
    store.plan_commit(&plan(&store, vec![remove.clone()]).await, NOW).await.unwrap();
    assert!(store.object_get(&key(Kind::Job, "report")).await.is_ok(), "it has a unit still");
    let done = report(&first, 1, UnitState::Succeeded);
    store.statuses_report(&node_name("node-1"), &[done], NOW).await.unwrap();
    let both = vec![Decision::UnitRemove { unit: first.clone() }, remove];
    store.plan_commit(&plan(&store, both).await, NOW).await.unwrap();
    assert!(store.object_get(&key(Kind::Job, "report")).await.is_err());
    assert_eq!(store.unit_by_id(&first).await.unwrap(), None);
}

async fn a_lost_unit_ends(Fresh { store, .. }: Fresh) {
    let unit = placed_unit(&store, "web", "node-1").await;
    let stop = Decision::UnitStop {
        unit: unit.id.clone(),
        desired: Desired::Remove,
        reason: Reason::Superseded,
        message: None,
    };
    let weaker = Decision::UnitStop {
        unit: unit.id.clone(),
        desired: Desired::Stop,
        reason: Reason::Requested,
        message: None,
    };
    store.plan_commit(&plan(&store, vec![stop, weaker]).await, NOW).await.unwrap();
    assert_eq!(unit_now(&store, &unit.id).await.desired, Desired::Remove);
    let lose = Decision::UnitLose { unit: unit.id.clone(), message: "silent".to_owned() };
    store.plan_commit(&plan(&store, vec![lose]).await, NOW).await.unwrap();
    let late = report(&unit.id, 7, UnitState::Succeeded);
    store.statuses_report(&node_name("node-1"), &[late], NOW).await.unwrap();
    let lost = unit_now(&store, &unit.id).await.status;
    assert_eq!((lost.state, lost.reason), (UnitState::Lost, Some(Reason::NodeLost)));
}

async fn explanations_are_kept_per_unit(Fresh { store, .. }: Fresh) {
    let unit = store.unit_create(lone_unit("web"), NOW).await.unwrap();
    let explain = |plan, message: &str| Explanation {
        unit: unit.id.clone(),
        plan,
        decided_ms: NOW,
        nodes: 3,
        policy: "bin-packing/3".into(),
        verdict: Verdict::Refused { message: message.to_owned() },
        refusals: Vec::new(),
    };
    for message in ["too big", "still too big"] {
        let refuse = Decision::UnitRefuse {
            unit: unit.id.clone(),
            reason: Reason::Unschedulable,
            message: message.to_owned(),
            promised: None,
        };
        let mut mine = plan(&store, vec![refuse]).await;
        let gone = UnitId::new("u-gone").unwrap();
        let sequence = mine.after.next();
        mine.explanations = vec![
            explain(sequence, message),
            Explanation { unit: gone, ..explain(sequence, "nobody asks") },
        ];
        store.plan_commit(&mine, NOW).await.unwrap();
        let expected = Some(explain(sequence, message));
        assert_eq!(store.explanation_get(&unit.id).await.unwrap(), expected);
    }
    let status = unit_now(&store, &unit.id).await.status;
    assert_eq!(status.message.as_deref(), Some("still too big"));
    let mut silent = plan(&store, Vec::new()).await;
    silent.explanations = vec![explain(silent.after.next(), "the same")];
    let before = store.revision().await.unwrap();
    let committed = store.plan_commit(&silent, NOW).await.unwrap();
    assert_eq!((committed.revision, committed.sequence), (before, silent.after.next()));
}

async fn an_empty_plan_takes_no_number(Fresh { store, .. }: Fresh) {
    let empty = plan_after(PlanSequence(0), Revision(1), Vec::new());
    let committed = store.plan_commit(&empty, NOW).await.unwrap();
    assert_eq!((committed.sequence, committed.revision), (PlanSequence(0), Revision(1)));
    let ahead = plan_after(PlanSequence(9), Revision(1), Vec::new());
    let error = store.plan_commit(&ahead, NOW).await.unwrap_err();
    assert!(matches!(error, StoreError::PlanLost { newest: PlanSequence(0) }), "{error}");
}

/// The model that is kept up from the feed is the model that is loaded.
async fn the_model_is_what_was_written(Fresh { store, .. }: Fresh) {
    let mut model = store.model_load().await.unwrap();
    let unit = placed_unit(&store, "web", "node-1").await;
    let shop = "{kind: service, name: shop, labels: {tier: front}, unit: {oci: {image: i, ports: [80]}, priority: -5, constraints: [{attribute: zone, operator: in, values: [a, b]}]}}";
    store.apply(&manifests(shop), NOW).await.unwrap();
    let mut status = report(&unit.id, 1, UnitState::Running);
    status.status = UnitStatus {
        restarts: 2,
        exit_code: Some(-1),
        started_ms: Some(NOW),
        message: Some("fine".to_owned()),
        endpoints: vec![brig_api::object::Endpoint {
            task: name("main"),
            address: "127.0.0.1:80".to_owned(),
            scheme: "http".to_owned(),
        }],
        ..status.status
    };
    store.statuses_report(&node_name("node-1"), &[status], NOW).await.unwrap();
    let other = store.unit_create(lone_unit("other"), NOW).await.unwrap();
    let end = Decision::UnitEnd { unit: other.id.clone(), reason: Reason::Requested };
    store.plan_commit(&plan(&store, vec![end]).await, NOW).await.unwrap();
    let remove = Decision::UnitRemove { unit: other.id };
    store.plan_commit(&plan(&store, vec![remove]).await, NOW).await.unwrap();

    for change in store.changes_since(model.revision, 1_000).await.unwrap() {
        model.apply(&change);
    }
    let loaded = store.model_load().await.unwrap();
    model.plan = loaded.plan;
    assert_eq!(model, loaded);
}
