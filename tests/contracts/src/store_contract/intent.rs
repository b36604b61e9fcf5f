//! What users ask for: apply, delete, commands, and the texts of secrets and configs.

use std::collections::BTreeMap;

use brig_api::lifecycle::UnitState;
use brig_api::object::{Desired, Job, JobState, Service};
use brig_api::request::ApplyOutcome;
use brig_api::{Kind, Object};
use brig_core::Decision;
use brig_store::{Store, StoreError};

use super::harness::{
    Fresh, NOW, key, lone_unit, manifests, name, namespace, node_name, on_both, placed_unit, plan,
    report, unit_now,
};

on_both!(
    a_unit_name_is_taken_once,
    apply_is_all_or_nothing,
    applying_again_changes_nothing,
    a_service_counts_generations_of_its_unit,
    only_some_fields_of_a_job_change,
    a_unit_is_not_changed_in_place,
    namespaces_need_a_parent_and_go_empty,
    a_preview_leaves_no_trace,
    deleting_is_asked_for_once,
    secrets_and_configs_stay_while_used,
    a_unit_gets_the_texts_that_it_names,
    commands_change_what_they_should,
    lists_are_of_a_namespace_and_below,
    what_cannot_be_stored_is_refused_alike,
);

const SHOP: &str = "
kind: config
name: settings
data: {mode: fast}
---
kind: service
name: shop
replicas: 2
unit: {wasm: {artifact: 'shop:1'}}
---
kind: job
name: report
completions: 3
unit: {wasm: {artifact: 'report:1'}}
";

async fn service(store: &Store, service: &str) -> Service {
    match store.object_get(&key(Kind::Service, service)).await.unwrap() {
        Object::Service(service) => service,
        other => panic!("{other:?}"),
    }
}

async fn job(store: &Store, job: &str) -> Job {
    match store.object_get(&key(Kind::Job, job)).await.unwrap() {
        Object::Job(job) => job,
        other => panic!("{other:?}"),
    }
}

async fn a_unit_name_is_taken_once(Fresh { store, .. }: Fresh) {
    let before = store.revision().await.unwrap();
    let unit = store.unit_create(lone_unit("web"), NOW).await.unwrap();
    assert_eq!(unit.meta.revision.0, before.0 + 1);
    assert_eq!((unit.meta.created_ms, unit.status.state), (NOW, UnitState::Pending));
    assert_eq!(unit_now(&store, &unit.id).await, unit);
    let error = store.unit_create(lone_unit("web"), NOW).await.unwrap_err().to_string();
    assert!(error.contains("unit `web`") && error.contains("delete it first"), "{error}");
    assert_eq!(store.revision().await.unwrap(), unit.meta.revision);
}

async fn apply_is_all_or_nothing(Fresh { store, .. }: Fresh) {
    let before = store.revision().await.unwrap();
    let wrong = format!("{SHOP}---\nkind: config\nname: x\nnamespace: nowhere\ndata: {{}}\n");
    let error = store.apply(&manifests(&wrong), NOW).await.unwrap_err();
    assert!(matches!(&error, StoreError::NotFound(key) if key.name == "nowhere"), "{error}");
    assert_eq!(store.revision().await.unwrap(), before);
    assert!(store.object_list(Kind::Service, None).await.unwrap().1.is_empty());

    let done = store.apply(&manifests(SHOP), NOW).await.unwrap();
    assert_eq!(done.revision.0, before.0 + 1, "one revision for all of them");
    assert!(done.applied.iter().all(|applied| applied.outcome == ApplyOutcome::Created));
    let changes = store.changes_since(before, 100).await.unwrap();
    let kinds: Vec<_> = changes.iter().map(|change| (change.position, change.key.kind)).collect();
    assert_eq!(kinds, [(0, Kind::Config), (1, Kind::Service), (2, Kind::Job)]);
}

async fn applying_again_changes_nothing(Fresh { store, .. }: Fresh) {
    let all = format!(
        "{SHOP}---\nkind: secret\nname: s\ndata: {{k: v}}\n---\nkind: namespace\nname: team\nquota: {{cpu: 2, gpu: 1}}\n"
    )
    .replace(", gpu: 1", ", scalars: {gpu: 1}");
    let first = store.apply(&manifests(&all), NOW).await.unwrap();
    let second = store.apply(&manifests(&all), NOW + 1).await.unwrap();
    assert_eq!(second.revision, first.revision);
    assert!(second.applied.iter().all(|applied| applied.outcome == ApplyOutcome::Unchanged));
}

async fn a_service_counts_generations_of_its_unit(Fresh { store, .. }: Fresh) {
    store.apply(&manifests(SHOP), NOW).await.unwrap();
    let more = SHOP.replace("replicas: 2", "replicas: 5");
    let applied = store.apply(&manifests(&more), NOW).await.unwrap().applied;
    assert_eq!(applied[1].differences, ["replicas: 2 -> 5"]);
    assert_eq!(service(&store, "shop").await.generation, 1);
    let newer = more.replace("shop:1", "shop:2");
    let applied = store.apply(&manifests(&newer), NOW).await.unwrap().applied;
    assert_eq!(applied[1].outcome, ApplyOutcome::Updated);
    assert_eq!(applied[1].differences, ["unit.tasks[0].wasm.artifact: shop:1 -> shop:2"]);
    let service = service(&store, "shop").await;
    assert_eq!((service.generation, service.spec.replicas, service.meta.created_ms), (2, 5, NOW));
}

async fn only_some_fields_of_a_job_change(Fresh { store, .. }: Fresh) {
    store.apply(&manifests(SHOP), NOW).await.unwrap();
    let free = SHOP.replace("completions: 3", "completions: 3\nparallelism: 2\nretries: 4");
    store.apply(&manifests(&free), NOW).await.unwrap();
    assert_eq!(job(&store, "report").await.spec.retries, 4);
    let fixed = SHOP.replace("completions: 3", "completions: 9");
    let error = store.apply(&manifests(&fixed), NOW).await.unwrap_err().to_string();
    assert!(error.contains("job `report`") && error.contains("completions: 3 -> 9"), "{error}");
}

async fn a_unit_is_not_changed_in_place(Fresh { store, .. }: Fresh) {
    let yaml = "{kind: unit, name: web, unit: {wasm: {artifact: a}}}";
    let done = store.apply(&manifests(yaml), NOW).await.unwrap();
    assert_eq!(done.applied[0].outcome, ApplyOutcome::Created);
    let again = store.apply(&manifests(yaml), NOW).await.unwrap();
    assert_eq!(again.applied[0].outcome, ApplyOutcome::Unchanged);
    let other = yaml.replace("artifact: a", "artifact: b");
    let error = store.apply(&manifests(&other), NOW).await.unwrap_err().to_string();
    assert!(error.contains("delete it first"), "{error}");

    let Object::Unit(unit) = store.object_get(&key(Kind::Unit, "web")).await.unwrap() else {
        panic!("a unit")
    };
    let end =
        Decision::UnitEnd { unit: unit.id.clone(), reason: brig_api::lifecycle::Reason::Requested };
    store.plan_commit(&plan(&store, vec![end]).await, NOW).await.unwrap();
    let error = store.apply(&manifests(yaml), NOW).await.unwrap_err().to_string();
    assert!(error.contains("has ended (stopped)"), "{error}");
}

async fn namespaces_need_a_parent_and_go_empty(Fresh { store, .. }: Fresh) {
    let default = key(Kind::Namespace, "default");
    assert!(store.object_get(&default).await.is_ok(), "it is there from the start");
    store.namespace_default_ensure(NOW).await.unwrap();
    let error = store.object_delete(&default, NOW).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict { .. }), "{error}");

    let child = "{kind: namespace, name: team/dev}";
    let error = store.apply(&manifests(child), NOW).await.unwrap_err();
    assert!(matches!(&error, StoreError::NotFound(key) if key.name == "team"), "{error}");
    let both = "{kind: namespace, name: team, description: us, quota: {cpu: 2, memory: 1Gi}}\n---\n{kind: namespace, name: team/dev}";
    store.apply(&manifests(both), NOW).await.unwrap();
    let Object::Namespace(team) = store.object_get(&key(Kind::Namespace, "team")).await.unwrap()
    else {
        panic!("a namespace")
    };
    assert_eq!(team.spec.quota.unwrap().cpu, brig_api::MilliCpu(2_000));

    let error = store.object_delete(&key(Kind::Namespace, "team"), NOW).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::InUse { message, .. } if message.contains("`team/dev`")),
        "{error}"
    );
    store.object_delete(&key(Kind::Namespace, "team/dev"), NOW).await.unwrap();
    store.object_delete(&key(Kind::Namespace, "team"), NOW).await.unwrap();
    let error = store.object_get(&key(Kind::Namespace, "team")).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound(_)), "{error}");
}

async fn a_preview_leaves_no_trace(Fresh { store, .. }: Fresh) {
    let before = store.model_load().await.unwrap();
    let (applied, objects) = store.apply_preview(&manifests(SHOP)).await.unwrap();
    assert_eq!((applied.len(), objects.len()), (3, 3));
    assert_eq!(objects[1].key(), key(Kind::Service, "shop"));
    assert_eq!(store.model_load().await.unwrap(), before);
    assert!(
        store
            .apply_preview(&manifests("{kind: config, name: x, namespace: no, data: {}}"))
            .await
            .is_err()
    );
    store.apply(&manifests(SHOP), NOW).await.unwrap();
}

async fn deleting_is_asked_for_once(Fresh { store, .. }: Fresh) {
    store.apply(&manifests(SHOP), NOW).await.unwrap();
    let deleted = store.object_delete(&key(Kind::Service, "shop"), NOW).await.unwrap();
    assert!(service(&store, "shop").await.is_deleting);
    let again = store.object_delete(&key(Kind::Service, "shop"), NOW).await.unwrap();
    assert_eq!(deleted, again, "nothing changed the second time");
    let error = store.apply(&manifests(SHOP), NOW).await.unwrap_err().to_string();
    assert!(error.contains("being deleted"), "{error}");

    let unit = store.unit_create(lone_unit("web"), NOW).await.unwrap();
    store.object_delete(&key(Kind::Unit, "web"), NOW).await.unwrap();
    assert_eq!(unit_now(&store, &unit.id).await.desired, Desired::Remove);
    let error = store.object_delete(&key(Kind::Unit, "other"), NOW).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound(_)), "{error}");
}

const USER: &str = "
kind: secret
name: login
data: {user: me, password: '1234', other: x}
---
kind: config
name: settings
data: {mode: fast, level: '3'}
---
kind: unit
name: web
unit:
  wasm: {artifact: a}
  env: {PASSWORD: {secret: login, key: password}, MISSING: {secret: login, key: nothing}}
  mounts: [{config: settings, at: /etc/settings}]
";

async fn secrets_and_configs_stay_while_used(Fresh { store, .. }: Fresh) {
    store.apply(&manifests(USER), NOW).await.unwrap();
    for used in [key(Kind::Secret, "login"), key(Kind::Config, "settings")] {
        let error = store.object_delete(&used, NOW).await.unwrap_err();
        assert!(
            matches!(&error, StoreError::InUse { message, .. } if message.contains("unit `web`")),
            "{error}"
        );
    }
    let Object::Unit(unit) = store.object_get(&key(Kind::Unit, "web")).await.unwrap() else {
        panic!("a unit")
    };
    let reason = brig_api::lifecycle::Reason::Requested;
    let end = Decision::UnitEnd { unit: unit.id.clone(), reason };
    store.plan_commit(&plan(&store, vec![end]).await, NOW).await.unwrap();
    store.object_delete(&key(Kind::Secret, "login"), NOW).await.unwrap();
    store.object_delete(&key(Kind::Config, "settings"), NOW).await.unwrap();
    let error = store.texts_for(&unit).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::NotFound(key) if key.kind == Kind::Secret && key.name == "login"),
        "{error}"
    );
}

async fn a_unit_gets_the_texts_that_it_names(Fresh { store, .. }: Fresh) {
    store.apply(&manifests(USER), NOW).await.unwrap();
    let Object::Unit(unit) = store.object_get(&key(Kind::Unit, "web")).await.unwrap() else {
        panic!("a unit")
    };
    let texts = store.texts_for(&unit).await.unwrap();
    let password = BTreeMap::from([("password".to_owned(), "1234".to_owned())]);
    assert_eq!(texts.secrets, BTreeMap::from([(name("login"), password)]));
    assert_eq!(texts.configs[&name("settings")].len(), 2, "a mount has every key");
    let Object::Secret(secret) = store.object_get(&key(Kind::Secret, "login")).await.unwrap()
    else {
        panic!("a secret")
    };
    assert_eq!(secret.keys, ["other", "password", "user"]);
    let changed = USER.replace("1234", "abcd");
    let applied = store.apply(&manifests(&changed), NOW).await.unwrap().applied;
    assert_eq!(applied[0].differences, ["data.password: (secret) -> (another secret)"]);
    let feed = store.changes_since(brig_api::Revision(1), 100).await.unwrap();
    let feed = serde_json::to_string(&feed).unwrap();
    assert!(!feed.contains("1234") && !feed.contains("abcd"), "secrets stay out of the feed");
}

async fn commands_change_what_they_should(Fresh { store, .. }: Fresh) {
    store.apply(&manifests(SHOP), NOW).await.unwrap();
    let default = namespace("default");
    let scaled = store.service_scale(&default, &name("shop"), 7, NOW).await.unwrap();
    assert_eq!((scaled.spec.replicas, scaled.generation), (7, 1));
    let again = store.service_scale(&default, &name("shop"), 7, NOW).await.unwrap();
    assert_eq!(again, scaled);
    let error = store.service_scale(&default, &name("shop"), 1_000_000, NOW).await.unwrap_err();
    assert!(matches!(error, StoreError::Invalid(_)), "{error}");
    let error = store.service_scale(&default, &name("none"), 1, NOW).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound(_)), "{error}");

    let stopped = store.job_stop(&default, &name("report"), NOW).await.unwrap();
    assert_eq!(stopped.state, JobState::Stopped);
    assert_eq!(store.job_stop(&default, &name("report"), NOW).await.unwrap(), stopped);

    let unit = placed_unit(&store, "web", "node-1").await;
    let stopping = store.unit_stop(&default, &name("web"), NOW).await.unwrap();
    assert_eq!(stopping.desired, Desired::Stop);
    let done = report(&unit.id, 1, UnitState::Stopped);
    store.statuses_report(&node_name("node-1"), &[done], NOW).await.unwrap();
    let before = store.revision().await.unwrap();
    store.unit_stop(&default, &name("web"), NOW).await.unwrap();
    assert_eq!(store.revision().await.unwrap(), before, "an ended unit is not stopped");
}

async fn lists_are_of_a_namespace_and_below(Fresh { store, .. }: Fresh) {
    let tree =
        ["team", "team/dev", "team-b"].map(|path| format!("{{kind: namespace, name: {path}}}"));
    store.apply(&manifests(&tree.join("\n---\n")), NOW).await.unwrap();
    for (index, path) in ["team-b", "team/dev", "team", "default"].into_iter().enumerate() {
        let spec = brig_api::spec::LoneUnitSpec {
            namespace: namespace(path),
            ..lone_unit(&format!("u{index}"))
        };
        store.unit_create(spec, NOW).await.unwrap();
    }
    let names = async |path: Option<&str>| {
        let path = path.map(namespace);
        let (_, objects) = store.object_list(Kind::Unit, path.as_ref()).await.unwrap();
        objects.into_iter().map(|object| object.key().name).collect::<Vec<_>>()
    };
    assert_eq!(names(Some("team")).await, ["u2", "u1"]);
    assert_eq!(names(Some("team/dev")).await, ["u1"]);
    assert_eq!(names(None).await, ["u3", "u2", "u0", "u1"], "by namespace, byte by byte");
    let (_, spaces) = store.object_list(Kind::Namespace, Some(&namespace("team"))).await.unwrap();
    assert_eq!(spaces.len(), 2);
}

async fn what_cannot_be_stored_is_refused_alike(Fresh { store, .. }: Fresh) {
    let nul = "{kind: secret, name: s, data: {k: \"a\\0b\"}}";
    let error = store.apply(&manifests(nul), NOW).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Invalid(faults) if faults[0].message.contains("NUL")),
        "{error}"
    );
    let huge = "{kind: unit, name: u, unit: {wasm: {artifact: a}, resources: {disk: '18446744073709551615'}}}";
    let error = store.apply(&manifests(huge), NOW).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Invalid(faults) if faults[0].message.contains("too large")),
        "{error}"
    );
    assert_eq!(store.revision().await.unwrap().0, 1);
}
