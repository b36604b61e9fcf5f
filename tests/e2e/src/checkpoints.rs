//! A long command goes on where it was: after a crash on its node, and on another node.

use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::harness::{Cluster, guest};

/// How many primes there are below the limit of these tests, which takes some twelve seconds with its pauses.
const LIMIT: &str = "60000";
const PRIMES: &str = "6057 primes below 60000";

fn push(cluster: &Cluster) {
    cluster.ok(&["push", &guest("primes.wasm"), "primes:1"]);
}

fn wasm() -> String {
    format!("wasm: {{artifact: 'primes:1', args: ['{LIMIT}', '20']}}")
}

fn log(cluster: &Cluster, unit: &Value) -> String {
    cluster.brig(&["logs", unit["name"].as_str().unwrap()]).stdout
}

/// The numbers in the lines that begin so.
fn numbers(log: &str, begin: &str) -> Vec<u64> {
    let rest = log.lines().filter_map(|line| line.strip_prefix(begin));
    rest.filter_map(|rest| rest.split(' ').next()?.parse().ok()).collect()
}

/// The only unit of a job, once it has saved twice and the control plane has it; and what it has saved.
fn saved_by_job(cluster: &Cluster, job: &str) -> (Value, u64) {
    cluster.wait("the job to save", || {
        let units = cluster.units_of(job);
        units.first().is_some_and(|unit| numbers(&log(cluster, unit), "saved at ").len() >= 2)
    });
    let unit = cluster.units_of(job).remove(0);
    let last = *numbers(&log(cluster, &unit), "saved at ").last().unwrap();
    let target = format!("unit/{}", unit["name"].as_str().unwrap());
    cluster.wait("the control plane to have it", || {
        let described = cluster.ok(&["describe", &target]);
        described.contains("\nCheckpoints\nmain  number ") && described.contains(", 16 B, saved ")
    });
    (unit, last)
}

/// The next attempt runs on node-2, goes on from what was saved, and comes to the right end.
#[track_caller]
fn goes_on_elsewhere(cluster: &Cluster, job: &str, first: &Value, saved: u64) {
    let is_next = |unit: &Value| unit["name"] != first["name"] && unit["state"] == "succeeded";
    cluster.wait("the next attempt to succeed", || cluster.units_of(job).iter().any(is_next));
    let next = cluster.units_of(job).into_iter().find(is_next).unwrap();
    assert_eq!(next["node"], "node-2");
    let said = log(cluster, &next);
    let began = numbers(&said, "begins at ");
    // One save may have been on its way when the node went.
    assert!(began.len() == 1 && began[0] > 2 && began[0] + 2_000 >= saved, "{saved}: {said}");
    assert!(said.contains(PRIMES), "{said}");
    let rows = cluster.json(&["sql", "select * from unit_checkpoints", "-o", "json"]);
    assert_eq!(rows, Value::Array(vec![]), "what has succeeded needs none");
}

#[test]
fn a_command_whose_node_is_drained_goes_on_on_another() {
    let mut cluster = Cluster::apart();
    push(&cluster);
    cluster.apply(&format!("kind: job\nname: count\nunit: {{{}}}\n", wasm()));
    let (first, saved) = saved_by_job(&cluster, "count");
    let mut drained = cluster.node.take().unwrap();
    cluster.start_node_named("node-2");
    let other = cluster.node.take();
    drained.kill();
    cluster.start_node_to_be_left();
    goes_on_elsewhere(&cluster, "count", &first, saved);
    drop(other);
}

#[test]
fn a_command_whose_node_is_lost_goes_on_on_another() {
    let mut cluster = Cluster::apart();
    push(&cluster);
    cluster.apply(&format!("kind: job\nname: count\nunit: {{{}}}\n", wasm()));
    let (first, saved) = saved_by_job(&cluster, "count");
    // The machine goes: agent and shims at once.
    let mut lost = cluster.node.take().unwrap();
    lost.kill();
    for shim in cluster.shims("wasm") {
        kill_process(shim, Signal::KILL).unwrap();
    }
    cluster.start_node_named("node-2");
    goes_on_elsewhere(&cluster, "count", &first, saved);
}

#[test]
fn what_was_saved_survives_a_kill_of_shim_and_agent() {
    let mut cluster = Cluster::apart();
    push(&cluster);
    cluster.apply(&format!("kind: unit\nname: count\nunit: {{{}}}\n", wasm()));
    cluster.wait("the unit to save", || {
        !numbers(&log(&cluster, &cluster.unit("count")), "saved at ").is_empty()
    });
    // Without a control plane nobody else can have it.
    cluster.server.as_mut().unwrap().kill();
    cluster.node.as_mut().unwrap().kill();
    for shim in cluster.shims("wasm") {
        kill_process(shim, Signal::KILL).unwrap();
    }
    cluster.start_server();
    cluster.start_node();
    cluster.wait_for_state("count", "succeeded");
    assert_eq!(cluster.unit("count")["restarts"], 1);
    let said = log(&cluster, &cluster.unit("count"));
    let (began, again) = said.rsplit_once("begins at ").unwrap();
    let saved = *numbers(began, "saved at ").last().unwrap();
    let again: u64 = again.split(' ').next().unwrap().parse().unwrap();
    assert!(again >= saved, "saved at {saved}, and begins at {again}: {said}");
    assert!(said.contains(PRIMES), "{said}");
}
