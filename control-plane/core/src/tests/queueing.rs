//! What units wait for besides room.

use brig_api::placement::{Concurrency, Dependency};

use super::*;

fn small() -> UnitTemplate {
    wasm(amount(100, MI))
}

#[test]
fn a_unit_comes_after_a_service_that_runs_and_a_job_that_succeeded() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(8_000, 8 * GI));
    let after = vec![
        Dependency { service: Some(name("db")), job: None },
        Dependency { service: None, job: Some(name("migrate")) },
    ];
    let id = cluster.unit("app", UnitTemplate { after, ..small() });
    let plan = cluster.pass();
    assert_eq!(refusals(&plan)[0].1, Reason::DependencyWaits);
    assert!(refusals(&plan)[0].2.contains("service `db`, which does not exist"));
    cluster.service("db", 2, small());
    cluster.is_stuck = true;
    cluster.settle();
    assert_eq!(node_of(&cluster, &id), None, "the database has a node, but does not run");
    cluster.is_stuck = false;
    cluster.settle();
    assert_eq!(node_of(&cluster, &id), None);
    cluster.job("migrate", (1, 1, 0), small());
    cluster.settle();
    assert_eq!(node_of(&cluster, &id), None, "it runs, but has not succeeded");
    let migration = cluster.model.units().find(|u| u.name.as_str() == "migrate-0").unwrap();
    let migration = migration.id.clone();
    cluster.report(&migration, UnitState::Succeeded);
    cluster.settle();
    assert!(node_of(&cluster, &id).is_some());
}

#[test]
fn a_family_has_as_many_units_at_a_time_as_it_may() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(8_000, 8 * GI));
    let concurrency = Some(Concurrency { key: name("etl"), limit: 2 });
    let unit = UnitTemplate { concurrency, ..small() };
    cluster.job("one", (5, 5, 0), unit.clone());
    cluster.job("two", (5, 5, 0), unit.clone());
    let elsewhere = cluster.unit_in("other", "u", unit);
    cluster.pass();
    assert_eq!(cluster.count(|unit| unit.node.is_some() && unit.owner.is_some()), 2);
    assert!(node_of(&cluster, &elsewhere).is_some(), "a family is of one namespace");
    let waiting = cluster.model.units().find(|unit| unit.node.is_none()).unwrap();
    assert_eq!(waiting.status.reason, Some(Reason::ConcurrencyLimit));
    for prefix in ["one", "two"] {
        cluster.endings.insert(prefix.to_owned(), UnitState::Succeeded);
    }
    cluster.settle();
    assert_eq!(cluster.job_named("two").state, JobState::Succeeded);
}

#[test]
fn a_job_says_how_long_its_next_attempt_waits() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(8_000, 8 * GI));
    cluster.job("report", (1, 1, 3), small());
    cluster.change_job("report", |job| job.spec.retry_after_ms = Some(50_000));
    cluster.pass();
    cluster.nodes_work();
    let first = cluster.model.units().next().unwrap().id.clone();
    cluster.report(&first, UnitState::Failed);
    cluster.moment.now_ms += 49_000;
    let plan = cluster.pass();
    assert_eq!(cluster.model.unit_count(), 1);
    assert_eq!(plan.wake_at_ms, Some(1_050_000));
    cluster.moment.now_ms = 1_050_000;
    cluster.pass();
    assert_eq!(cluster.model.unit_count(), 2);
}

#[test]
fn a_unit_runs_no_longer_than_it_may() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(8_000, 8 * GI));
    let id = cluster.unit("u", UnitTemplate { max_run_ms: Some(5_000), ..small() });
    cluster.pass();
    cluster.nodes_work();
    cluster.moment.now_ms += 4_999;
    let plan = cluster.pass();
    assert!(plan.is_empty() && plan.wake_at_ms == Some(1_005_000), "{plan:?}");
    cluster.moment.now_ms += 1;
    let plan = cluster.pass();
    assert_eq!(stops(&cluster, &plan), [("u".to_owned(), Reason::DeadlineExceeded)]);
    cluster.settle();
    assert_eq!(cluster.model.unit(&id).unwrap().status.state, UnitState::Stopped);
}

#[test]
fn a_thousand_units_that_fit_nowhere_hold_up_nobody_and_are_asked_about_once() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(2_000, 8 * GI));
    for index in 0..1_000 {
        cluster.unit(&format!("giant-{index}"), wasm(amount(64_000, MI)));
    }
    let small = cluster.unit("small", small());
    let plan = cluster.pass();
    assert!(node_of(&cluster, &small).is_some());
    assert_eq!(refusals(&plan).len(), 1_000);
    let plan = cluster.pass();
    assert!(plan.is_empty() && plan.explanations.is_empty(), "nothing is said twice");
    cluster.node("b", amount(64_000, 8 * GI));
    cluster.pass();
    assert_eq!(cluster.count(|unit| unit.node.as_ref().is_some_and(|n| n.as_str() == "b")), 1);
}

#[test]
fn a_unit_that_takes_room_gives_no_hope_to_those_that_were_refused_for_want_of_it() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(2_000, 8 * GI));
    let first = cluster.unit("first", small());
    let large = cluster.unit("large", wasm(amount(2_000, MI)));
    let is_hopeless = |cluster: &Cluster| {
        let slot = cluster.model.index.slot(&large).unwrap();
        cluster.model.index.is_still_hopeless(slot, 0)
    };
    cluster.settle();
    cluster.unit("second", small());
    cluster.job("third", (1, 1, 0), small());
    cluster.settle();
    assert_eq!(cluster.count(|unit| unit.status.state == UnitState::Running), 3);
    assert!(is_hopeless(&cluster), "it was not looked at again for every unit that came");
    cluster.report(&first, UnitState::Succeeded);
    assert!(!is_hopeless(&cluster), "one has left");
    cluster.service("web", 1, small());
    cluster.settle();
    assert!(is_hopeless(&cluster));
    cluster.namespace("sure", None);
    assert!(!is_hopeless(&cluster), "quotas and guarantees may have changed");
}

#[test]
fn a_service_of_which_a_pass_makes_only_a_part_is_completed_by_the_next() {
    let mut cluster = Cluster::new();
    for text in ["one", "two", "three"] {
        cluster.service(text, 8_000, small());
    }
    // Without the harness's checks, which compare every unit with every other.
    let mut pass = |now_ms| {
        let plan = plan(&mut cluster.model, &Moment { now_ms, ..Moment::default() });
        commit(&mut cluster.model, &plan, now_ms).unwrap();
        (cluster.model.unit_count(), plan.wake_at_ms)
    };
    assert_eq!(pass(1), (crate::draft::CREATIONS_MAX, Some(2)));
    assert_eq!(pass(2), (24_000, None));
}
