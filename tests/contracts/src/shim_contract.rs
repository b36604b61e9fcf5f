//! What every shim promises, whatever it runs: each case is a function over a runtime, and
//! [`contract_of_shims!`] makes tests of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use brig_api::NamespacePath;
use brig_api::lifecycle::Reason;
use brig_api::logline::{LogLine, Stream};
use brig_shim::exit::ExitRecord;
use brig_shim::frame::FRAME_BYTES_MAX;
use brig_shim::message::{
    BindMount, Limits, LogTarget, PROTOCOL_VERSION, Reply, Request, StartProgram, StartTask,
    StopSignal, TaskKey, TaskState, TaskUsage,
};

use crate::shim_client::{ShimProcess, wait_until};

/// A kind of shim under test.
pub(crate) trait Runtime {
    /// Starts a shim whose state directory is `dir`; `base` is the test's own directory.
    fn start_shim(&self, base: &Path, dir: &Path) -> ShimProcess;

    /// A program that does this; files that it needs may be put into `base`.
    fn program(&self, base: &Path, does: &Does) -> StartProgram;
}

/// What the programs of the suite do.
pub(crate) enum Does {
    /// Ends with this code.
    Exit(i32),
    /// Writes these to its standard output and error, and ends with code 0.
    Print { stdout: &'static str, stderr: &'static str },
    /// Writes `ready` and a newline, then sleeps until it is stopped.
    Sleep,
    /// Writes `ready` and a newline, then computes for ever.
    Spin,
    /// Takes memory until it is stopped.
    TakeMemory,
    /// Writes the arguments after its name, then its variables as `K=V`, each ended by NUL or newline. It is
    /// given [`ARGS`].
    PrintArgsAndEnv,
    /// Copies a file to its standard output; another code than 0 when it can't.
    ReadFile(&'static str),
    /// Creates a file with content `written`; another code than 0 when it can't.
    WriteFile(&'static str),
}

/// The arguments of [`Does::PrintArgsAndEnv`].
pub(crate) const ARGS: [&str; 3] = ["--first", "two words", "ünïcode"];
/// The memory limit of every case.
pub(crate) const MEMORY_BYTES: u64 = 64 << 20;

/// A directory, a shim in it, and tasks for it.
pub(crate) struct Fixture {
    pub(crate) shim: ShimProcess,
    pub(crate) base: tempfile::TempDir,
}

impl Fixture {
    pub(crate) fn new(runtime: &dyn Runtime) -> Self {
        let base = tempfile::tempdir().expect("a temporary directory");
        let dir = base.path().join("shim");
        std::fs::create_dir(&dir).expect("a fresh directory");
        Self { shim: runtime.start_shim(base.path(), &dir), base }
    }

    /// A task `name` with its own directory and log.
    pub(crate) fn task(&self, name: &str, program: StartProgram) -> StartTask {
        let dir = self.base.path().join(name);
        std::fs::create_dir(&dir).expect("a fresh directory");
        StartTask {
            key: TaskKey(name.to_owned()),
            namespace: NamespacePath::new("team").expect("a namespace"),
            title: format!("contract/{name}"),
            log: LogTarget { path: dir.join("main.log"), bytes_max: 1 << 20, files_kept: 1 },
            dir,
            env: BTreeMap::new(),
            limits: Limits {
                cpu_request_milli: 500,
                cpu_limit_milli: 2000,
                memory_bytes: MEMORY_BYTES,
                pids: 64,
            },
            mounts: Vec::new(),
            stdin: false,
            program,
        }
    }

    pub(crate) fn task_that(&self, runtime: &dyn Runtime, does: &Does) -> StartTask {
        self.task("task", runtime.program(self.base.path(), does))
    }
}

/// The bytes that a task wrote to one of its streams, put together from its log.
pub(crate) fn output(log: &LogTarget, stream: Stream) -> String {
    let mut bytes = Vec::new();
    for line in std::fs::read(&log.path).unwrap_or_default().split(|byte| *byte == b'\n') {
        if let Some(line) = LogLine::parse(line).filter(|line| line.stream == stream) {
            bytes.extend_from_slice(line.bytes);
            bytes.extend_from_slice(if line.ends_line { b"\n" } else { b"" });
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn wait_ready(task: &StartTask) {
    wait_until("the program says that it is ready", || {
        output(&task.log, Stream::Stdout).contains("ready\n")
    });
}

fn mount(source: PathBuf, read_only: bool) -> BindMount {
    BindMount { source, at: "/data".to_owned(), read_only }
}

pub(crate) fn the_exit_code_is_reported_and_on_disk(runtime: &dyn Runtime) {
    for code in [0, 3, 41] {
        let fixture = Fixture::new(runtime);
        let task = fixture.task_that(runtime, &Does::Exit(code));
        let mut client = fixture.shim.connect();
        client.start(&task);
        assert_eq!(client.wait_running(&task.key), None);
        let record = client.wait_exited(&task.key);
        assert_eq!(record.code, code);
        assert_eq!(record.reason, (code != 0).then_some(Reason::ExitedNonZero));
        assert!(record.finished_ms > 1_700_000_000_000);
        assert_eq!(ExitRecord::read(&task.dir).unwrap(), Some(record));
    }
}

pub(crate) fn both_streams_arrive_in_the_log(runtime: &dyn Runtime) {
    let fixture = Fixture::new(runtime);
    let task = fixture.task_that(runtime, &Does::Print { stdout: "a\n\nb", stderr: "to error\n" });
    let mut client = fixture.shim.connect();
    client.start(&task);
    assert_eq!(client.wait_exited(&task.key).code, 0);
    assert_eq!(output(&task.log, Stream::Stdout), "a\n\nb");
    assert_eq!(output(&task.log, Stream::Stderr), "to error\n");
}

pub(crate) fn a_kill_ends_sleepers_and_spinners(runtime: &dyn Runtime) {
    for does in [Does::Sleep, Does::Spin] {
        let fixture = Fixture::new(runtime);
        let task = fixture.task_that(runtime, &does);
        let mut client = fixture.shim.connect();
        client.start(&task);
        wait_ready(&task);
        client.stop(&task.key, StopSignal::Kill);
        let record = client.wait_exited(&task.key);
        assert_eq!((record.code, record.reason), (137, None));
        client.stop(&task.key, StopSignal::Kill);
    }
}

pub(crate) fn a_task_that_is_asked_to_end_ends_without_blame(runtime: &dyn Runtime) {
    let fixture = Fixture::new(runtime);
    let task = fixture.task_that(runtime, &Does::Sleep);
    let mut client = fixture.shim.connect();
    client.start(&task);
    wait_ready(&task);
    client.stop(&task.key, StopSignal::Terminate);
    let record = client.wait_exited(&task.key);
    assert_eq!((record.code, record.reason), (143, None));
}

pub(crate) fn starting_twice_runs_once(runtime: &dyn Runtime) {
    let fixture = Fixture::new(runtime);
    let task = fixture.task_that(runtime, &Does::Print { stdout: "once\n", stderr: "" });
    let mut client = fixture.shim.connect();
    client.start(&task);
    client.start(&task);
    client.wait_exited(&task.key);
    client.start(&task);
    assert_eq!(output(&task.log, Stream::Stdout), "once\n");
    let tasks = fixture.shim.connect().hello();
    assert!(matches!(&tasks[..], [only] if matches!(only.state, TaskState::Exited(_))));
}

pub(crate) fn a_removed_task_is_forgotten(runtime: &dyn Runtime) {
    let fixture = Fixture::new(runtime);
    let task = fixture.task_that(runtime, &Does::Sleep);
    let mut client = fixture.shim.connect();
    client.start(&task);
    wait_ready(&task);
    let refused = client.request(Request::Remove { task: task.key.clone() });
    assert!(matches!(refused, Reply::Refused { .. }), "a running task is not removed: {refused:?}");
    assert!(matches!(client.request(Request::Shutdown), Reply::Refused { .. }));
    client.stop(&task.key, StopSignal::Kill);
    client.wait_exited(&task.key);
    client.remove(&task.key);
    client.remove(&task.key);
    assert_eq!(client.hello(), []);
    client.stop(&task.key, StopSignal::Terminate);
}

pub(crate) fn tasks_outlive_the_agents_connection(runtime: &dyn Runtime) {
    let fixture = Fixture::new(runtime);
    let task = fixture.task_that(runtime, &Does::Sleep);
    let mut client = fixture.shim.connect();
    client.start(&task);
    wait_ready(&task);
    drop(client);
    let mut client = fixture.shim.connect_silently();
    let tasks = client.hello();
    assert!(matches!(&tasks[..], [only]
        if only.key == task.key && matches!(only.state, TaskState::Running { http: None })));
    client.stop(&task.key, StopSignal::Kill);
    assert_eq!(client.wait_exited(&task.key).code, 137);
}

pub(crate) fn an_exit_while_nobody_is_connected_is_not_lost(runtime: &dyn Runtime) {
    let fixture = Fixture::new(runtime);
    let task = fixture.task_that(runtime, &Does::Exit(7));
    let mut client = fixture.shim.connect();
    client.start(&task);
    drop(client);
    wait_until("the exit is on disk", || ExitRecord::read(&task.dir).unwrap().is_some());
    let record = ExitRecord::read(&task.dir).unwrap().unwrap();
    assert_eq!(record.code, 7);
    wait_until("the shim tells it", || {
        let tasks = fixture.shim.connect_silently().hello();
        matches!(&tasks[..], [only] if only.state == TaskState::Exited(record.clone()))
    });
}

pub(crate) fn another_version_is_refused(runtime: &dyn Runtime) {
    let fixture = Fixture::new(runtime);
    let mut client = fixture.shim.connect_silently();
    match client.request(Request::Hello { version: PROTOCOL_VERSION + 1 }) {
        Reply::Refused { message, .. } => {
            assert!(message.contains(&PROTOCOL_VERSION.to_string()), "{message}");
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
    fixture.shim.connect();
}

pub(crate) fn hostile_bytes_cost_their_own_connection_only(runtime: &dyn Runtime) {
    let fixture = Fixture::new(runtime);
    let task = fixture.task_that(runtime, &Does::Sleep);
    let mut client = fixture.shim.connect();
    client.start(&task);
    wait_ready(&task);
    let too_long = u32::try_from(FRAME_BYTES_MAX + 1).unwrap().to_be_bytes();
    for bytes in [&too_long[..], &[0xff; 4], &[0, 0, 0, 1, b'{'], &[0, 0, 0, 2, b'{', b'}']] {
        let mut hostile = fixture.shim.connect_silently();
        hostile.send_raw(bytes);
        assert!(hostile.is_closed_by_shim(), "{bytes:?}");
    }
    client.stop(&task.key, StopSignal::Kill);
    assert_eq!(client.wait_exited(&task.key).code, 137);
}

pub(crate) fn memory_beyond_the_limit_ends_the_task(runtime: &dyn Runtime) {
    let fixture = Fixture::new(runtime);
    let task = fixture.task_that(runtime, &Does::TakeMemory);
    let mut client = fixture.shim.connect();
    client.start(&task);
    let record = client.wait_exited(&task.key);
    assert_eq!((record.code, record.reason), (137, Some(Reason::OutOfMemory)));
    assert!(record.message.is_some());
    assert!(record.usage.memory_peak_bytes > MEMORY_BYTES / 2, "{:?}", record.usage);
}

pub(crate) fn arguments_and_variables_arrive_and_no_others(runtime: &dyn Runtime) {
    let fixture = Fixture::new(runtime);
    let mut task = fixture.task_that(runtime, &Does::PrintArgsAndEnv);
    task.env.insert("GREETING".into(), "hello = world".into());
    task.env.insert("EMPTY".into(), String::new());
    let mut client = fixture.shim.connect();
    client.start(&task);
    assert_eq!(client.wait_exited(&task.key).code, 0);
    let output = output(&task.log, Stream::Stdout);
    let words: Vec<_> = output.split(['\0', '\n']).collect();
    assert_eq!(words[..ARGS.len()], ARGS);
    assert!(words.contains(&"GREETING=hello = world") && words.contains(&"EMPTY="), "{words:?}");
    assert!(!output.contains("CANARY"), "{words:?}");
}

pub(crate) fn mounts_are_there_and_read_only_ones_refuse_writes(runtime: &dyn Runtime) {
    for (read_only, does, succeeds) in [
        (true, Does::ReadFile("/data/in.txt"), true),
        (true, Does::WriteFile("/data/out.txt"), false),
        (false, Does::WriteFile("/data/out.txt"), true),
        (false, Does::ReadFile("/data/missing.txt"), false),
    ] {
        let fixture = Fixture::new(runtime);
        let source = fixture.base.path().join("source");
        std::fs::create_dir(&source).unwrap();
        std::fs::write(source.join("in.txt"), "content of the file").unwrap();
        let mut task = fixture.task_that(runtime, &does);
        task.mounts.push(mount(source.clone(), read_only));
        let mut client = fixture.shim.connect();
        client.start(&task);
        assert_eq!(client.wait_exited(&task.key).code == 0, succeeds);
        let written = std::fs::read_to_string(source.join("out.txt")).ok();
        match does {
            Does::WriteFile(_) => {
                assert_eq!(written.as_deref(), succeeds.then_some("written"));
            }
            _ if succeeds => {
                assert_eq!(output(&task.log, Stream::Stdout), "content of the file");
            }
            _ => {}
        }
    }
}

pub(crate) fn a_mount_that_is_missing_is_refused_by_name(runtime: &dyn Runtime) {
    let fixture = Fixture::new(runtime);
    let mut task = fixture.task_that(runtime, &Does::Exit(0));
    task.mounts.push(mount("/nowhere/at/all".into(), true));
    let mut client = fixture.shim.connect();
    client.start(&task);
    let record = client.wait_exited(&task.key);
    assert_eq!(record.reason, Some(Reason::MountRefused));
    assert!(record.message.unwrap().contains("/nowhere/at/all"));
}

pub(crate) fn usage_is_counted(runtime: &dyn Runtime) {
    let fixture = Fixture::new(runtime);
    let mut task = fixture.task_that(runtime, &Does::Spin);
    task.limits.cpu_limit_milli = 200;
    let mut client = fixture.shim.connect();
    client.start(&task);
    wait_ready(&task);
    wait_until("it has used some processor time and was held back", || {
        let usage = client.usage(&task.key);
        let TaskUsage { used, memory_bytes } = usage;
        let has_held = used.memory_byte_s > 0;
        used.cpu_ns > 20_000_000 && used.throttled_ns > 20_000_000 && memory_bytes > 0 && has_held
    });
    client.stop(&task.key, StopSignal::Kill);
    let used = client.wait_exited(&task.key).usage;
    assert!(used.cpu_ns > 20_000_000 && used.memory_byte_s > 0, "{used:?}");
    let last = client.usage(&task.key);
    assert_eq!((last.used, last.memory_bytes), (used, 0), "what has ended goes on using nothing");
}

pub(crate) fn a_shim_without_tasks_ends_when_told(runtime: &dyn Runtime) {
    let mut fixture = Fixture::new(runtime);
    let mut client = fixture.shim.connect();
    assert_eq!(client.request(Request::Shutdown), Reply::Done);
    assert!(client.is_closed_by_shim());
    assert!(fixture.shim.wait_for_end().success());
}

/// One test per case of the contract, for a runtime.
macro_rules! contract_of_shims {
    ($runtime:expr) => {
        crate::shim_contract::contract_of_shims!($runtime;
            the_exit_code_is_reported_and_on_disk
            both_streams_arrive_in_the_log
            a_kill_ends_sleepers_and_spinners
            a_task_that_is_asked_to_end_ends_without_blame
            starting_twice_runs_once
            a_removed_task_is_forgotten
            tasks_outlive_the_agents_connection
            an_exit_while_nobody_is_connected_is_not_lost
            another_version_is_refused
            hostile_bytes_cost_their_own_connection_only
            memory_beyond_the_limit_ends_the_task
            arguments_and_variables_arrive_and_no_others
            mounts_are_there_and_read_only_ones_refuse_writes
            a_mount_that_is_missing_is_refused_by_name
            usage_is_counted
            a_shim_without_tasks_ends_when_told
        );
    };
    ($runtime:expr; $($case:ident)*) => {
        $(#[test]
        fn $case() {
            crate::shim_contract::$case(&$runtime);
        })*
    };
}
pub(crate) use contract_of_shims;
