//! The session: what is repeated, what is refused, and what happens when it breaks.

use brig_api::lifecycle::UnitState;
use brig_api::session::{FromNode, HeldArtifact, ToNode};
use brig_api::unit_spec::Runtime;
use brig_api::{Digest, PlanSequence};

use super::fake_server::{Connection, FakeServer, assignment};
use super::fake_shim::{Asked, FakeShim};
use super::lifecycle::{Running, config, unit};

#[tokio::test]
async fn a_node_says_what_it_is() {
    let (dir, server) = (tempfile::tempdir().unwrap(), FakeServer::new().await);
    let _agent = Running::start(config(dir.path(), &server));
    let facts = server.accept().await.hello().await;
    assert_eq!(facts.attributes["zone"], "a");
    assert_eq!(facts.attributes["os"], "linux");
    assert_eq!(facts.taints[0].to_string(), "gpu=yes:no-schedule");
    assert_eq!(facts.allocatable.scalars["gpu"], brig_api::Milli(4_000));
    assert!(facts.allocatable.cpu.0 > 0 && facts.allocatable.memory.0 > 0);
    assert_eq!(facts.runtimes, [Runtime::Wasm], "the other shim is not there");
    assert!(!facts.boot_id.is_empty());
}

#[tokio::test]
async fn statuses_are_told_again_until_they_are_acknowledged() {
    let (dir, server) = (tempfile::tempdir().unwrap(), FakeServer::new().await);
    let mut shim = FakeShim::new(dir.path());
    let _agent = Running::start(config(dir.path(), &server));
    let mut session = server.session(vec![assignment("u1", "never")]).await;
    let start = shim.started().await;
    let first = loop {
        let report = session.report(false).await.remove(0);
        if report.status.state == UnitState::Preparing {
            break report;
        }
    };
    drop(session);
    let mut session = server.session(vec![assignment("u1", "never")]).await;
    assert_eq!(session.report(false).await[0], first);
    shim.run(&start.key);
    session.until(&unit(), UnitState::Running).await;
    // What was acknowledged is not told again: the first report after that is a new one.
    let mut other = assignment("u2", "never");
    other.placed_by = PlanSequence(9);
    session.say(&ToNode::Assign { units: vec![other] }).await;
    assert_eq!(shim.started().await.key.0, "u2.main.0");
    session.report(true).await;
    drop(session);
    let mut session = server.session(vec![assignment("u1", "never")]).await;
    shim.exit(&start.key, 0);
    let reports = session.report(true).await;
    assert!(reports.iter().all(|one| one.unit != unit() || one.status.state != UnitState::Running));
}

#[tokio::test]
async fn assignments_that_come_twice_start_once_and_old_plans_are_refused() {
    let (dir, server) = (tempfile::tempdir().unwrap(), FakeServer::new().await);
    let mut shim = FakeShim::new(dir.path());
    let _agent = Running::start(config(dir.path(), &server));
    let mut session = server.session(vec![assignment("u1", "always")]).await;
    let start = shim.started().await;
    session.say(&ToNode::Assign { units: vec![assignment("u1", "always")] }).await;
    let units = vec![assignment("u1", "always")];
    session.say(&ToNode::Assignments { units, others: vec![] }).await;
    let mut old = assignment("u1", "always");
    old.placed_by = PlanSequence(4);
    old.is_wanted = false;
    session.say(&ToNode::Assign { units: vec![old] }).await;
    shim.run(&start.key);
    session.until(&unit(), UnitState::Running).await;
    let mut new = assignment("u1", "always");
    new.is_wanted = false;
    session.say(&ToNode::Assign { units: vec![new] }).await;
    assert!(matches!(shim.asked().await, Asked::Stop(key, _) if key == start.key));
}

#[tokio::test]
async fn units_that_came_before_the_complete_list_are_kept_when_it_names_them() {
    let (dir, server) = (tempfile::tempdir().unwrap(), FakeServer::new().await);
    let mut shim = FakeShim::new(dir.path());
    let _agent = Running::start(config(dir.path(), &server));
    let mut session = server.session(vec![]).await;
    session.say(&ToNode::Assign { units: vec![assignment("u1", "always")] }).await;
    let start = shim.started().await;
    let all = ToNode::Assignments { units: vec![assignment("u2", "always")], others: vec![unit()] };
    session.say(&all).await;
    // Neither was asked to end before the other was started.
    assert_eq!(shim.started().await.key.0, "u2.main.0");
    session.say(&ToNode::Assignments { units: vec![], others: vec![] }).await;
    // Both, in whatever order.
    let mut stopped = Vec::new();
    for _ in 0..2 {
        match shim.asked().await {
            Asked::Stop(key, _) => stopped.push(key.0),
            other => panic!("{other:?}"),
        }
    }
    stopped.sort();
    assert_eq!(stopped, [start.key.0.as_str(), "u2.main.0"]);
}

#[tokio::test]
async fn another_server_is_tried_and_units_run_on_meanwhile() {
    let (dir, first) = (tempfile::tempdir().unwrap(), FakeServer::new().await);
    let second = FakeServer::new().await;
    let mut shim = FakeShim::new(dir.path());
    let mut setup = config(dir.path(), &first);
    setup.servers.push(second.url());
    let _agent = Running::start(setup);
    let mut session = first.session(vec![assignment("u1", "always")]).await;
    let start = shim.started().await;
    shim.run(&start.key);
    session.until(&unit(), UnitState::Running).await;
    drop((session, first));
    let mut session = second.session(vec![assignment("u1", "always")]).await;
    shim.exit(&start.key, 1);
    session.until(&unit(), UnitState::Backoff).await;
    shim.removed(&start.key).await;
    assert_eq!(shim.started().await.key.0, "u1.main.1");
}

/// What the node tells next of what it holds: whether that is all, and each with whether it is ready.
async fn told(session: &mut Connection) -> (bool, Vec<HeldArtifact>) {
    loop {
        if let FromNode::Artifacts { is_complete, held, gone } = session.next().await {
            assert_eq!(gone, []);
            return (is_complete, held);
        }
    }
}

#[tokio::test]
async fn what_the_node_holds_is_told_as_it_comes_and_all_of_it_in_each_session() {
    let (dir, server) = (tempfile::tempdir().unwrap(), FakeServer::new().await);
    let mut shim = FakeShim::new(dir.path());
    let _agent = Running::start(config(dir.path(), &server));
    let digest = Digest::of_sha256(&[5; 32]);
    let mut unit = assignment("u1", "never");
    let mut template = serde_json::to_value(&unit.template).unwrap();
    template["tasks"][0]["wasm"]["artifact"] = format!("team/app:1@{digest}").into();
    unit.template = serde_json::from_value(template).unwrap();
    let mut session = server.session(vec![]).await;
    assert_eq!(told(&mut session).await, (true, vec![]));
    session.say(&ToNode::Assign { units: vec![unit.clone()] }).await;
    shim.started().await;
    let mut ready = HeldArtifact { digest, runtime: Runtime::Wasm, is_ready: false };
    let mut news = told(&mut session).await;
    if news == (false, vec![ready.clone()]) {
        // It was not compiled yet.
        news = told(&mut session).await;
    }
    ready.is_ready = true;
    assert_eq!(news, (false, vec![ready]));
    drop(session);
    let mut session = server.session(vec![unit]).await;
    assert_eq!(told(&mut session).await, (true, vec![]), "its file is not there, if one looks");
}
