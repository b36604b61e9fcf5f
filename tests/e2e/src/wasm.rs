//! Real WASI programs that nobody here wrote, and our own guests, as a developer would run them.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Cluster, get, guest, has_containers};

#[test]
fn cpython_with_its_standard_library_computes_and_uses_sqlite() {
    let cluster = Cluster::dev();
    let program = "import sqlite3, json, sys; db = sqlite3.connect(':memory:'); db.execute('create table t (x)'); \
                   db.executemany('insert into t values (?)', [(i * i,) for i in range(1000)]); \
                   print(json.dumps({'sum': db.execute('select sum(x) from t').fetchone()[0], 'platform': sys.platform}))";
    let ran = cluster.brig(&[
        "run",
        "--rm",
        "--memory",
        "256Mi",
        &guest("python.wasm"),
        "--",
        "-c",
        program,
    ]);
    assert_eq!(
        (ran.code, ran.stdout.trim()),
        (0, r#"{"sum": 332833500, "platform": "wasi"}"#),
        "{ran:#?}"
    );
    assert_eq!(cluster.units(), Vec::<serde_json::Value>::new(), "--rm leaves nothing");
}

#[test]
fn quickjs_evaluates_and_passes_its_exit_code_on() {
    let cluster = Cluster::dev();
    let quickjs = guest("quickjs.wasm");
    let ran = cluster.brig(&[
        "run",
        "--rm",
        &quickjs,
        "--",
        "-e",
        "console.log([1, 2, 3].map(x => x * x).join())",
    ]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "1,4,9\n"), "{ran:#?}");
    let ran = cluster.brig(&["run", "--rm", &quickjs, "--", "-e", "throw new Error('on purpose')"]);
    assert_ne!(ran.code, 0);
    assert!(format!("{}{}", ran.stdout, ran.stderr).contains("on purpose"), "{ran:#?}");
}

#[test]
fn input_reaches_a_program_that_is_run_with_it_and_no_other() {
    let cluster = Cluster::dev();
    let text: String = (0..20_000).map(|line| format!("line {line}\n")).collect();
    for name in ["probe.wasm", "probe-component.wasm", "modern.wasm"] {
        let ran = cluster.with_input(&["run", "-i", "--rm", &guest(name), "--", "stdin"], &text);
        assert_eq!((ran.code, ran.stdout.as_str()), (0, text.as_str()), "{name}: {}", ran.stderr);
    }
    let probe = guest("probe.wasm");
    let ran = cluster.with_input(&["run", "--rm", &probe, "--", "stdin"], "unasked\n");
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""), "{ran:#?}");
    // One that does not wait for its input is not waited for.
    let ran = cluster.with_input(&["run", "-i", "--rm", &guest("hello.wasm")], "unread\n");
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "Hello, world!\n"), "{ran:#?}");

    cluster.brig(&["run", "-d", "-i", "--name", "later", &probe, "--", "stdin"]);
    cluster.wait_for_state("later", "running");
    let sent = cluster.with_input(&["attach", "later"], "later\n");
    assert_eq!(sent.code, 0, "{sent:#?}");
    assert_eq!(cluster.ok(&["logs", "later"]), "later\n");
    cluster.brig(&["attach", "later"]).fails(1, &["not running"]);
    cluster.brig(&["run", "-d", "--name", "deaf", &probe, "--", "sleep", "3600000"]);
    cluster.wait_for_state("deaf", "running");
    cluster.brig(&["attach", "deaf"]).fails(1, &["`stdin: true`"]);
}

#[test]
fn a_program_gets_its_arguments_environment_and_directories_and_nothing_else() {
    let cluster = Cluster::dev();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("in.txt"), "from the host").unwrap();
    let here = folder.path().display().to_string();
    let probe = guest("probe.wasm");
    let run = |flags: &[&str], args: &[&str]| {
        let mut command = vec!["run", "--rm"];
        command.extend(flags);
        command.extend([probe.as_str(), "--"]);
        command.extend(args);
        cluster.brig(&command)
    };
    assert!(run(&[], &["args", "a b", "c"]).stdout.contains("a b"));
    let environment = run(&["--env", "WANTED=yes"], &["env"]).stdout;
    assert!(environment.contains("WANTED=yes"), "{environment}");
    assert!(!environment.contains("PATH=") && !environment.contains("HOME="), "{environment}");
    assert_eq!(
        run(&["--dir", &format!("{here}:/data")], &["cat", "/data/in.txt"]).stdout.trim(),
        "from the host"
    );
    assert_ne!(
        run(&["--dir", &format!("{here}:/data:ro")], &["write", "/data/out.txt", "x"]).code,
        0
    );
    assert_eq!(run(&["--dir", &format!("{here}:/data")], &["write", "/data/out.txt", "x"]).code, 0);
    assert!(folder.path().join("out.txt").exists());
    assert_ne!(run(&[], &["cat", "/etc/passwd"]).code, 0, "no directory was granted");
    let refused = run(&[], &["connect", cluster.url.strip_prefix("http://").unwrap()]);
    assert!(!format!("{}{}", refused.stdout, refused.stderr).contains("connected"), "{refused:#?}");
}

#[test]
fn exit_codes_traps_and_limits_are_told_apart() {
    let cluster = Cluster::dev();
    let probe = guest("probe.wasm");
    let run = |args: &[&str]| {
        cluster.brig(&[&["run", "--rm", "--memory", "32Mi", &probe, "--"], args].concat())
    };
    assert_eq!(run(&["exit", "7"]).code, 7);
    assert_eq!(run(&["exit", "0"]).code, 0);
    run(&["trap"]).fails(1, &["Trapped"]);
    run(&["eat", "64"]).fails(137, &["OutOfMemory", "32"]);
    let stderr = run(&["stderr", "on standard error"]);
    assert!(stderr.stderr.contains("on standard error") && stderr.stdout.is_empty(), "{stderr:#?}");
}

#[test]
fn a_signal_ends_the_unit_and_the_command() {
    let cluster = Cluster::dev();
    let probe = guest("probe.wasm");
    let mut command = cluster.command(&["run", "--rm", &probe, "--", "ticker"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().is_some(), "output comes while it runs");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    cluster.wait("the unit to be gone", || cluster.units().is_empty());
}

#[test]
fn components_run_as_modules_do() {
    let cluster = Cluster::dev();
    let ran = cluster.brig(&["run", "--rm", &guest("probe-component.wasm"), "--", "args", "x"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(ran.stdout.contains('x'));
}

#[test]
fn an_http_service_answers_scales_and_reaches_only_allowed_hosts() {
    let cluster = Cluster::dev();
    cluster.ok(&["deploy", &guest("web.wasm"), "--http", "--name", "web", "--replicas", "2"]);
    let endpoints = cluster.wait_for_service("web", 2);
    assert_eq!(endpoints.len(), 2);
    for endpoint in &endpoints {
        assert_eq!(get(&format!("{endpoint}/")).0, 200);
    }
    // The control plane itself is a host that nobody allowed.
    let (status, body) = get(&format!("{}/fetch?url={}/v1/version", endpoints[0], cluster.url));
    assert_eq!(status, 502, "{body}");
    cluster.ok(&["scale", "web", "--replicas", "1"]);
    cluster.wait_for_service("web", 1);
    let host = cluster.url.strip_prefix("http://").unwrap();
    cluster.ok(&["deploy", &guest("web.wasm"), "--http", "--name", "open", "--allow-host", host]);
    let open = cluster.wait_for_service("open", 1);
    let (status, body) = get(&format!("{}/fetch?url={}/v1/version", open[0], cluster.url));
    assert_eq!(status, 200, "{body}");
    cluster.ok(&["delete", "service/web", "service/open"]);
    assert!(cluster.units().is_empty());
}

#[test]
fn units_of_one_service_share_a_port() {
    let cluster = Cluster::dev();
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
        .to_string();
    cluster.ok(&[
        "deploy",
        &guest("web.wasm"),
        "--port",
        &port,
        "--name",
        "web",
        "--replicas",
        "3",
    ]);
    let endpoints = cluster.wait_for_service("web", 3);
    assert!(
        endpoints.iter().all(|endpoint| endpoint.ends_with(&format!(":{port}"))),
        "{endpoints:?}"
    );
    assert_eq!(get(&endpoints[0]).0, 200);
}

#[test]
fn an_isolated_program_has_a_process_to_itself() {
    let cluster = Cluster::dev();
    cluster.ok(&["push", &guest("probe.wasm"), "probe:1"]);
    let apply = |name: &str, args: &str| {
        cluster.apply(&format!(
            "kind: unit\nname: {name}\nunit:\n  restart: never\n  resources: {{cpu: 100m, memory: 64Mi}}\n  \
             wasm: {{artifact: 'probe:1', args: [{args}], isolation: unit}}\n"
        ));
    };
    if !has_containers() {
        apply("lone", "sleep, '1'");
        cluster.wait_for_state("lone", "failed");
        assert!(cluster.ok(&["describe", "unit/lone"]).contains("brig.wasm-isolation"));
        return;
    }
    apply("first", "sleep, '600000'");
    apply("second", "sleep, '600000'");
    cluster.wait_for_state("first", "running");
    cluster.wait_for_state("second", "running");
    // For each its shim, and the process that looks after its container.
    assert_eq!(cluster.shims("wasm-unit").len(), 4);
    assert_eq!(cluster.shims("wasm").len(), 0);
    cluster.ok(&["stop", "first"]);
    cluster.wait_for_state("first", "stopped");
    cluster.wait("its shim to be gone", || cluster.shims("wasm-unit").len() == 2);
    assert_eq!(cluster.unit("second")["restarts"], 0);

    apply("greedy", "eat, '1000'");
    cluster.wait_for_state("greedy", "failed");
    assert!(cluster.ok(&["describe", "unit/greedy"]).contains("OutOfMemory"));
}
