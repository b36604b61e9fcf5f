//! A small shim in this process: has tasks, says what a test tells it to, ends when it is dropped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use brig_api::checkpoint::{Checkpoint, State};
use brig_api::stdio::StdioFrame;
use brig_api::usage::Usage;
use brig_shim::checkpoint::{self, CHECKPOINT_NAME};
use brig_shim::exit::ExitRecord;
use brig_shim::frame::{Decoder, encode, encode_message};
use brig_shim::message::{
    FromShim, PROTOCOL_VERSION, Reply, Request, SOCKET_NAME, StartTask, StopSignal, TaskKey,
    TaskState, TaskView, ToShim,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;

use super::fake_server::in_time;

/// What the agent asked for.
#[derive(Debug, PartialEq)]
pub(crate) enum Asked {
    Start(Box<StartTask>),
    Stop(TaskKey, StopSignal),
    Remove(TaskKey),
    Shutdown,
}

type Tasks = Arc<Mutex<BTreeMap<TaskKey, (PathBuf, TaskState)>>>;

pub(crate) struct FakeShim {
    tasks: Tasks,
    events: broadcast::Sender<FromShim>,
    asked: mpsc::UnboundedReceiver<Asked>,
    lives: watch::Sender<u32>,
    _serving: JoinSet<()>,
}

impl FakeShim {
    /// Serves in the wasm shim's directory of namespace `default`.
    pub(crate) fn new(data: &Path) -> Self {
        let dir = data.join("shims/wasm/default");
        std::fs::create_dir_all(&dir).unwrap();
        let _ = std::fs::remove_file(dir.join(SOCKET_NAME));
        let listener = UnixListener::bind(dir.join(SOCKET_NAME)).unwrap();
        let tasks = Tasks::default();
        let (events, _) = broadcast::channel(64);
        let (asked_tx, asked) = mpsc::unbounded_channel();
        let lives = watch::Sender::new(0);
        let mut serving = JoinSet::new();
        serving.spawn({
            let (tasks, events, lives) = (tasks.clone(), events.clone(), lives.clone());
            async move {
                let mut connections = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    let (tasks, events) = (tasks.clone(), events.subscribe());
                    let (asked, mut life) = (asked_tx.clone(), lives.subscribe());
                    connections.spawn(async move {
                        tokio::select! {
                            () = serve(stream, tasks, events, asked) => {}
                            _ = life.changed() => {}
                        }
                    });
                }
            }
        });
        Self { tasks, events, asked, lives, _serving: serving }
    }

    pub(crate) async fn asked(&mut self) -> Asked {
        in_time("a request", self.asked.recv()).await.expect("the shim serves")
    }

    /// The next start; nothing else may be asked before.
    pub(crate) async fn started(&mut self) -> StartTask {
        match self.asked().await {
            Asked::Start(start) => *start,
            other => panic!("not a start: {other:?}"),
        }
    }

    /// Waits until the agent lets a task be forgotten, whatever else it asks for.
    pub(crate) async fn removed(&mut self, wanted: &TaskKey) {
        while self.asked().await != Asked::Remove(wanted.clone()) {}
    }

    /// Dies with its tasks; another one is there at once.
    pub(crate) fn die(&self) {
        self.tasks.lock().unwrap().clear();
        self.lives.send_modify(|life| *life += 1);
    }

    /// Asks nothing more than what was looked at.
    pub(crate) fn is_quiet(&mut self) -> bool {
        self.asked.try_recv().is_err()
    }

    pub(crate) fn run(&self, key: &TaskKey) {
        let http = Some("127.0.0.1:4041".parse().unwrap());
        self.tasks.lock().unwrap().get_mut(key).unwrap().1 = TaskState::Running { http };
        let _ = self.events.send(FromShim::Running { task: key.clone(), http });
    }

    /// The program saves, and nobody is told.
    pub(crate) fn save_silently(&self, key: &TaskKey, state: &[u8]) -> u64 {
        let file = self.tasks.lock().unwrap()[key].0.join(CHECKPOINT_NAME);
        let number = checkpoint::number(&file).unwrap().unwrap_or(0) + 1;
        let state = State::new(state.to_vec()).unwrap();
        checkpoint::write(&file, &Checkpoint { number, saved_ms: 17, state }).unwrap();
        number
    }

    pub(crate) fn save(&self, key: &TaskKey, state: &[u8]) {
        let number = self.save_silently(key, state);
        let _ = self.events.send(FromShim::Checkpoint { task: key.clone(), number });
    }

    pub(crate) fn exit(&self, key: &TaskKey, code: i32) {
        let record = ExitRecord {
            code,
            reason: None,
            message: None,
            finished_ms: 17,
            usage: Usage::default(),
        };
        let mut tasks = self.tasks.lock().unwrap();
        let (dir, state) = tasks.get_mut(key).unwrap();
        record.write(dir).unwrap();
        *state = TaskState::Exited(record.clone());
        let _ = self.events.send(FromShim::Exited { task: key.clone(), record });
    }
}

async fn serve(
    mut stream: UnixStream,
    tasks: Tasks,
    mut events: broadcast::Receiver<FromShim>,
    asked: mpsc::UnboundedSender<Asked>,
) {
    let mut decoder = Decoder::default();
    let mut bytes = [0; 4096];
    loop {
        while let Some(ToShim { id, request }) = decoder.next_message().unwrap() {
            let streams = match &request {
                Request::Exec { exec, .. } => Some(exec.command.clone()),
                Request::Attach { task } => Some(vec![task.0.clone()]),
                _ => None,
            };
            if let Some(greeting) = streams {
                send(&mut stream, &FromShim::Reply { id, reply: Reply::Done }).await;
                echo(stream, greeting).await;
                return;
            }
            let reply = answer(request, &tasks, &asked);
            send(&mut stream, &FromShim::Reply { id, reply }).await;
        }
        tokio::select! {
            event = events.recv() => send(&mut stream, &event.unwrap()).await,
            count = stream.read(&mut bytes) => match count {
                Ok(0) | Err(_) => return,
                Ok(count) => decoder.push(&bytes[..count]),
            },
        }
    }
}

fn answer(request: Request, tasks: &Tasks, asked: &mpsc::UnboundedSender<Asked>) -> Reply {
    let mut tasks = tasks.lock().unwrap();
    match request {
        Request::Hello { .. } => {
            let view = |(key, (_, state)): (&TaskKey, &(PathBuf, TaskState))| TaskView {
                key: key.clone(),
                state: state.clone(),
            };
            let tasks = tasks.iter().map(view).collect();
            return Reply::Hello { version: PROTOCOL_VERSION, tasks };
        }
        Request::Start(start) => {
            tasks.insert(start.key.clone(), (start.dir.clone(), TaskState::Starting));
            let _ = asked.send(Asked::Start(start));
        }
        Request::Stop { task, how } => {
            let _ = asked.send(Asked::Stop(task, how));
        }
        Request::Remove { task } => {
            tasks.remove(&task);
            let _ = asked.send(Asked::Remove(task));
        }
        Request::Shutdown => {
            let _ = asked.send(Asked::Shutdown);
        }
        Request::Usage { .. } | Request::Exec { .. } | Request::Attach { .. } => {}
    }
    Reply::Done
}

async fn send(stream: &mut UnixStream, message: &FromShim) {
    let mut bytes = Vec::new();
    encode_message(message, &mut bytes).unwrap();
    // The agent may have been killed.
    let _ = stream.write_all(&bytes).await;
}

/// Says its greeting, repeats its input, and ends with code 4 when that ends.
async fn echo(mut stream: UnixStream, greeting: Vec<String>) {
    let mut decoder = Decoder::default();
    let mut bytes = [0; 4096];
    let mut out = vec![StdioFrame::Stderr(greeting.join(" ").into_bytes())];
    loop {
        for frame in out.drain(..) {
            let mut bytes = Vec::new();
            encode(&frame.encode(), &mut bytes).unwrap();
            stream.write_all(&bytes).await.unwrap();
            if matches!(frame, StdioFrame::Exit(_)) {
                return;
            }
        }
        while let Some(frame) = decoder.next_frame().unwrap() {
            out.push(match StdioFrame::decode(&frame).unwrap() {
                StdioFrame::Stdin(bytes) if bytes.is_empty() => StdioFrame::Exit(4),
                StdioFrame::Stdin(bytes) => StdioFrame::Stdout(bytes),
                other => panic!("unexpected {other:?}"),
            });
        }
        if out.is_empty() {
            match stream.read(&mut bytes).await {
                Ok(0) | Err(_) => return,
                Ok(count) => decoder.push(&bytes[..count]),
            }
        }
    }
}
