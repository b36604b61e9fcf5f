//! Guests that mean harm: how each of them ends, and that a neighbour in the same shim answers all the while. What
//! keeps them from the node once they are out of the sandbox is in `wasm_worker`.

mod bombs;
mod paths;

use std::net::SocketAddr;
use std::path::PathBuf;

use brig_api::lifecycle::Reason;
use brig_api::logline::Stream;
use brig_shim::exit::ExitRecord;
use brig_shim::message::{
    BindMount, KeyValueStore, StartProgram, StartTask, StartWasm, StopSignal, WasmWorld,
};

use crate::shim_client::{ShimClient, wait_until};
use crate::shim_contract::{Fixture, Runtime, output};
use crate::wasm_http::ask;
use crate::wasm_programs::guest;
use crate::wasm_shim::{PRELUDE, Wasm, wasm};

/// A shim with an http service in it, beside which hostile guests run.
struct Rig {
    fixture: Fixture,
    client: ShimClient,
    neighbour: SocketAddr,
    tasks: usize,
}

impl Rig {
    fn new() -> Self {
        Self::on(&Wasm)
    }

    fn on(runtime: &dyn Runtime) -> Self {
        let fixture = Fixture::new(runtime);
        let mut client = fixture.shim.connect();
        let mut web = guest("web.wasm", &[]);
        web.http = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        let mut task = fixture.task("neighbour", StartProgram::Wasm(web));
        task.env.insert("UNIT_NAME".into(), "neighbour".into());
        client.start(&task);
        let neighbour = client.wait_running(&task.key).expect("an address");
        Self { fixture, client, neighbour, tasks: 0 }
    }

    #[track_caller]
    fn neighbour_answers(&self) {
        let answer = ask(self.neighbour, "GET", "/", "");
        assert_eq!(answer, (200, "Hello from neighbour!\n".to_owned()));
    }

    fn task(&mut self, program: StartWasm) -> StartTask {
        self.tasks += 1;
        self.fixture.task(&format!("hostile{}", self.tasks), StartProgram::Wasm(program))
    }

    fn module(&mut self, bytes: &[u8]) -> StartTask {
        let program = wasm(&self.fixture.base.path().join("program.wasm"), bytes);
        self.task(program)
    }

    /// A module with these imports and definitions besides those of the prelude, whose `_start` is `body`.
    fn text(&mut self, parts: &Parts<'_>) -> StartTask {
        self.module(&parts.module())
    }

    /// A directory with a file of this name in it.
    fn granted(&self, name: &str) -> PathBuf {
        let source = self.fixture.base.path().join("granted");
        std::fs::create_dir_all(&source).unwrap();
        std::fs::write(source.join(name), "x").unwrap();
        source
    }

    /// How it ends, while and after which the neighbour answers.
    #[track_caller]
    fn end(&mut self, task: &StartTask) -> ExitRecord {
        self.neighbour_answers();
        let record = self.client.wait_exited(&task.key);
        self.neighbour_answers();
        record
    }

    #[track_caller]
    fn run(&mut self, task: &StartTask) -> ExitRecord {
        self.client.start(task);
        self.end(task)
    }

    /// Starts a guest that does not end by itself, and ends it when it has computed for a while.
    #[track_caller]
    fn stop(&mut self, task: &StartTask, how: StopSignal) -> ExitRecord {
        self.client.start(task);
        let client = &mut self.client;
        wait_until("it computes", || client.usage(&task.key).used.cpu_ns > 20_000_000);
        self.neighbour_answers();
        self.client.stop(&task.key, how);
        self.end(task)
    }
}

/// A module in text form.
#[derive(Default)]
struct Parts<'a> {
    imports: &'a str,
    definitions: &'a str,
    body: &'a str,
}

impl Parts<'_> {
    fn module(&self) -> Vec<u8> {
        let Self { imports, definitions, body } = self;
        let text = format!(
            r#"(module {imports} {PRELUDE} {definitions} (func (export "_start") (local $i i32) {body}))"#
        );
        wat::parse_str(text).expect("a module in text form")
    }
}

fn body(body: &str) -> Parts<'_> {
    Parts { body, ..Parts::default() }
}

/// Repeats something a million times.
fn a_million_times(what: &str) -> String {
    format!(
        "(loop $again {what}
           (local.set $i (i32.add (local.get $i) (i32.const 1)))
           (br_if $again (i32.lt_u (local.get $i) (i32.const 1000000))))"
    )
}

const SPIN: &str = "(loop $again (br $again))";

/// What does not end by itself, in as many ways as there are to keep a thread busy.
fn endless() -> Vec<(&'static str, Vec<u8>)> {
    let imports = r#"
      (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
      (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))"#;
    let calls = |call: &str| {
        let body = format!("(loop $again (drop {call}) (br $again))");
        Parts { imports, body: &body, ..Parts::default() }.module()
    };
    vec![
        ("a loop", body(SPIN).module()),
        (
            "a loop in a start function",
            Parts {
                definitions: "(func $set_up (loop $again (br $again))) (start $set_up)",
                ..Parts::default()
            }
            .module(),
        ),
        (
            "functions that call each other as tails",
            Parts {
                definitions: "(type $f (func)) (table 2 funcref) (elem (i32.const 0) $a $b)
                  (func $a (return_call_indirect (type $f) (i32.const 1)))
                  (func $b (return_call_indirect (type $f) (i32.const 0)))",
                body: "(return_call $a)",
                ..Parts::default()
            }
            .module(),
        ),
        ("copies of all of its memory", body(COPIES).module()),
        ("calls that yield", calls("(call $yield)")),
        ("calls for random numbers", calls("(call $random (i32.const 0) (i32.const 65536))")),
        ("waits of no length", calls(NO_WAIT)),
        (
            "lines for its log",
            calls("(i32.const 0) (call $say (i32.const 1) (i32.const 1024) (i32.const 6))"),
        ),
    ]
}

/// Single instructions that take long: 32 MiB are written each time.
const COPIES: &str = "
  (drop (memory.grow (i32.const 512)))
  (loop $again (memory.fill (i32.const 0) (i32.const 1) (i32.const 33554432)) (br $again))";

/// `poll_oneoff` with a clock that rang already.
const NO_WAIT: &str =
    "(call $poll (i32.const 65536) (i32.const 69632) (i32.const 1) (i32.const 16))";

#[test]
fn what_does_not_end_is_ended_whatever_it_does_and_however_it_is_asked() {
    let mut rig = Rig::new();
    for (what, bytes) in endless() {
        let task = rig.module(&bytes);
        let record = rig.stop(&task, StopSignal::Terminate);
        assert_eq!((record.code, record.reason), (143, None), "{what}: {record:?}");
        let task = rig.module(&bytes);
        let record = rig.stop(&task, StopSignal::Kill);
        assert_eq!((record.code, record.reason), (137, None), "{what}: {record:?}");
        let mut task = rig.module(&bytes);
        let StartProgram::Wasm(program) = &mut task.program else { unreachable!("it is wasm") };
        program.deadline_ms = Some(100);
        let record = rig.run(&task);
        let expected = (124, Some(Reason::DeadlineExceeded));
        assert_eq!((record.code, record.reason), expected, "{what}: {record:?}");
    }
}

#[test]
fn all_of_them_at_once_leave_their_neighbour_its_turns() {
    let mut rig = Rig::new();
    let endless = endless();
    let tasks: Vec<_> = (0..40)
        .map(|index| {
            let (_, bytes) = &endless[index % endless.len()];
            let mut task = rig.module(bytes);
            task.limits.cpu_request_milli = 10;
            rig.client.start(&task);
            task
        })
        .collect();
    for task in &tasks {
        rig.client.wait_running(&task.key);
    }
    for _ in 0..20 {
        rig.neighbour_answers();
    }
    let (hello, record) = {
        let task = rig.task(guest("hello.wasm", &[]));
        let record = rig.run(&task);
        (output(&task.log, Stream::Stdout), record)
    };
    assert_eq!((record.code, hello.as_str()), (0, "Hello, world!\n"), "{record:?}");
    for task in &tasks {
        rig.client.stop(&task.key, StopSignal::Kill);
    }
    for task in &tasks {
        assert_eq!(rig.client.wait_exited(&task.key).code, 137);
    }
}

#[test]
fn who_sleeps_for_ever_is_ended_by_a_stop_or_its_deadline() {
    let mut rig = Rig::new();
    // The longest time that there is: some 584 years.
    let sleep =
        "(i64.store (i32.const 65560) (i64.const -1)) (i32.store (i32.const 65552) (i32.const 1))
      (loop $again
        (drop (call $poll (i32.const 65536) (i32.const 69632) (i32.const 1) (i32.const 16)))
        (br $again))";
    let bytes = body(sleep).module();
    let sleepers: Vec<_> = (0..100)
        .map(|_| {
            let task = rig.module(&bytes);
            rig.client.start(&task);
            task
        })
        .collect();
    for task in &sleepers {
        rig.client.wait_running(&task.key);
        rig.client.stop(&task.key, StopSignal::Terminate);
    }
    for task in &sleepers {
        let record = rig.end(task);
        assert_eq!((record.code, record.reason), (143, None), "{record:?}");
    }
    let mut task = rig.module(&bytes);
    let StartProgram::Wasm(program) = &mut task.program else { unreachable!("it is wasm") };
    program.deadline_ms = Some(100);
    assert_eq!(rig.run(&task).reason, Some(Reason::DeadlineExceeded));
}

#[test]
fn who_waits_for_input_that_never_comes_is_ended() {
    let mut rig = Rig::new();
    let mut task = rig.task(guest("probe.wasm", &["stdin"]));
    task.stdin = true;
    rig.client.start(&task);
    rig.client.wait_running(&task.key);
    rig.client.stop(&task.key, StopSignal::Terminate);
    let record = rig.end(&task);
    assert_eq!((record.code, record.reason), (143, None), "{record:?}");
}

#[test]
fn tables_count_as_memory_and_end_with_it() {
    let mut rig = Rig::new();
    let grow = Parts {
        definitions: "(table $t 1 funcref)",
        body: "(loop $again (br_if $again (i32.ne (i32.const -1)
                 (table.grow $t (ref.null func) (i32.const 1000)))))
               (call $proc_exit (i32.const 9))",
        ..Parts::default()
    }
    .module();
    // No table has more than 100,000 elements: the program is told so, and lives.
    let task = rig.module(&grow);
    assert_eq!(rig.run(&task).code, 9);
    let mut task = rig.module(&grow);
    task.limits.memory_bytes = 512 << 10;
    let record = rig.run(&task);
    assert_eq!((record.code, record.reason), (137, Some(Reason::OutOfMemory)), "{record:?}");
}

#[test]
fn memory_that_is_grown_by_many_is_each_ones_own() {
    let mut rig = Rig::new();
    let grow = body("(loop $again (drop (memory.grow (i32.const 1))) (br $again))").module();
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let task = rig.module(&grow);
            rig.client.start(&task);
            task
        })
        .collect();
    for task in &tasks {
        let record = rig.end(task);
        assert_eq!((record.code, record.reason), (137, Some(Reason::OutOfMemory)), "{record:?}");
    }
}

#[test]
fn deep_recursions_are_traps() {
    let mut rig = Rig::new();
    let locals = "i64 ".repeat(49_000);
    let large = format!(
        "(func $f (param i64) (result i64) (local {locals})
           (call $f (i64.add (local.get 0) (local.get 48000))))"
    );
    for (what, definitions, call) in [
        ("itself", "(func $f (param i64) (result i64) (call $f (local.get 0)))", "(call $f (i64.const 1))"),
        ("itself, in large frames", large.as_str(), "(call $f (i64.const 1))"),
        (
            "itself, through a table",
            "(type $t (func (param i64) (result i64))) (table 1 funcref) (elem (i32.const 0) $f)
             (func $f (type $t) (i64.add (i64.const 1) (call_indirect (type $t) (local.get 0) (i32.const 0))))",
            "(call $f (i64.const 1))",
        ),
    ] {
        let parts = Parts { definitions, body: &format!("(drop {call})"), ..Parts::default() };
        let task = rig.text(&parts);
        let record = rig.run(&task);
        assert_eq!((record.code, record.reason), (1, Some(Reason::Trapped)), "{what}: {record:?}");
        assert!(record.message.unwrap().contains("stack"), "{what}");
    }
    let component = rig.task(guest("probe-component.wasm", &["recurse"]));
    assert_eq!(rig.run(&component).reason, Some(Reason::Trapped));
}

#[test]
fn a_million_calls_of_the_host_are_no_more_than_calls() {
    let mut rig = Rig::new();
    let imports = r#"(import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))"#;
    let body = a_million_times("(drop (call $clock (i32.const 0) (i64.const 1) (i32.const 0)))");
    let task = rig.text(&Parts { imports, body: &body, ..Parts::default() });
    let record = rig.run(&task);
    assert_eq!(record.code, 0, "{record:?}");
    assert!(record.usage.cpu_ns > 0);
}

#[test]
fn a_million_open_files_are_two_thousand_and_the_end() {
    let mut rig = Rig::new();
    let opened = a_million_times(
        "(br_if $full (call $path_open (i32.const 3) (i32.const 0) (i32.const 65536) (i32.const 1) (i32.const 0)
           (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 16)))",
    );
    let parts = Parts {
        definitions: "(data (i32.const 65536) \"f\")",
        body: &format!("(block $full {opened})"),
        ..Parts::default()
    };
    let mut task = rig.text(&parts);
    let source = rig.granted("f");
    task.mounts.push(BindMount { source, at: "/data".into(), read_only: false });
    let record = rig.run(&task);
    assert_eq!((record.code, record.reason), (1, Some(Reason::Trapped)), "{record:?}");
    let message = record.message.unwrap();
    assert!(message.contains("2,000 open files, streams and sockets"), "{message}");
}

/// Is this how it should end?
type IsExpected = fn(&ExitRecord) -> bool;

#[test]
fn lists_and_strings_without_measure_cost_nobody_else_anything() {
    let mut rig = Rig::new();
    let imports = r#"
      (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "path_filestat_get"
        (func $stat (param i32 i32 i32 i32 i32) (result i32)))"#;
    // Its pointer leads outside, or it is more than a host takes at once.
    let is_refused: IsExpected = |record| [EFAULT, ENOMEM].contains(&record.code);
    let is_trap: IsExpected = |record| record.reason == Some(Reason::Trapped);
    let cases: [(&str, &str, IsExpected); 7] = [
        (
            "pieces to write, all empty",
            "(call $fd_write (i32.const 1) (i32.const 65536) (i32.const 4000000) (i32.const 0))",
            |record| record.code == 0,
        ),
        (
            "pieces to write beyond its memory",
            "(call $fd_write (i32.const 1) (i32.const 65536) (i32.const -1) (i32.const 0))",
            |record| record.code == ENOMEM,
        ),
        (
            "clocks to wait for",
            "(call $poll (i32.const 65536) (i32.const 65536) (i32.const 600000) (i32.const 0))",
            is_trap,
        ),
        (
            "a path",
            "(call $stat (i32.const 3) (i32.const 0) (i32.const 65536) (i32.const 32000000) (i32.const 0))",
            |record| [Reason::ExitedNonZero, Reason::Trapped].map(Some).contains(&record.reason),
        ),
        (
            "a path beyond its memory",
            "(call $stat (i32.const 3) (i32.const 0) (i32.const 65536) (i32.const -1) (i32.const 0))",
            is_refused,
        ),
        ("random numbers", "(call $random (i32.const 65536) (i32.const 33000000))", is_trap),
        (
            "random numbers beyond its memory",
            "(call $random (i32.const 65536) (i32.const -1))",
            |record| record.code == EFAULT || record.reason == Some(Reason::Trapped),
        ),
    ];
    for (what, call, is_expected) in cases {
        let body = format!(
            "(drop (memory.grow (i32.const 510))) (local.set $i {call}) (call $proc_exit (local.get $i))"
        );
        let mut task = rig.text(&Parts { imports, body: &body, ..Parts::default() });
        let source = rig.granted("f");
        task.mounts.push(BindMount { source, at: "/data".into(), read_only: true });
        let record = rig.run(&task);
        assert!(is_expected(&record), "{what}: {record:?}");
    }
}

/// Errors of preview 1: a pointer leads outside, it is more than a host takes at once.
const EFAULT: i32 = 21;
const ENOMEM: i32 = 48;

#[test]
fn floods_of_output_fill_its_own_log_and_no_more() {
    let mut rig = Rig::new();
    // A line without an end, 64 MiB of it; then empty lines.
    for (byte, at) in [("x", 65_536), ("\\n", 65_536)] {
        let body = format!(
            "(drop (memory.grow (i32.const 16)))
             (memory.fill (i32.const {at}) (i32.load8_u (i32.const {at})) (i32.const 1000000))
             (loop $again
               (call $say (i32.const 1) (i32.const {at}) (i32.const {length}))
               (local.set $i (i32.add (local.get $i) (i32.const 1)))
               (br_if $again (i32.lt_u (local.get $i) (i32.const 64))))",
            length = if byte == "x" { 1_000_000 } else { 10_000 },
        );
        let definitions = format!("(data (i32.const {at}) \"{byte}\")");
        let mut task =
            rig.text(&Parts { definitions: &definitions, body: &body, ..Parts::default() });
        task.log.files_kept = 1;
        let record = rig.run(&task);
        assert_eq!(record.code, 0, "{record:?}");
        let mut on_disk = 0;
        for entry in std::fs::read_dir(&task.dir).unwrap() {
            on_disk += entry.unwrap().metadata().unwrap().len();
        }
        // Two files, of which each may end with one write more than it should hold.
        assert!(on_disk < 2 * (task.log.bytes_max + (256 << 10)), "{byte:?}: {on_disk}");
    }
}

#[test]
fn memory_of_who_was_there_before_is_not_there() {
    let mut rig = Rig::new();
    let fill = body(
        "(drop (memory.grow (i32.const 300)))
         (memory.fill (i32.const 65536) (i32.const 165) (i32.const 19000000))
         (table.set (i32.const 1) (ref.func $mine))",
    );
    let fill =
        Parts { definitions: "(table 4 funcref) (func $mine) (elem declare func $mine)", ..fill }
            .module();
    let look = Parts {
        definitions: "(table 4 funcref)",
        body: "(drop (memory.grow (i32.const 300)))
          (if (i32.eqz (ref.is_null (table.get (i32.const 1)))) (then (call $proc_exit (i32.const 67))))
          (local.set $i (i32.const 65536))
          (loop $next
            (if (i64.ne (i64.load (local.get $i)) (i64.const 0)) (then (call $proc_exit (i32.const 66))))
            (local.set $i (i32.add (local.get $i) (i32.const 8)))
            (br_if $next (i32.lt_u (local.get $i) (i32.const 19000000))))",
        ..Parts::default()
    }
    .module();
    for _ in 0..8 {
        let task = rig.module(&fill);
        assert_eq!(rig.run(&task).code, 0);
        let task = rig.module(&look);
        assert_eq!(rig.run(&task).code, 0, "it found something");
    }
}

#[test]
fn addresses_outside_its_memory_are_traps() {
    let mut rig = Rig::new();
    for access in [
        "(drop (i32.load (i32.const 131072)))",
        "(drop (i64.load offset=0xffffffff (i32.const -1)))",
        "(i64.store offset=0xfffffff8 (i32.const -1) (i64.const 1))",
        "(memory.copy (i32.const 0) (i32.const -8) (i32.const 16))",
        "(drop (v128.load offset=0xfffffff0 (i32.const -16)))",
        "(call_indirect (i32.const 7))",
        "(call_indirect (param i64) (i64.const 1) (i32.const 0))",
    ] {
        let definitions = "(table 2 funcref) (elem (i32.const 0) $f) (func $f)";
        let task = rig.text(&Parts { definitions, body: access, ..Parts::default() });
        let record = rig.run(&task);
        assert_eq!(
            (record.code, record.reason),
            (1, Some(Reason::Trapped)),
            "{access}: {record:?}"
        );
    }
}

#[test]
fn handles_variables_and_ports_of_the_neighbour_are_out_of_reach() {
    let mut rig = Rig::new();
    let imports = r#"
      (import "wasi_snapshot_preview1" "fd_filestat_get" (func $stat (param i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "sock_accept" (func $accept (param i32 i32 i32) (result i32)))"#;
    // Every number of a handle but those of the standard streams.
    let body = "(local.set $i (i32.const 3))
      (loop $next
        (if (i32.or
              (i32.eqz (call $stat (local.get $i) (i32.const 65536)))
              (i32.eqz (call $accept (local.get $i) (i32.const 0) (i32.const 65536))))
          (then (call $proc_exit (i32.const 66))))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if $next (i32.lt_u (local.get $i) (i32.const 50000))))
      (drop (call $env_sizes (i32.const 16) (i32.const 20)))
      (call $proc_exit (i32.load (i32.const 16)))";
    let task = rig.text(&Parts { imports, body, ..Parts::default() });
    let record = rig.run(&task);
    assert_eq!(record.code, 0, "it found a handle or a variable: {record:?}");
    let address = rig.neighbour.to_string();
    for args in [["connect", &address], ["serve", &address]] {
        let task = rig.task(guest("probe-component.wasm", &args));
        let record = rig.run(&task);
        assert_ne!(record.code, 0, "{args:?}: {}", output(&task.log, Stream::Stdout));
        assert!(output(&task.log, Stream::Stderr).contains("brig: refused"), "{args:?}");
    }
    let keeps = KeyValueStore {
        file: rig.fixture.base.path().join("team.db"),
        buckets: vec!["mine".into()],
    };
    let mut program = guest("keeper.wasm", &["get", "of-the-neighbour", "k"]);
    program.world = WasmWorld { keyvalue: Some(keeps), ..WasmWorld::default() };
    let task = rig.task(program);
    assert_ne!(rig.run(&task).code, 0, "{}", output(&task.log, Stream::Stdout));
}
