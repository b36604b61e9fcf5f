//! What units used: taken over once however often it is told, and added up by namespace and day.

use brig_api::lifecycle::UnitState;
use brig_api::usage::{Usage, UsageReport};
use brig_api::{Kind, UnitId};
use brig_core::Decision;
use brig_store::Store;

use super::harness::{Fresh, NOW, key, node_name, on_both, placed_unit, plan, report};

on_both!(
    what_is_told_twice_or_late_counts_once,
    a_report_of_an_end_brings_what_was_used,
    what_others_say_of_a_unit_does_not_count,
    each_day_has_its_own_sum_which_outlives_the_unit,
    amounts_beyond_all_sense_are_the_most_that_can_be_kept,
);

const DAY_MS: i64 = 86_400_000;

fn used(cpu_ns: u64, memory_byte_s: u64) -> Usage {
    Usage { cpu_ns, memory_byte_s, memory_peak_bytes: 7, throttled_ns: 1 }
}

async fn told(store: &Store, node: &str, unit: &UnitId, usage: Usage, now_ms: i64) {
    let reports = [UsageReport { unit: unit.clone(), usage }];
    store.usage_report(&node_name(node), &reports, now_ms).await.unwrap();
}

/// Cpu and memory of the only namespace, day by day.
async fn days(store: &Store) -> Vec<(i64, i64)> {
    let query = "select cpu_ns, memory_byte_s from namespace_usage order by day";
    let answer = store.sql(query, 100).await.unwrap();
    let number = |value: &serde_json::Value| value.as_i64().unwrap();
    answer.rows.iter().map(|row| (number(&row[0]), number(&row[1]))).collect()
}

async fn what_is_told_twice_or_late_counts_once(Fresh { store, .. }: Fresh) {
    let unit = placed_unit(&store, "web", "node-1").await;
    assert_eq!(store.usage_get(&unit.id).await.unwrap(), Usage::default());
    let revision = store.revision().await.unwrap();
    for usage in [used(10, 100), used(30, 300), used(30, 300), used(20, 200)] {
        told(&store, "node-1", &unit.id, usage, NOW).await;
    }
    assert_eq!(store.usage_get(&unit.id).await.unwrap(), used(30, 300));
    assert_eq!(days(&store).await, [(30, 300)]);
    assert_eq!(store.revision().await.unwrap(), revision, "it is no change that is watched");
}

async fn a_report_of_an_end_brings_what_was_used(Fresh { store, .. }: Fresh) {
    let unit = placed_unit(&store, "web", "node-1").await;
    told(&store, "node-1", &unit.id, used(10, 100), NOW).await;
    let mut ended = report(&unit.id, 1, UnitState::Succeeded);
    ended.usage = used(50, 500);
    for _ in 0..2 {
        store.statuses_report(&node_name("node-1"), &[ended.clone()], NOW).await.unwrap();
    }
    assert_eq!(store.usage_get(&unit.id).await.unwrap(), used(50, 500));
    assert_eq!(days(&store).await, [(50, 500)]);
}

async fn what_others_say_of_a_unit_does_not_count(Fresh { store, .. }: Fresh) {
    let unit = placed_unit(&store, "web", "node-1").await;
    told(&store, "node-2", &unit.id, used(10, 100), NOW).await;
    told(&store, "node-1", &UnitId::new("u-unknown").unwrap(), used(10, 100), NOW).await;
    let mut ended = report(&unit.id, 1, UnitState::Failed);
    ended.usage = used(50, 500);
    store.statuses_report(&node_name("node-2"), &[ended], NOW).await.unwrap();
    assert_eq!(store.usage_get(&unit.id).await.unwrap(), Usage::default());
    assert_eq!(days(&store).await, []);
}

async fn each_day_has_its_own_sum_which_outlives_the_unit(Fresh { store, .. }: Fresh) {
    let unit = placed_unit(&store, "web", "node-1").await;
    let other = placed_unit(&store, "api", "node-1").await;
    told(&store, "node-1", &unit.id, used(10, 100), NOW).await;
    told(&store, "node-1", &other.id, used(1, 1), NOW).await;
    told(&store, "node-1", &unit.id, used(25, 250), NOW + DAY_MS).await;
    let ended = report(&unit.id, 1, UnitState::Succeeded);
    store.statuses_report(&node_name("node-1"), &[ended], NOW + DAY_MS).await.unwrap();
    store.object_delete(&key(Kind::Unit, "web"), NOW + DAY_MS).await.unwrap();
    let gone = Decision::UnitRemove { unit: unit.id.clone() };
    store.plan_commit(&plan(&store, vec![gone]).await, NOW + DAY_MS).await.unwrap();
    assert_eq!(store.usage_get(&unit.id).await.unwrap(), Usage::default());
    assert_eq!(days(&store).await, [(11, 101), (15, 150)]);
}

async fn amounts_beyond_all_sense_are_the_most_that_can_be_kept(Fresh { store, .. }: Fresh) {
    let unit = placed_unit(&store, "web", "node-1").await;
    let other = placed_unit(&store, "api", "node-1").await;
    told(&store, "node-1", &other.id, used(10, 100), NOW).await;
    told(&store, "node-1", &unit.id, used(u64::MAX, u64::MAX), NOW).await;
    told(&store, "node-1", &unit.id, used(u64::MAX, u64::MAX), NOW).await;
    assert_eq!(days(&store).await, [(i64::MAX, i64::MAX)]);
}
