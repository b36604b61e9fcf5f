//! Both rigs on one hull: one unit with both kinds of task, one cluster with both kinds of unit, on both databases.

use crate::harness::{Cluster, get, guest, has_containers, image, postgres_database};

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
