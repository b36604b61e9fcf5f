//! Units from assignment to end; also the running agent that the other tests use.

use std::path::Path;
use std::sync::Arc;

use brig_api::lifecycle::{Reason, UnitState};
use brig_api::request::{AttachRequest, ExecRequest, LogQuery};
use brig_api::session::{FromNode, StreamRequest, ToNode};
use brig_api::stdio::StdioFrame;
use brig_api::{Code, Digest, NamespacePath, NodeName, Resources, UnitId};
use brig_shim::log::LogWriter;
use brig_shim::message::StopSignal;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::runtime::Runtime;

use super::fake_server::{FakeServer, assignment, in_time};
use super::fake_shim::{Asked, FakeShim};
use crate::plan::Fault;
use crate::program::{Fetched, Programs};
use crate::{CancellationToken, NodeConfig, RunError, run_with};

/// Knows every program but those whose name begins with `no`.
pub(crate) struct Known;

impl Programs for Known {
    fn fetch<'a>(
        &'a self,
        _namespace: &'a NamespacePath,
        reference: &'a str,
        _runtime: brig_api::unit_spec::Runtime,
    ) -> BoxFuture<'a, Result<Fetched, Fault>> {
        let digest = Digest::of_sha256(&[7; 32]);
        let outcome = if reference.starts_with("no") {
            Err(Fault { reason: Reason::PullFailed, message: format!("`{reference}`: not found") })
        } else {
            Ok(Fetched::Wasm { path: "/app.wasm".into(), digest })
        };
        async move { outcome }.boxed()
    }
}

pub(crate) fn config(data: &Path, server: &FakeServer) -> NodeConfig {
    NodeConfig {
        name: NodeName::new("node-1").unwrap(),
        data: data.to_owned(),
        servers: vec![server.url()],
        token: Some("token".into()),
        address: "127.0.0.1".parse().unwrap(),
        attributes: [("zone".to_owned(), "a".to_owned())].into(),
        reserved: Resources::default(),
        taints: vec!["gpu=yes:no-schedule".parse().unwrap()],
        scalars: [("gpu".to_owned(), brig_api::Milli(4_000))].into(),
        host_paths: vec![],
        runtimes: vec![],
        shim_wasm: super::fake_compiler::make(data),
        shim_oci: "/nonexistent/brig-shim-oci".into(),
        stops_units_at_shutdown: false,
    }
}

/// An agent in a runtime of its own, so that it can be killed with everything that it has begun.
pub(crate) struct Running {
    runtime: Option<Runtime>,
    outcome: tokio::task::JoinHandle<Result<(), RunError>>,
    pub shutdown: CancellationToken,
}

impl Running {
    pub(crate) fn start(config: NodeConfig) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let shutdown = CancellationToken::new();
        let outcome = runtime.spawn(run_with(config, Arc::new(Known), shutdown.clone()));
        Self { runtime: Some(runtime), outcome, shutdown }
    }

    /// Nothing of it is left when this returns, and it was told nothing.
    pub(crate) async fn kill(mut self) {
        let runtime = self.runtime.take().unwrap();
        tokio::task::spawn_blocking(|| drop(runtime)).await.unwrap();
    }

    pub(crate) async fn ended(&mut self) {
        in_time("the agent's end", &mut self.outcome).await.unwrap().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Waits until a directory was removed.
pub(crate) async fn gone(path: &Path) {
    let is_gone = async {
        while path.exists() {
            tokio::task::yield_now().await;
        }
    };
    in_time("the removal of a directory", is_gone).await;
}

pub(crate) fn unit() -> UnitId {
    UnitId::new("u1").unwrap()
}

#[tokio::test]
async fn a_unit_runs_to_its_end_and_nothing_of_its_run_is_left() {
    let (dir, server) = (tempfile::tempdir().unwrap(), FakeServer::new().await);
    let mut shim = FakeShim::new(dir.path());
    let _agent = Running::start(config(dir.path(), &server));
    let mut session = server.session(vec![assignment("u1", "never")]).await;
    assert_eq!(session.token.as_deref(), Some("Bearer token"));
    let start = shim.started().await;
    assert!(start.dir.exists());
    shim.run(&start.key);
    let status = session.until(&unit(), UnitState::Running).await;
    assert_eq!(status.endpoints[0].address, "127.0.0.1:4041");
    shim.exit(&start.key, 0);
    let status = session.until(&unit(), UnitState::Succeeded).await;
    assert_eq!((status.exit_code, status.finished_ms), (Some(0), Some(17)));
    shim.removed(&start.key).await;
    gone(&start.dir).await;
    session.say(&ToNode::Withdraw { units: vec![unit()] }).await;
    // The next unit's start shows that the withdrawal was heard.
    session.say(&ToNode::Assign { units: vec![assignment("u2", "never")] }).await;
    shim.started().await;
    assert!(!dir.path().join("units/u1").exists());
}

#[tokio::test]
async fn a_unit_that_fails_is_started_again_on_the_same_port_and_stops_when_asked() {
    let (dir, server) = (tempfile::tempdir().unwrap(), FakeServer::new().await);
    let mut shim = FakeShim::new(dir.path());
    let _agent = Running::start(config(dir.path(), &server));
    let mut session = server.session(vec![assignment("u1", "on-failure")]).await;
    let first = shim.started().await;
    shim.run(&first.key);
    session.until(&unit(), UnitState::Running).await;
    shim.exit(&first.key, 3);
    let status = session.until(&unit(), UnitState::Backoff).await;
    assert_eq!((status.reason, status.exit_code), (Some(Reason::ExitedNonZero), Some(3)));
    shim.removed(&first.key).await;
    let second = shim.started().await;
    assert_eq!(second.key.0, "u1.main.1");
    shim.run(&second.key);
    assert_eq!(session.until(&unit(), UnitState::Running).await.restarts, 1);
    let mut stop = assignment("u1", "on-failure");
    stop.is_wanted = false;
    session.say(&ToNode::Assign { units: vec![stop] }).await;
    assert_eq!(shim.asked().await, Asked::Stop(second.key.clone(), StopSignal::Terminate));
    session.until(&unit(), UnitState::Stopping).await;
    shim.exit(&second.key, 143);
    let status = session.until(&unit(), UnitState::Stopped).await;
    assert_eq!((status.reason, status.exit_code), (Some(Reason::Requested), Some(143)));
}

#[tokio::test]
async fn a_program_that_can_not_be_fetched_is_tried_again_and_a_missing_shim_is_named() {
    let (dir, server) = (tempfile::tempdir().unwrap(), FakeServer::new().await);
    let _agent = Running::start(config(dir.path(), &server));
    let mut pull = serde_json::to_value(assignment("u1", "never")).unwrap();
    pull["template"]["tasks"][0]["wasm"]["artifact"] = "no/such:1".into();
    let pull = serde_json::from_value(pull).unwrap();
    let mut session = server.session(vec![pull, assignment("u2", "never")]).await;
    let mut seen = std::collections::BTreeMap::new();
    while seen.len() < 2 {
        for report in session.report(true).await {
            if matches!(report.status.state, UnitState::Backoff | UnitState::Failed) {
                seen.insert(report.unit.to_string(), report.status);
            }
        }
    }
    assert_eq!(seen["u1"].state, UnitState::Backoff);
    assert_eq!(seen["u1"].reason, Some(Reason::PullFailed));
    assert_eq!(seen["u2"].state, UnitState::Failed);
    assert!(seen["u2"].message.as_ref().unwrap().contains("shim"), "{:?}", seen["u2"]);
}

#[tokio::test]
async fn logs_are_followed_until_the_unit_ends_and_exec_and_attach_are_relayed() {
    let (dir, server) = (tempfile::tempdir().unwrap(), FakeServer::new().await);
    let mut shim = FakeShim::new(dir.path());
    let _agent = Running::start(config(dir.path(), &server));
    let mut session = server.session(vec![assignment("u1", "never")]).await;
    let start = shim.started().await;
    let mut log = LogWriter::open(start.log.clone()).unwrap();
    log.write(1, brig_api::logline::Stream::Stdout, b"before\n");
    shim.run(&start.key);
    session.until(&unit(), UnitState::Running).await;
    let open =
        |stream: &str, request| ToNode::OpenStream { stream: stream.into(), unit: unit(), request };
    let query = LogQuery { follow: true, ..LogQuery::default() };
    session.say(&open("s1", StreamRequest::Logs(query))).await;
    let mut stream = server.accept().await;
    assert_eq!(stream.path, "/v1/node-streams/s1");
    assert_eq!(stream.binary().await.unwrap(), b"main 1 o F before\n");
    log.write(2, brig_api::logline::Stream::Stderr, b"after\n");
    assert_eq!(stream.binary().await.unwrap(), b"main 2 e F after\n");

    let exec = ExecRequest { task: None, command: vec!["ls".into()], terminal: None };
    session.say(&open("s2", StreamRequest::Exec(exec.clone()))).await;
    let mut terminal = server.accept().await;
    let mut frame = terminal.binary().await.map(|bytes| StdioFrame::decode(&bytes).unwrap());
    assert_eq!(frame, Some(StdioFrame::Stderr(b"ls".to_vec())));
    terminal.send_binary(StdioFrame::Stdin(b"hello".to_vec()).encode()).await;
    frame = terminal.binary().await.map(|bytes| StdioFrame::decode(&bytes).unwrap());
    assert_eq!(frame, Some(StdioFrame::Stdout(b"hello".to_vec())));
    terminal.send_binary(StdioFrame::Stdin(vec![]).encode()).await;
    frame = terminal.binary().await.map(|bytes| StdioFrame::decode(&bytes).unwrap());
    assert_eq!(frame, Some(StdioFrame::Exit(4)));
    assert_eq!(terminal.binary().await, None);

    session.say(&open("s5", StreamRequest::Attach(AttachRequest::default()))).await;
    let mut input = server.accept().await;
    frame = input.binary().await.map(|bytes| StdioFrame::decode(&bytes).unwrap());
    assert_eq!(frame, Some(StdioFrame::Stderr(start.key.0.clone().into_bytes())));
    input.send_binary(StdioFrame::Stdin(vec![]).encode()).await;
    frame = input.binary().await.map(|bytes| StdioFrame::decode(&bytes).unwrap());
    assert_eq!(frame, Some(StdioFrame::Exit(4)));
    assert_eq!(input.binary().await, None);

    log.write(3, brig_api::logline::Stream::Stdout, b"last\n");
    shim.exit(&start.key, 0);
    session.until(&unit(), UnitState::Succeeded).await;
    assert_eq!(stream.binary().await.unwrap(), b"main 3 o F last\n");
    assert_eq!(stream.binary().await, None);

    session.say(&open("s3", StreamRequest::Exec(exec))).await;
    loop {
        if let FromNode::StreamFailed { stream, problem } = session.next().await {
            assert_eq!((stream.as_str(), problem.code), ("s3", Code::WrongState));
            break;
        }
    }
    let query = LogQuery { tail: Some(1), ..LogQuery::default() };
    session.say(&open("s4", StreamRequest::Logs(query))).await;
    let mut stream = server.accept().await;
    assert_eq!(stream.binary().await.unwrap(), b"main 3 o F last\n");
    assert_eq!(stream.binary().await, None);
}

#[tokio::test]
async fn with_a_shutdown_that_stops_units_they_end_and_run_again_with_the_next_agent() {
    let (dir, server) = (tempfile::tempdir().unwrap(), FakeServer::new().await);
    let mut shim = FakeShim::new(dir.path());
    let mut setup = config(dir.path(), &server);
    setup.stops_units_at_shutdown = true;
    let mut agent = Running::start(setup.clone());
    let mut session = server.session(vec![assignment("u1", "never")]).await;
    let start = shim.started().await;
    shim.run(&start.key);
    session.until(&unit(), UnitState::Running).await;
    agent.shutdown.cancel();
    assert_eq!(shim.asked().await, Asked::Stop(start.key.clone(), StopSignal::Terminate));
    shim.exit(&start.key, 143);
    shim.removed(&start.key).await;
    assert_eq!(shim.asked().await, Asked::Shutdown);
    agent.ended().await;
    let _agent = Running::start(setup);
    let _session = server.session(vec![assignment("u1", "never")]).await;
    assert_eq!(shim.started().await.key.0, "u1.main.1");
}
