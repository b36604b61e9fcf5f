//! The command line's promises: formats, exit codes, what scripts rely on.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::Value;

use crate::harness::{Cluster, brig_alone, guest};

#[test]
fn a_job_runs_every_index_and_retries_what_fails() {
    let cluster = Cluster::dev();
    cluster.ok(&["push", &guest("probe.wasm"), "probe:1"]);
    cluster.apply("kind: job\nname: good\ncompletions: 5\nparallelism: 2\nunit: {wasm: {artifact: 'probe:1', args: [env]}}\n");
    cluster.wait("the job", || {
        cluster.json(&["get", "job", "good", "-o", "json"])["state"] == "succeeded"
    });
    let logs = cluster.ok(&["logs", "job/good"]);
    for index in 0..5 {
        assert!(logs.contains(&format!("BRIG_JOB_INDEX={index}")), "{logs}");
    }
    cluster.apply("kind: job\nname: bad\nretries: 2\nunit: {wasm: {artifact: 'probe:1', args: [exit, '4']}}\n");
    cluster.wait("the other job", || {
        cluster.json(&["get", "job", "bad", "-o", "json"])["state"] == "failed"
    });
    assert_eq!(cluster.units_of("bad").len(), 3, "one try and two retries");
    assert!(cluster.units_of("bad").iter().all(|unit| unit["exit_code"] == 4));
}

#[test]
fn ps_prints_what_scripts_rely_on() {
    let cluster = Cluster::dev();
    cluster.ok(&["run", "--detach", "--name", "tick", &guest("probe.wasm"), "--", "ticker"]);
    cluster.wait_for_state("tick", "running");
    let unit = cluster.unit("tick");
    for (field, expected) in [
        ("name", "tick"),
        ("namespace", "default"),
        ("kind", "unit"),
        ("runtime", "wasm"),
        ("state", "running"),
    ] {
        assert_eq!(unit[field], expected, "{unit}");
    }
    assert!(
        unit["node"].is_string() && unit["restarts"] == 0 && unit.get("reason").is_some(),
        "{unit}"
    );
    assert_eq!(cluster.ok(&["ps", "-o", "name"]), "unit/tick\n");
    assert!(cluster.ok(&["ps", "-o", "yaml"]).contains("name: tick"));
    let table = cluster.ok(&["ps"]);
    assert!(
        table.starts_with("NAMESPACE") && !table.contains('\x1b'),
        "no colour off a terminal: {table}"
    );
    assert!(cluster.ok(&["--color", "always", "ps"]).contains('\x1b'));
    assert!(cluster.ok(&["ps", "-o", "wide"]).contains("REQUEST"));
}

#[test]
fn manifests_come_in_three_formats_from_files_folders_and_standard_input() {
    let cluster = Cluster::dev();
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("a.yaml", "kind: namespace\nname: team\n---\nkind: namespace\nname: team/dev\n");
    write("b.toml", "kind = 'config'\nname = 'c'\nnamespace = 'team/dev'\n[data]\na = 'b'\n");
    write(
        "c.json",
        r#"[{"kind": "secret", "name": "s", "namespace": "team", "data": {"k": "v"}}]"#,
    );
    let path = folder.path().display().to_string();
    let applied = cluster.json(&["apply", "-f", &path, "-o", "json"]);
    assert_eq!(applied.as_array().unwrap().len(), 4);
    assert!(applied.as_array().unwrap().iter().all(|one| one["outcome"] == "created"), "{applied}");
    assert!(
        cluster
            .json(&["apply", "-f", &path, "-o", "json"])
            .as_array()
            .unwrap()
            .iter()
            .all(|one| one["outcome"] == "unchanged")
    );
    assert_eq!(
        cluster.ok(&["get", "configs", "-n", "team", "-o", "name"]),
        "config/c\n",
        "a namespace with those below it"
    );
    // Something in it keeps a namespace from being deleted.
    cluster.brig(&["delete", "namespace/team"]).fails(1, &["team"]);
    cluster.ok(&["delete", "-f", &path]);
    assert!(!cluster.ok(&["get", "namespaces", "-o", "name"]).contains("team"));
}

#[test]
fn a_node_says_what_its_operator_gave_it() {
    let cluster = Cluster::apart();
    let facts = &cluster.json(&["node", "ls", "-o", "json"])[0]["facts"];
    assert_eq!(facts["allocatable"]["scalars"]["gpu"], "2", "{facts}");
    assert_eq!(facts["taints"][0]["effect"], "prefer-not", "{facts}");
    assert_eq!(facts["volumes"][0], "/tmp", "{facts}");
    let wide = cluster.ok(&["node", "ls", "-o", "wide"]);
    assert!(wide.contains("gpu=2") && wide.contains("spot:prefer-not"), "{wide}");
}

#[test]
fn plan_shows_what_apply_would_do_and_does_nothing() {
    let cluster = Cluster::dev();
    cluster.ok(&["push", &guest("probe.wasm"), "probe:1"]);
    let manifest = "kind: service\nname: x\nreplicas: 2\nunit: {wasm: {artifact: 'probe:1', args: [ticker]}}\n";
    let ran = cluster.with_input(&["plan", "-f", "-"], manifest);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(
        ran.stdout.contains("service `x` in namespace `default`: 2 units would run on"),
        "{ran:#?}"
    );
    assert!(ran.stdout.contains("asks for: task `main`: memory none -> 64Mi"), "{ran:#?}");
    assert_eq!(cluster.ok(&["get", "services", "-o", "json"]).trim(), "[]");
    cluster.apply(manifest);
    cluster.wait_for_service("x", 2);
    let ran =
        cluster.with_input(&["plan", "-f", "-"], &manifest.replace("replicas: 2", "replicas: 1"));
    assert!(
        ran.stdout.contains("updated")
            && ran.stdout.contains("replicas")
            && ran.stdout.contains("would be stopped"),
        "{ran:#?}"
    );
}

#[test]
fn simulate_answers_with_a_sentence_and_an_exit_code_and_does_nothing() {
    let cluster = Cluster::apart();
    cluster.ok(&["push", &guest("probe.wasm"), "probe:1"]);
    let service = "kind: service\nname: web\nreplicas: 2\nunit: {wasm: {artifact: 'probe:1', args: [ticker]}, resources: {scalars: {gpu: 0.5}}}\n";
    cluster.apply(service);
    cluster.wait_for_service("web", 2);
    let before = cluster.units();
    let unit = "kind: unit\nname: x\nunit: {wasm: {artifact: 'probe:1', args: [ticker]}, resources: {cpu: 1m, scalars: {gpu: 0.5}}}\n";
    let simulate = |arguments: &[&str]| {
        cluster.with_input(&[&["simulate", "-f", "-"], arguments].concat(), unit)
    };

    let fits = simulate(&["--count", "2"]);
    assert_eq!(fits.code, 0, "{fits:#?}");
    assert!(fits.stdout.starts_with("Yes: all 2 units fit\n\n"), "{}", fits.stdout);
    let gpus = fits.stdout.lines().find(|line| line.starts_with("gpu")).unwrap();
    assert_eq!(
        gpus.split_whitespace().collect::<Vec<_>>().join(" "),
        "gpu ██████████░░░░░░░░░░ 50% 1 of 2 ████████████████████ 100% 2 of 2"
    );
    let moves = "unit `x-1` in namespace `default` and 1 like it would run on node-1\n";
    assert!(fits.stdout.ends_with(moves), "{}", fits.stdout);

    let crowded = simulate(&["--count", "40"]);
    assert_eq!((crowded.code, &*crowded.stderr), (6, ""), "{crowded:#?}");
    assert!(
        crowded.stdout.starts_with(
            "No: unit `x-3` in namespace `default` and 37 like it would wait: the only node is short of gpu"
        ),
        "{}",
        crowded.stdout
    );
    assert!(crowded.stdout.contains("; 2 of the 40 units that arrive fit\n"), "{}", crowded.stdout);
    let grown = simulate(&["--count", "40", "--grow", "10=node-1", "-o", "json"]);
    let grown: Value = serde_json::from_str(&grown.stdout).unwrap();
    assert_eq!((&grown["fits"], &grown["after"]["nodes"]), (&true.into(), &11.into()), "{grown}");

    let lost = cluster.brig(&["simulate", "--lose", "arch exists", "-o", "name"]);
    assert_eq!(lost.code, 6, "{lost:#?}");
    let answer = "No: 2 units of service `web` in namespace `default` would wait: the only node is out of reach";
    assert!(lost.stdout.starts_with(answer) && lost.stdout.lines().count() == 1, "{lost:#?}");
    let lost = cluster.brig(&["simulate", "--lose", "node-1"]);
    let row = "web default 2 2 0 0";
    let is_row = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ") == row;
    assert!(lost.stdout.lines().any(is_row), "{}", lost.stdout);

    cluster.brig(&["simulate"]).fails(2, &["--lose", "--grow"]);
    cluster.brig(&["simulate", "--lose", "nowhere"]).fails(2, &["nowhere", "brig node ls"]);
    cluster.brig(&["simulate", "--lose", "arch=vax"]).fails(2, &["no node has arch = vax"]);
    cluster.brig(&["simulate", "--lose", "arch ~ vax"]).fails(2, &["`zone in a,b`"]);
    cluster.brig(&["simulate", "--grow", "some=node-1"]).fails(2, &["`some`"]);
    cluster.brig(&["simulate", "--count", "2", "--lose", "node-1"]).fails(2, &["--file"]);
    simulate(&["--count", "1000000000"]).fails(2, &["add[0].count", "10000"]);
    assert_eq!(cluster.units(), before);
}

#[test]
fn a_changed_service_is_rolled_to_its_new_units() {
    let cluster = Cluster::dev();
    cluster.ok(&["push", &guest("probe.wasm"), "probe:1"]);
    let manifest = |word: &str| {
        format!(
            "kind: service\nname: x\nreplicas: 2\nunit: {{wasm: {{artifact: 'probe:1', args: [ticker]}}, env: {{WORD: {word}}}}}\n"
        )
    };
    cluster.apply(&manifest("old"));
    cluster.wait_for_service("x", 2);
    let before: Vec<_> = cluster.units_of("x").iter().map(|unit| unit["id"].clone()).collect();
    cluster.apply(&manifest("new"));
    cluster.wait("the new units alone", || {
        let units = cluster.units_of("x");
        units.len() == 2
            && units.iter().all(|unit| unit["state"] == "running" && !before.contains(&unit["id"]))
    });
}

#[test]
fn logs_follow_and_tail() {
    let cluster = Cluster::dev();
    let probe = guest("probe.wasm");
    cluster.ok(&["run", "--detach", "--name", "lines", &probe, "--", "lines", "1000"]);
    cluster.wait_for_state("lines", "succeeded");
    assert_eq!(cluster.ok(&["logs", "lines"]).lines().count(), 1000);
    assert_eq!(cluster.ok(&["logs", "--tail", "3", "lines"]).lines().count(), 3);
    assert_eq!(
        cluster.ok(&["logs", "--follow", "lines"]).lines().count(),
        1000,
        "it ends with the unit"
    );
    assert!(cluster.ok(&["logs", "--timestamps", "--tail", "1", "lines"]).starts_with("20"));
    cluster.ok(&["run", "--detach", "--name", "tick", &probe, "--", "ticker"]);
    let mut child =
        cluster.command(&["logs", "-f", "tick"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.map_while(Result::ok).take(5).count(), 5);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn sql_events_why_describe_and_version_tell_what_is() {
    let cluster = Cluster::dev();
    cluster.ok(&[
        "run",
        "--detach",
        "--name",
        "tick",
        "--cpu",
        "150m",
        &guest("probe.wasm"),
        "--",
        "ticker",
    ]);
    cluster.wait_for_state("tick", "running");
    let rows = cluster.json(&[
        "sql",
        "select node, sum(cpu_milli) as cpu from units where state = 'running' group by node",
        "-o",
        "json",
    ]);
    assert_eq!(rows[0]["cpu"], 150, "{rows}");
    let why = cluster.ok(&["why", "tick"]);
    assert!(why.contains("bin-packing"), "{why}");
    let events = cluster.json(&["events", "tick", "-o", "json"]);
    assert!(!events.as_array().unwrap().is_empty());
    let described = cluster.ok(&["describe", "tick"]);
    assert!(described.contains("Why") && described.contains("Events"), "{described}");
    assert!(cluster.ok(&["version"]).contains("sqlite"));
}

#[test]
fn what_a_unit_used_is_known_when_it_has_ended() {
    let cluster = Cluster::dev();
    cluster.ok(&["run", "--name", "eat", &guest("probe.wasm"), "--", "eat", "8", "300"]);
    cluster.wait_for_state("eat", "succeeded");
    let query = "select u.name, s.cpu_ns, s.memory_byte_s, n.cpu_ns as of_namespace from units u \
        join unit_usage s on s.unit_id = u.id join namespace_usage n on n.namespace = u.namespace";
    let rows = cluster.json(&["sql", query, "-o", "json"]);
    let used = rows[0]["cpu_ns"].as_u64().unwrap();
    assert!(used > 0 && rows[0]["of_namespace"] == used, "{rows}");
    // 8 MiB for 300 ms, and a little more.
    assert!(rows[0]["memory_byte_s"].as_u64().unwrap() > 2_000_000, "{rows}");
    let described = cluster.ok(&["describe", "eat"]);
    assert!(described.contains(" core-seconds"), "{described}");
}

#[test]
fn artifacts_go_up_and_come_down_the_same() {
    let cluster = Cluster::dev();
    let folder = tempfile::tempdir().unwrap();
    let hello = guest("hello.wasm");
    let printed = cluster.ok(&["push", &hello, "team/hello:1"]);
    assert!(printed.contains("team/hello:1@sha256:"), "{printed}");
    let target = folder.path().join("back.wasm").display().to_string();
    cluster.ok(&["pull", "team/hello:1", &target]);
    assert_eq!(std::fs::read(&hello).unwrap(), std::fs::read(&target).unwrap());
    cluster.brig(&["pull", "team/hello:1", &target]).fails(1, &["exists"]);
    cluster.brig(&["pull", "team/nothing:1"]).fails(3, &["team/nothing:1"]);
    let images: Value = cluster.json(&["images", "-o", "json"]);
    assert_eq!(
        (&images[0]["repository"], &images[0]["content"]),
        (&"team/hello".into(), &"wasm".into())
    );
    assert!(cluster.ok(&["images"]).contains("team/hello"));
}

#[test]
fn schema_and_completions_are_printed_without_a_server() {
    let schema: Value = serde_json::from_str(&brig_alone(&["schema"]).stdout).unwrap();
    assert!(schema["$schema"].as_str().unwrap().contains("2020-12"));
    for shell in ["bash", "zsh", "fish"] {
        let ran = brig_alone(&["completions", shell]);
        assert!(ran.code == 0 && ran.stdout.contains("brig"), "{shell}");
    }
    assert!(brig_alone(&["version"]).stdout.starts_with("brig "));
}

#[test]
fn the_served_openapi_document_names_every_path_that_the_command_uses() {
    let cluster = Cluster::dev();
    let (status, text) = crate::harness::get(&format!("{}/v1/openapi.json", cluster.url));
    assert_eq!(status, 200);
    let document: Value = serde_json::from_str(&text).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    for path in [
        "/v1/apply",
        "/v1/plan",
        "/v1/simulate",
        "/v1/watch",
        "/v1/sql",
        "/v1/units",
        "/v1/events",
        "/v1/version",
    ] {
        assert!(document["paths"].get(path).is_some(), "{path} is not in the document");
    }
}
