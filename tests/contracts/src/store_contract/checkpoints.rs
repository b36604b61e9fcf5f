//! What programs saved: the newest of each task, and which unit goes on from it.

use std::sync::Arc;

use brig_api::checkpoint::{Checkpoint, CheckpointReport, State};
use brig_api::lifecycle::UnitState;
use brig_api::object::{Owner, Unit};
use brig_api::{Kind, ResourceName, UnitId};
use brig_core::Decision;
use brig_store::{Resumption, Store};

use super::harness::{
    Fresh, NOW, facts, key, lone_unit, manifests, name, node_name, on_both, place, placed_unit,
    plan, report, unit_now,
};

on_both!(
    the_newest_is_kept_whatever_comes_late,
    several_are_one_transaction,
    what_is_not_from_the_units_own_node_is_not_kept,
    the_next_attempt_goes_on_and_an_earlier_one_hides_nothing,
    attempts_go_on_from_their_own_index_alone,
    nothing_is_left_of_what_succeeded_or_went,
);

fn saved(number: u64, state: &[u8]) -> Checkpoint {
    Checkpoint { number, saved_ms: NOW + 1, state: State::new(state.to_vec()).unwrap() }
}

fn main() -> ResourceName {
    name("main")
}

async fn told(store: &Store, node: &str, unit: &UnitId, checkpoint: &Checkpoint) -> bool {
    told_of(store, node, unit, main(), checkpoint).await
}

async fn told_of(
    store: &Store,
    node: &str,
    unit: &UnitId,
    task: ResourceName,
    checkpoint: &Checkpoint,
) -> bool {
    let (unit, checkpoint) = (unit.clone(), checkpoint.clone());
    let reports = [CheckpointReport { unit, task, checkpoint }];
    store.checkpoints_report(&node_name(node), &reports, NOW).await.unwrap() == 1
}

async fn state_of(store: &Store, unit: &UnitId) -> Option<Vec<u8>> {
    let found = store.checkpoint_get(unit, &main()).await.unwrap();
    found.map(|checkpoint| checkpoint.state.into_bytes())
}

async fn rows(store: &Store) -> usize {
    store.sql("select * from unit_checkpoints", 100).await.unwrap().rows.len()
}

/// A unit of the job `report`, placed on a node.
async fn attempt(store: &Store, index: u32, attempt: u32, node: &str) -> Unit {
    store.node_register(&node_name(node), facts(), NOW).await.unwrap();
    store
        .apply(
            &manifests("{kind: job, name: report, completions: 9, unit: {wasm: {artifact: a}}}"),
            NOW,
        )
        .await
        .unwrap();
    let like = match store.unit_create(lone_unit("like"), NOW).await {
        Ok(unit) => unit,
        Err(_) => match store.object_get(&key(Kind::Unit, "like")).await.unwrap() {
            brig_api::Object::Unit(unit) => *unit,
            other => panic!("{other:?}"),
        },
    };
    let mut create = plan(store, Vec::new()).await;
    let id = UnitId::of_plan(create.after.next(), 0);
    let owner = Owner::Job { name: name("report"), index, attempt };
    let unit = Unit {
        id: id.clone(),
        name: name(&format!("report-{index}-{attempt}")),
        owner: Some(owner),
        ..like
    };
    create.decisions = vec![Decision::UnitCreate(Arc::new(unit)), place(&id, &node_name(node))];
    assert_eq!(store.plan_commit(&create, NOW).await.unwrap().skipped, []);
    unit_now(store, &id).await
}

async fn becomes(store: &Store, unit: &Unit, sequence: u64, state: UnitState) {
    let node = unit.node.clone().unwrap();
    store.statuses_report(&node, &[report(&unit.id, sequence, state)], NOW).await.unwrap();
}

async fn lose(store: &Store, unit: &Unit) {
    let lose = Decision::UnitLose { unit: unit.id.clone(), message: "gone".to_owned() };
    store.plan_commit(&plan(store, vec![lose]).await, NOW).await.unwrap();
}

async fn goes_on_from(store: &Store, unit: &Unit) -> Option<UnitId> {
    let found = store.resumptions(&[unit]).await.unwrap();
    found.into_iter().next().map(|Resumption { unit: of, task, saved_by }| {
        assert_eq!((of, task), (unit.id.clone(), main()));
        saved_by
    })
}

async fn the_newest_is_kept_whatever_comes_late(Fresh { store, .. }: Fresh) {
    let unit = placed_unit(&store, "crunch", "node-1").await;
    let revision = store.revision().await.unwrap();
    assert_eq!(state_of(&store, &unit.id).await, None);
    let large = vec![0xff; brig_api::checkpoint::STATE_BYTES_MAX];
    assert!(told(&store, "node-1", &unit.id, &saved(1, &large)).await);
    assert_eq!(state_of(&store, &unit.id).await, Some(large));
    assert!(told(&store, "node-1", &unit.id, &saved(3, b"")).await);
    for late in [saved(2, b"two"), saved(3, b"three")] {
        assert!(!told(&store, "node-1", &unit.id, &late).await);
    }
    assert_eq!(state_of(&store, &unit.id).await.as_deref(), Some(&b""[..]));
    assert!(told(&store, "node-1", &unit.id, &saved(4, b"four")).await);
    let views = store.checkpoint_views(&unit.id).await.unwrap();
    assert_eq!((views.len(), views[0].number, views[0].bytes), (1, 4, 4));
    assert_eq!((&views[0].task, views[0].saved_ms), (&main(), NOW + 1));
    assert_eq!(store.revision().await.unwrap(), revision, "it is no change that is watched");
    let answer = store.sql("select * from unit_checkpoints", 10).await.unwrap();
    assert!(!format!("{answer:?}").contains("four"), "{answer:?}");
}

async fn several_are_one_transaction(Fresh { store, .. }: Fresh) {
    let (one, two) =
        (placed_unit(&store, "one", "node-1").await, placed_unit(&store, "two", "node-1").await);
    let report = |unit: &Unit, number| CheckpointReport {
        unit: unit.id.clone(),
        task: main(),
        checkpoint: saved(number, b"x"),
    };
    let reports = [report(&one, 1), report(&two, 1), report(&one, 3), report(&one, 2)];
    assert_eq!(store.checkpoints_report(&node_name("node-1"), &reports, NOW).await.unwrap(), 3);
    assert_eq!(store.checkpoint_views(&one.id).await.unwrap()[0].number, 3);
    assert_eq!(store.checkpoint_views(&two.id).await.unwrap()[0].number, 1);
}

async fn what_is_not_from_the_units_own_node_is_not_kept(Fresh { store, .. }: Fresh) {
    let unit = placed_unit(&store, "crunch", "node-1").await;
    assert!(!told(&store, "node-2", &unit.id, &saved(1, b"x")).await);
    assert!(!told(&store, "node-1", &UnitId::new("u-unknown").unwrap(), &saved(1, b"x")).await);
    let other = told_of(&store, "node-1", &unit.id, name("other"), &saved(1, b"x")).await;
    assert!(!other, "it has no such task");
    lose(&store, &unit).await;
    assert!(!told(&store, "node-1", &unit.id, &saved(1, b"x")).await);
    assert_eq!(rows(&store).await, 0);
}

async fn the_next_attempt_goes_on_and_an_earlier_one_hides_nothing(Fresh { store, .. }: Fresh) {
    let first = attempt(&store, 0, 0, "node-1").await;
    assert!(told(&store, "node-1", &first.id, &saved(5, b"five")).await);
    assert_eq!(goes_on_from(&store, &first).await, None);
    lose(&store, &first).await;
    let second = attempt(&store, 0, 1, "node-2").await;
    assert_eq!(goes_on_from(&store, &second).await, Some(first.id.clone()));
    // It is stopped before it has saved anything.
    becomes(&store, &second, 1, UnitState::Stopped).await;
    let third = attempt(&store, 0, 2, "node-1").await;
    assert_eq!(goes_on_from(&store, &third).await, Some(first.id.clone()));
    assert!(told(&store, "node-1", &third.id, &saved(6, b"six")).await);
    assert_eq!(rows(&store).await, 1, "what it went on from is needed no more");
    // The second one's node tells only now what that saved at last.
    assert!(!told(&store, "node-2", &second.id, &saved(9, b"late")).await);
    becomes(&store, &third, 1, UnitState::Failed).await;
    assert!(told(&store, "node-1", &third.id, &saved(7, b"seven")).await, "the last word");
    let fourth = attempt(&store, 0, 3, "node-2").await;
    assert_eq!(goes_on_from(&store, &fourth).await, Some(third.id.clone()));
    assert_eq!(state_of(&store, &third.id).await.as_deref(), Some(&b"seven"[..]));
}

async fn attempts_go_on_from_their_own_index_alone(Fresh { store, .. }: Fresh) {
    let one = attempt(&store, 1, 0, "node-1").await;
    let lone = placed_unit(&store, "crunch", "node-1").await;
    for unit in [&one, &lone] {
        assert!(told(&store, "node-1", &unit.id, &saved(1, b"x")).await);
    }
    let two = attempt(&store, 2, 1, "node-1").await;
    let again = attempt(&store, 1, 1, "node-1").await;
    assert_eq!(goes_on_from(&store, &two).await, None);
    let found = store.resumptions(&[&two, &again, &lone]).await.unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((&found[0].unit, &found[0].saved_by), (&again.id, &one.id));
}

async fn nothing_is_left_of_what_succeeded_or_went(Fresh { store, .. }: Fresh) {
    let first = attempt(&store, 0, 0, "node-1").await;
    assert!(told(&store, "node-1", &first.id, &saved(1, b"x")).await);
    becomes(&store, &first, 1, UnitState::Failed).await;
    let second = attempt(&store, 0, 1, "node-1").await;
    becomes(&store, &second, 1, UnitState::Succeeded).await;
    assert_eq!(rows(&store).await, 0);
    assert!(!told(&store, "node-1", &second.id, &saved(2, b"x")).await);

    let lone = placed_unit(&store, "crunch", "node-1").await;
    assert!(told(&store, "node-1", &lone.id, &saved(1, b"x")).await);
    becomes(&store, &lone, 1, UnitState::Failed).await;
    store.object_delete(&key(Kind::Unit, "crunch"), NOW).await.unwrap();
    let gone = Decision::UnitRemove { unit: lone.id.clone() };
    store.plan_commit(&plan(&store, vec![gone]).await, NOW).await.unwrap();
    assert_eq!((rows(&store).await, state_of(&store, &lone.id).await), (0, None));
}
