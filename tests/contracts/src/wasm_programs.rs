//! What only wasm programs have: their kinds, what is refused, http, and real programs that others compiled.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use brig_api::Digest;
use brig_api::lifecycle::Reason;
use brig_api::logline::Stream;
use brig_api::unit_spec::Isolation;
use brig_api::usage::Usage;
use brig_shim::code::Refusal;
use brig_shim::exit::ExitRecord;
use brig_shim::message::{HttpLimits, StartProgram, StartTask, StartWasm, StopSignal, WasmWorld};

use crate::shim_client::{ShimClient, ShimProcess, shim_binary, wait_until};
use crate::shim_contract::{Does, Fixture, Runtime as _, output};
use crate::wasm_shim::{Wasm, cache, compile, digest, try_wasm, wasm};

/// A program from `BRIG_TEST_GUESTS`, which `tests/setup/guests` fills.
pub(crate) fn guest(name: &str, args: &[&str]) -> StartWasm {
    let dir = std::env::var_os("BRIG_TEST_GUESTS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/guests"),
        PathBuf::from,
    );
    let module = dir.join(name);
    let bytes = std::fs::read(&module)
        .unwrap_or_else(|error| panic!("{}: {error}: run tests/setup/guests", module.display()));
    let digest = digest(&bytes);
    StartWasm {
        compatibility: compile(&cache(), &module, &digest).expect("it can be compiled"),
        digest,
        isolation: Isolation::Namespace,
        args: std::iter::once(name).chain(args.iter().copied()).map(str::to_owned).collect(),
        http: None,
        http_limits: HttpLimits::default(),
        allow_hosts: Vec::new(),
        deadline_ms: None,
        world: WasmWorld::default(),
    }
}

pub(crate) fn run(
    fixture: &Fixture,
    client: &mut ShimClient,
    name: &str,
    wasm: StartWasm,
) -> (StartTask, ExitRecord) {
    let task = fixture.task(name, StartProgram::Wasm(wasm));
    client.start(&task);
    let record = client.wait_exited(&task.key);
    (task, record)
}

/// Runs bytes as a program; how it ended.
fn run_bytes(bytes: &[u8], change: impl FnOnce(&mut StartWasm)) -> ExitRecord {
    let fixture = Fixture::new(&Wasm);
    let mut program = match try_wasm(&fixture.base.path().join("program.wasm"), bytes) {
        Ok(program) => program,
        Err(refusal) => return refused(refusal),
    };
    change(&mut program);
    run(&fixture, &mut fixture.shim.connect(), "task", program).1
}

/// What the agent makes of a program that can't be compiled.
fn refused(Refusal { reason, message }: Refusal) -> ExitRecord {
    let usage = Usage::default();
    ExitRecord { code: 126, reason: Some(reason), message: Some(message), finished_ms: 0, usage }
}

fn run_text(module: &str) -> ExitRecord {
    run_bytes(&wat::parse_str(module).expect("a module in text form"), |_| ())
}

#[track_caller]
fn assert_refused(record: &ExitRecord, reason: Reason, says: &[&str]) {
    assert_eq!((record.code, record.reason), (126, Some(reason)), "{record:?}");
    let message = record.message.as_deref().unwrap_or_default();
    for part in says {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

#[test]
fn a_file_that_is_no_wasm_is_refused() {
    let record = run_bytes(b"#!/bin/sh\necho hello\n", |_| ());
    assert_refused(&record, Reason::InvalidArtifact, &["program.wasm", "script"]);
}

#[test]
fn a_corrupt_file_is_refused_with_both_digests() {
    let (other, bytes) = (Digest::of_sha256(&[7; 32]), b"\0asm\x01\0\0\0");
    let dir = tempfile::tempdir().unwrap();
    let module = dir.path().join("program.wasm");
    std::fs::write(&module, bytes).unwrap();
    let refusal = compile(dir.path(), &module, &other).unwrap_err();
    let says = [other.as_str(), digest(bytes).as_str()].map(str::to_owned);
    assert_refused(&refused(refusal), Reason::InvalidArtifact, &[&says[0], &says[1]]);
}

#[test]
fn a_library_is_no_program() {
    let record = run_text(r#"(module (func (export "add") (result i32) i32.const 1))"#);
    assert_refused(&record, Reason::InvalidArtifact, &["_start", "reactor"]);
}

#[test]
fn each_import_that_nobody_grants_is_named() {
    let record = run_text(
        r#"(module (import "env" "launch" (func)) (import "gpu" "draw" (func)) (func (export "_start")))"#,
    );
    assert_refused(&record, Reason::ImportNotGranted, &["`env.launch`", "`gpu.draw`"]);
    let record = run_text(
        r#"(component (import "team:gpu/draw@1.0.0" (instance (export "now" (func))))
           (core module $m (func (export "run") (result i32) i32.const 0))
           (core instance $i (instantiate $m))
           (func $run (result (result)) (canon lift (core func $i "run")))
           (instance $e (export "run" (func $run)))
           (export "wasi:cli/run@0.2.0" (instance $e)))"#,
    );
    assert_refused(&record, Reason::ImportNotGranted, &["`team:gpu/draw@1.0.0`"]);
}

#[test]
fn every_exit_code_of_a_module_is_told() {
    let fixture = Fixture::new(&Wasm);
    let mut client = fixture.shim.connect();
    for (given, told) in [(125, 125), (126, 126), (255, 255), (-1, 255), (256, 255)] {
        let program = Wasm.program(fixture.base.path(), &Does::Exit(given));
        let task = fixture.task(&format!("task{given}"), program);
        client.start(&task);
        let record = client.wait_exited(&task.key);
        assert_eq!((record.code, record.reason), (told, Some(Reason::ExitedNonZero)), "{record:?}");
    }
}

#[test]
fn a_component_that_returns_is_a_command() {
    for (result, code) in [(0, 0), (1, 1)] {
        let record = run_text(&format!(
            r#"(component
               (core module $m (func (export "run") (result i32) i32.const {result}))
               (core instance $i (instantiate $m))
               (func $run (result (result)) (canon lift (core func $i "run")))
               (instance $e (export "run" (func $run)))
               (export "wasi:cli/run@0.2.0" (instance $e)))"#
        ));
        assert_eq!(record.code, code, "{record:?}");
    }
}

#[test]
fn of_two_versions_of_a_command_the_newer_one_runs() {
    let record = run_text(
        r#"(component
           (core module $m
             (func (export "run") (result i32) unreachable)
             (func (export "run-later") (result i32) i32.const 0))
           (core instance $i (instantiate $m))
           (func $run (result (result)) (canon lift (core func $i "run")))
           (func $later async (result (result)) (canon lift (core func $i "run-later")))
           (instance $e (export "run" (func $run)))
           (instance $l (export "run" (func $later)))
           (export "wasi:cli/run@0.2.0" (instance $e))
           (export "wasi:cli/run@0.3.0" (instance $l)))"#,
    );
    assert_eq!(record.code, 0, "{record:?}");
}

#[test]
fn memory_that_begins_beyond_the_limit_is_refused_with_both_figures() {
    let record = run_text(r#"(module (memory 2048) (func (export "_start")))"#);
    assert_refused(&record, Reason::LimitTooSmall, &["128Mi", "64Mi"]);
}

#[test]
fn traps_are_told_with_their_place() {
    let record = run_text(
        r#"(module $shop (func $price unreachable) (func (export "_start") (call $price)))"#,
    );
    assert_eq!((record.code, record.reason), (1, Some(Reason::Trapped)));
    let message = record.message.unwrap();
    assert!(message.contains("unreachable") && message.contains("shop!price"), "{message}");
    let record = run_text(r#"(module (func $again (export "_start") (call $again)))"#);
    assert_eq!(record.reason, Some(Reason::Trapped));
    assert!(record.message.unwrap().contains("stack"));
}

#[test]
fn a_deadline_ends_a_spinner() {
    let module = r#"(module (func (export "_start") (loop $again (br $again))))"#;
    let record =
        run_bytes(&wat::parse_str(module).unwrap(), |program| program.deadline_ms = Some(50));
    assert_eq!((record.code, record.reason), (124, Some(Reason::DeadlineExceeded)));
}

#[test]
fn a_program_that_is_stopped_before_it_begins_ends_without_blame() {
    let module = r#"(module (func $set_up (loop $again (br $again))) (start $set_up)
        (func (export "_start")))"#;
    let fixture = Fixture::new(&Wasm);
    let mut client = fixture.shim.connect();
    let bytes = wat::parse_str(module).unwrap();
    let program = wasm(&fixture.base.path().join("program.wasm"), &bytes);
    let task = fixture.task("task", StartProgram::Wasm(program));
    client.start(&task);
    wait_until("its start function runs", || client.usage(&task.key).used.cpu_ns > 20_000_000);
    client.stop(&task.key, StopSignal::Terminate);
    let record = client.wait_exited(&task.key);
    assert_eq!((record.code, record.reason), (143, None), "{record:?}");
}

#[test]
fn damaged_compiled_code_is_compiled_again() {
    let bytes = wat::parse_str(r#"(module (func (export "_start")))"#).unwrap();
    let base = tempfile::tempdir().unwrap();
    let (cache, module) = (base.path().join("cache"), base.path().join("program.wasm"));
    for round in 0..2 {
        let dir = base.path().join(format!("shim{round}"));
        std::fs::create_dir(&dir).unwrap();
        let shim = crate::wasm_shim::start(&cache, &dir, &[]);
        let fixture = Fixture { shim, base: tempfile::tempdir().unwrap() };
        let mut program = wasm(&module, &bytes);
        program.compatibility = compile(&cache, &module, &digest(&bytes)).unwrap();
        let (_, record) = run(&fixture, &mut fixture.shim.connect(), "task", program);
        assert_eq!(record.code, 0, "{record:?}");
        for entry in std::fs::read_dir(&cache).unwrap() {
            for file in std::fs::read_dir(entry.unwrap().path()).unwrap() {
                flip_last_byte(&file.unwrap().path());
            }
        }
    }
}

/// As a failing disk would: the file is replaced, for it can't be written to.
fn flip_last_byte(path: &Path) {
    if path.extension().is_some_and(|extension| extension == "code") {
        let mut bytes = std::fs::read(path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::remove_file(path).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

#[test]
fn a_full_disk_costs_output_and_no_more() {
    let fixture = Fixture::new(&Wasm);
    let mut client = fixture.shim.connect();
    let mut task = fixture.task("task", StartProgram::Wasm(guest("hello.wasm", &[])));
    task.log.path = "/dev/full".into();
    task.dir = fixture.base.path().join("later");
    client.start(&task);
    let record = client.wait_exited(&task.key);
    assert_eq!(record.code, 0, "an exit that can't be recorded is told from memory");
    assert!(record.message.as_deref().is_some_and(|says| says.contains("disk")), "{record:?}");
    std::fs::create_dir(&task.dir).unwrap();
    wait_until("the record follows", || {
        ExitRecord::read(&task.dir).unwrap().as_ref() == Some(&record)
    });
}

#[test]
fn many_tasks_share_a_shim_and_a_failing_one_harms_nobody() {
    let fixture = Fixture::new(&Wasm);
    let mut client = fixture.shim.connect();
    let tasks: Vec<_> = (0..20)
        .map(|index| {
            let does = if index % 2 == 0 { ["trap", ""] } else { ["lines", "200"] };
            let program = guest("probe.wasm", &does[..1 + index % 2]);
            fixture.task(&format!("task{index}"), StartProgram::Wasm(program))
        })
        .collect();
    for task in &tasks {
        client.start(task);
    }
    for (index, task) in tasks.iter().enumerate() {
        let record = client.wait_exited(&task.key);
        if index % 2 == 0 {
            assert_eq!(record.reason, Some(Reason::Trapped), "{record:?}");
        } else {
            assert_eq!(record.code, 0, "{record:?}");
            assert!(output(&task.log, Stream::Stdout).ends_with("line 200\n"));
        }
    }
}

#[test]
fn tasks_are_not_limited_by_the_files_that_a_process_usually_may_open() {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("shim");
    std::fs::create_dir(&dir).unwrap();
    let mut command = std::process::Command::new("/bin/sh");
    command
        .args(["-c", "ulimit -S -n 64; exec \"$0\" \"$@\""])
        .arg(shim_binary("brig-shim-wasm"))
        .arg("--dir")
        .arg(&dir)
        .arg("--cache")
        .arg(cache());
    let fixture = Fixture { shim: ShimProcess::start(command, &dir), base };
    let mut client = fixture.shim.connect();
    let program = Wasm.program(fixture.base.path(), &Does::Sleep);
    let tasks: Vec<_> = (0..100)
        .map(|index| fixture.task(&format!("task{index}"), program.clone()))
        .inspect(|task| client.start(task))
        .collect();
    for task in &tasks {
        client.wait_running(&task.key);
    }
}

#[test]
fn nothing_is_granted_that_was_not_asked_for() {
    for name in ["probe.wasm", "probe-component.wasm"] {
        let fixture = Fixture::new(&Wasm);
        let mut client = fixture.shim.connect();
        for (index, (args, expected)) in [
            (&["env"][..], Some("")),
            (&["stdin"], Some("")),
            (&["ls", "/"], None),
            (&["cat", "/etc/passwd"], None),
            (&["cat", "../../../../etc/passwd"], None),
            (&["write", "/tmp/x", "y"], None),
            (&["connect", "127.0.0.1:1"], None),
        ]
        .into_iter()
        .enumerate()
        {
            let (task, record) =
                run(&fixture, &mut client, &format!("task{index}"), guest(name, args));
            assert_eq!(record.code == 0, expected.is_some(), "{name} {args:?}: {record:?}");
            assert_eq!(output(&task.log, Stream::Stdout), expected.unwrap_or(""), "{args:?}");
        }
    }
}

#[test]
fn programs_that_nobody_here_wrote_evaluate_something() {
    let fixture = Fixture::new(&Wasm);
    let mut client = fixture.shim.connect();
    let mut start = |name: &str, wasm: StartWasm| {
        let mut task = fixture.task(name, StartProgram::Wasm(wasm));
        task.limits.memory_bytes = 512 << 20;
        client.start(&task);
        let record = client.wait_exited(&task.key);
        assert_eq!(record.code, 0, "{record:?} {}", output(&task.log, Stream::Stderr));
        output(&task.log, Stream::Stdout)
    };
    let said =
        start("quickjs", guest("quickjs.wasm", &["-e", "console.log([1,2,3].map(x=>x*x).join())"]));
    assert_eq!(said, "1,4,9\n");
    let sum = "import json, sys; print(json.dumps({'sum': sum(range(101))}), sys.version_info[:2])";
    let said = start("python", guest("python.wasm", &["-c", sum]));
    assert_eq!(said, "{\"sum\": 5050} (3, 12)\n");
}

#[test]
fn http_is_asked_for_by_those_who_have_it() {
    let fixture = Fixture::new(&Wasm);
    let mut client = fixture.shim.connect();
    let (_, record) = run(&fixture, &mut client, "web", guest("web.wasm", &[]));
    assert_refused(&record, Reason::InvalidArtifact, &["http"]);
    let mut hello = guest("hello.wasm", &[]);
    hello.http = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let (_, record) = run(&fixture, &mut client, "hello", hello);
    assert_refused(&record, Reason::InvalidArtifact, &["http", "incoming-handler"]);
}

#[test]
fn a_shim_without_tasks_and_agents_ends_by_itself() {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("shim");
    std::fs::create_dir(&dir).unwrap();
    let shim = crate::wasm_shim::start(&cache(), &dir, &["--idle-ms", "50"]);
    let mut fixture = Fixture { shim, base };
    let mut client = fixture.shim.connect();
    let (task, _) = run(&fixture, &mut client, "task", guest("hello.wasm", &[]));
    client.remove(&task.key);
    drop(client);
    assert!(fixture.shim.wait_for_end().success());
}
