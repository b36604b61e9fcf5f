//! What a wasm program finds of its host: sockets, configuration, a log with levels, a place to keep things, clocks; and
//! both versions of WASI's components.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;

use brig_api::lifecycle::Reason;
use brig_api::logline::Stream;
use brig_api::unit_spec::Clocks;
use brig_shim::exit::ExitRecord;
use brig_shim::message::{
    BindMount, KeyValueStore, StartProgram, StartTask, StartWasm, StopSignal, WasmWorld,
};

use crate::shim_client::{ShimClient, wait_until};
use crate::shim_contract::{Fixture, output};
use crate::wasm_programs::{guest, run};
use crate::wasm_shim::Wasm;

const COMPONENT: &str = "probe-component.wasm";

/// A shim, and what its tasks said.
struct World {
    fixture: Fixture,
    client: ShimClient,
    tasks: usize,
}

/// How a program ended and what it wrote.
struct Ended {
    record: ExitRecord,
    stdout: String,
    stderr: String,
}

impl Ended {
    #[track_caller]
    fn said(&self, text: &str) {
        assert_eq!((self.record.code, self.stdout.as_str()), (0, text), "{}", self.stderr);
    }

    #[track_caller]
    fn was_refused(&self, says: &[&str]) {
        assert_ne!(self.record.code, 0, "{}", self.stdout);
        for part in says {
            assert!(self.stderr.contains(part), "{:?} does not say {part:?}", self.stderr);
        }
    }
}

impl World {
    fn new() -> Self {
        let fixture = Fixture::new(&Wasm);
        let client = fixture.shim.connect();
        Self { fixture, client, tasks: 0 }
    }

    fn task(&mut self, program: StartWasm) -> StartTask {
        self.tasks += 1;
        self.fixture.task(&format!("task{}", self.tasks), StartProgram::Wasm(program))
    }

    fn run(&mut self, name: &str, args: &[&str], change: impl FnOnce(&mut StartWasm)) -> Ended {
        let mut program = guest(name, args);
        change(&mut program);
        let task = self.task(program);
        self.client.start(&task);
        self.end(&task)
    }

    fn end(&mut self, task: &StartTask) -> Ended {
        let record = self.client.wait_exited(&task.key);
        let [stdout, stderr] =
            [Stream::Stdout, Stream::Stderr].map(|stream| output(&task.log, stream));
        Ended { record, stdout, stderr }
    }

    /// Starts a program that says where it listens.
    fn serve(&mut self, program: StartWasm) -> StartTask {
        let task = self.task(program);
        self.client.start(&task);
        wait_until("it listens", || output(&task.log, Stream::Stdout).contains("listening"));
        task
    }

    fn keyvalue(&self, buckets: &[&str]) -> WasmWorld {
        let buckets = buckets.iter().map(|bucket| (*bucket).to_owned()).collect();
        let file = self.fixture.base.path().join("team.db");
        WasmWorld { keyvalue: Some(KeyValueStore { file, buckets }), ..WasmWorld::default() }
    }
}

fn allow(hosts: &[&str]) -> impl FnOnce(&mut StartWasm) {
    let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
    |program| program.allow_hosts = hosts
}

/// A server on this machine that sends back what it is sent.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        // Held open, so that whoever hoards connections has them.
        let mut streams = Vec::new();
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            streams.push(stream.try_clone());
            std::thread::spawn(move || {
                let mut bytes = [0; 1024];
                while let Ok(count @ 1..) = stream.read(&mut bytes) {
                    let _ = stream.write_all(&bytes[..count]);
                }
            });
        }
    });
    address
}

/// A port that nobody has: asked of the kernel, and given back.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn connections_go_to_hosts_that_are_named_for_sockets() {
    let mut world = World::new();
    let server = echo();
    let (address, port) = (server.to_string(), server.port());
    let ask = ["ask", address.as_str(), "hi"];
    let refused = world.run(COMPONENT, &ask, |_| ());
    refused.was_refused(&["brig: refused a tcp socket", "`tcp://HOST:PORT`", "allow_hosts"]);
    let refused = world.run(COMPONENT, &ask, allow(&[&address, "udp://127.0.0.1"]));
    refused.was_refused(&["refused a tcp socket"]);
    let refused = world.run(COMPONENT, &ask, allow(&["tcp://127.0.0.1:1", "tcp://*.internal"]));
    refused.was_refused(&[&format!("refused tcp to {address}: add `tcp://{address}`")]);
    world.run(COMPONENT, &ask, allow(&[&format!("tcp://{address}")])).said("hi\n");
    let by_name = format!("localhost:{port}");
    let ask = ["ask", by_name.as_str(), "hi"];
    world.run(COMPONENT, &ask, allow(&[&format!("tcp://{by_name}")])).said("hi\n");
    world
        .run(COMPONENT, &ask, allow(&["tcp://localhost:1"]))
        .was_refused(&["refused tcp to 127.0.0.1"]);
}

#[test]
fn only_names_that_are_granted_are_looked_up() {
    let mut world = World::new();
    let look_up = ["look-up", "localhost"];
    for hosts in [&[][..], &["localhost"], &["tcp://other.internal"]] {
        world
            .run(COMPONENT, &look_up, allow(hosts))
            .was_refused(&["refused to look up \"localhost\"", "tcp://localhost:PORT"]);
    }
    let found = world.run(COMPONENT, &look_up, allow(&["udp://localhost:53"]));
    assert!(found.stdout.contains("127.0.0.1") || found.stdout.contains("::1"), "{}", found.stderr);
}

#[test]
fn a_service_listens_on_the_ports_that_it_was_given_and_on_no_other() {
    let mut world = World::new();
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let refused = world.run(COMPONENT, &["serve", &address], allow(&["tcp://127.0.0.1:1"]));
    refused.was_refused(&[&format!("refused to listen on port {port}: add it"), "`ports`"]);
    let chosen = world.run(COMPONENT, &["serve", "0.0.0.0:0"], |program| {
        program.world.ports = vec![port];
    });
    chosen.was_refused(&["refused to listen on port"]);
    let mut program = guest(COMPONENT, &["serve", &address]);
    program.world.ports = vec![port];
    let task = world.serve(program);
    let mut stream = TcpStream::connect(&address).unwrap();
    for text in ["one\n", "stop\n"] {
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = vec![0; text.len()];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, text.as_bytes());
    }
    assert_eq!(world.end(&task).record.code, 0);
}

#[test]
fn datagrams_go_to_hosts_that_are_named_and_to_who_asked() {
    let mut world = World::new();
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let mut bytes = [0; 64];
        while let Ok((count, from)) = server.recv_from(&mut bytes) {
            let _ = server.send_to(&bytes[..count], from);
        }
    });
    let ask = ["ask-udp", address.as_str(), "hi"];
    world.run(COMPONENT, &ask, allow(&["tcp://127.0.0.1"])).was_refused(&["refused a udp socket"]);
    let note = format!("refused udp to {address}");
    world.run(COMPONENT, &ask, allow(&["udp://127.0.0.1:1"])).was_refused(&[&note]);
    world.run(COMPONENT, &ask, allow(&[&format!("udp://{address}")])).said("hi\n");
    let port = free_port();
    let mut program = guest(COMPONENT, &["serve-udp", &format!("127.0.0.1:{port}")]);
    program.world.ports = vec![port];
    let task = world.serve(program);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(("127.0.0.1", port)).unwrap();
    let mut answer = [0; 64];
    for text in ["one", "stop"] {
        client.send(text.as_bytes()).unwrap();
        let count = client.recv(&mut answer).unwrap();
        assert_eq!(&answer[..count], text.as_bytes());
    }
    assert_eq!(world.end(&task).record.code, 0);
}

#[test]
fn whoever_opens_sockets_without_end_is_ended_and_harms_nobody() {
    let mut world = World::new();
    let address = echo().to_string();
    let named = format!("tcp://{address}");
    let hoarded = world.run(COMPONENT, &["hoard", &address, "1000000"], allow(&[&named]));
    assert!(hoarded.record.code != 0 || hoarded.stdout.contains("then"), "{}", hoarded.stdout);
    world.run(COMPONENT, &["ask", &address, "hi"], allow(&[&named])).said("hi\n");
}

#[test]
fn a_program_is_configured_by_its_spec() {
    let mut world = World::new();
    let granted = world.keyvalue(&["default"]);
    let configured = |program: &mut StartWasm| {
        program.world = granted.clone();
        let pairs = [("colour", "blue"), ("size", "7")];
        program.world.config = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    };
    world.run("keeper.wasm", &["config"], configured).said("colour=blue\nsize=7\n");
    world.run("keeper.wasm", &["config", "size"], configured).said("7\n");
    world.run("keeper.wasm", &["config", "other"], configured).was_refused(&["no such key"]);
    let nothing = granted.clone();
    world.run("keeper.wasm", &["config"], |program| program.world = nothing).said("");
}

#[test]
fn messages_with_levels_are_lines_of_the_log() {
    let mut world = World::new();
    let granted = world.keyvalue(&["default"]);
    let log = ["log", "warn", "shop", "first\nINFO forged"];
    let said = world.run("keeper.wasm", &log, |program| program.world = granted.clone());
    assert_eq!((said.record.code, said.stderr.as_str()), (0, "WARN shop: first\n  INFO forged\n"));
    let huge = "x".repeat(200 << 10);
    let log = ["log", "critical", "", huge.as_str()];
    let said = world.run("keeper.wasm", &log, |program| program.world = granted.clone());
    assert!(said.stderr.starts_with("CRITICAL xxx") && said.stderr.len() < 66 << 10);
}

#[test]
fn what_a_namespace_keeps_is_there_for_its_next_program_and_its_next_shim() {
    let mut world = World::new();
    let granted = world.keyvalue(&["default", "carts"]);
    let keep = |world: &mut World, args: &[&str]| {
        world.run("keeper.wasm", args, |program| program.world = granted.clone())
    };
    keep(&mut world, &["set", "default", "k", "v"]).said("");
    keep(&mut world, &["get", "", "k"]).said("v\n");
    keep(&mut world, &["get", "carts", "k"]).was_refused(&["no such key"]);
    keep(&mut world, &["add", "carts", "n", "40"]).said("40\n");
    keep(&mut world, &["add", "carts", "n", "2"]).said("42\n");
    keep(&mut world, &["both", "carts", "a", "b"]).said("a=1\nb=2\nnothing\nfalse\n");
    keep(&mut world, &["keys", "carts"]).said("n\n");
    keep(&mut world, &["get", "other", "k"]).was_refused(&["bucket \"other\"", "`keyvalue`"]);
    let mut next = World::new();
    keep(&mut next, &["get", "default", "k"]).said("v\n");
    keep(&mut next, &["delete", "default", "k"]).said("");
    keep(&mut world, &["get", "default", "k"]).was_refused(&["no such key"]);
}

#[test]
fn a_program_that_keeps_things_does_not_start_without_a_bucket() {
    let refused = World::new().run("keeper.wasm", &["config"], |_| ());
    assert_eq!(refused.record.reason, Some(Reason::ImportNotGranted));
    let message = refused.record.message.unwrap();
    assert!(
        message.contains("wasi:keyvalue") && message.contains("keyvalue: [default]"),
        "{message}"
    );
}

#[test]
fn what_is_kept_is_bounded() {
    let mut world = World::new();
    let granted = world.keyvalue(&["default"]);
    let filled = world.run("keeper.wasm", &["fill", "default", "1048577"], |program| {
        program.world = granted.clone();
    });
    assert!(filled.stdout.starts_with("0 were kept") && filled.stdout.contains("at most 1Mi"));
    let filled = world.run("keeper.wasm", &["fill", "default", "1048576"], |program| {
        program.world = granted.clone();
    });
    let kept: usize = filled.stdout.split(' ').next().unwrap().parse().unwrap();
    assert!(kept == 255 && filled.stdout.contains("256Mi"), "{}{}", filled.stdout, filled.stderr);
}

#[test]
fn coarse_clocks_tell_milliseconds_and_fine_ones_more() {
    let mut world = World::new();
    for name in ["probe.wasm", COMPONENT] {
        let mut step = |clocks| -> u64 {
            let ended = world.run(name, &["tick"], |program| program.world.clocks = clocks);
            ended.stdout.trim().parse().unwrap()
        };
        let (fine, coarse) = (step(Clocks::Fine), step(Clocks::Coarse));
        assert!((1..1_000).contains(&fine), "{name}: {fine} µs");
        assert!(coarse >= 1_000 && coarse.is_multiple_of(1_000), "{name}: {coarse} µs");
    }
}

#[test]
fn both_versions_of_wasi_run_in_one_shim() {
    let mut world = World::new();
    let waiting = guest("modern.wasm", &["wait", "3600000"]);
    let waiting = world.task(waiting);
    world.client.start(&waiting);
    world.run("modern.wasm", &["wait", "5"], |_| ()).said("waited\n");
    world.run("modern.wasm", &["say", "by a stream"], |_| ()).said("by a stream\n");
    world.run(COMPONENT, &["args", "old"], |_| ()).said("old\n");
    world.run("probe.wasm", &["args", "older"], |_| ()).said("older\n");
    let failed = world.run("modern.wasm", &["nonsense"], |_| ());
    assert_eq!(failed.record.code, 1);
    world.client.stop(&waiting.key, StopSignal::Terminate);
    assert_eq!(world.end(&waiting).record.code, 143);
}

#[test]
fn programs_of_wasi_0_3_are_held_to_the_same_grants_and_limits() {
    let mut world = World::new();
    world
        .run("modern.wasm", &["look-up", "localhost"], |_| ())
        .was_refused(&["refused to look up \"localhost\"", "AccessDenied"]);
    let found = world.run("modern.wasm", &["look-up", "localhost"], allow(&["tcp://localhost"]));
    assert!(!found.stdout.is_empty(), "{}", found.stderr);
    let eaten = world.run("modern.wasm", &["eat"], |_| ());
    assert_eq!((eaten.record.code, eaten.record.reason), (137, Some(Reason::OutOfMemory)));
    let trapped = world.run("modern.wasm", &["trap"], |_| ());
    assert_eq!(trapped.record.reason, Some(Reason::Trapped), "{:?}", trapped.record);
    let spinner = world.task(guest("modern.wasm", &["spin"]));
    world.client.start(&spinner);
    wait_until("it spins", || world.client.usage(&spinner.key).used.cpu_ns > 20_000_000);
    world.client.stop(&spinner.key, StopSignal::Kill);
    assert_eq!(world.end(&spinner).record.code, 137);
}

#[test]
fn a_trap_is_told_with_file_and_line_in_full_in_the_log() {
    let mut world = World::new();
    let trapped = world.run("probe-traceable.wasm", &["trap"], |_| ());
    assert_eq!(trapped.record.reason, Some(Reason::Trapped));
    for text in [trapped.record.message.unwrap(), trapped.stderr] {
        assert!(text.contains("!probe::main") && text.contains("/probe/src/main.rs:"), "{text}");
    }
    let deep = world.run("probe-traceable.wasm", &["recurse"], |_| ());
    let message = deep.record.message.unwrap();
    assert!(message.contains("recurse") && message.contains("56 more, in the log"), "{message}");
    assert!(deep.stderr.starts_with("brig: trapped: ") && deep.stderr.contains("\n  63: "));
}

#[test]
fn links_do_not_lead_out_of_what_was_granted() {
    let mut world = World::new();
    let inside: PathBuf = world.fixture.base.path().join("inside");
    std::fs::create_dir(&inside).unwrap();
    std::fs::write(world.fixture.base.path().join("secret"), "s").unwrap();
    std::os::unix::fs::symlink("../secret", inside.join("relative")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", inside.join("absolute")).unwrap();
    std::os::unix::fs::symlink("/proc/self/root", inside.join("root")).unwrap();
    for name in ["probe.wasm", COMPONENT] {
        for path in ["/data/relative", "/data/absolute", "/data/root/etc/passwd", "/data/../secret"]
        {
            let mut task = world.task(guest(name, &["cat", path]));
            let source = inside.clone();
            task.mounts.push(BindMount { source, at: "/data".into(), read_only: true });
            world.client.start(&task);
            let ended = world.end(&task);
            assert!(ended.record.code != 0 && ended.stdout.is_empty(), "{name} {path}");
        }
    }
}

#[test]
fn modules_of_preview_1_have_no_sockets_even_where_they_are_granted() {
    let fixture = Fixture::new(&Wasm);
    let mut program = guest("probe.wasm", &["connect", "127.0.0.1:1"]);
    program.allow_hosts = vec!["tcp://127.0.0.1:1".to_owned()];
    let (task, record) = run(&fixture, &mut fixture.shim.connect(), "task", program);
    assert_ne!(record.code, 0, "{}", output(&task.log, Stream::Stdout));
}
