//! The shim contract on `brig-shim-wasm`, and what only wasm programs have.

use std::path::{Path, PathBuf};
use std::process::Command;

use brig_api::Digest;
use brig_api::unit_spec::Isolation;
use brig_shim::code::{CompileAnswer, Refusal};
use brig_shim::message::{HttpLimits, StartProgram, StartWasm, WasmWorld};
use sha2::Digest as _;

use crate::shim_client::{ShimProcess, shim_binary};
use crate::shim_contract::{ARGS, Does, Runtime, contract_of_shims};

pub(crate) struct Wasm;

impl Runtime for Wasm {
    fn start_shim(&self, _: &Path, dir: &Path) -> ShimProcess {
        start(&cache(), dir, &[])
    }

    fn program(&self, base: &Path, does: &Does) -> StartProgram {
        program_of(base, &guest_that(does))
    }
}

/// Starts a shim with further arguments.
pub(crate) fn start(cache: &Path, dir: &Path, further: &[&str]) -> ShimProcess {
    let mut command = Command::new(shim_binary("brig-shim-wasm"));
    command.arg("--dir").arg(dir).arg("--cache").arg(cache).args(further);
    ShimProcess::start(command, dir)
}

/// A program of this text.
fn program_of(base: &Path, module: &str) -> StartProgram {
    let bytes = wat::parse_str(module).expect("a module in text form");
    StartProgram::Wasm(wasm(&base.join("program.wasm"), &bytes))
}

/// Compiled code of all tests: the same guests are used by many.
pub(crate) fn cache() -> PathBuf {
    shim_binary("brig-shim-wasm").with_file_name("contracts-wasm-cache")
}

/// Compiles as the agent has it done; what for.
pub(crate) fn compile(cache: &Path, module: &Path, digest: &Digest) -> Result<String, Refusal> {
    compile_for(Isolation::Namespace, cache, module, digest)
}

/// The same for shims of another kind.
pub(crate) fn compile_for(
    isolation: Isolation,
    cache: &Path,
    module: &Path,
    digest: &Digest,
) -> Result<String, Refusal> {
    let mut command = Command::new(shim_binary("brig-shim-wasm"));
    command.arg("compile").arg("--module").arg(module).args(["--digest", digest.as_str()]);
    command.args(["--isolation", isolation.as_str()]);
    let output = command.arg("--cache").arg(cache).output().expect("the compiler starts");
    let answer: CompileAnswer = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
        panic!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr))
    });
    answer.map(|compiled| compiled.compatibility)
}

/// The digest of a module.
pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest::of_sha256(&sha2::Sha256::digest(bytes).into())
}

/// A program of these bytes, put where `module` says.
pub(crate) fn wasm(module: &Path, bytes: &[u8]) -> StartWasm {
    try_wasm(module, bytes).expect("it can be compiled")
}

/// The same, of bytes that may be anything.
pub(crate) fn try_wasm(module: &Path, bytes: &[u8]) -> Result<StartWasm, Refusal> {
    std::fs::write(module, bytes).expect("the module can be written");
    let digest = digest(bytes);
    Ok(StartWasm {
        compatibility: compile(&cache(), module, &digest)?,
        digest,
        isolation: Isolation::Namespace,
        args: std::iter::once("program").chain(ARGS).map(str::to_owned).collect(),
        http: None,
        http_limits: HttpLimits::default(),
        allow_hosts: Vec::new(),
        deadline_ms: None,
        world: WasmWorld::default(),
    })
}

/// Imports and helpers that the guests share: `$say` writes bytes to a file descriptor.
pub(crate) const PRELUDE: &str = r#"
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $env_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $env_get (param i32 i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 1024) "ready\n")
  (func $say (param $fd i32) (param $at i32) (param $length i32)
    (i32.store (i32.const 0) (local.get $at))
    (i32.store (i32.const 4) (local.get $length))
    (if (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))
      (then (call $proc_exit (i32.const 90)))))
"#;

/// A preview 1 module in text form.
fn guest_that(does: &Does) -> String {
    let (data, body) = match does {
        Does::Exit(code) => {
            (String::new(), format!("(call $proc_exit (i32.const {code}))"))
        }
        Does::Print { stdout, stderr } => (
            data(2048, stdout) + &data(4096, stderr),
            format!(
                "(call $say (i32.const 1) (i32.const 2048) (i32.const {}))
                 (call $say (i32.const 2) (i32.const 4096) (i32.const {}))",
                stdout.len(),
                stderr.len()
            ),
        ),
        Does::Sleep => (String::new(), SLEEP.to_owned()),
        Does::Spin => (String::new(), format!("{READY} (loop $again (br $again))")),
        Does::TakeMemory => (
            String::new(),
            "(loop $again (if (i32.ne (memory.grow (i32.const 16)) (i32.const -1)) (then (br $again))))
             (call $proc_exit (i32.const 91))"
                .to_owned(),
        ),
        Does::PrintArgsAndEnv => (String::new(), PRINT_ARGS_AND_ENV.to_owned()),
        Does::ReadFile(path) => (data(2048, name(path)), open(name(path).len(), 0, 2) + READ_ALL),
        Does::WriteFile(path) => (
            data(2048, name(path)) + &data(4096, "written"),
            open(name(path).len(), 1, 64)
                + "(call $say (i32.load (i32.const 16)) (i32.const 4096) (i32.const 7))",
        ),
    };
    format!(r#"(module {PRELUDE} {data} (func (export "_start") {body}))"#)
}

/// A path in the only mount of the suite, seen from that mount.
fn name(path: &str) -> &str {
    path.strip_prefix("/data/").expect("the suite mounts at /data")
}

fn data(at: u32, text: &str) -> String {
    let bytes: String = text.bytes().map(|byte| format!("\\{byte:02x}")).collect();
    format!("(data (i32.const {at}) \"{bytes}\")")
}

const READY: &str = "(call $say (i32.const 1) (i32.const 1024) (i32.const 6))";

/// Waits an hour on the clock: a subscription is 48 bytes, the clock's id at 16, its time-out at 24.
const SLEEP: &str = "
  (call $say (i32.const 1) (i32.const 1024) (i32.const 6))
  (i32.store (i32.const 2064) (i32.const 1))
  (i64.store (i32.const 2072) (i64.const 3600000000000))
  (drop (call $poll (i32.const 2048) (i32.const 4096) (i32.const 1) (i32.const 16)))";

/// The strings lie one after another, each ended by NUL; argv[0] is left out.
const PRINT_ARGS_AND_ENV: &str = "
  (drop (call $args_sizes (i32.const 16) (i32.const 20)))
  (drop (call $args_get (i32.const 4096) (i32.const 8192)))
  (call $say (i32.const 1) (i32.load (i32.const 4100))
    (i32.sub (i32.load (i32.const 20)) (i32.sub (i32.load (i32.const 4100)) (i32.const 8192))))
  (drop (call $env_sizes (i32.const 16) (i32.const 20)))
  (drop (call $env_get (i32.const 4096) (i32.const 16384)))
  (call $say (i32.const 1) (i32.const 16384) (i32.load (i32.const 20)))";

/// Opens the name at 2048 in the first directory that was granted; its descriptor goes to 16. The right is 2
/// (read) or 64 (write), the flag 1 creates.
fn open(length: usize, flags: u32, rights: u32) -> String {
    format!(
        "(if (call $path_open (i32.const 3) (i32.const 0) (i32.const 2048) (i32.const {length})
            (i32.const {flags}) (i64.const {rights}) (i64.const {rights}) (i32.const 0) (i32.const 16))
          (then (call $proc_exit (i32.const 92))))"
    )
}

const READ_ALL: &str = "
  (loop $again
    (i32.store (i32.const 0) (i32.const 8192))
    (i32.store (i32.const 4) (i32.const 4096))
    (if (call $fd_read (i32.load (i32.const 16)) (i32.const 0) (i32.const 1) (i32.const 20))
      (then (call $proc_exit (i32.const 93))))
    (if (i32.load (i32.const 20))
      (then
        (call $say (i32.const 1) (i32.const 8192) (i32.load (i32.const 20)))
        (br $again))))";

contract_of_shims!(Wasm);

/// The contract holds for a shim with a single task, too: each case has one.
mod alone {
    use super::*;
    use crate::shim_client::wait_until;
    use crate::shim_contract::Fixture;
    use brig_api::lifecycle::Reason;
    use brig_shim::message::{StartTask, StopSignal};

    struct Alone;

    impl Runtime for Alone {
        fn start_shim(&self, _: &Path, dir: &Path) -> ShimProcess {
            start(&cache(), dir, &["--isolation", "unit"])
        }

        fn program(&self, base: &Path, does: &Does) -> StartProgram {
            let StartProgram::Wasm(mut program) = Wasm.program(base, does) else {
                unreachable!("it is wasm")
            };
            program.isolation = Isolation::Unit;
            let module = base.join("program.wasm");
            let compatibility = compile_for(Isolation::Unit, &cache(), &module, &program.digest);
            program.compatibility = compatibility.expect("it can be compiled");
            StartProgram::Wasm(program)
        }
    }

    contract_of_shims!(Alone;
        the_exit_code_is_reported_and_on_disk
        both_streams_arrive_in_the_log
        a_task_that_is_asked_to_end_ends_without_blame
        starting_twice_runs_once
        tasks_outlive_the_agents_connection
        an_exit_while_nobody_is_connected_is_not_lost
        memory_beyond_the_limit_ends_the_task
        arguments_and_variables_arrive_and_no_others
        a_shim_without_tasks_ends_when_told
    );

    fn spinner() -> (Fixture, StartTask) {
        let fixture = Fixture::new(&Alone);
        let task = fixture.task_that(&Alone, &Does::Spin);
        (fixture, task)
    }

    #[test]
    fn a_spinner_that_nothing_interrupts_ends_with_its_process() {
        let (mut fixture, task) = spinner();
        let mut client = fixture.shim.connect();
        client.start(&task);
        wait_until("it computes", || client.usage(&task.key).used.cpu_ns > 50_000_000);
        client.stop(&task.key, StopSignal::Kill);
        let record = client.wait_exited(&task.key);
        assert_eq!((record.code, record.reason), (137, None), "{record:?}");
        assert!(record.usage.cpu_ns > 50_000_000, "{record:?}");
        fixture.shim.wait_for_end();
    }

    #[test]
    fn a_deadline_ends_it_too() {
        let (mut fixture, mut task) = spinner();
        let StartProgram::Wasm(program) = &mut task.program else { unreachable!("it is wasm") };
        program.deadline_ms = Some(50);
        let mut client = fixture.shim.connect();
        client.start(&task);
        let record = client.wait_exited(&task.key);
        assert_eq!((record.code, record.reason), (124, Some(Reason::DeadlineExceeded)));
        fixture.shim.wait_for_end();
    }

    #[test]
    fn there_is_one_task_and_no_other() {
        let fixture = Fixture::new(&Alone);
        let mut client = fixture.shim.connect();
        client.start(&fixture.task_that(&Alone, &Does::Sleep));
        let second = fixture.task("second", Alone.program(fixture.base.path(), &Does::Exit(0)));
        let refused = client.request(brig_shim::message::Request::Start(Box::new(second)));
        assert!(matches!(refused, brig_shim::message::Reply::Refused { .. }), "{refused:?}");
    }
}
