//! What only wasm programs have: their kinds, what is refused, http, and real programs that others compiled.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use brig_api::Digest;
use brig_api::lifecycle::Reason;
use brig_api::logline::Stream;
use brig_shim::exit::ExitRecord;
use brig_shim::message::{StartProgram, StartTask, StartWasm, StopSignal, WasmWorld};
use sha2::Digest as _;

use crate::shim_client::{ShimClient, ShimProcess, WAIT, shim_binary, wait_until};
use crate::shim_contract::{Does, Fixture, Runtime as _, output};
use crate::wasm_shim::{Wasm, wasm};

/// A program from `BRIG_TEST_GUESTS`, which `tests/setup/guests` fills.
pub(crate) fn guest(name: &str, args: &[&str]) -> StartWasm {
    let dir = std::env::var_os("BRIG_TEST_GUESTS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/guests"),
        PathBuf::from,
    );
    let module = dir.join(name);
    let bytes = std::fs::read(&module)
        .unwrap_or_else(|error| panic!("{}: {error}: run tests/setup/guests", module.display()));
    StartWasm {
        digest: Digest::of_sha256(&sha2::Sha256::digest(&bytes).into()),
        module,
        args: std::iter::once(name).chain(args.iter().copied()).map(str::to_owned).collect(),
        http: None,
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
    let mut program = wasm(&fixture.base.path().join("program.wasm"), bytes);
    change(&mut program);
    run(&fixture, &mut fixture.shim.connect(), "task", program).1
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
    let other = Digest::of_sha256(&[7; 32]);
    let record = run_bytes(b"\0asm\x01\0\0\0", |program| program.digest = other.clone());
    let found = Digest::of_sha256(&sha2::Sha256::digest(b"\0asm\x01\0\0\0").into());
    assert_refused(&record, Reason::InvalidArtifact, &[other.as_str(), found.as_str()]);
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
    let cache = base.path().join("cache");
    for round in 0..2 {
        let dir = base.path().join(format!("shim{round}"));
        std::fs::create_dir(&dir).unwrap();
        let shim = crate::wasm_shim::start(&cache, &dir, &[]);
        let fixture = Fixture { shim, base: tempfile::tempdir().unwrap() };
        let program = wasm(&base.path().join("program.wasm"), &bytes);
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
        .arg(base.path().join("cache"));
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

/// An http service that runs.
struct Service {
    fixture: Fixture,
    client: ShimClient,
    task: StartTask,
    address: SocketAddr,
}

impl Service {
    fn start(change: impl FnOnce(&mut StartWasm)) -> Self {
        let fixture = Fixture::new(&Wasm);
        let mut client = fixture.shim.connect();
        let mut wasm = guest("web.wasm", &[]);
        wasm.http = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        change(&mut wasm);
        let mut task = fixture.task("web", StartProgram::Wasm(wasm));
        task.env.insert("UNIT_NAME".into(), "shop-1".into());
        client.start(&task);
        let address = client.wait_running(&task.key).expect("an address");
        Self { fixture, client, task, address }
    }

    fn get(&self, path: &str) -> (u16, String) {
        ask(self.address, "GET", path, "")
    }

    fn notes(&self) -> String {
        output(&self.task.log, Stream::Stderr)
    }
}

/// One request on its own connection: status and body.
fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(WAIT)).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("a whole answer");
    let status = response.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    let (head, body) = response.split_once("\r\n\r\n").expect("a head");
    let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    (status, if is_chunked { unchunked(body) } else { body.to_owned() })
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("the size of a chunk");
        whole.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    whole
}

#[test]
fn an_http_service_answers_each_request_with_a_fresh_instance() {
    let service = Service::start(|_| ());
    assert_eq!(service.get("/"), (200, "Hello from shop-1!\n".to_owned()));
    assert_eq!(service.get("/status/418").0, 418);
    let large = "0123456789abcdef".repeat(1 << 14);
    assert_eq!(ask(service.address, "POST", "/echo", &large), (200, large));
    assert_eq!(service.get("/env").1, "UNIT_NAME=shop-1\n");
    assert_eq!(service.get("/eat?mib=16").0, 200);
}

#[test]
fn a_request_that_names_no_host_is_its_clients_fault() {
    let service = Service::start(|_| ());
    for head in ["GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.0\r\nhost: \u{fc}\r\n\r\n"] {
        let mut stream = TcpStream::connect(service.address).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer.split(' ').nth(1), Some("400"), "{answer}");
    }
    assert_eq!(service.notes(), "", "the program is not to blame");
}

#[test]
fn a_request_beyond_the_memory_limit_fails_alone() {
    let service = Service::start(|_| ());
    let (status, _) = service.get("/eat?mib=500");
    assert_eq!(status, 503);
    wait_until("the log says why", || service.notes().contains("64Mi"));
    assert_eq!(service.get("/").0, 200);
}

#[test]
fn a_request_beyond_its_deadline_is_cut_off() {
    let service = Service::start(|wasm| wasm.deadline_ms = Some(300));
    let spinning = std::thread::spawn({
        let address = service.address;
        move || ask(address, "GET", "/spin", "").0
    });
    assert_eq!(service.get("/").0, 200, "others go on beside a spinner");
    assert_eq!(spinning.join().unwrap(), 504);
}

#[test]
fn a_request_whose_client_has_gone_does_not_run_on() {
    let mut service = Service::start(|_| ());
    let mut stream = TcpStream::connect(service.address).unwrap();
    stream.write_all(b"GET /spin HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
    wait_until("the request runs", || service.client.usage(&service.task.key).memory_bytes > 0);
    drop(stream);
    wait_until("its guest is gone", || service.client.usage(&service.task.key).memory_bytes == 0);
    assert_eq!(service.get("/").0, 200);
}

#[test]
fn outgoing_requests_reach_allowed_hosts_only() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello");
        }
    });
    let service = Service::start(|wasm| wasm.allow_hosts = vec![format!("127.0.0.1:{port}")]);
    let (status, body) = service.get(&format!("/fetch?url=http://127.0.0.1:{port}/"));
    assert!(status == 200 && body.contains("hello"), "{status} {body}");
    let (status, _) = service.get("/fetch?url=http://127.0.0.1:1/");
    assert_eq!(status, 502);
    assert!(service.notes().contains("127.0.0.1:1") && service.notes().contains("allow_hosts"));
}

#[test]
fn a_service_that_is_asked_to_end_finishes_what_it_has() {
    let mut service = Service::start(|_| ());
    assert_eq!(service.get("/").0, 200);
    service.client.stop(&service.task.key, StopSignal::Terminate);
    let record = service.client.wait_exited(&service.task.key);
    assert_eq!((record.code, record.reason), (0, None));
    assert!(TcpStream::connect(service.address).is_err(), "nothing listens any more");
}

#[test]
fn a_service_that_does_not_end_is_killed() {
    let mut service = Service::start(|_| ());
    let spinning = std::thread::spawn({
        let address = service.address;
        move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"GET /spin HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    wait_until("the request runs", || {
        service.client.usage(&service.task.key).used.cpu_ns > 20_000_000
    });
    service.client.stop(&service.task.key, StopSignal::Terminate);
    service.client.stop(&service.task.key, StopSignal::Kill);
    let record = service.client.wait_exited(&service.task.key);
    assert_eq!((record.code, record.reason), (137, None));
    spinning.join().unwrap();
    drop(service.fixture);
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
    let shim = crate::wasm_shim::start(&base.path().join("cache"), &dir, &["--idle-ms", "50"]);
    let mut fixture = Fixture { shim, base };
    let mut client = fixture.shim.connect();
    let (task, _) = run(&fixture, &mut client, "task", guest("hello.wasm", &[]));
    client.remove(&task.key);
    drop(client);
    assert!(fixture.shim.wait_for_end().success());
}
