//! Both rigs on one hull: one unit with both kinds of task, one cluster with both kinds of unit, on both databases.

use crate::harness::{
    Cluster, SPOT, get, guest, has_containers, image, postgres_database, try_get,
};

fn tour(cluster: &Cluster) {
    cluster.ok(&["push", &guest("web.wasm"), "demo/web:1"]);
    cluster.ok(&["push", &guest("quickjs.wasm"), "demo/quickjs:1"]);
    cluster.ok(&["push", &image("busybox"), "demo/busybox:1"]);
    cluster.apply(
        "kind: namespace\nname: demo\n---\nkind: service\nname: web\nnamespace: demo\nreplicas: 2\nunit: {wasm: {artifact: 'demo/web:1', http: {}}}\n---\n\
         kind: job\nname: sums\nnamespace: demo\ncompletions: 3\nparallelism: 3\nunit: {wasm: {artifact: 'demo/quickjs:1', args: [-e, 'console.log(6 * 7)']}, resources: {memory: 128Mi}}\n---\n\
         kind: service\nname: box\nnamespace: demo\nunit: {oci: {image: 'demo/busybox:1', args: [sleep, '1000']}, grace_ms: 200}\n",
    );
    for endpoint in cluster.wait_for_service("web", 2) {
        assert_eq!(get(&endpoint).0, 200);
    }
    cluster.wait_for_service("box", 1);
    cluster.wait("the job", || {
        cluster.json(&["get", "-n", "demo", "job", "sums", "-o", "json"])["state"] == "succeeded"
    });
    assert_eq!(cluster.ok(&["logs", "-n", "demo", "job/sums"]).matches("42").count(), 3);
    let runtimes: std::collections::BTreeSet<_> =
        cluster.units().iter().map(|unit| unit["runtime"].to_string()).collect();
    assert_eq!(runtimes.len(), 2, "both kinds are in `brig ps`");
    cluster.ok(&["delete", "-n", "demo", "service/web", "service/box", "job/sums"]);
    assert!(cluster.units().is_empty());
    cluster.ok(&["delete", "namespace/demo"]);
}

#[test]
fn wasm_and_containers_run_side_by_side_on_sqlite() {
    if has_containers() {
        tour(&Cluster::dev());
    }
}

#[test]
fn wasm_and_containers_run_side_by_side_on_postgresql() {
    let Some(database) = postgres_database() else {
        println!("skipped: BRIG_TEST_POSTGRES names no server");
        return;
    };
    if has_containers() {
        let cluster = Cluster::dev_on(Some(database));
        tour(&cluster);
        assert!(cluster.ok(&["version"]).contains("postgres"));
    }
}

#[test]
fn one_unit_mixes_a_wasm_task_and_a_container_sidecar() {
    if !has_containers() {
        return;
    }
    let cluster = Cluster::dev();
    cluster.ok(&["push", &guest("probe.wasm"), "probe:1"]);
    cluster.ok(&["push", &image("busybox"), "busybox:1"]);
    cluster.apply(
        "kind: job\nname: both\nunit:\n  grace_ms: 200\n  tasks:\n    - {name: work, wasm: {artifact: 'probe:1', args: [sleep, '300']}}\n    \
         - {name: side, oci: {image: 'busybox:1', args: [sleep, '1000']}, sidecar: true}\n",
    );
    cluster.wait("the job", || {
        cluster.json(&["get", "job", "both", "-o", "json"])["state"] == "succeeded"
    });
    assert_eq!(cluster.units_of("both")[0]["runtime"], "mixed");
}

/// The manifest of docs/variants.md.
fn shop() -> String {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/variants.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let manifest = page.split("```yaml\nkind: service").nth(1).expect("a service");
    format!("kind: service{}", manifest.split("```").next().expect("its end"))
}

#[test]
fn each_node_runs_the_variant_that_it_can() {
    if !has_containers() {
        return;
    }
    let mut cluster = Cluster::without_nodes();
    cluster.start_node_in("wasm", "wasm-1", SPOT, &["--runtime", "wasm"]);
    let _wasm = cluster.node.take();
    cluster.ok(&["push", &guest("web.wasm"), "team-a/shop:1"]);
    cluster.ok(&["push", &image("busybox"), "team-a/shop-image:1"]);
    cluster.apply("kind: namespace\nname: team-a\n");
    cluster.apply(&shop());
    cluster.wait_for_service("shop", 1);
    let units = cluster.units_of("shop");
    let waiting = units.iter().find(|unit| unit["node"].is_null()).expect("one waits");
    assert_eq!((&waiting["runtime"], units.len()), (&"mixed".into(), 2), "it is open");

    cluster.start_node_in("node", "oci-1", SPOT, &["--runtime", "oci"]);
    let endpoints = cluster.wait_for_service("shop", 2);
    let mut found: Vec<_> = cluster
        .units_of("shop")
        .iter()
        .map(|unit| (unit["node"].to_string(), unit["runtime"].to_string()))
        .collect();
    found.sort();
    let pair = |node: &str, runtime: &str| (format!("{node:?}"), format!("{runtime:?}"));
    assert_eq!(found, [pair("oci-1", "oci"), pair("wasm-1", "wasm")]);
    for endpoint in endpoints {
        let url = endpoint.replace("tcp://", "http://");
        cluster.wait("an answer", || try_get(&url).is_ok_and(|(status, _)| status > 0));
    }
    let container = waiting["name"].as_str().expect("a name");
    let why = cluster.ok(&["why", "-n", "team-a", container]);
    assert!(why.contains("was placed on oci-1 by plan") && why.contains(", as oci."), "{why}");
    let told = cluster.ok(&["describe", "-n", "team-a", &format!("unit/{container}")]);
    assert!(told.contains("runtimes:\n  - oci") && told.contains(", as oci."), "{told}");
    let query = "select node from units where runtime = 'oci'";
    assert!(cluster.ok(&["sql", query]).contains("oci-1"));
    cluster.ok(&["delete", "-n", "team-a", "service/shop"]);
    cluster.wait("the end of its units", || cluster.units().is_empty());
}
