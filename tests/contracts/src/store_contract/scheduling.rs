//! What the scheduler knows and decides besides room, limits on what a namespace holds, and the history of why.

use brig_api::explain::{Explanation, Verdict};
use brig_api::lifecycle::{Reason, UnitState};
use brig_api::object::{JobState, NodeState, Object, Unit};
use brig_api::placement::{Grants, Taint};
use brig_api::unit_spec::Runtime;
use brig_api::{Kind, Milli, PlanSequence, Revision, UnitId};
use brig_core::Decision;
use brig_store::{Store, StoreError};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use sqlx::migrate::Migrator;

use super::harness::{
    Fresh, NOW, facts, key, lone_unit, manifests, name, namespace, node_name, on_both, place, plan,
    unit_now,
};

on_both!(
    what_namespaces_say_is_kept,
    what_services_and_jobs_say_is_kept,
    taints_and_volumes_of_nodes_are_kept,
    a_promise_lasts_until_the_unit_is_placed,
    the_variant_that_was_chosen_is_kept_and_told,
    a_stop_says_why,
    gangs_and_revocable_units_have_columns,
    a_namespace_limits_its_services_and_jobs,
    explanations_have_a_history,
    of_two_explanations_in_a_plan_the_last_counts,
);

async fn rows(store: &Store, query: &str) -> Vec<Vec<Value>> {
    store.sql(query, 1_000).await.unwrap_or_else(|error| panic!("{query}: {error}")).rows
}

async fn what_namespaces_say_is_kept(Fresh { store, .. }: Fresh) {
    let yaml = "{kind: namespace, name: team, quota: {cpu: 8, memory: 8Gi}, \
                guarantee: {cpu: 2, memory: 1Gi, scalars: {gpu: 0.5}}, weight: 300, max_units: 10, max_services: 3, \
                max_jobs: 0}";
    store.apply(&manifests(yaml), NOW).await.unwrap();
    let Object::Namespace(team) = store.object_get(&key(Kind::Namespace, "team")).await.unwrap()
    else {
        panic!("a namespace")
    };
    let manifest = manifests(yaml).remove(0);
    let brig_api::manifest::Manifest::Namespace(asked) = manifest else { panic!("a namespace") };
    assert_eq!(team.spec, asked);
    assert_eq!(asked.guarantee.unwrap().scalars["gpu"], Milli(500));
    let columns = "select guarantee_cpu_milli, guarantee_memory_bytes, guarantee_scalars, weight, max_units, \
                   max_services, max_jobs from namespaces where name = 'team'";
    let expected = [
        json!(2_000),
        json!(1 << 30),
        json!("{\"gpu\":\"500m\"}"),
        json!(300),
        json!(10),
        json!(3),
        json!(0),
    ];
    assert_eq!(rows(&store, columns).await, [expected]);

    store.apply(&manifests("{kind: namespace, name: team}"), NOW).await.unwrap();
    let none = rows(&store, columns).await.remove(0);
    assert!(none.iter().all(Value::is_null), "{none:?}");
}

async fn what_services_and_jobs_say_is_kept(Fresh { store, .. }: Fresh) {
    let yaml = "{kind: service, name: shop, replicas: 4, max_unavailable: 2, unit: {wasm: {artifact: a}}}\n---\n\
                {kind: job, name: report, retry_after_ms: 5000, unit: {wasm: {artifact: a}}}";
    store.apply(&manifests(yaml), NOW).await.unwrap();
    let again = store.apply(&manifests(yaml), NOW).await.unwrap();
    assert!(again.applied.iter().all(|applied| applied.differences.is_empty()), "{again:?}");
    let sooner = yaml.replace("5000", "0").replace("max_unavailable: 2", "max_unavailable: 0");
    let applied = store.apply(&manifests(&sooner), NOW).await.unwrap().applied;
    assert_eq!(applied[0].differences, ["max_unavailable: 2 -> 0"]);
    assert_eq!(applied[1].differences, ["retry_after_ms: 5000 -> 0"]);
    let model = store.model_load().await.unwrap();
    let shop = model.service(&namespace("default"), &name("shop")).unwrap();
    let report = model.job(&namespace("default"), &name("report")).unwrap();
    assert_eq!((shop.spec.max_unavailable, report.spec.retry_after_ms), (0, Some(0)));
    assert_eq!(shop.generation, 1, "its units are as they were");
    assert_eq!(rows(&store, "select max_unavailable from services").await, [[json!(0)]]);
    assert_eq!(rows(&store, "select retry_after_ms from jobs").await, [[json!(0)]]);
}

async fn taints_and_volumes_of_nodes_are_kept(Fresh { store, .. }: Fresh) {
    let taint: Taint = "gpu=yes:no-schedule".parse().unwrap();
    let volumes = vec!["/srv/data".to_owned()];
    let facts = brig_api::object::NodeFacts { taints: vec![taint], volumes, ..facts() };
    let node = store.node_register(&node_name("node-1"), facts.clone(), NOW).await.unwrap();
    assert_eq!(store.node_register(&node_name("node-1"), facts.clone(), NOW).await.unwrap(), node);
    let away = Decision::NodeState { node: node.name.clone(), state: NodeState::Unreachable };
    store.plan_commit(&plan(&store, vec![away]).await, NOW + 5).await.unwrap();
    let model = store.model_load().await.unwrap();
    let stored = model.node(&node.name).unwrap();
    assert_eq!(stored.facts.taints, facts.taints);
    assert_eq!((&stored.facts.volumes, stored.state_since_ms), (&facts.volumes, NOW + 5));
    assert_eq!(stored.facts.attributes["zone"], "a", "a change of state changes nothing else");
    let columns = rows(&store, "select volumes from nodes where taints like '%no-schedule%'").await;
    assert_eq!(columns, [[json!("[\"/srv/data\"]")]]);
}

async fn a_promise_lasts_until_the_unit_is_placed(Fresh { store, .. }: Fresh) {
    let node = node_name("node-1");
    store.node_register(&node, facts(), NOW).await.unwrap();
    let unit = store.unit_create(lone_unit("web"), NOW).await.unwrap();
    assert_eq!((&unit.promised, unit.placed_ms), (&None, None));
    let refuse = |promised| Decision::UnitRefuse {
        unit: unit.id.clone(),
        reason: Reason::RoomPromised,
        message: "waits until others have left".to_owned(),
        promised,
    };
    for promised in [None, Some(node.clone())] {
        let decisions = vec![refuse(promised.clone())];
        store.plan_commit(&plan(&store, decisions).await, NOW).await.unwrap();
        assert_eq!(unit_now(&store, &unit.id).await.promised, promised);
    }
    let revision = store.revision().await.unwrap();
    let same = vec![refuse(Some(node.clone()))];
    let committed = store.plan_commit(&plan(&store, same).await, NOW).await.unwrap();
    assert_eq!(committed.revision, revision, "the same again is no change");
    assert_eq!(rows(&store, "select promised from units").await, [[json!("node-1")]]);

    let devices = [("gpu".to_owned(), vec![1])].into();
    let grants = Grants { ports: vec![20_000, 20_001], devices, ..Grants::default() };
    let place = Decision::UnitPlace { unit: unit.id.clone(), node: node.clone(), grants };
    store.plan_commit(&plan(&store, vec![place]).await, NOW + 7).await.unwrap();
    let placed = unit_now(&store, &unit.id).await;
    assert_eq!((placed.promised, placed.placed_ms), (None, Some(NOW + 7)));
    assert_eq!(placed.grants.ports, [20_000, 20_001]);
    assert_eq!(placed.grants.devices["gpu"], [1]);
    let columns = rows(&store, "select promised, grants, placed_ms from units").await.remove(0);
    let grants = "{\"ports\":[20000,20001],\"devices\":{\"gpu\":[1]}}";
    assert_eq!(columns, [Value::Null, json!(grants), json!(NOW + 7)]);
}

async fn the_variant_that_was_chosen_is_kept_and_told(Fresh { store, .. }: Fresh) {
    let yaml = "{kind: config, name: words, data: {a: b}}\n---\n\
                {kind: unit, name: web, unit: {variants: [\
                {wasm: {artifact: a, config: {k: {config: words, key: a}}}}, {oci: {image: b}}]}}\n---\n\
                {kind: service, name: api, replicas: 0, unit: {variants: [{wasm: {artifact: a}}, {oci: {image: b}}]}}";
    store.apply(&manifests(yaml), NOW).await.unwrap();
    let node = node_name("node-1");
    store.node_register(&node, facts(), NOW).await.unwrap();
    let Object::Unit(unit) = store.object_get(&key(Kind::Unit, "web")).await.unwrap() else {
        panic!("a unit")
    };
    let query = "select runtime, grants from units";
    assert_eq!(rows(&store, query).await, [[json!("mixed"), json!("{}")]], "it is open");
    assert_eq!(rows(&store, "select runtime from services").await, [[json!("mixed")]]);
    let chosen = |runtime: Runtime| Grants {
        runtimes: [runtime].into_iter().collect(),
        ..Grants::default()
    };
    for (runtime, texts) in [(Runtime::Wasm, 1), (Runtime::Oci, 0)] {
        let unit = Unit { grants: chosen(runtime), ..(*unit).clone() };
        let texts_of_it = store.texts_for(&unit).await.unwrap();
        assert_eq!(texts_of_it.configs.len(), texts, "{runtime:?}: what runs may read its texts");
    }
    let grants = chosen(Runtime::Oci);
    let place = Decision::UnitPlace { unit: unit.id.clone(), node, grants };
    store.plan_commit(&plan(&store, vec![place]).await, NOW).await.unwrap();
    let expected = [[json!("oci"), json!("{\"runtimes\":[\"oci\"]}")]];
    assert_eq!(rows(&store, query).await, expected);
    let placed = unit_now(&store, &unit.id).await;
    assert_eq!(placed.grants, chosen(Runtime::Oci));
    assert_eq!((placed.runtime_label(), &placed.template), ("oci", &unit.template));
}

async fn a_stop_says_why(Fresh { store, .. }: Fresh) {
    let unit = super::harness::placed_unit(&store, "web", "node-1").await;
    let stop = Decision::UnitStop {
        unit: unit.id.clone(),
        desired: brig_api::object::Desired::Stop,
        reason: Reason::Preempted,
        message: Some("makes room for unit `urgent`".to_owned()),
    };
    store.plan_commit(&plan(&store, vec![stop]).await, NOW).await.unwrap();
    let status = unit_now(&store, &unit.id).await.status;
    assert_eq!((status.state, status.reason), (UnitState::Assigned, Some(Reason::Preempted)));
    assert_eq!(status.message.as_deref(), Some("makes room for unit `urgent`"));
    let event = rows(&store, "select message from events where reason = 'Stopping'").await;
    assert_eq!(event, [[json!("is to stop: Preempted: makes room for unit `urgent`")]]);
}

async fn gangs_and_revocable_units_have_columns(Fresh { store, .. }: Fresh) {
    let yaml = "{kind: unit, name: a, unit: {wasm: {artifact: a}, gang: {name: crew, size: 2}}}\n---\n\
                {kind: unit, name: b, unit: {wasm: {artifact: a}, revocable: true}}";
    store.apply(&manifests(yaml), NOW).await.unwrap();
    let gangs = rows(&store, "select name from units where gang = 'crew'").await;
    assert_eq!(gangs, [[json!("a")]]);
    let query = "select name, count(*) from units where is_revocable group by name";
    assert_eq!(rows(&store, query).await, [[json!("b"), json!(1)]]);
}

async fn a_namespace_limits_its_services_and_jobs(Fresh { store, .. }: Fresh) {
    let team = "{kind: namespace, name: team, max_services: 1, max_jobs: 1}\n---\n\
                {kind: namespace, name: team/dev}";
    store.apply(&manifests(team), NOW).await.unwrap();
    let service = |namespace: &str, name: &str| {
        format!(
            "{{kind: service, name: {name}, namespace: {namespace}, unit: {{wasm: {{artifact: a}}}}}}"
        )
    };
    let job = |name: &str| service("team", name).replace("kind: service", "kind: job");
    store.apply(&manifests(&service("team", "one")), NOW).await.unwrap();
    store.apply(&manifests(&service("team/dev", "below")), NOW).await.unwrap();
    store.apply(&manifests(&job("one")), NOW).await.unwrap();
    let same = store.apply(&manifests(&service("team", "one")), NOW).await;
    assert!(same.is_ok(), "what is there may be applied again: {same:?}");

    let before = store.revision().await.unwrap();
    for (yaml, field) in [(service("team", "two"), "max_services"), (job("two"), "max_jobs")] {
        let error = store.apply(&manifests(&yaml), NOW).await.unwrap_err();
        assert!(matches!(error, StoreError::QuotaExceeded { .. }), "{error}");
        let text = error.to_string();
        for part in ["`two` in namespace `team`", field, "at most 1", "has 1", "delete one"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    let two = format!("{}\n---\n{}", service("default", "x"), service("team", "two"));
    store.apply(&manifests(&two), NOW).await.unwrap_err();
    assert_eq!(store.revision().await.unwrap(), before, "all or nothing");

    let more = "{kind: namespace, name: team, max_services: 2}";
    let both = format!("{more}\n---\n{}", service("team", "two"));
    store.apply(&manifests(&both), NOW).await.unwrap();
    store.apply(&manifests(&job("two")), NOW).await.unwrap();
    store.apply(&manifests(&service("team", "three")), NOW).await.unwrap_err();
}

fn explain(unit: &UnitId, plan: PlanSequence, message: &str) -> Explanation {
    Explanation {
        unit: unit.clone(),
        plan,
        decided_ms: NOW,
        nodes: 3,
        policy: "bin-packing/3".into(),
        verdict: Verdict::Refused { message: message.to_owned() },
        refusals: Vec::new(),
    }
}

async fn explanations_have_a_history(Fresh { store, .. }: Fresh) {
    let node = node_name("node-1");
    store.node_register(&node, facts(), NOW).await.unwrap();
    let unit = store.unit_create(lone_unit("web"), NOW).await.unwrap();
    let other = store.unit_create(lone_unit("other"), NOW).await.unwrap();
    assert_eq!(store.explanation_list(&unit.id).await.unwrap(), []);
    for attempt in 1..=11 {
        let mut mine = plan(&store, Vec::new()).await;
        let sequence = mine.after.next();
        mine.explanations = vec![explain(&unit.id, sequence, &format!("attempt {attempt}"))];
        if attempt == 1 {
            mine.explanations.push(explain(&other.id, sequence, "once"));
        }
        store.plan_commit(&mine, NOW).await.unwrap();
    }
    let mut last = plan(&store, vec![place(&unit.id, &node)]).await;
    let placed = Verdict::Placed {
        node: node.clone(),
        scores: Vec::new(),
        total: 0,
        next: Vec::new(),
        variants: Default::default(),
    };
    let explanation = Explanation { verdict: placed, ..explain(&unit.id, last.after.next(), "") };
    last.explanations = vec![explanation.clone()];
    store.plan_commit(&last, NOW).await.unwrap();

    let history = store.explanation_list(&unit.id).await.unwrap();
    assert_eq!(history.len(), 8);
    assert_eq!((&history[0], history[7].plan), (&explanation, PlanSequence(5)));
    let is_newest_first = history.windows(2).all(|pair| pair[0].plan > pair[1].plan);
    assert!(is_newest_first, "{history:?}");
    assert_eq!(store.explanation_get(&unit.id).await.unwrap(), Some(explanation));
    assert_eq!(store.explanation_list(&other.id).await.unwrap().len(), 1, "others' stay");
    let columns = rows(
        &store,
        "select verdict, node, message, policy from explanations where plan in (11, 12) order by plan",
    );
    let refused = [json!("refused"), Value::Null, json!("attempt 11"), json!("bin-packing/3")];
    let placed = [json!("placed"), json!("node-1"), Value::Null, json!("bin-packing/3")];
    assert_eq!(columns.await, [refused, placed]);

    // With the unit its explanations go.
    let end = Decision::UnitEnd { unit: other.id.clone(), reason: Reason::Requested };
    let remove = Decision::UnitRemove { unit: other.id.clone() };
    let mut mine = plan(&store, vec![end, remove]).await;
    mine.explanations = vec![explain(&other.id, mine.after.next(), "nobody asks")];
    store.plan_commit(&mine, NOW).await.unwrap();
    assert_eq!(store.explanation_list(&other.id).await.unwrap(), []);
}

async fn of_two_explanations_in_a_plan_the_last_counts(Fresh { store, .. }: Fresh) {
    let unit = store.unit_create(lone_unit("web"), NOW).await.unwrap();
    let mut mine = plan(&store, Vec::new()).await;
    let sequence = mine.after.next();
    mine.explanations =
        vec![explain(&unit.id, sequence, "first"), explain(&unit.id, sequence, "second")];
    store.plan_commit(&mine, NOW).await.unwrap();
    let kept = store.explanation_list(&unit.id).await.unwrap();
    assert_eq!(kept, [explain(&unit.id, sequence, "second")]);
}

/// A database of the first version, with rows as that version wrote them.
const OLD_ROWS: &str = r#"
INSERT INTO namespaces (name, parent, description, quota_cpu_milli, quota_memory_bytes, quota_disk_bytes,
    quota_scalars, revision, created_ms) VALUES ('team', NULL, 'old', 1000, 0, 0, '{"gpu":1}', 2, 5);
INSERT INTO nodes (name, state, state_since_ms, cpu_milli, memory_bytes, disk_bytes, scalars, runs_wasm, runs_oci,
    address, agent_version, boot_id, revision, created_ms)
    VALUES ('node-1', 'ready', 5, 4000, 1000, 0, '{"gpu":2}', TRUE, FALSE, '127.0.0.1', '0', 'b', 2, 5);
INSERT INTO services (namespace, name, replicas, generation, is_deleting, runtime, priority, cpu_milli, memory_bytes,
    disk_bytes, labels, template, revision, created_ms)
    VALUES ('team', 'shop', 1, 1, FALSE, 'wasm', 0, 100, 1000, 0, '{}', 'TEMPLATE', 2, 5);
INSERT INTO jobs (namespace, name, state, parallelism, completions, retries, succeeded, failed, is_deleting, runtime,
    priority, cpu_milli, memory_bytes, disk_bytes, labels, template, revision, created_ms)
    VALUES ('team', 'report', 'active', 1, 1, 0, 0, 0, FALSE, 'wasm', 0, 100, 1000, 0, '{}', 'TEMPLATE', 2, 5);
INSERT INTO units (id, namespace, name, owner_kind, owner_name, owner_generation, desired, state, node, placed_by,
    runtime, priority, cpu_milli, memory_bytes, disk_bytes, restarts, status_sequence, endpoints, remove_when_done,
    labels, template, revision, created_ms)
    VALUES ('u-1-0', 'team', 'shop-1', 'service', 'shop', 1, 'run', 'running', 'node-1', 1, 'wasm', 0, 100, 1000, 0,
    0, 3, '[]', FALSE, '{}', 'TEMPLATE', 2, 5);
INSERT INTO explanations (unit_id, plan, decided_ms, verdict, node, message, explanation)
    VALUES ('u-1-0', 1, 5, 'placed', 'node-1', NULL, '{"unit":"u-1-0","plan":1,"decided_ms":5,"nodes":2,"verdict":
    {"verdict":"placed","node":"node-1","scores":[],"total":7,"runner_up":{"node":"node-2","total":3}},
    "refusals":[]}');
UPDATE cluster SET revision = 2, plan = 1 WHERE id = 1;
"#;
const OLD_TEMPLATE: &str = r#"{"tasks":[{"name":"main","wasm":{"artifact":"a"},"resources":{"cpu":"100m",
    "memory":"1000","scalars":{"gpu":1}},"limits":{"cpu":"100m","memory":"1000","scalars":{"gpu":1}}}],
    "restart":"always","priority":0,"grace_ms":10000,"disconnect":"replace"}"#;

/// The migrations of the first version.
async fn first_version(backend: &str) -> Migrator {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../control-plane/store/migrations");
    let dir = tempfile::tempdir().unwrap();
    let file = "0001_initial.sql";
    std::fs::copy(format!("{root}/{backend}/{file}"), dir.path().join(file)).unwrap();
    Migrator::new(dir.path()).await.unwrap()
}

fn old_rows() -> AssertSqlSafe<String> {
    AssertSqlSafe(OLD_ROWS.replace("TEMPLATE", OLD_TEMPLATE))
}

async fn check_old_rows(store: &Store) {
    let model = store.model_load().await.unwrap();
    let team = model.namespaces().find(|n| n.spec.name == namespace("team")).unwrap();
    assert_eq!(team.spec.quota.as_ref().unwrap().scalars["gpu"], Milli(1_000));
    assert_eq!((&team.spec.guarantee, team.spec.weight, team.spec.max_units), (&None, None, None));
    let node = model.node(&node_name("node-1")).unwrap();
    assert_eq!(node.facts.allocatable.scalars["gpu"], Milli(2_000));
    assert!(node.facts.taints.is_empty() && node.facts.volumes.is_empty());
    let shop = model.service(&namespace("team"), &name("shop")).unwrap();
    assert_eq!(shop.spec.max_unavailable, 1);
    let report = model.job(&namespace("team"), &name("report")).unwrap();
    assert_eq!((report.state, report.spec.retry_after_ms), (JobState::Active, None));
    let id = UnitId::new("u-1-0").unwrap();
    let unit = model.unit(&id).unwrap();
    assert_eq!((&unit.promised, &unit.grants, unit.placed_ms), (&None, &Grants::default(), None));
    assert_eq!(unit.template.request().scalars["gpu"], Milli(1_000));
    assert_eq!(unit.template.tasks, shop.spec.unit.tasks);
    let why = store.explanation_list(&id).await.unwrap();
    assert!(matches!(&why[..], [Explanation { verdict: Verdict::Placed { total: 7, .. }, .. }]));
    assert_eq!(model.revision, Revision(2));
    let late = super::harness::report(&id, 4, UnitState::Succeeded);
    store.statuses_report(&node_name("node-1"), &[late], NOW).await.unwrap();
    assert_eq!(unit_now(store, &id).await.status.state, UnitState::Succeeded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sqlite_database_of_the_first_version_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}?mode=rwc", dir.path().join("brig.db").display());
    let pool = sqlx::SqlitePool::connect(&url).await.unwrap();
    first_version("sqlite").await.run(&pool).await.unwrap();
    sqlx::raw_sql(old_rows()).execute(&pool).await.unwrap();
    pool.close().await;
    let store = Store::open(&url).await.unwrap();
    check_old_rows(&store).await;
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_database_of_the_first_version_is_read() {
    super::harness::on_postgres(async |fresh: Fresh| {
        fresh.store.close().await;
        let pool = sqlx::PgPool::connect(&fresh.url).await.unwrap();
        let empty = "DROP SCHEMA public CASCADE; CREATE SCHEMA public";
        sqlx::raw_sql(empty).execute(&pool).await.unwrap();
        first_version("postgres").await.run(&pool).await.unwrap();
        sqlx::raw_sql(old_rows()).execute(&pool).await.unwrap();
        pool.close().await;
        let store = fresh.another().await;
        check_old_rows(&store).await;
        store.close().await;
    })
    .await;
}
