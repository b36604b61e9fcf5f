//! Nodes over real WebSockets: assignments down, statuses up exactly once, logs and exec, restarts.

use brig_api::checkpoint::{Checkpoint, CheckpointReport, State};
use brig_api::lifecycle::UnitState;
use brig_api::object::{Desired, NodeState, Object};
use brig_api::request::{AttachRequest, ExecRequest, LogQuery};
use brig_api::session::{FromNode, HeldArtifact, SESSION_PROTOCOL, StreamRequest, ToNode};
use brig_api::stdio::StdioFrame;
use brig_api::unit_spec::Runtime;
use brig_api::{Code, Digest, Kind, NamespacePath, Problem, ResourceName, Revision, UnitId};
use brig_client::EventQuery;
use futures::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;

use super::harness::{Cluster, FakeNode, facts, key, soon, unit_yaml};

fn default_namespace() -> NamespacePath {
    NamespacePath::default_namespace()
}

/// A unit's life, as its node sees it.
async fn a_unit_lives(cluster: &Cluster) {
    let (mut node, units) = FakeNode::register(cluster, "n1").await;
    assert!(units.is_empty());
    cluster.apply("kind: config\nname: c\ndata: {greeting: hello}\n").await;
    let yaml = "kind: unit\nname: one\nunit: {wasm: {artifact: registry.example/app:1}, env: {G: {config: c, key: greeting}}}\n";
    cluster.apply(yaml).await;
    let Some(ToNode::Assign { units }) = node.hear().await else { panic!("an assignment") };
    let unit = units[0].unit.clone();
    assert_eq!((units[0].name.as_str(), units[0].is_wanted), ("one", true));
    assert_eq!(units[0].identity["BRIG_NODE"], "n1");
    let texts = units[0].texts.configs.values().next().unwrap();
    assert_eq!(texts["greeting"], "hello");

    node.report(&unit, UnitState::Running, 1).await;
    node.acknowledged(&unit, 1).await;
    let running = cluster.client.unit(&default_namespace(), "one").await.unwrap();
    assert_eq!(running.status.state, UnitState::Running);

    // The same report again, and an older one: acknowledged, and nothing changes.
    node.report(&unit, UnitState::Running, 1).await;
    node.acknowledged(&unit, 1).await;
    let again = cluster.client.unit(&default_namespace(), "one").await.unwrap();
    assert_eq!(again.meta.revision, running.meta.revision);

    cluster.client.unit_stop(&default_namespace(), "one").await.unwrap();
    let Some(ToNode::Assign { units }) = node.hear().await else { panic!("the stop") };
    assert!(!units[0].is_wanted);
    node.report(&unit, UnitState::Stopped, 2).await;
    node.acknowledged(&unit, 2).await;
    let stopped = cluster.unit_in("one", &[UnitState::Stopped]).await;
    assert_eq!(stopped.desired, Desired::Stop);

    cluster.client.delete(&key(Kind::Unit, "one")).await.unwrap();
    soon("the unit goes", async {
        let mut watch = cluster.client.watch(Default::default(), Revision(1));
        while !watch
            .next()
            .await
            .unwrap()
            .iter()
            .any(|change| change.key == key(Kind::Unit, "one") && change.object.is_none())
        {}
    })
    .await;
    let events = cluster.client.events(&EventQuery::default()).await.unwrap();
    assert!(events.iter().any(|event| event.name == "one"), "{events:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unit_is_assigned_runs_stops_and_goes() {
    a_unit_lives(&Cluster::start().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unit_is_assigned_runs_stops_and_goes_on_postgres() {
    if let Some(mut cluster) = Cluster::on_postgres().await {
        a_unit_lives(&cluster).await;
        cluster.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_stays_through_a_restart_of_the_server_and_its_exit_is_counted_once() {
    let mut cluster = Cluster::start().await;
    let (mut node, _) = FakeNode::register(&cluster, "n1").await;
    cluster.apply("kind: job\nname: j\nunit: {wasm: {artifact: registry.example/app:1}}\n").await;
    let Some(ToNode::Assign { units }) = node.hear().await else { panic!("an assignment") };
    let (unit, name) = (units[0].unit.clone(), units[0].name.clone());
    node.report(&unit, UnitState::Running, 1).await;
    node.acknowledged(&unit, 1).await;

    cluster.restart().await;
    let (mut node, units) = FakeNode::register(&cluster, "n1").await;
    assert_eq!(units.iter().map(|unit| &unit.unit).collect::<Vec<_>>(), [&unit]);
    let Object::Node(stored) = cluster.client.get(&key(Kind::Node, "n1")).await.unwrap() else {
        panic!("a node")
    };
    assert_eq!(stored.state, NodeState::Ready);
    for _ in 0..3 {
        node.report(&unit, UnitState::Succeeded, 2).await;
        node.acknowledged(&unit, 2).await;
    }
    cluster.unit_in(name.as_str(), &[UnitState::Succeeded]).await;
    // The node is told of what ended, so that it keeps the log, but not to run it again.
    let (_, units) = FakeNode::register(&cluster, "n1").await;
    assert_eq!((&units[0].unit, units[0].is_wanted), (&unit, false));
    let mut watch = cluster.client.watch(Default::default(), Revision(1));
    soon("the job succeeds", async {
        loop {
            let Object::Job(job) = cluster.client.get(&key(Kind::Job, "j")).await.unwrap() else {
                panic!("a job")
            };
            if job.state.is_final() {
                assert_eq!((job.succeeded, job.failed), (1, 0));
                return;
            }
            watch.next().await.unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_and_exec_go_through_the_node() {
    let cluster = Cluster::start().await;
    // Asked for before there is a node: the log waits for one.
    cluster.apply(&unit_yaml("one")).await;
    let client = cluster.client.clone();
    let log = tokio::spawn(async move {
        let query = LogQuery { follow: true, ..LogQuery::default() };
        let mut log = client.logs(&default_namespace(), "one", &query).await.unwrap();
        let mut lines = Vec::new();
        while let Some(line) = log.next().await.unwrap() {
            lines.push((line.task, line.bytes));
        }
        lines
    });
    // A plan may be quicker than the node's registration: then the unit is in its first list.
    let (mut node, units) = FakeNode::register(&cluster, "n1").await;
    let mut unit = units.first().map(|assignment| assignment.unit.clone());
    let stream = loop {
        match node.hear().await.expect("an open session") {
            ToNode::Assign { units } => unit = Some(units[0].unit.clone()),
            ToNode::OpenStream { stream, unit: of, request } => {
                assert_eq!(
                    Some(of),
                    unit,
                    "the node knows the unit before it is asked for its log"
                );
                assert!(matches!(request, StreamRequest::Logs(LogQuery { follow: true, .. })));
                break stream;
            }
            other => panic!("{other:?}"),
        }
    };
    let mut socket = cluster.socket(&format!("/v1/node-streams/{stream}")).await;
    socket.send(Message::binary(b"main 17 o F hello\nmain 18 e F wor".to_vec())).await.unwrap();
    socket.send(Message::binary(b"ld\n".to_vec())).await.unwrap();
    socket.close(None).await.unwrap();
    let lines = soon("the log ends", log).await.unwrap();
    let line = |text: &str| ("main".to_owned(), text.as_bytes().to_vec());
    assert_eq!(lines, [line("hello"), line("world")]);
    // The name of a stream is good once.
    let url = format!("ws://{}/v1/node-streams/{stream}", cluster.address());
    assert!(tokio_tungstenite::connect_async(url).await.is_err());

    let unit = unit.unwrap();
    let request = ExecRequest { task: None, command: vec!["cat".into()], terminal: None };
    let refused = cluster.client.exec(&default_namespace(), "one", &request).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::WrongState));
    node.report(&unit, UnitState::Running, 1).await;
    node.acknowledged(&unit, 1).await;
    let mut exec = cluster.client.exec(&default_namespace(), "one", &request).await.unwrap();
    let Some(ToNode::OpenStream { stream, request: StreamRequest::Exec(asked), .. }) =
        node.hear().await
    else {
        panic!("a stream")
    };
    assert_eq!(asked, request);
    let mut socket = cluster.socket(&format!("/v1/node-streams/{stream}")).await;
    exec.send(&StdioFrame::Stdin(b"hi".to_vec())).await.unwrap();
    let message = soon("the input", socket.next()).await.unwrap().unwrap();
    assert_eq!(StdioFrame::decode(&message.into_data()), Ok(StdioFrame::Stdin(b"hi".to_vec())));
    for frame in [StdioFrame::Stdout(b"hi".to_vec()), StdioFrame::Exit(3)] {
        socket.send(Message::binary(frame.encode())).await.unwrap();
    }
    assert_eq!(exec.next().await.unwrap(), Some(StdioFrame::Stdout(b"hi".to_vec())));
    assert_eq!(exec.next().await.unwrap(), Some(StdioFrame::Exit(3)));
    socket.close(None).await.unwrap();
    assert_eq!(soon("the end", exec.next()).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn input_goes_through_the_node_to_tasks_that_take_some() {
    let cluster = Cluster::start().await;
    let (mut node, _) = FakeNode::register(&cluster, "n1").await;
    for (name, stdin) in [("deaf", false), ("keen", true)] {
        let program = "{wasm: {artifact: registry.example/app:1}";
        cluster
            .apply(&format!("kind: unit\nname: {name}\nunit: {program}, stdin: {stdin}}}\n"))
            .await;
        let Some(ToNode::Assign { units }) = node.hear().await else { panic!("an assignment") };
        assert_eq!(units[0].template.tasks[0].stdin, stdin);
        node.report(&units[0].unit, UnitState::Running, 1).await;
        node.acknowledged(&units[0].unit, 1).await;
    }
    let attach = async |unit, task: Option<&str>| {
        let task = task.map(|task| ResourceName::new(task).unwrap());
        let request = AttachRequest { task };
        cluster.client.attach(&default_namespace(), unit, &request).await.unwrap()
    };
    for (unit, task, code, says) in [
        ("deaf", None, Code::WrongState, "stdin: true"),
        ("keen", Some("other"), Code::Invalid, "other"),
    ] {
        let refused = attach(unit, task).await.next().await.unwrap_err();
        assert_eq!(refused.code(), Some(code), "{refused}");
        assert!(refused.to_string().contains(says), "{refused}");
    }
    let mut input = attach("keen", Some("main")).await;
    let Some(ToNode::OpenStream { stream, request: StreamRequest::Attach(asked), .. }) =
        node.hear().await
    else {
        panic!("a stream")
    };
    assert_eq!(asked.task.as_ref().map(|task| task.as_str()), Some("main"));
    let mut socket = cluster.socket(&format!("/v1/node-streams/{stream}")).await;
    for bytes in [b"hi".to_vec(), vec![]] {
        let frame = StdioFrame::Stdin(bytes);
        input.send(&frame).await.unwrap();
        let message = soon("the input", socket.next()).await.unwrap().unwrap();
        assert_eq!(StdioFrame::decode(&message.into_data()), Ok(frame));
    }
    socket.send(Message::binary(StdioFrame::Exit(0).encode())).await.unwrap();
    assert_eq!(soon("the end", input.next()).await.unwrap(), Some(StdioFrame::Exit(0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_a_node_can_not_open_is_a_problem_for_who_asked() {
    let cluster = Cluster::start().await;
    cluster.apply(&unit_yaml("one")).await;
    let (mut node, _) = FakeNode::register(&cluster, "n1").await;
    cluster.unit_in("one", &[UnitState::Assigned]).await;
    let client = cluster.client.clone();
    let asking = tokio::spawn(async move {
        client.logs(&default_namespace(), "one", &LogQuery::default()).await
    });
    let stream = loop {
        if let ToNode::OpenStream { stream, .. } = node.hear().await.expect("an open session") {
            break stream;
        }
    };
    let problem = Box::new(Problem::new(Code::NotFound, "the log is gone"));
    node.say(&FromNode::StreamFailed { stream, problem }).await;
    let error = soon("the answer", asking).await.unwrap().unwrap_err();
    assert_eq!(
        (error.code(), error.to_string().as_str()),
        (Some(Code::NotFound), "the log is gone")
    );
    drop(node);
    let error = soon("the node is missed", async {
        loop {
            let query = LogQuery { tail: Some(1), ..LogQuery::default() };
            match cluster.client.logs(&default_namespace(), "one", &query).await {
                Err(error) if error.code() == Some(Code::NodeUnreachable) => return error,
                _ => {}
            }
        }
    })
    .await;
    assert!(error.to_string().contains("`n1`"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_session_of_a_node_replaces_the_first() {
    let cluster = Cluster::start().await;
    let (mut first, _) = FakeNode::register(&cluster, "n1").await;
    let (mut second, _) = FakeNode::register(&cluster, "n1").await;
    assert!(first.closed_because().await.contains("another session"));
    cluster.apply(&unit_yaml("one")).await;
    assert!(matches!(second.hear().await, Some(ToNode::Assign { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_message_of_the_protocol_ends_the_session_with_a_reason() {
    let cluster = Cluster::start().await;
    let hello = FromNode::Hello {
        protocol: SESSION_PROTOCOL,
        name: "n1".parse().unwrap(),
        facts: Box::new(facts()),
    };
    let again = Message::text(serde_json::to_string(&hello).unwrap());
    for garbage in [
        Message::text("{"),
        Message::text(r#"{"type":"sing"}"#),
        Message::text("[".repeat(100_000)),
        Message::binary(vec![0xff; 100]),
        again,
    ] {
        let (mut node, _) = FakeNode::register(&cluster, "n1").await;
        node.socket.send(garbage).await.unwrap();
        assert!(node.closed_because().await.contains("not a message of this protocol"));
    }
    // Not even a greeting.
    let mut socket = cluster.socket("/v1/node-session").await;
    socket.send(Message::text("hello")).await.unwrap();
    let mut node = FakeNode { name: "n1".parse().unwrap(), socket };
    assert!(node.closed_because().await.contains("not a message"));
    // Another version of the protocol, with words for the operator.
    let mut socket = cluster.socket("/v1/node-session").await;
    let text = serde_json::to_string(&hello).unwrap().replace("\"protocol\":1", "\"protocol\":99");
    socket.send(Message::text(text)).await.unwrap();
    let mut node = FakeNode { name: node.name, socket };
    let Some(ToNode::Refused { problem }) = node.hear().await else { panic!("a refusal") };
    assert!(problem.detail.contains("99") && problem.detail.contains("same version"), "{problem}");
    assert!(cluster.client.version().await.is_ok());
}

fn saved(number: u64, state: &[u8]) -> Checkpoint {
    Checkpoint { number, saved_ms: 17, state: State::new(state.to_vec()).unwrap() }
}

async fn save(node: &mut FakeNode, unit: &UnitId, checkpoint: Checkpoint) {
    let task: ResourceName = "main".parse().unwrap();
    let kept = (unit.clone(), task.clone(), checkpoint.number);
    let report = CheckpointReport { unit: unit.clone(), task, checkpoint };
    node.say(&FromNode::Checkpoints { reports: vec![report] }).await;
    loop {
        if let ToNode::CheckpointsKept { reports } = node.hear().await.expect("a session") {
            assert_eq!(reports, [kept]);
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_attempt_is_given_what_the_last_one_saved_before_it_is_assigned() {
    let cluster = Cluster::start().await;
    let (mut node, _) = FakeNode::register(&cluster, "n1").await;
    cluster
        .apply("kind: job\nname: j\nretries: 3\nunit: {wasm: {artifact: registry.example/app:1}}\n")
        .await;
    let Some(ToNode::Assign { units }) = node.hear().await else { panic!("an assignment") };
    let (first, name) = (units[0].unit.clone(), units[0].name.clone());
    node.report(&first, UnitState::Running, 1).await;
    node.acknowledged(&first, 1).await;
    save(&mut node, &first, saved(1, b"one")).await;
    save(&mut node, &first, saved(2, b"hunter2")).await;
    // Late, and of no use; answered all the same.
    save(&mut node, &first, saved(1, b"one")).await;
    let views = cluster.client.checkpoints(&default_namespace(), name.as_str()).await.unwrap();
    assert_eq!((views.len(), views[0].number, views[0].bytes), (1, 2, 7));

    node.report(&first, UnitState::Failed, 2).await;
    node.acknowledged(&first, 2).await;
    let (given, second) = loop {
        match node.hear().await.expect("an open session") {
            ToNode::Checkpoint { unit, task, checkpoint } => {
                assert_eq!((task.as_str(), &checkpoint), ("main", &saved(2, b"hunter2")));
                let Some(ToNode::Assign { units }) = node.hear().await else {
                    panic!("its assignment comes next")
                };
                assert_eq!(units[0].identity["BRIG_JOB_ATTEMPT"], "1");
                break (unit, units[0].unit.clone());
            }
            ToNode::Assign { units } => assert_eq!(units[0].unit, first, "not without it"),
            _ => {}
        }
    };
    assert_eq!(given, second);
    // A node that comes back before it has begun is given it again.
    drop(node);
    let mut node = FakeNode::connect(&cluster, "n1").await;
    loop {
        match node.hear().await.expect("an open session") {
            ToNode::Checkpoint { unit, checkpoint, .. } => {
                assert_eq!((unit, checkpoint), (second.clone(), saved(2, b"hunter2")));
                let Some(ToNode::Assign { units }) = node.hear().await else {
                    panic!("its assignment comes next")
                };
                assert_eq!(units[0].unit, second);
                let Some(ToNode::Assignments { others, .. }) = node.hear().await else {
                    panic!("the other assignments")
                };
                assert!(others.contains(&second), "it is not withdrawn by them");
                break;
            }
            ToNode::Assignments { .. } => panic!("the assignments come after it"),
            _ => {}
        }
    }
    // Whatever else is told of it does not tell what was saved.
    let events = cluster.client.events(&EventQuery::default()).await.unwrap();
    let rows = cluster.client.sql("select * from unit_checkpoints").await.unwrap();
    assert!(!format!("{events:?}{rows:?}").contains("hunter2"));
    let refused = cluster.client.sql("select state from checkpoint_states").await;
    assert!(refused.is_err(), "{refused:?}");
}

fn holds(is_complete: bool, digests: &[&Digest], gone: &[&Digest]) -> FromNode {
    let held = |digest: &&Digest| HeldArtifact {
        digest: (*digest).clone(),
        runtime: Runtime::Wasm,
        is_ready: true,
    };
    FromNode::Artifacts {
        is_complete,
        held: digests.iter().map(held).collect(),
        gone: gone.iter().map(|digest| ((*digest).clone(), Runtime::Wasm)).collect(),
    }
}

async fn held_artifacts_become(cluster: &Cluster, node: &str, count: Option<u32>) {
    soon(&format!("{node} holds {count:?}"), async {
        loop {
            let found = cluster.client.get(&key(Kind::Node, node)).await.unwrap();
            let Object::Node(found) = found else { panic!("{found:?}") };
            if found.held_artifacts == count {
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Waits until it was refused for want of its artifact.
async fn waits_for_its_artifact(cluster: &Cluster, name: &str) {
    soon(&format!("{name} waits"), async {
        loop {
            let unit = cluster.client.unit(&default_namespace(), name).await.unwrap();
            assert_eq!(unit.node, None);
            if let Some(message) = unit.status.message {
                assert!(message.contains("without the artifact `registry.example/app:1`"));
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unit_that_needs_its_artifact_goes_where_a_node_says_it_is_also_after_a_restart() {
    let mut cluster = Cluster::start().await;
    let [digest, other] = [[1; 32], [200; 32]].map(|sum| Digest::of_sha256(&sum));
    let unit = |name: &str| {
        format!(
            "kind: unit\nname: {name}\nunit:\n  wasm: {{artifact: 'registry.example/app:1@{digest}'}}\n  \
             placement: {{artifacts: present}}\n"
        )
    };
    let (mut idle, _) = FakeNode::register(&cluster, "n1").await;
    let (mut node, _) = FakeNode::register(&cluster, "n2").await;
    held_artifacts_become(&cluster, "n2", None).await;
    idle.say(&holds(true, &[], &[])).await;
    node.say(&holds(true, &[&other], &[])).await;
    held_artifacts_become(&cluster, "n2", Some(1)).await;
    cluster.apply(&unit("first")).await;
    waits_for_its_artifact(&cluster, "first").await;
    node.say(&holds(false, &[&digest], &[])).await;
    let Some(ToNode::Assign { units }) = node.hear().await else { panic!("an assignment") };
    assert_eq!(units[0].name.as_str(), "first");
    held_artifacts_become(&cluster, "n2", Some(2)).await;
    node.say(&holds(false, &[], &[&digest])).await;
    held_artifacts_become(&cluster, "n2", Some(1)).await;
    cluster.apply(&unit("second")).await;
    waits_for_its_artifact(&cluster, "second").await;

    cluster.restart().await;
    let (mut idle, _) = FakeNode::register(&cluster, "n1").await;
    held_artifacts_become(&cluster, "n1", None).await;
    idle.say(&holds(true, &[&digest], &[])).await;
    let Some(ToNode::Assign { units }) = idle.hear().await else { panic!("an assignment") };
    assert_eq!(units[0].name.as_str(), "second", "a new leader is told by the nodes");
    drop(idle);
    held_artifacts_become(&cluster, "n1", None).await;
}
