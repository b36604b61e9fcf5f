//! Jobs: completions, parallelism, retries, losses, stopping, deletion.

use super::*;

fn cluster_with(size: (u32, u32, u32)) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.node("node-1", amount(8_000, 8 * GI));
    cluster.job("sum", size, wasm(amount(1_000, GI)));
    cluster
}

fn live(cluster: &Cluster) -> usize {
    cluster.count(|unit| !unit.status.state.is_final())
}

#[test]
fn a_job_runs_each_index_once_and_no_more_at_a_time_than_it_may() {
    let mut cluster = cluster_with((2, 5, 0));
    cluster.endings.insert("sum-".to_owned(), UnitState::Succeeded);
    for _ in 0..30 {
        cluster.pass();
        assert!(live(&cluster) <= 2);
        cluster.nodes_work();
    }
    let job = cluster.job_named("sum");
    assert_eq!((job.state, job.succeeded, job.failed), (JobState::Succeeded, 5, 0));
    let expected: Vec<_> = (0..5).map(|index| format!("sum-{index} succeeded node-1")).collect();
    assert_eq!(cluster.listing(), expected);
    assert!(cluster.pass().is_empty());
}

#[test]
fn a_failed_index_is_tried_again_later_and_then_fails_the_job() {
    let mut cluster = cluster_with((2, 2, 2));
    cluster.endings.insert("sum-0".to_owned(), UnitState::Failed);
    cluster.settle();
    let job = cluster.job_named("sum");
    assert_eq!((job.state, job.succeeded, job.failed), (JobState::Failed, 0, 3));
    assert_eq!(
        cluster.listing(),
        [
            "sum-0 failed node-1",
            "sum-0-r1 failed node-1",
            "sum-0-r2 failed node-1",
            "sum-1 stopped node-1"
        ]
        .map(str::to_owned)
        .to_vec()
    );
}

#[test]
fn a_retry_that_succeeds_saves_the_job() {
    let mut cluster = cluster_with((1, 1, 1));
    cluster.endings.insert("sum-0-r1".to_owned(), UnitState::Succeeded);
    cluster.pass();
    let first = cluster.model.units().next().unwrap().id.clone();
    cluster.report(&first, UnitState::Failed);
    cluster.settle();
    let job = cluster.job_named("sum");
    assert_eq!((job.state, job.succeeded, job.failed), (JobState::Succeeded, 1, 1));
}

#[test]
fn a_lost_attempt_uses_up_no_retry_until_there_are_too_many() {
    let mut cluster = cluster_with((1, 1, 0));
    let mut attempts = 0;
    while cluster.job_named("sum").state == JobState::Active {
        let plan = cluster.pass();
        let live = cluster.model.units().find(|unit| !unit.status.state.is_final());
        if let Some(id) = live.map(|unit| unit.id.clone()) {
            attempts += 1;
            cluster.report(&id, UnitState::Lost);
        } else if let Some(at_ms) = plan.wake_at_ms {
            cluster.moment.now_ms = at_ms;
        }
    }
    assert_eq!(attempts, crate::reconcile::LOSSES_FORGIVEN + 1);
    assert_eq!(cluster.job_named("sum").failed, 0, "no attempt failed");
}

#[test]
fn a_stopped_job_stops_its_units_and_keeps_them() {
    let mut cluster = cluster_with((2, 5, 0));
    cluster.settle();
    assert_eq!(live(&cluster), 2);
    cluster.change_job("sum", |job| job.state = JobState::Stopped);
    cluster.settle();
    assert_eq!(
        cluster.listing(),
        ["sum-0 stopped node-1", "sum-1 stopped node-1"].map(str::to_owned).to_vec()
    );
    assert_eq!(cluster.job_named("sum").state, JobState::Stopped);
}

#[test]
fn units_of_a_job_are_its_memory_and_outlive_their_own_deletion() {
    let mut cluster = cluster_with((1, 2, 0));
    cluster.endings.insert("sum-".to_owned(), UnitState::Succeeded);
    cluster.pass();
    let first = cluster.model.units().next().unwrap().id.clone();
    cluster.report(&first, UnitState::Succeeded);
    cluster.change_unit(&first, |unit| unit.desired = Desired::Remove);
    cluster.settle();
    assert_eq!(cluster.model.unit_count(), 2, "index 0 did not run again");
    assert_eq!(cluster.job_named("sum").state, JobState::Succeeded);
}

#[test]
fn a_deleted_job_goes_with_its_last_unit() {
    let mut cluster = cluster_with((2, 5, 0));
    cluster.settle();
    cluster.change_job("sum", |job| job.is_deleting = true);
    cluster.settle();
    assert_eq!(cluster.model.unit_count(), 0);
    assert_eq!(cluster.model.jobs().count(), 0);
}

#[test]
fn a_job_that_a_user_stops_while_a_plan_is_made_stays_stopped() {
    let mut cluster = cluster_with((1, 2, 0));
    cluster.pass();
    let first = cluster.model.units().next().unwrap().id.clone();
    cluster.report(&first, UnitState::Succeeded);
    let late = plan(&mut cluster.model.clone(), &cluster.moment);
    cluster.change_job("sum", |job| job.state = JobState::Stopped);
    commit(&mut cluster.model, &late, cluster.moment.now_ms).unwrap();
    let job = cluster.job_named("sum");
    assert_eq!((job.state, job.succeeded), (JobState::Stopped, 1));
    assert!(commit(&mut cluster.model, &late, 0).is_err(), "no plan commits twice");
}
