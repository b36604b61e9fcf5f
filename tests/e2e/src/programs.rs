//! What wasm programs are and need: found at push, told by `inspect` and `plan`, held against a unit at apply; and their
//! compiled code, made once for all nodes.

use std::path::Path;

use crate::harness::{Cluster, Process, brig_alone, guest};

/// A module that exports nothing.
const LIBRARY: &[u8] = b"\0asm\x01\0\0\0";
/// `(module (import "env" "log" (func)) (memory 1024) (func (export "_start")))`
const STRANGE: &[u8] =
    b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x02\x0b\x01\x03env\x03log\0\0\x03\x02\x01\0\
    \x05\x04\x01\0\x80\x08\x07\x0a\x01\x06_start\0\x01\x0a\x04\x01\x02\0\x0b";
/// `(module (memory 1024) (func (export "_start")))`
const LARGE: &[u8] = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\
    \x05\x04\x01\0\x80\x08\x07\x0a\x01\x06_start\0\0\x0a\x04\x01\x02\0\x0b";

fn written(folder: &Path, name: &str, bytes: &[u8]) -> String {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

#[test]
fn a_file_is_inspected_without_a_server() {
    let inspect = |file: &str| {
        let ran = brig_alone(&["inspect", file, "-o", "json"]);
        assert_eq!(ran.code, 0, "{ran:#?}");
        serde_json::from_str::<serde_json::Value>(&ran.stdout).unwrap()
    };
    for (name, form, kind, capability) in [
        ("hello.wasm", "module", "command-p1", "environment"),
        ("python.wasm", "module", "command-p1", "filesystem"),
        ("probe-component.wasm", "component", "command-p2", "sockets"),
        ("web.wasm", "component", "http-p2", "outgoing_http"),
    ] {
        let seen = inspect(&guest(name));
        assert_eq!((&seen["form"], &seen["kind"]), (&form.into(), &kind.into()), "{seen:#}");
        let capabilities = seen["capabilities"].as_array().unwrap();
        assert!(capabilities.contains(&capability.into()), "{seen:#}");
        assert_eq!(seen["runs"], true, "{seen:#}");
        assert!(seen["memory"]["initial_bytes"].as_u64().unwrap() > 0, "{seen:#}");
    }
    let folder = tempfile::tempdir().unwrap();
    let strange = inspect(&written(folder.path(), "strange.wasm", STRANGE));
    assert_eq!((&strange["runs"], &strange["foreign"][0]), (&false.into(), &"env.log".into()));
    let table = brig_alone(&["inspect", &guest("web.wasm")]).stdout;
    assert!(table.contains("KIND         http service, WASI 0.2 (component)"), "{table}");
    brig_alone(&["inspect", &written(folder.path(), "x.sh", b"#!/bin/sh\n")])
        .fails(1, &["x.sh", "no WebAssembly"]);
    brig_alone(&["inspect", &written(folder.path(), "cut.wasm", &STRANGE[..30])])
        .fails(1, &["cut.wasm", "damaged"]);
}

#[test]
fn an_artifact_is_known_from_its_push_on() {
    let cluster = Cluster::dev();
    cluster.ok(&["push", &guest("web.wasm"), "team/web:1"]);
    let seen = cluster.json(&["inspect", "team/web:1", "-o", "json"]);
    assert_eq!(seen["kind"], "http-p2", "{seen:#}");
    let file = brig_alone(&["inspect", &guest("web.wasm"), "-o", "json"]).stdout;
    let file: serde_json::Value = serde_json::from_str(&file).unwrap();
    assert_eq!((&seen["imports"], &seen["memory"]), (&file["imports"], &file["memory"]));
    assert_eq!(
        cluster.json(&["get", "artifact", "team/web:1", "-o", "json"])["wasm"]["kind"],
        "http-p2"
    );
    assert!(cluster.ok(&["images"]).contains("http service, WASI 0.2"));
    assert!(cluster.ok(&["describe", "artifact/team/web:1"]).contains("kind: http-p2"));
    assert!(cluster.ok(&["sql", "select wasm_kind from artifacts"]).contains("http-p2"));
    cluster.brig(&["inspect", "team/none:1"]).fails(3, &["team/none:1"]);
}

#[test]
fn what_can_not_run_is_refused_at_apply_with_the_way_out() {
    let cluster = Cluster::dev();
    let folder = tempfile::tempdir().unwrap();
    let [library, strange, large] =
        [("library.wasm", LIBRARY), ("strange.wasm", STRANGE), ("large.wasm", LARGE)]
            .map(|(name, bytes)| written(folder.path(), name, bytes));
    for (command, says) in [
        (vec!["run", &library], vec!["unit.wasm.artifact", "library", "_start"]),
        (vec!["run", &strange], vec!["unit.wasm.artifact", "`env.log`", "nothing provides"]),
        (vec!["run", &large], vec!["unit.resources.memory", "begins at 64Mi", "is 32Mi"]),
        (vec!["run", &guest("web.wasm")], vec!["unit.wasm.http", "`http: {}`"]),
        (vec!["deploy", "--http", &guest("hello.wasm")], vec!["unit.wasm.http", "no http service"]),
    ] {
        let mut command = command.clone();
        command.extend(["--memory", "32Mi"]);
        cluster.brig(&command).fails(2, &says);
    }
    assert_eq!(cluster.units(), Vec::<serde_json::Value>::new());
    assert_eq!(cluster.brig(&["run", "--rm", "--memory", "65Mi", &large]).code, 0);
}

#[test]
fn a_plan_tells_what_a_new_program_imports_and_begins_with() {
    let cluster = Cluster::dev();
    let folder = tempfile::tempdir().unwrap();
    cluster.ok(&["push", &guest("hello.wasm"), "app:1"]);
    cluster.ok(&["push", &guest("python.wasm"), "app:2"]);
    let manifest = |tag: u32| {
        let text = format!(
            "kind: service\nname: app\nreplicas: 1\nunit: {{wasm: {{artifact: 'app:{tag}'}}, resources: {{memory: 256Mi}}}}\n"
        );
        written(folder.path(), &format!("{tag}.yaml"), text.as_bytes())
    };
    let first = cluster.ok(&["plan", "-f", &manifest(1)]);
    assert!(first.contains("imports environment"), "{first}");
    cluster.ok(&["apply", "-f", &manifest(1)]);
    let second = cluster.ok(&["plan", "-f", &manifest(2)]);
    assert!(second.contains("now also imports files"), "{second}");
    assert!(second.contains("memory begins at") && second.contains("(was "), "{second}");
}

#[test]
fn a_program_is_compiled_once_for_all_nodes() {
    const COMPILED: &str = "a program was compiled";
    let mut cluster = Cluster::apart();
    cluster.ok(&["push", &guest("quickjs.wasm"), "js:1"]);
    let run = |cluster: &Cluster, name: &str, node: &str| {
        cluster.apply(&format!(
            "kind: unit\nname: {name}\nunit:\n  wasm: {{artifact: 'js:1', args: [-e, 'console.log(6 * 7)']}}\n  \
             constraints: [{{attribute: place, operator: in, values: [{node}]}}]\n"
        ));
        cluster.wait_for_state(name, "succeeded");
        assert_eq!(cluster.ok(&["logs", name]).trim(), "42");
    };
    let said = |node: &Process, text: &str| node.log_text().contains(text);
    run(&cluster, "first", "node-1");
    let node = cluster.node.as_ref().unwrap();
    cluster.wait("the code to be shared", || said(node, "compiled code was given to the cluster"));
    assert!(said(node, COMPILED));

    cluster.node.as_mut().unwrap().terminate();
    cluster.start_node_named("node-2");
    run(&cluster, "second", "node-2");
    let node = cluster.node.as_ref().unwrap();
    assert!(said(node, "compiled code came from the cluster"), "{}", node.log_text());
    assert!(!said(node, COMPILED), "{}", node.log_text());

    // What somebody changed is believed by nobody.
    cluster.node.as_mut().unwrap().terminate();
    let kept = cluster.data.join("server/registry/compiled");
    let mut changed = 0;
    for folder in std::fs::read_dir(kept).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        for entry in std::fs::read_dir(folder.path()).unwrap().flatten() {
            let mut bytes = std::fs::read(entry.path()).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(entry.path(), bytes).unwrap();
            changed += 1;
        }
    }
    assert_eq!(changed, 1);
    cluster.start_node_named("node-3");
    run(&cluster, "third", "node-3");
    let node = cluster.node.as_ref().unwrap();
    assert!(said(node, "the cluster's compiled code is of no use"), "{}", node.log_text());
    assert!(said(node, COMPILED));
    // The good code takes the place of the bad.
    cluster.wait("the code to be shared", || said(node, "compiled code was given to the cluster"));
}
