//! Any process may be killed at any moment: nothing committed is lost, and everything comes to what was asked for.

use std::process::Stdio;

use rustix::process::{Signal, kill_process};

use crate::harness::{Cluster, get, guest, has_containers, image};

#[test]
fn units_run_on_while_the_agent_is_dead_and_are_found_again() {
    let mut cluster = Cluster::apart();
    cluster.ok(&["deploy", &guest("web.wasm"), "--http", "--name", "web"]);
    let endpoint = cluster.wait_for_service("web", 1).remove(0);
    let name = cluster.units_of("web")[0]["name"].clone();
    cluster.node.as_mut().unwrap().kill();
    assert_eq!(get(&endpoint).0, 200, "it runs without the agent");
    cluster.start_node();
    cluster.wait_for_service("web", 1);
    let unit = cluster.units_of("web").remove(0);
    assert_eq!((&unit["name"], &unit["restarts"]), (&name, &0.into()), "it is the same one");
    assert_eq!(get(&endpoint).0, 200);
}

#[test]
fn an_exit_while_the_agent_is_dead_is_reported_once() {
    let mut cluster = Cluster::apart();
    cluster.ok(&[
        "run",
        "--detach",
        "--name",
        "short",
        &guest("probe.wasm"),
        "--",
        "sleep",
        "1500",
    ]);
    cluster.wait_for_state("short", "running");
    cluster.node.as_mut().unwrap().kill();
    // It ends in the meantime; the new agent learns it from the disk.
    let tasks = cluster.data.join("node/namespaces/default/tasks");
    cluster.wait("the exit to be on disk", || {
        let mut runs = std::fs::read_dir(&tasks).into_iter().flatten().filter_map(Result::ok);
        runs.any(|run| run.path().join("exit.json").exists())
    });
    cluster.start_node();
    cluster.wait_for_state("short", "succeeded");
    let ends = cluster.json(&[
        "sql",
        "select count(*) as n from events where name = 'short' and reason = 'Succeeded'",
        "-o",
        "json",
    ]);
    assert_eq!(ends[0]["n"], 1, "{}", cluster.ok(&["events"]));
}

#[test]
fn a_killed_wasm_shim_is_replaced_and_its_units_restarted() {
    let cluster = Cluster::dev();
    cluster.ok(&["deploy", &guest("web.wasm"), "--http", "--name", "web"]);
    cluster.wait_for_service("web", 1);
    // The shim, and the process that looks after its container where it has one.
    let processes = cluster.shims("wasm").len();
    assert_eq!(processes, if has_containers() { 2 } else { 1 });
    for killed in 0..processes {
        let shims = cluster.shims("wasm");
        kill_process(shims[killed], Signal::KILL).unwrap();
        cluster.wait("a restart", || {
            cluster.units_of("web").first().is_some_and(|unit| unit["restarts"] == killed + 1)
        });
        let endpoint = cluster.wait_for_service("web", 1).remove(0);
        cluster.wait("an answer", || crate::harness::try_get(&endpoint).is_ok());
        let left = cluster.shims("wasm");
        assert!(left.len() == processes && !shims.iter().any(|shim| left.contains(shim)));
    }
}

#[test]
fn a_killed_container_shim_leaves_nothing_and_its_unit_is_restarted() {
    if !has_containers() {
        return;
    }
    let cluster = Cluster::dev();
    cluster.ok(&["push", &image("busybox"), "busybox:1"]);
    // A number of seconds that nobody else sleeps, to find the process by.
    let seconds = 1_000_000 + std::process::id();
    cluster.apply(&format!("kind: service\nname: box\nunit:\n  grace_ms: 200\n  oci: {{image: 'busybox:1', args: [sleep, '{seconds}']}}\n"));
    cluster.wait_for_service("box", 1);
    kill_process(cluster.shims("oci")[0], Signal::KILL).unwrap();
    cluster.wait("a restart", || {
        cluster.units_of("box").first().is_some_and(|unit| unit["restarts"] == 1)
    });
    cluster.wait_for_service("box", 1);
    let sleepers = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok).filter(|entry| {
        std::fs::read(entry.path().join("cmdline"))
            .is_ok_and(|line| line == format!("sleep\0{seconds}\0").as_bytes())
    });
    assert_eq!(sleepers.count(), 1, "the container of the dead shim is gone");
}

#[test]
fn a_killed_server_comes_back_with_everything_and_units_never_notice() {
    let mut cluster = Cluster::apart();
    cluster.ok(&["deploy", &guest("web.wasm"), "--http", "--name", "web"]);
    let endpoint = cluster.wait_for_service("web", 1).remove(0);
    cluster.server.as_mut().unwrap().kill();
    assert_eq!(get(&endpoint).0, 200, "it runs without a control plane");
    cluster.start_server();
    cluster.wait_for_service("web", 1);
    assert_eq!(cluster.units_of("web")[0]["restarts"], 0);
    // And the node listens to it again.
    assert_eq!(cluster.brig(&["run", "--rm", &guest("hello.wasm")]).code, 0);
}

#[test]
fn a_server_killed_in_the_middle_of_applies_has_each_of_them_whole_or_not() {
    let mut cluster = Cluster::apart();
    let folder = tempfile::tempdir().unwrap();
    let mut children = Vec::new();
    for number in 0..12 {
        let manifests: String = (0..50)
            .map(|part| format!("kind: config\nname: c{number}-{part}\ndata: {{a: b}}\n---\n"))
            .collect();
        let path = folder.path().join(format!("{number}.yaml"));
        std::fs::write(&path, manifests).unwrap();
        let mut command = cluster.command(&["apply", "-f", &path.display().to_string()]);
        children.push(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    }
    // Some of them are through, some are not.
    cluster.wait("a first apply", || {
        cluster.brig(&["get", "configs", "-o", "name"]).stdout.lines().count() >= 50
    });
    cluster.server.as_mut().unwrap().kill();
    let told: Vec<bool> =
        children.into_iter().map(|mut child| child.wait().unwrap().success()).collect();
    cluster.start_server();
    let names = cluster.ok(&["get", "configs", "-o", "name"]);
    for (number, was_told) in told.into_iter().enumerate() {
        let count =
            names.lines().filter(|name| name.starts_with(&format!("config/c{number}-"))).count();
        assert!(count == 0 || count == 50, "apply {number} is there in part: {count}");
        assert!(!was_told || count == 50, "apply {number} was confirmed and is lost");
    }
}

#[test]
fn the_same_data_on_the_next_start_continues_where_it_was() {
    let mut cluster = Cluster::dev();
    cluster.ok(&["deploy", &guest("web.wasm"), "--http", "--name", "web"]);
    cluster.wait_for_service("web", 1);
    assert_eq!(cluster.server.as_mut().unwrap().terminate(), Some(0));
    // They were told to end, and are about to.
    cluster.wait("nothing to be left running", || cluster.shims("wasm").is_empty());
    cluster.start_dev();
    // The cluster knows the old place until the node has told the new one.
    cluster.wait("an answer", || {
        let answers = |endpoint: &String| {
            crate::harness::try_get(endpoint).is_ok_and(|(status, _)| status == 200)
        };
        cluster.endpoints_of("web").iter().any(answers)
    });
    // And after a crash of everything.
    cluster.server.as_mut().unwrap().kill();
    cluster.start_dev();
    cluster.wait_for_service("web", 1);
    assert_eq!(cluster.brig(&["run", "--rm", &guest("hello.wasm")]).code, 0);
}

#[test]
fn failing_units_are_restarted_with_back_off_and_say_so() {
    let cluster = Cluster::dev();
    cluster.ok(&["push", &guest("probe.wasm"), "probe:1"]);
    cluster.apply(
        "kind: service\nname: crash\nunit: {wasm: {artifact: 'probe:1', args: [exit, '3']}}\n",
    );
    cluster.wait("restarts", || {
        cluster.units_of("crash").first().is_some_and(|unit| unit["restarts"].as_u64() >= Some(3))
    });
    cluster.wait("the crash loop to be called one", || {
        cluster.units_of("crash")[0]["reason"] == "CrashLoop"
    });
    cluster.ok(&["delete", "service/crash"]);
}
