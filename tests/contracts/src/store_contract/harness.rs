//! A fresh database for each case, on SQLite and on PostgreSQL, and the objects that cases are about.

use std::future::Future;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};

use brig_api::lifecycle::UnitState;
use brig_api::manifest::{Format, Manifest, parse};
use brig_api::object::{NodeFacts, ObjectKey, Unit, UnitStatus};
use brig_api::placement::Grants;
use brig_api::session::StatusReport;
use brig_api::spec::LoneUnitSpec;
use brig_api::unit_spec::Runtime;
use brig_api::usage::Usage;
use brig_api::{
    Bytes, Kind, Milli, MilliCpu, NamespacePath, NodeName, PlanSequence, ResourceName, Resources,
    Revision, UnitId,
};
use brig_core::{Decision, Plan};
use brig_store::Store;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};

/// URL of a PostgreSQL server in which databases may be created; `tests/run` sets it.
const POSTGRES_VARIABLE: &str = "BRIG_TEST_POSTGRES";
/// The time of the cases: a moment like any other.
pub(crate) const NOW: i64 = 1_700_000_000_000;

/// Two modules, `sqlite` and `postgres`, with a test for each case.
macro_rules! on_both {
    ($($case:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                $crate::store_contract::harness::on_sqlite(super::$case).await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                $crate::store_contract::harness::on_postgres(super::$case).await;
            })*
        }
    };
}
pub(crate) use on_both;

/// An open store on a database of its own.
#[derive(Clone)]
pub(crate) struct Fresh {
    pub(crate) store: Store,
    pub(crate) url: String,
}

impl Fresh {
    /// Another process's view: a second store on the same database.
    pub(crate) async fn another(&self) -> Store {
        Store::open(&self.url).await.expect("a second store opens")
    }
}

pub(crate) async fn on_sqlite<Case: Future<Output = ()>>(case: impl FnOnce(Fresh) -> Case) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let url = format!("sqlite:{}", dir.path().join("brig.db").display());
    let store = Store::open(&url).await.expect("a SQLite store opens");
    case(Fresh { store: store.clone(), url }).await;
    store.close().await;
}

pub(crate) async fn on_postgres<Case: Future<Output = ()>>(case: impl FnOnce(Fresh) -> Case) {
    let Ok(server) = std::env::var(POSTGRES_VARIABLE) else {
        eprintln!(
            "skipped: {POSTGRES_VARIABLE} names no PostgreSQL server (`tests/setup/postgres start` prints one)"
        );
        return;
    };
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name =
        format!("brig_test_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let options = PgConnectOptions::from_str(&server).expect("a PostgreSQL URL");
    let mut admin = PgConnection::connect_with(&options).await.expect("the server answers");
    let create = format!("CREATE DATABASE {name}");
    admin.execute(AssertSqlSafe(create)).await.expect("databases may be created");
    let url = options.database(&name).to_url_lossy().to_string();
    let store = Store::open(&url).await.expect("a PostgreSQL store opens");
    case(Fresh { store: store.clone(), url }).await;
    store.close().await;
    let drop = format!("DROP DATABASE {name} WITH (FORCE)");
    admin.execute(AssertSqlSafe(drop)).await.expect("the database goes");
}

// === What cases are about

pub(crate) fn manifests(yaml: &str) -> Vec<Manifest> {
    let written = parse(yaml, Format::Yaml, None).expect("manifests that can be read");
    written.into_iter().map(|manifest| manifest.check().expect("a valid manifest")).collect()
}

pub(crate) fn lone_unit(name: &str) -> LoneUnitSpec {
    let yaml = format!("{{kind: unit, name: {name}, unit: {{wasm: {{artifact: a}}}}}}");
    let Manifest::Unit(spec) = manifests(&yaml).remove(0) else { panic!("a unit") };
    spec
}

pub(crate) fn namespace(path: &str) -> NamespacePath {
    NamespacePath::new(path).expect("a namespace")
}

pub(crate) fn name(text: &str) -> ResourceName {
    ResourceName::new(text).expect("a name")
}

pub(crate) fn node_name(text: &str) -> NodeName {
    NodeName::new(text).expect("a node name")
}

pub(crate) fn key(kind: Kind, name: &str) -> ObjectKey {
    let namespace = match kind {
        Kind::Namespace | Kind::Node | Kind::Artifact => None,
        _ => Some(NamespacePath::default_namespace()),
    };
    ObjectKey { kind, namespace, name: name.to_owned() }
}

pub(crate) fn facts() -> NodeFacts {
    NodeFacts {
        allocatable: allocatable(),
        attributes: [("arch", "x86_64"), ("zone", "a")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        taints: vec![],
        volumes: vec![],
        runtimes: vec![Runtime::Oci, Runtime::Wasm],
        address: "127.0.0.1".to_owned(),
        agent_version: "0.1.0".to_owned(),
        boot_id: "boot-1".to_owned(),
    }
}

fn allocatable() -> Resources {
    Resources {
        cpu: MilliCpu(4_000),
        memory: Bytes(8 << 30),
        disk: Bytes(0),
        scalars: [("gpu".to_owned(), Milli(2_000))].into(),
    }
}

/// A plan after the newest one.
pub(crate) async fn plan(store: &Store, decisions: Vec<Decision>) -> Plan {
    let model = store.model_load().await.expect("the model loads");
    plan_after(model.plan, model.revision, decisions)
}

pub(crate) fn plan_after(
    after: PlanSequence,
    based_on: Revision,
    decisions: Vec<Decision>,
) -> Plan {
    Plan { after, based_on, decisions, explanations: Vec::new(), wake_at_ms: None }
}

/// The unit goes to the node, and gets nothing there but room.
pub(crate) fn place(unit: &UnitId, node: &NodeName) -> Decision {
    Decision::UnitPlace { unit: unit.clone(), node: node.clone(), grants: Grants::default() }
}

/// Registers the node, creates the unit and places it there.
pub(crate) async fn placed_unit(store: &Store, unit: &str, node: &str) -> Unit {
    let node = node_name(node);
    store.node_register(&node, facts(), NOW).await.expect("the node registers");
    let created = store.unit_create(lone_unit(unit), NOW).await.expect("the unit is created");
    let plan = plan(store, vec![place(&created.id, &node)]).await;
    let committed = store.plan_commit(&plan, NOW).await.expect("the plan commits");
    assert_eq!(committed.skipped, []);
    unit_now(store, &created.id).await
}

pub(crate) async fn unit_now(store: &Store, id: &UnitId) -> Unit {
    store.unit_by_id(id).await.expect("the store answers").expect("the unit exists")
}

pub(crate) fn report(unit: &UnitId, sequence: u64, state: UnitState) -> StatusReport {
    let status = UnitStatus { state, sequence, ..UnitStatus::default() };
    StatusReport { unit: unit.clone(), status, usage: Usage::default() }
}
