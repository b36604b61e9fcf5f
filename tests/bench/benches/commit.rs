//! How long the store takes to commit what the scheduler decides: one plan that creates 10,000 units of a service and
//! places them on 1,000 nodes, each with its explanation; then what these nodes report, each its ten units at once.
//!
//! `cargo bench --workspace --bench commit`; UNITS=N and RUNS=N for other numbers. PostgreSQL is measured where
//! BRIG_TEST_POSTGRES names a server (`tests/setup/postgres start` prints one) on which databases may be created.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use brig_api::explain::{Explanation, Refusal, Score, Verdict};
use brig_api::lifecycle::UnitState;
use brig_api::manifest::{Format, Manifest, parse};
use brig_api::object::{Desired, Meta, NodeFacts, Owner, Unit, UnitStatus};
use brig_api::placement::Grants;
use brig_api::session::StatusReport;
use brig_api::unit_spec::Runtime;
use brig_api::usage::Usage;
use brig_api::{
    Bytes, MilliCpu, NamespacePath, NodeName, PlanSequence, ResourceName, Resources, UnitId,
};
use brig_core::{Decision, Plan};
use brig_store::Store;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _};

const UNITS_DEFAULT: usize = 10_000;
const RUNS_DEFAULT: usize = 5;
const NODES: usize = 1_000;
/// A moment like any other.
const NOW_MS: i64 = 1_700_000_000_000;
const SERVICE: &str = "{kind: service, name: shop, replicas: 1, labels: {app: shop}, \
    unit: {oci: {image: docker.io/library/redis:7, ports: [0]}, resources: {cpu: 100m, memory: 64Mi}, \
    env: {MODE: fast, PEERS: a b c}, constraints: [{attribute: arch, operator: '=', values: [amd64]}]}}";

/// What one run took.
struct Times {
    commit: Duration,
    reports: Duration,
    load: Duration,
}

fn main() -> Result<()> {
    let number = |name: &str, default| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (units, runs) = (number("UNITS", UNITS_DEFAULT), number("RUNS", RUNS_DEFAULT));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    println!(
        "{units} units on {NODES} nodes, {runs} runs on a database of their own each; milliseconds"
    );
    runtime.block_on(async {
        let mut times = Vec::new();
        for _ in 0..runs {
            let dir = tempfile::tempdir()?;
            let url = format!("sqlite:{}", dir.path().join("brig.db").display());
            times.push(run(&url, units).await.context("on SQLite")?);
        }
        report("SQLite", &times);
        let Ok(server) = std::env::var("BRIG_TEST_POSTGRES") else {
            println!("PostgreSQL: BRIG_TEST_POSTGRES names no server");
            return Ok(());
        };
        let mut times = Vec::new();
        for attempt in 0..runs {
            times.push(on_postgres(&server, attempt, units).await.context("on PostgreSQL")?);
        }
        report("PostgreSQL", &times);
        Ok(())
    })
}

async fn on_postgres(server: &str, attempt: usize, units: usize) -> Result<Times> {
    let options = PgConnectOptions::from_str(server)?;
    let name = format!("brig_bench_{}_{attempt}", std::process::id());
    let mut admin = PgConnection::connect_with(&options).await?;
    admin.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await?;
    let url = options.database(&name).to_url_lossy().to_string();
    let times = run(&url, units).await;
    admin.execute(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"))).await?;
    times
}

async fn run(url: &str, units: usize) -> Result<Times> {
    let store = Store::open(url).await?;
    let nodes = nodes(&store).await?;
    let plan = plan(&store, &nodes, units).await?;
    let began = Instant::now();
    let committed = store.plan_commit(&plan, NOW_MS).await?;
    let commit = began.elapsed();
    ensure!(committed.skipped.is_empty(), "{} decisions were left out", committed.skipped.len());

    let model = store.model_load().await?;
    let mut reports: BTreeMap<NodeName, Vec<StatusReport>> = BTreeMap::new();
    for unit in model.units() {
        let status = UnitStatus { state: UnitState::Running, sequence: 1, ..UnitStatus::default() };
        let node = unit.node.clone().context("a unit without a node")?;
        reports.entry(node).or_default().push(StatusReport {
            unit: unit.id.clone(),
            status,
            usage: Usage::default(),
        });
    }
    let began = Instant::now();
    for (node, list) in &reports {
        store.statuses_report(node, list, NOW_MS).await?;
    }
    let reports = began.elapsed();
    let began = Instant::now();
    let loaded = store.model_load().await?;
    let load = began.elapsed();
    let running = loaded.units().filter(|unit| unit.status.state == UnitState::Running).count();
    ensure!(running == units, "{running} of {units} run");
    store.close().await;
    Ok(Times { commit, reports, load })
}

async fn nodes(store: &Store) -> Result<Vec<NodeName>> {
    let mut names = Vec::with_capacity(NODES);
    for index in 0..NODES {
        let name = NodeName::new(format!("node-{index:05}"))?;
        let attribute = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let facts = NodeFacts {
            allocatable: Resources {
                cpu: MilliCpu(16_000),
                memory: Bytes(64 << 30),
                ..Resources::default()
            },
            attributes: [attribute("arch", "amd64"), attribute("zone", "a")].into(),
            taints: Vec::new(),
            volumes: Vec::new(),
            runtimes: vec![Runtime::Wasm, Runtime::Oci],
            address: "10.0.0.1".to_owned(),
            agent_version: "0".to_owned(),
            boot_id: "b".to_owned(),
        };
        store.node_register(&name, facts, NOW_MS).await?;
        names.push(name);
    }
    Ok(names)
}

/// A plan as the scheduler makes it: it creates the units, then places them, and says why.
async fn plan(store: &Store, nodes: &[NodeName], units: usize) -> Result<Plan> {
    let written = parse(SERVICE, Format::Yaml, None).ok().and_then(|mut all| all.pop());
    let checked = written.context("a manifest")?.check().ok().context("a valid manifest")?;
    store.apply(std::slice::from_ref(&checked), NOW_MS).await?;
    let Manifest::Service(spec) = checked else { anyhow::bail!("a service") };
    let (template, labels) = (Arc::new(spec.unit), Arc::new(spec.labels));
    let model = store.model_load().await?;
    let sequence = model.plan.next();
    let mut plan = Plan {
        after: model.plan,
        based_on: model.revision,
        decisions: Vec::with_capacity(2 * units),
        explanations: Vec::with_capacity(units),
        wake_at_ms: None,
    };
    let mut places = Vec::with_capacity(units);
    for index in 0..units {
        let id = UnitId::of_plan(sequence, index);
        let unit = Unit {
            id: id.clone(),
            name: ResourceName::new(format!("shop-{index:06}"))?,
            namespace: NamespacePath::default_namespace(),
            owner: Some(Owner::Service { name: spec.name.clone(), generation: 1 }),
            labels: Arc::clone(&labels),
            template: Arc::clone(&template),
            desired: Desired::Run,
            remove_when_done: false,
            node: None,
            promised: None,
            grants: Grants::default(),
            placed_ms: None,
            placed_by: None,
            status: UnitStatus::default(),
            meta: Meta::default(),
        };
        plan.decisions.push(Decision::UnitCreate(Arc::new(unit)));
        places.push(id);
    }
    for (index, unit) in places.into_iter().enumerate() {
        let node = nodes.get(index % NODES).context("a node")?.clone();
        plan.explanations.push(explanation(&unit, sequence, &node));
        let port = 20_000 + u16::try_from(index % 10_000)?;
        let grants = Grants { ports: vec![port], ..Grants::default() };
        plan.decisions.push(Decision::UnitPlace { unit, node, grants });
    }
    Ok(plan)
}

fn explanation(unit: &UnitId, plan: PlanSequence, node: &NodeName) -> Explanation {
    let score = |name: &str, points| Score { name: name.to_owned().into(), points, weight: 4 };
    Explanation {
        unit: unit.clone(),
        plan,
        decided_ms: NOW_MS,
        nodes: 1_000,
        policy: "bin-packing/3".into(),
        verdict: Verdict::Placed {
            node: node.clone(),
            scores: vec![score("bin-packing", 187), score("balance", 875), score("spread", 500)],
            total: 6_248,
            next: Vec::new(),
            variants: BTreeMap::new(),
        },
        refusals: vec![Refusal {
            filter: "resources".into(),
            nodes: 12,
            detail: "memory: wanted 64Gi, at most 23Gi free (node-00001)".to_owned(),
        }],
    }
}

fn report(database: &str, times: &[Times]) {
    let line = |what: &str, pick: fn(&Times) -> Duration| {
        let mut values: Vec<f64> =
            times.iter().map(|times| pick(times).as_secs_f64() * 1_000.0).collect();
        values.sort_by(f64::total_cmp);
        let median = values.get(values.len() / 2).copied().unwrap_or_default();
        let least = values.first().copied().unwrap_or_default();
        let most = values.last().copied().unwrap_or_default();
        let what = format!("{database}: {what}");
        println!("{what:<45} median {median:8.1}  min {least:8.1}  max {most:8.1}");
    };
    line("commit of the plan", |times| times.commit);
    line("reports, one transaction a node", |times| times.reports);
    line("load of the model", |times| times.load);
}
