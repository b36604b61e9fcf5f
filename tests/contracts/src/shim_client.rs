//! A small blocking client of the shim protocol, and a shim process that ends with its test.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use brig_api::stdio::StdioFrame;
use brig_api::usage::Usage;
use brig_shim::code::Refusal;
use brig_shim::exit::ExitRecord;
use brig_shim::frame::{Decoder, encode, encode_message};
use brig_shim::handover;
use brig_shim::message::{
    FromShim, PROTOCOL_VERSION, Reply, Request, SOCKET_NAME, StartTask, StopSignal, TaskKey,
    TaskUsage, TaskView, ToShim,
};
use rustix::net::sockopt;
use rustix::process::Pid;

/// How long a test waits for something that must come; generous, for loaded machines and unoptimised builds.
pub(crate) const WAIT: Duration = Duration::from_secs(120);

/// A shim that was started as the agent starts it. It is killed when the test ends.
pub(crate) struct ShimProcess {
    child: Child,
    dir: PathBuf,
}

impl ShimProcess {
    /// Binds `DIR/shim.sock` and starts `command` with the listener as standard input.
    pub(crate) fn start(mut command: Command, dir: &Path) -> Self {
        let listener = UnixListener::bind(dir.join(SOCKET_NAME)).expect("the socket can be bound");
        let child = command
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .env("BRIG_CANARY", "must-not-be-inherited")
            .spawn()
            .unwrap_or_else(|error| panic!("{} starts: {error}", command.get_program().display()));
        Self { child, dir: dir.to_owned() }
    }

    /// A connection that has said hello.
    pub(crate) fn connect(&self) -> ShimClient {
        loop {
            let mut client = self.connect_silently();
            client.hello();
            // Until the shim has come up, this process is the one that listens.
            let peer = sockopt::socket_peercred(&client.stream).expect("a local socket").pid;
            if peer == rustix::process::getpid() {
                continue;
            }
            client.owners = user_namespace(peer);
            return client;
        }
    }

    /// A connection on which nothing was said yet.
    pub(crate) fn connect_silently(&self) -> ShimClient {
        let stream = UnixStream::connect(self.dir.join(SOCKET_NAME)).expect("the shim listens");
        stream.set_read_timeout(Some(WAIT)).expect("a time-out can be set");
        ShimClient {
            stream,
            decoder: Decoder::default(),
            next_id: 1,
            events: VecDeque::new(),
            owners: None,
        }
    }

    /// Ends it at once, with everything in it.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("a child can be waited for");
    }

    /// Waits until the process has ended by itself.
    pub(crate) fn wait_for_end(&mut self) -> std::process::ExitStatus {
        self.child.wait().expect("a child can be waited for")
    }
}

impl Drop for ShimProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // What looks after a container leaves it when it is killed, or at least its cgroup.
        if self.dir.join("container.json").exists() {
            let mut command = Command::new(shim_binary("brig-shim-oci"));
            let _ = command.arg("cleanup").arg("--dir").arg(&self.dir).status();
        }
    }
}

/// One connection.
pub(crate) struct ShimClient {
    stream: UnixStream,
    decoder: Decoder,
    next_id: u64,
    events: VecDeque<FromShim>,
    /// The shim's user namespace, if it is not this process's.
    owners: Option<OwnedFd>,
}

fn user_namespace(process: Pid) -> Option<OwnedFd> {
    let open = |whose: &str| std::fs::File::open(format!("/proc/{whose}/ns/user")).unwrap();
    let (ours, theirs) = (open("self"), open(&process.as_raw_nonzero().to_string()));
    let is_same = ours.metadata().unwrap().ino() == theirs.metadata().unwrap().ino();
    (!is_same).then(|| theirs.into())
}

impl ShimClient {
    /// Says hello; the tasks that the shim has.
    pub(crate) fn hello(&mut self) -> Vec<TaskView> {
        match self.request(Request::Hello { version: PROTOCOL_VERSION }) {
            Reply::Hello { version: PROTOCOL_VERSION, tasks, .. } => tasks,
            other => panic!("expected a hello, got {other:?}"),
        }
    }

    /// Sends a request and waits for its answer; events in between are kept.
    pub(crate) fn request(&mut self, request: Request) -> Reply {
        self.request_with(request, &[])
    }

    fn request_with(&mut self, request: Request, handed_over: &[OwnedFd]) -> Reply {
        let id = self.next_id;
        self.next_id += 1;
        let mut bytes = Vec::new();
        encode_message(&ToShim { id, request }, &mut bytes).expect("a request fits a frame");
        let sent = handover::send(&self.stream, &bytes, handed_over).expect("the shim reads");
        self.send_raw(&bytes[sent..]);
        loop {
            match self.read_message().expect("the shim answers") {
                FromShim::Reply { id: answered, reply } => {
                    assert_eq!(answered, id, "answers come in order");
                    return reply;
                }
                event => self.events.push_back(event),
            }
        }
    }

    /// After an exec was accepted: the connection, and what of it was read already.
    pub(crate) fn into_stdio(self) -> (UnixStream, Decoder) {
        (self.stream, self.decoder)
    }

    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the shim reads");
    }

    /// True when the shim closes the connection (and sends no more than what was asked before).
    pub(crate) fn is_closed_by_shim(&mut self) -> bool {
        loop {
            match self.stream.read(&mut [0; 1024]) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return true,
                Err(_) => return false,
            }
        }
    }

    pub(crate) fn start(&mut self, task: &StartTask) {
        // As the agent does: what can't be opened is an end, too.
        let handed_over = match handover::open(task, self.owners.as_ref().map(AsFd::as_fd)) {
            Ok(handed_over) => handed_over,
            Err(Refusal { reason, message }) => {
                let (task, usage) = (task.key.clone(), Usage::default());
                let (reason, message) = (Some(reason), Some(message));
                let record = ExitRecord { code: 126, reason, message, finished_ms: 0, usage };
                return self.events.push_back(FromShim::Exited { task, record });
            }
        };
        let start = Request::Start(Box::new(task.clone()));
        assert_eq!(self.request_with(start, &handed_over), Reply::Done);
    }

    pub(crate) fn stop(&mut self, task: &TaskKey, how: StopSignal) {
        assert_eq!(self.request(Request::Stop { task: task.clone(), how }), Reply::Done);
    }

    pub(crate) fn remove(&mut self, task: &TaskKey) {
        assert_eq!(self.request(Request::Remove { task: task.clone() }), Reply::Done);
    }

    pub(crate) fn usage(&mut self, task: &TaskKey) -> TaskUsage {
        match self.request(Request::Usage { after: None }) {
            Reply::Usage { tasks: all } => {
                let of_it = all.into_iter().find(|(key, _)| key == task);
                of_it.expect("the task is one of those that the shim tells of").1
            }
            other => panic!("expected usage, got {other:?}"),
        }
    }

    /// Waits until the task runs; where its http server listens.
    pub(crate) fn wait_running(&mut self, key: &TaskKey) -> Option<std::net::SocketAddr> {
        let event = self.wait_for(|event| match event {
            FromShim::Running { task, .. } | FromShim::Exited { task, .. } => task == key,
            FromShim::Reply { .. } | FromShim::Checkpoint { .. } => false,
        });
        match event {
            FromShim::Running { http, .. } => http,
            other => panic!("expected that the task runs, got {other:?}"),
        }
    }

    /// Waits until the task has ended.
    pub(crate) fn wait_exited(&mut self, key: &TaskKey) -> ExitRecord {
        let event =
            self.wait_for(|event| matches!(event, FromShim::Exited { task, .. } if task == key));
        match event {
            FromShim::Exited { record, .. } => record,
            other => panic!("expected an exit, got {other:?}"),
        }
    }

    /// Waits for an event, if it has not come yet.
    pub(crate) fn wait_for(&mut self, wanted: impl Fn(&FromShim) -> bool) -> FromShim {
        if let Some(index) = self.events.iter().position(&wanted) {
            return self.events.remove(index).expect("the index was just found");
        }
        loop {
            let event = self.read_message().expect("the event comes");
            if wanted(&event) {
                return event;
            }
            self.events.push_back(event);
        }
    }

    fn read_message(&mut self) -> anyhow::Result<FromShim> {
        let mut buffer = [0; 16 << 10];
        loop {
            if let Some(message) = self.decoder.next_message()? {
                return Ok(message);
            }
            let count = self.stream.read(&mut buffer)?;
            anyhow::ensure!(count > 0, "the shim closed the connection");
            self.decoder.push(&buffer[..count]);
        }
    }
}

/// A connection that carries frames of standard streams.
pub(crate) struct StdioClient {
    stream: UnixStream,
    decoder: Decoder,
}

impl StdioClient {
    /// After a request for it was answered.
    pub(crate) fn of(client: ShimClient) -> Self {
        let (stream, decoder) = client.into_stdio();
        Self { stream, decoder }
    }

    /// False when the shim takes nothing more for a while.
    pub(crate) fn try_send(&mut self, frame: &StdioFrame, wait: Duration) -> bool {
        let mut bytes = Vec::new();
        encode(&frame.encode(), &mut bytes).expect("it fits a frame");
        self.stream.set_write_timeout(Some(wait)).expect("a time-out can be set");
        self.stream.write_all(&bytes).is_ok()
    }

    pub(crate) fn send(&mut self, frame: &StdioFrame) {
        assert!(self.try_send(frame, WAIT), "the shim takes {frame:?}");
    }

    /// The next frame; None at the end.
    pub(crate) fn next(&mut self) -> Option<StdioFrame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().expect("a frame") {
                return Some(StdioFrame::decode(&frame).expect("a frame of a standard stream"));
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes).expect("the shim answers in time") {
                0 => return None,
                count => self.decoder.push(&bytes[..count]),
            }
        }
    }
}

/// Waits for a condition, for at most [`WAIT`].
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let mut waited = Duration::ZERO;
    let step = Duration::from_millis(2);
    while !condition() {
        assert!(waited < WAIT, "waited too long until {what}");
        std::thread::park_timeout(step);
        waited += step;
    }
}

/// Where the shims were built: `BRIG_BIN_DIR`, or beside this test.
pub(crate) fn shim_binary(name: &str) -> PathBuf {
    let dir = std::env::var_os("BRIG_BIN_DIR").map_or_else(
        || {
            let test = std::env::current_exe().expect("a test knows its own path");
            test.ancestors().nth(2).expect("tests are built in DIR/deps").to_owned()
        },
        PathBuf::from,
    );
    let path = dir.join(name);
    assert!(path.is_file(), "{} is missing: `cargo build -p {name}` first", path.display());
    path
}
