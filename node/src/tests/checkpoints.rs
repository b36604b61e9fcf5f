//! What programs save: told to the control plane, there for the next run, taken from the unit before.

use std::path::Path;

use brig_api::checkpoint::{Checkpoint, CheckpointReport, State};
use brig_api::lifecycle::UnitState;
use brig_api::session::{FromNode, ToNode};
use brig_shim::checkpoint::{self, CHECKPOINT_NAME};
use brig_shim::message::StartTask;

use super::fake_server::{Connection, FakeServer, assignment};
use super::fake_shim::FakeShim;
use super::lifecycle::{Running, config, unit};

fn given(number: u64, state: &[u8]) -> Checkpoint {
    Checkpoint { number, saved_ms: 17, state: State::new(state.to_vec()).unwrap() }
}

/// What a run finds, or has saved.
fn found(start: &StartTask) -> Option<Checkpoint> {
    checkpoint::read(&start.dir.join(CHECKPOINT_NAME)).unwrap()
}

impl Connection {
    /// The next checkpoint that is told; reports before it are acknowledged.
    async fn checkpoint(&mut self) -> Checkpoint {
        loop {
            match self.next().await {
                FromNode::Checkpoints { mut reports } => {
                    let CheckpointReport { unit: of, task, checkpoint } = reports.remove(0);
                    assert_eq!((of, task.as_str(), reports.len()), (unit(), "main", 0));
                    return checkpoint;
                }
                FromNode::Statuses { reports } => {
                    let list = reports.iter().map(|one| (one.unit.clone(), one.status.sequence));
                    self.say(&ToNode::Acknowledge { reports: list.collect() }).await;
                }
                _ => {}
            }
        }
    }

    async fn kept(&mut self, number: u64) {
        let reports = vec![(unit(), "main".parse().unwrap(), number)];
        self.say(&ToNode::CheckpointsKept { reports }).await;
    }

    async fn give(&mut self, checkpoint: Checkpoint) {
        let task = "main".parse().unwrap();
        self.say(&ToNode::Checkpoint { unit: unit(), task, checkpoint }).await;
    }
}

/// A unit whose program runs.
async fn running(
    dir: &Path,
    server: &FakeServer,
    restart: &str,
) -> (FakeShim, Running, Connection, StartTask) {
    let mut shim = FakeShim::new(dir);
    let agent = Running::start(config(dir, server));
    let mut session = server.session(vec![assignment("u1", restart)]).await;
    let start = shim.started().await;
    shim.run(&start.key);
    session.until(&unit(), UnitState::Running).await;
    (shim, agent, session, start)
}

#[tokio::test]
async fn the_newest_is_told_one_at_a_time_and_the_next_run_finds_it() {
    let (dir, server) = (tempfile::tempdir().unwrap(), FakeServer::new().await);
    let (mut shim, _agent, mut session, first) = running(dir.path(), &server, "on-failure").await;
    assert_eq!(found(&first), None, "nothing was saved yet");
    shim.save(&first.key, b"one");
    assert_eq!(session.checkpoint().await, given(1, b"one"));
    // While that one is on its way, others follow: the last of them is told.
    shim.save(&first.key, b"two");
    shim.save(&first.key, b"three");
    // What is heard next shows that they were heard.
    shim.exit(&first.key, 3);
    session.until(&unit(), UnitState::Backoff).await;
    session.kept(1).await;
    assert_eq!(session.checkpoint().await, given(3, b"three"));
    session.kept(3).await;
    shim.removed(&first.key).await;
    let second = shim.started().await;
    assert_eq!(second.key.0, "u1.main.1");
    assert_eq!(found(&second), Some(given(3, b"three")));
    shim.run(&second.key);
    shim.save(&second.key, b"four");
    assert_eq!(session.checkpoint().await, given(4, b"four"));
}

#[tokio::test]
async fn what_was_saved_while_the_agent_was_dead_is_not_lost() {
    let (dir, server) = (tempfile::tempdir().unwrap(), FakeServer::new().await);
    let (mut shim, agent, session, first) = running(dir.path(), &server, "on-failure").await;
    drop(session);
    agent.kill().await;
    shim.save_silently(&first.key, b"one");
    let agent = Running::start(config(dir.path(), &server));
    let mut session = server.session(vec![assignment("u1", "on-failure")]).await;
    assert_eq!(session.checkpoint().await, given(1, b"one"));
    // Not answered: told again in the next session, and by the next agent.
    drop(session);
    let mut session = server.session(vec![assignment("u1", "on-failure")]).await;
    assert_eq!(session.checkpoint().await, given(1, b"one"));
    drop(session);
    agent.kill().await;
    // The program saves once more and dies with its shim.
    shim.save_silently(&first.key, b"two");
    shim.die();
    let _agent = Running::start(config(dir.path(), &server));
    let mut session = server.session(vec![assignment("u1", "on-failure")]).await;
    assert_eq!(session.checkpoint().await, given(2, b"two"));
    let second = loop {
        if let super::fake_shim::Asked::Start(start) = shim.asked().await {
            break start;
        }
    };
    assert_eq!((second.key.0.as_str(), found(&second)), ("u1.main.1", Some(given(2, b"two"))));
}

#[tokio::test]
async fn a_unit_goes_on_from_what_the_control_plane_gives() {
    let (dir, server) = (tempfile::tempdir().unwrap(), FakeServer::new().await);
    let mut shim = FakeShim::new(dir.path());
    let _agent = Running::start(config(dir.path(), &server));
    let mut session = server.session(vec![]).await;
    session.give(given(7, b"seven")).await;
    session.say(&ToNode::Assign { units: vec![assignment("u1", "on-failure")] }).await;
    let first = shim.started().await;
    assert_eq!(found(&first), Some(given(7, b"seven")));
    shim.run(&first.key);
    session.until(&unit(), UnitState::Running).await;
    shim.save(&first.key, b"eight");
    assert_eq!(session.checkpoint().await, given(8, b"eight"), "what was given is not told back");
    session.kept(8).await;
    // What comes late is older than what the node has.
    session.give(given(7, b"seven")).await;
    shim.exit(&first.key, 3);
    session.until(&unit(), UnitState::Backoff).await;
    shim.removed(&first.key).await;
    assert_eq!(found(&shim.started().await), Some(given(8, b"eight")));
    session.say(&ToNode::Withdraw { units: vec![unit()] }).await;
}

#[tokio::test]
async fn a_link_in_the_place_of_a_checkpoint_leads_nowhere() {
    let (dir, server) = (tempfile::tempdir().unwrap(), FakeServer::new().await);
    let (mut shim, _agent, mut session, first) = running(dir.path(), &server, "on-failure").await;
    let secret = dir.path().join("secret");
    checkpoint::write(&secret, &given(9, b"of somebody else")).unwrap();
    shim.save_silently(&first.key, b"one");
    let file = first.dir.join(CHECKPOINT_NAME);
    std::fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink(&secret, &file).unwrap();
    shim.exit(&first.key, 3);
    session.until(&unit(), UnitState::Backoff).await;
    shim.removed(&first.key).await;
    let second = shim.started().await;
    assert_eq!(found(&second), None);
    shim.run(&second.key);
    shim.save(&second.key, b"two");
    assert_eq!(session.checkpoint().await, given(1, b"two"));
}
