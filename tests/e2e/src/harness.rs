//! Starts clusters of real processes, runs `brig` against them, and waits for conditions.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Longest wait for a condition: a loaded machine that compiles CPython takes a minute.
const PATIENCE: Duration = Duration::from_secs(150);
/// How long `brig dev` may take to stop its units at the end of a test.
const STOP_TIME_MAX: Duration = Duration::from_secs(20);
/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A folder that tests/setup filled, or the place where it does.
fn made(variable: &str, default: &str) -> PathBuf {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(default);
    std::env::var_os(variable).map_or(default, PathBuf::from)
}

/// A guest by file name, such as `hello.wasm`.
pub(crate) fn guest(name: &str) -> String {
    let path = made("BRIG_TEST_GUESTS", "tests/.cache/guests").join(name);
    assert!(path.exists(), "{} is missing: run tests/setup/guests", path.display());
    path.display().to_string()
}

/// A file or layout among the test images.
pub(crate) fn image(name: &str) -> String {
    let path = made("BRIG_TEST_IMAGES", "tests/.cache/images").join(name);
    assert!(path.exists(), "{} is missing: run tests/setup/images", path.display());
    path.display().to_string()
}

fn bin_dir() -> PathBuf {
    // The test's own binary is in `deps`, beside those that it tests.
    let own = std::env::current_exe().expect("a test has a path");
    let beside = own.parent().and_then(Path::parent).expect("a target folder").to_path_buf();
    std::env::var_os("BRIG_BIN_DIR").map_or(beside, PathBuf::from)
}

/// A taint that the usual units bear.
pub(crate) const SPOT: &str = "spot:prefer-not";

/// Are containers possible here? Says so when they are not, so that a skipped test is seen.
pub(crate) fn has_containers() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!("skipped: containers need root");
    }
    is_root
}

/// The URL of a database of the test's own, if there is a PostgreSQL.
pub(crate) fn postgres_database() -> Option<String> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let server = std::env::var("BRIG_TEST_POSTGRES").ok()?;
    let name = format!("e2e_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let output = Command::new("psql")
        .args([&server, "--quiet", "--command", &format!("create database {name}")])
        .output()
        .expect("psql runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (base, query) =
        server.split_once('?').map_or((server.as_str(), None), |(base, query)| (base, Some(query)));
    let base = base.rsplit_once('/').map(|(base, _)| base).expect("a URL with a database");
    Some(query.map_or_else(|| format!("{base}/{name}"), |query| format!("{base}/{name}?{query}")))
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ran {
    /// It ended with this code, and said these things on standard error.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, says: &[&str]) {
        assert_eq!(self.code, code, "{self:#?}");
        for text in says {
            assert!(self.stderr.contains(text), "standard error lacks `{text}`:\n{}", self.stderr);
        }
    }
}

/// A process of ours: killed at the end of the test, whatever happens.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(mut command: Command, log: PathBuf) -> Self {
        let file =
            std::fs::OpenOptions::new().create(true).append(true).open(&log).expect("a log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .expect("brig starts");
        Self { child, log }
    }

    /// The URL behind `ready`.
    fn ready(&mut self) -> String {
        let out = self.child.stdout.take().expect("a pipe");
        let mut lines = BufReader::new(out).lines().map_while(Result::ok);
        let url = lines.find_map(|line| line.strip_prefix("ready ").map(str::to_owned));
        url.unwrap_or_else(|| panic!("it did not get ready:\n{}", self.log_text()))
    }

    pub(crate) fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end, as its user would, and returns its exit code.
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        kill_process(self.pid(), Signal::TERM).expect("it runs");
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("── {}:\n{}", self.log.display(), last_lines(&self.log_text(), 60));
        }
        self.kill();
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn brig_command() -> Command {
    let mut command = Command::new(bin_dir().join("brig"));
    for variable in
        ["BRIG_SERVER", "BRIG_TOKEN", "BRIG_NAMESPACE", "BRIG_CONTEXT", "CARGO_PKG_NAME"]
    {
        command.env_remove(variable);
    }
    command.env("BRIG_CONFIG", "/nonexistent/brig.toml");
    command
}

/// Runs `brig` without a cluster.
pub(crate) fn brig_alone(arguments: &[&str]) -> Ran {
    brig_command().args(arguments).stdin(Stdio::null()).output().expect("brig runs").into()
}

/// A control plane and a node: one process (`brig dev`) or two.
pub(crate) struct Cluster {
    pub(crate) url: String,
    /// `brig dev`, or `brig server`.
    pub(crate) server: Option<Process>,
    /// `brig node`, where it is a process of its own.
    pub(crate) node: Option<Process>,
    pub(crate) data: PathBuf,
    db: Option<String>,
    // Last: the directory goes when the processes have.
    _folder: tempfile::TempDir,
}

impl Cluster {
    /// `brig dev` on SQLite.
    pub(crate) fn dev() -> Self {
        Self::dev_on(None)
    }

    /// `brig dev` on a database.
    pub(crate) fn dev_on(db: Option<String>) -> Self {
        let mut cluster = Self::new(db);
        cluster.start_dev();
        cluster
    }

    /// `brig server` and `brig node`, so that each can be killed alone.
    pub(crate) fn apart() -> Self {
        let mut cluster = Self::without_nodes();
        cluster.start_node();
        cluster
    }

    /// `brig server` alone.
    pub(crate) fn without_nodes() -> Self {
        let mut cluster = Self::new(None);
        cluster.start_server();
        cluster
    }

    fn new(db: Option<String>) -> Self {
        let folder =
            tempfile::Builder::new().prefix("brig-e2e-").tempdir().expect("a temporary directory");
        let data = folder.path().to_path_buf();
        Self { url: String::new(), server: None, node: None, data, db, _folder: folder }
    }

    /// The same port again after a restart, as a node or client expects it.
    fn listen(&self) -> String {
        self.url.strip_prefix("http://").unwrap_or("127.0.0.1:0").to_owned()
    }

    pub(crate) fn start_dev(&mut self) {
        let mut command = brig_command();
        command.arg("dev").arg("--data").arg(&self.data).args(["--listen", &self.listen()]);
        if let Some(db) = &self.db {
            command.args(["--db", db]);
        }
        let mut dev = Process::start(command, self.data.join("dev.log"));
        self.url = dev.ready();
        self.server = Some(dev);
    }

    pub(crate) fn start_server(&mut self) {
        let mut command = brig_command();
        command
            .arg("server")
            .arg("--data")
            .arg(self.data.join("server"))
            .args(["--listen", &self.listen()]);
        let mut server = Process::start(command, self.data.join("server.log"));
        self.url = server.ready();
        self.server = Some(server);
    }

    pub(crate) fn start_node(&mut self) {
        self.start_node_in("node", "node-1", SPOT, &[]);
    }

    /// Another node, in a folder of its name; it takes the place of the one before in this cluster's fields.
    pub(crate) fn start_node_named(&mut self, name: &str) {
        self.start_node_in(name, name, SPOT, &[]);
    }

    /// Starts the first node again, as one that its units are to leave.
    pub(crate) fn start_node_to_be_left(&mut self) {
        self.start_node_in("node", "node-1", "leaves:evict", &[]);
    }

    /// Another node, with a taint and more arguments; those of before are its caller's to keep.
    pub(crate) fn start_node_in(
        &mut self,
        folder: &str,
        name: &str,
        taint: &str,
        arguments: &[&str],
    ) {
        let mut command = brig_command();
        command
            .arg("node")
            .arg("--data")
            .arg(self.data.join(folder))
            .args(["--server", &self.url, "--name", name])
            .args(["--attribute", &format!("place={name}")]);
        command.args(["--host-path", "/tmp", "--resource", "gpu=2", "--taint", taint]);
        command.args(arguments);
        self.node = Some(Process::start(command, self.data.join(format!("{folder}.log"))));
        self.wait("the node to be ready", || {
            let nodes = self.json(&["node", "ls", "-o", "json"]);
            let nodes = nodes.as_array().expect("an array");
            nodes.iter().any(|node| node["name"] == name && node["state"] == "ready")
        });
    }

    /// A `brig` command for this cluster, not started yet.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = brig_command();
        command.args(arguments).env("BRIG_SERVER", &self.url).stdin(Stdio::null());
        command
    }

    /// Runs a command.
    pub(crate) fn brig(&self, arguments: &[&str]) -> Ran {
        self.command(arguments).output().expect("brig runs").into()
    }

    /// Runs a command that must succeed; its standard output.
    #[track_caller]
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let ran = self.brig(arguments);
        assert_eq!(ran.code, 0, "brig {arguments:?}: {ran:#?}");
        ran.stdout
    }

    /// Runs a command that must succeed and prints JSON.
    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let text = self.ok(arguments);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Runs a command with a text on its standard input.
    pub(crate) fn with_input(&self, arguments: &[&str], input: &str) -> Ran {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("brig starts");
        // It may end without reading everything.
        let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
        child.wait_with_output().expect("brig runs").into()
    }

    /// Applies a manifest that must be right.
    #[track_caller]
    pub(crate) fn apply(&self, manifest: &str) {
        let ran = self.with_input(&["apply", "-f", "-"], manifest);
        assert_eq!(ran.code, 0, "{ran:#?}");
    }

    /// Every unit, as `ps` lists them.
    pub(crate) fn units(&self) -> Vec<Value> {
        self.json(&["ps", "-o", "json"]).as_array().cloned().unwrap_or_default()
    }

    /// The units of a service or job.
    pub(crate) fn units_of(&self, owner: &str) -> Vec<Value> {
        self.units().into_iter().filter(|unit| unit["owner"] == owner).collect()
    }

    /// The unit of that name.
    pub(crate) fn unit(&self, name: &str) -> Value {
        self.units().into_iter().find(|unit| unit["name"] == name).unwrap_or(Value::Null)
    }

    /// Waits for a condition; shows the state of everything when it does not come.
    #[track_caller]
    pub(crate) fn wait(&self, what: &str, is_so: impl Fn() -> bool) {
        for _ in 0..PATIENCE.as_millis() / LOOK_EVERY.as_millis() {
            if is_so() {
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        let (units, events) = (self.brig(&["ps", "-o", "wide"]), self.brig(&["events"]));
        panic!("waited in vain for {what}\n{}{}\n{}", units.stdout, units.stderr, events.stdout);
    }

    /// Waits until a unit is in a state.
    #[track_caller]
    pub(crate) fn wait_for_state(&self, unit: &str, state: &str) {
        self.wait(&format!("unit `{unit}` to be {state}"), || self.unit(unit)["state"] == state);
    }

    /// Waits until so many units of a service run; their endpoints.
    #[track_caller]
    pub(crate) fn wait_for_service(&self, service: &str, count: usize) -> Vec<String> {
        // Of one look: at the next one they may be about to start again.
        let found = std::cell::RefCell::default();
        self.wait(&format!("{count} running units of `{service}`"), || {
            let units = self.running_units_of(service);
            let is_enough = units.len() == count;
            *found.borrow_mut() = endpoints(&units);
            is_enough
        });
        found.into_inner()
    }

    /// Where the running units of a service listen, as its cluster knows now.
    pub(crate) fn endpoints_of(&self, service: &str) -> Vec<String> {
        endpoints(&self.running_units_of(service))
    }

    fn running_units_of(&self, service: &str) -> Vec<Value> {
        self.units_of(service).into_iter().filter(|unit| unit["state"] == "running").collect()
    }

    /// Processes of this cluster's shims: their pids.
    pub(crate) fn shims(&self, runtime: &str) -> Vec<Pid> {
        let folder = self.data.display().to_string();
        let wanted = format!("/shims/{runtime}/");
        let mut pids = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("procfs").filter_map(Result::ok) {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&folder) && line.contains(&wanted) {
                pids.extend(Pid::from_raw(pid));
            }
        }
        pids
    }
}

fn endpoints(units: &[Value]) -> Vec<String> {
    let endpoints =
        units.iter().flat_map(|unit| unit["endpoints"].as_array().map_or(&[][..], Vec::as_slice));
    endpoints.filter_map(|endpoint| endpoint.as_str().map(str::to_owned)).collect()
}

/// What was killed leaves its shims running, as it should. A test leaves nothing.
impl Drop for Cluster {
    fn drop(&mut self) {
        self.node = None;
        // `brig dev` stops its units itself.
        if let Some(mut server) = self.server.take() {
            let _ = kill_process(server.pid(), Signal::TERM);
            for _ in 0..STOP_TIME_MAX.as_millis() / LOOK_EVERY.as_millis() {
                if !matches!(server.child.try_wait(), Ok(None)) {
                    break;
                }
                std::thread::sleep(LOOK_EVERY);
            }
        }
        for pid in self.shims("wasm").into_iter().chain(self.shims("oci")) {
            let _ = kill_process(pid, Signal::KILL);
        }
        for dir in containers_below(&self.data) {
            let _ = Command::new(bin_dir().join("brig-shim-oci"))
                .arg("cleanup")
                .arg("--dir")
                .arg(dir)
                .status();
        }
    }
}

/// The directories of shims that have recorded a container.
fn containers_below(data: &Path) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![data.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().filter_map(Result::ok) {
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            // Images and what they unpack to are large, and hold no shims.
            if is_dir && entry.file_name() != "artifacts" {
                open.push(entry.path());
            } else if entry.file_name() == "container.json" {
                found.push(folder.clone());
            }
        }
    }
    found
}

/// A request over HTTP/1.1: the status and the body.
pub(crate) fn get(url: &str) -> (u16, String) {
    try_get(url).unwrap_or_else(|error| panic!("{url}: {error}"))
}

/// The same, where nobody may answer.
pub(crate) fn try_get(url: &str) -> std::io::Result<(u16, String)> {
    let rest = url.strip_prefix("http://").expect("an http URL");
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /{path} HTTP/1.0\r\nHost: {host}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_owned()))
}

/// Runs a tool that must be there and succeed; its standard output.
#[track_caller]
pub(crate) fn tool(program: &str, arguments: &[&dyn AsRef<OsStr>]) -> String {
    let output = Command::new(program)
        .args(arguments.iter().map(AsRef::as_ref))
        .stdin(Stdio::null())
        .output();
    let output =
        output.unwrap_or_else(|error| panic!("{program}: {error}: run tests/setup/packages"));
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program}: {out}{err}");
    out.into_owned()
}
