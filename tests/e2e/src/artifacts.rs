//! What nodes hold, and how units come to go there.

use crate::harness::{Cluster, Process, guest};

fn unit(name: &str, artifact: &str, placement: &str) -> String {
    format!("kind: unit\nname: {name}\nunit: {{wasm: {{artifact: '{artifact}'}}, {placement}}}\n")
}

fn on(node: &str) -> String {
    format!("constraints: [{{attribute: place, operator: '=', values: [{node}]}}]")
}

fn held(cluster: &Cluster, node: &str) -> u64 {
    cluster.json(&["get", "node", node, "-o", "json"])["held_artifacts"].as_u64().unwrap_or(0)
}

fn node_of(cluster: &Cluster, unit: &str) -> String {
    cluster.unit(unit)["node"].as_str().unwrap_or_default().to_owned()
}

/// A unit that runs once, and has gone again.
fn ran(cluster: &Cluster, name: &str, artifact: &str, placement: &str) -> String {
    cluster.apply(&unit(name, artifact, placement));
    cluster.wait_for_state(name, "succeeded");
    let node = node_of(cluster, name);
    cluster.ok(&["delete", &format!("unit/{name}")]);
    node
}

/// Nodes `a` and `b`, of which `a` has something to do: where nothing else counts, units go there.
fn two_nodes() -> (Cluster, [Process; 2]) {
    let mut cluster = Cluster::without_nodes();
    let nodes = ["a", "b"].map(|name| {
        cluster.start_node_named(name);
        cluster.node.take().expect("a node")
    });
    cluster.ok(&["push", &guest("hello.wasm"), "team/hello:1"]);
    cluster.ok(&["push", &guest("probe-component.wasm"), "team/probe:1"]);
    cluster.ok(&["push", &guest("web.wasm"), "team/web:1"]);
    cluster.apply(&format!(
        "kind: service\nname: busy\nreplicas: 1\nunit: {{wasm: {{artifact: 'team/web:1', http: {{}}}}, \
         resources: {{cpu: 1m, memory: 16Mi}}, {}}}\n",
        on("a")
    ));
    cluster.wait_for_service("busy", 1);
    (cluster, nodes)
}

#[test]
fn the_second_unit_of_an_artifact_goes_to_the_node_that_holds_it_although_another_is_fuller() {
    let (mut cluster, nodes) = two_nodes();
    cluster.apply(&unit("first", "team/probe:1", "restart: never"));
    cluster.wait("a node for it", || !node_of(&cluster, "first").is_empty());
    assert_eq!(node_of(&cluster, "first"), "a", "it is the fuller one");
    assert_eq!(ran(&cluster, "other", "team/hello:1", &on("b")), "b");
    cluster.wait("`b` to tell", || held(&cluster, "b") == 1);
    cluster.apply(&unit("second", "team/hello:1", ""));
    cluster.wait_for_state("second", "succeeded");
    assert_eq!(node_of(&cluster, "second"), "b");
    let why = cluster.ok(&["why", "second"]);
    // 200 once the node has told that it is compiled, too.
    assert!(why.contains("+ locality 200 x 1") || why.contains("+ locality 100 x 1"), "{why}");
    let wide = cluster.ok(&["get", "nodes", "-o", "wide"]);
    assert!(wide.contains("ARTIFACTS"), "{wide}");
    let described = cluster.ok(&["describe", "node/b"]);
    assert!(described.contains("held_artifacts: 1"), "{described}");
    cluster.ok(&["delete", "unit/second"]);

    // An agent knows what one before it has fetched.
    let [_a, mut b] = nodes;
    b.terminate();
    cluster.start_node_named("b");
    cluster.wait("`b` to tell again", || held(&cluster, "b") == 1);
    assert_eq!(ran(&cluster, "third", "team/hello:1", ""), "b");
}

#[test]
fn a_unit_that_needs_its_artifact_waits_until_a_node_holds_it() {
    let (cluster, _nodes) = two_nodes();
    let present = "placement: {artifacts: present}";
    cluster.apply(&unit("waits", "team/hello:1", present));
    cluster.wait("the refusal", || cluster.unit("waits")["message"].is_string());
    let why = cluster.ok(&["why", "waits"]);
    assert!(why.contains("artifacts      2  does not hold `team/hello:1` (a)"), "{why}");
    assert_eq!(ran(&cluster, "first", "team/hello:1", &on("b")), "b");
    cluster.wait_for_state("waits", "succeeded");
    assert_eq!(node_of(&cluster, "waits"), "b");
}
