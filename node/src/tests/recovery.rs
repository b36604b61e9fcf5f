//! Agents that are killed, and shims that die.

use brig_api::lifecycle::{Reason, UnitState};
use brig_api::session::ToNode;

use super::fake_server::{FakeServer, assignment};
use super::fake_shim::{Asked, FakeShim};
use super::lifecycle::{Running, config, gone, unit};

#[tokio::test]
async fn an_exit_while_the_agent_is_dead_is_reported_once_by_the_next() {
    let (dir, server) = (tempfile::tempdir().unwrap(), FakeServer::new().await);
    let mut shim = FakeShim::new(dir.path());
    let agent = Running::start(config(dir.path(), &server));
    let mut session = server.session(vec![assignment("u1", "never")]).await;
    let start = shim.started().await;
    shim.run(&start.key);
    let running = session.until(&unit(), UnitState::Running).await;
    agent.kill().await;
    shim.exit(&start.key, 7);
    let agent = Running::start(config(dir.path(), &server));
    // No word from a server is needed to take in the exit.
    shim.removed(&start.key).await;
    agent.kill().await;
    let _agent = Running::start(config(dir.path(), &server));
    let mut session = server.session(vec![assignment("u1", "never")]).await;
    let status = session.until(&unit(), UnitState::Failed).await;
    assert_eq!((status.exit_code, status.finished_ms), (Some(7), Some(17)));
    assert!(status.sequence > running.sequence);
    session.say(&ToNode::Assign { units: vec![assignment("u2", "never")] }).await;
    // Killed in the middle of it, the agent may ask twice for the removal; but u1 is not started again.
    let next = loop {
        match shim.asked().await {
            Asked::Remove(key) => assert_eq!(key, start.key),
            other => break other,
        }
    };
    assert!(matches!(next, Asked::Start(start) if start.key.0 == "u2.main.0"));
}

#[tokio::test]
async fn a_running_unit_runs_on_under_the_next_agent() {
    let (dir, server) = (tempfile::tempdir().unwrap(), FakeServer::new().await);
    let mut shim = FakeShim::new(dir.path());
    let agent = Running::start(config(dir.path(), &server));
    let mut session = server.session(vec![assignment("u1", "always")]).await;
    let start = shim.started().await;
    shim.run(&start.key);
    session.until(&unit(), UnitState::Running).await;
    agent.kill().await;
    let _agent = Running::start(config(dir.path(), &server));
    let mut session = server.session(vec![assignment("u1", "always")]).await;
    session.until(&unit(), UnitState::Running).await;
    assert!(shim.is_quiet(), "nothing was asked of the shim");
    // Not assigned any more: the complete list says so by leaving it out.
    session.say(&ToNode::Assignments { units: vec![], others: vec![] }).await;
    assert!(matches!(shim.asked().await, Asked::Stop(key, _) if key == start.key));
}

#[tokio::test]
async fn a_shim_that_dies_is_reported_and_the_unit_started_in_another() {
    let (dir, server) = (tempfile::tempdir().unwrap(), FakeServer::new().await);
    let mut shim = FakeShim::new(dir.path());
    let _agent = Running::start(config(dir.path(), &server));
    let mut session = server.session(vec![assignment("u1", "always")]).await;
    let start = shim.started().await;
    shim.run(&start.key);
    session.until(&unit(), UnitState::Running).await;
    shim.die();
    let status = session.until(&unit(), UnitState::Backoff).await;
    assert_eq!(status.reason, Some(Reason::ShimLost));
    shim.removed(&start.key).await;
    assert_eq!(shim.started().await.key.0, "u1.main.1");
    gone(&start.dir).await;
}

#[tokio::test]
async fn killed_before_the_shim_was_asked_the_unit_is_started_once() {
    let (dir, server) = (tempfile::tempdir().unwrap(), FakeServer::new().await);
    let mut shim = FakeShim::new(dir.path());
    let agent = Running::start(config(dir.path(), &server));
    let _session = server.session(vec![assignment("u1", "never")]).await;
    let start = shim.started().await;
    agent.kill().await;
    // As if the record had been written and nothing more done: no directory, no task in the shim.
    drop(shim);
    std::fs::remove_dir_all(&start.dir).unwrap();
    let mut shim = FakeShim::new(dir.path());
    let _agent = Running::start(config(dir.path(), &server));
    assert_eq!(shim.started().await.key, start.key);
}

#[tokio::test]
async fn killed_after_the_shim_was_asked_and_the_shim_dead_too_it_is_lost_not_run_twice() {
    let (dir, server) = (tempfile::tempdir().unwrap(), FakeServer::new().await);
    let mut shim = FakeShim::new(dir.path());
    let agent = Running::start(config(dir.path(), &server));
    let _session = server.session(vec![assignment("u1", "never")]).await;
    shim.started().await;
    agent.kill().await;
    drop(shim);
    let _agent = Running::start(config(dir.path(), &server));
    let mut session = server.session(vec![assignment("u1", "never")]).await;
    let status = session.until(&unit(), UnitState::Failed).await;
    assert_eq!(status.reason, Some(Reason::ShimLost));
}

#[tokio::test]
async fn a_task_that_nobody_wants_is_ended() {
    let (dir, server) = (tempfile::tempdir().unwrap(), FakeServer::new().await);
    let mut shim = FakeShim::new(dir.path());
    let agent = Running::start(config(dir.path(), &server));
    let _session = server.session(vec![assignment("u1", "never")]).await;
    let start = shim.started().await;
    agent.kill().await;
    std::fs::remove_dir_all(dir.path().join("units/u1")).unwrap();
    let _agent = Running::start(config(dir.path(), &server));
    assert!(matches!(shim.asked().await, Asked::Stop(key, _) if key == start.key));
    shim.exit(&start.key, 137);
    shim.removed(&start.key).await;
}

#[tokio::test]
async fn what_can_not_be_written_is_said_and_goes_on_once_it_can() {
    let (dir, server) = (tempfile::tempdir().unwrap(), FakeServer::new().await);
    let mut shim = FakeShim::new(dir.path());
    let _agent = Running::start(config(dir.path(), &server));
    let mut session = server.session(vec![]).await;
    // A file where the unit's directory should be: root too can't write there.
    let obstacle = dir.path().join("units/u1");
    std::fs::write(&obstacle, b"").unwrap();
    session.say(&ToNode::Assign { units: vec![assignment("u1", "never")] }).await;
    let status = session.report(true).await.remove(0).status;
    assert_eq!(status.reason, Some(Reason::DiskFull));
    // A state that a server takes from a node.
    assert!(UnitState::Assigned.allows_report(status.state), "{status:?}");
    let root = dir.path().canonicalize().unwrap();
    assert!(status.message.unwrap().contains(root.to_str().unwrap()));
    assert!(shim.is_quiet());
    std::fs::remove_file(&obstacle).unwrap();
    let start = shim.started().await;
    shim.run(&start.key);
    assert_eq!(session.until(&unit(), UnitState::Running).await.reason, None);
}
