//! The API through its client, and what a client sees when something is wrong.

use brig_api::explain::NodeFit;
use brig_api::lifecycle::{Reason, UnitState};
use brig_api::object::Object;
use brig_api::problem::PROBLEM_MEDIA_TYPE;
use brig_api::request::{ApplyOutcome, PlanResponse};
use brig_api::{Code, Digest, Kind, NamespacePath, NodeName, Problem};
use brig_client::{Client, EventQuery};
use serde_json::{Value, json};
use sha2::Digest as _;

use super::harness::{Cluster, FakeNode, key, manifests, unit_yaml};
use crate::{ServerConfig, StartError, run};

/// A client without opinions.
pub(super) fn plain_client() -> reqwest::Client {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    reqwest::Client::builder().no_proxy().tls_backend_preconfigured(tls).build().unwrap()
}

/// Status and problem of an answer that must be one.
async fn problem(request: reqwest::RequestBuilder) -> (u16, Problem) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let media_type = response.headers()["content-type"].to_str().unwrap().to_owned();
    let text = response.text().await.unwrap();
    assert_eq!(media_type, PROBLEM_MEDIA_TYPE, "{text}");
    let problem: Problem = serde_json::from_str(&text).unwrap();
    assert_eq!(problem.status, status);
    (status, problem)
}

async fn resources_live(cluster: &Cluster) {
    let client = &cluster.client;
    let yaml = "kind: namespace\nname: team\n---\nkind: secret\nname: s\nnamespace: team\ndata: {k: hush}\n---\n\
        kind: service\nname: web\nnamespace: team\nreplicas: 2\nunit: {oci: {image: registry.example/web:1}, env: {K: {secret: s, key: k}}}\n";
    let applied = cluster.apply(yaml).await;
    assert!(applied.applied.iter().all(|one| one.outcome == ApplyOutcome::Created));
    let again = cluster.apply(yaml).await;
    assert!(again.applied.iter().all(|one| one.outcome == ApplyOutcome::Unchanged), "{again:?}");
    assert_eq!(client.version().await.unwrap().version, env!("CARGO_PKG_VERSION"));

    let team = NamespacePath::new("team").unwrap();
    let list = client.list(Kind::Secret, Some(&team)).await.unwrap();
    let text = serde_json::to_string(&list).unwrap();
    assert!(text.contains("\"k\"") && !text.contains("hush"), "{text}");
    let service = client.service_scale(&team, &"web".parse().unwrap(), 3).await.unwrap();
    assert_eq!(service.spec.replicas, 3);

    let planned = client.plan(manifests(&unit_yaml("p"))).await.unwrap();
    assert_eq!(planned.applied[0].outcome, ApplyOutcome::Created);
    assert!(planned.placements.iter().any(|unit| unit.key.name == "p"), "{planned:?}");
    assert_eq!(client.get(&key(Kind::Unit, "p")).await.unwrap_err().code(), Some(Code::NotFound));

    let brig_api::Manifest::Unit(spec) = manifests(&unit_yaml("lone")).remove(0) else { panic!() };
    let unit = client.unit_create(&spec).await.unwrap();
    assert_eq!(client.get(&key(Kind::Unit, "lone")).await.unwrap().key().name, unit.name.as_str());
    assert_eq!(client.unit_create(&spec).await.unwrap_err().code(), Some(Code::Conflict));
    let used = brig_api::object::ObjectKey {
        kind: Kind::Secret,
        namespace: Some(team.clone()),
        name: "s".into(),
    };
    assert_eq!(client.delete(&used).await.unwrap_err().code(), Some(Code::InUse));
    assert!(!client.events(&EventQuery::default()).await.unwrap().is_empty());
    let answer = client.sql("select name from namespaces order by name").await.unwrap();
    assert_eq!(answer.rows, [[json!("default")], [json!("team")]]);
    assert_eq!(client.sql("delete from units").await.unwrap_err().code(), Some(Code::Invalid));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resources_are_applied_listed_scaled_and_deleted() {
    resources_live(&Cluster::start().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resources_are_applied_listed_scaled_and_deleted_on_postgres() {
    if let Some(mut cluster) = Cluster::on_postgres().await {
        resources_live(&cluster).await;
        cluster.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_scheduler_says_why() {
    let cluster = Cluster::start().await;
    let (mut node, _) = FakeNode::register(&cluster, "n1").await;
    cluster.apply(&unit_yaml("one")).await;
    node.hear().await.expect("an assignment");
    let why = cluster.client.why(&NamespacePath::default_namespace(), "one").await.unwrap();
    assert!(format!("{why:?}").contains("n1"), "{why:?}");
    let history = cluster.client.why_history(&NamespacePath::default_namespace(), "one").await;
    assert_eq!(history.unwrap(), [why]);
}

/// A unit too large for what is free, on a server that plans and on one that does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_unit_is_judged_anew_and_by_each_node_on_its_own() {
    let cluster = Cluster::start().await;
    let (_small, _) = FakeNode::register(&cluster, "small").await;
    let large = "kind: unit\nname: big\nunit: {wasm: {artifact: registry.example/app:1}, resources: {cpu: 64}}\n";
    cluster.apply(large).await;
    cluster.apply(&unit_yaml("fits")).await;
    let other = cluster.another().await;
    let default = NamespacePath::default_namespace();
    let node = |name: &str| NodeName::new(name).unwrap();
    // Placed or not by then: a unit is judged as if it were to be placed now.
    cluster.unit_in("fits", &[UnitState::Assigned]).await;
    for client in [&cluster.client, &other.client] {
        let why = client.why(&default, "big").await.unwrap();
        assert_eq!(why.nodes, 1);
        assert!(why.render(&"big".parse().unwrap()).contains("cpu"), "{why:?}");
        let verdict = client.why_on(&default, "big", &node("small")).await.unwrap();
        assert_eq!(verdict.verdict, NodeFit::Refused);
        assert!(verdict.obstacles[0].detail.contains("cpu"), "{verdict:?}");
        let verdict = client.why_on(&default, "fits", &node("small")).await.unwrap();
        assert_eq!((verdict.verdict, verdict.obstacles.len()), (NodeFit::Fits, 0), "{verdict:?}");
        assert!(verdict.total.is_some());
        let missing = client.why_on(&default, "big", &node("nowhere")).await.unwrap_err();
        assert_eq!(missing.code(), Some(Code::NotFound));
    }
    // The answer is of now, not of the pass that refused it.
    let (_second, _) = FakeNode::register(&cluster, "second").await;
    let why = cluster.client.why(&default, "big").await.unwrap();
    assert_eq!(why.nodes, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_says_where_units_go_which_quota_is_hit_and_what_is_asked_for_anew() {
    let cluster = Cluster::start().await;
    let (_node, _) = FakeNode::register(&cluster, "n1").await;
    cluster.apply("kind: namespace\nname: team\nquota: {cpu: 250m, memory: 1Gi}\n").await;
    let service = |more: &str| {
        manifests(&format!(
            "kind: service\nname: web\nnamespace: team\nreplicas: 3\nunit: {{wasm: {{artifact: registry.example/app:1{more}}}}}\n"
        ))
    };
    let plan = cluster.client.plan(service("")).await.unwrap();
    let owner = plan.placements[0].owner.clone().unwrap();
    assert_eq!((owner.kind, owner.name.as_str()), (Kind::Service, "web"));
    let placed = plan.placements.iter().filter(|planned| planned.reason.is_none()).count();
    let reasons: Vec<_> = plan.placements.iter().filter_map(|planned| planned.reason).collect();
    assert_eq!((placed, reasons), (2, vec![Reason::QuotaExceeded]));
    assert!(plan.evictions.is_empty() && plan.stops.is_empty());
    let asks = |plan: &PlanResponse| plan.asks.iter().map(|a| a.text.clone()).collect::<Vec<_>>();
    assert_eq!(asks(&plan), ["cpu none -> 100m", "memory none -> 64Mi"]);
    cluster.client.apply(service("")).await.unwrap();
    let plan = cluster.client.plan(service(", allow_hosts: [api.example.com]")).await.unwrap();
    assert_eq!(asks(&plan), ["outgoing HTTP to api.example.com"]);
    let units = cluster.client.list(Kind::Unit, None).await.unwrap();
    assert!(units.items.len() <= 3, "a plan changes nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_failure_is_a_problem_with_its_code() {
    let cluster = Cluster::start().await;
    let http = plain_client();
    let get = |path: &str| http.get(cluster.url(path));
    let post = |path: &str, body: Value| http.post(cluster.url(path)).json(&body);
    let unit = json!({"name": "x", "unit": {"wasm": {"artifact": "a/b:1"}}});
    for (request, status, code, words) in [
        (get("/v1/nothing"), 404, Code::NotFound, "/v1/nothing"),
        (get("/"), 404, Code::NotFound, "openapi.json"),
        (http.delete(cluster.url("/v1/version")), 405, Code::Invalid, "DELETE"),
        (get("/v1/namespaces/default/units/x"), 404, Code::NotFound, "unit `x`"),
        (get("/v1/namespaces/default/units/X"), 422, Code::Invalid, "lower-case"),
        (get("/v1/namespaces/default/units/x/why"), 404, Code::NotFound, "unit `x`"),
        (get("/v1/namespaces/default/units/x/logs?follow=perhaps"), 422, Code::Invalid, "follow"),
        (get("/v1/nodes/N!"), 422, Code::Invalid, "node name"),
        (get("/v1/artifacts/x"), 422, Code::Invalid, "repository:tag"),
        (get("/v1/units?colour=red"), 422, Code::Invalid, "colour"),
        (get("/v1/watch?since=soon"), 422, Code::Invalid, "since"),
        (http.post(cluster.url("/v1/sql")).body("{}"), 422, Code::Invalid, "application/json"),
        (post("/v1/sql", json!({"query": 3})), 422, Code::Invalid, "query"),
        (post("/v1/sql", json!({"qurey": ""})), 422, Code::Invalid, "qurey"),
        (post("/v1/sql", json!({"query": "drop table units"})), 422, Code::Invalid, ""),
        (post("/v1/apply", json!({"manifests": [{"kind": "pod"}]})), 422, Code::Invalid, "pod"),
        (
            post("/v1/namespaces/default/units", unit.clone()),
            422,
            Code::Invalid,
            "push it first: brig push FILE a/b:1",
        ),
        (
            post("/v1/namespaces/nobody/units", unit),
            422,
            Code::Invalid,
            "namespace `nobody` does not exist",
        ),
        (
            post("/v1/namespaces/default/services/x/scale", json!({"replicas": 1})),
            404,
            Code::NotFound,
            "service `x`",
        ),
        (
            post("/v1/namespaces/default/services/x/scale", json!({"replicas": 99_999_999})),
            422,
            Code::Invalid,
            "replicas",
        ),
        (http.delete(cluster.url("/v1/namespaces/default/jobs/x")), 404, Code::NotFound, "job `x`"),
        (get("/v1/namespaces/default/units/x/exec"), 422, Code::Invalid, "WebSocket"),
    ] {
        let description = format!("{request:?}");
        let (found, problem) = problem(request).await;
        let text = problem.to_string();
        assert_eq!((found, problem.code), (status, code), "{description}: {text}");
        assert!(text.contains(words), "{description}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_unit_names_must_exist_and_artifacts_are_fixed_to_digests() {
    let cluster = Cluster::start().await;
    let yaml = "kind: unit\nname: x\nunit: {tasks: [{name: a, wasm: {artifact: registry.example/a:1}, \
        env: {E: {secret: s, key: k}}, mounts: [{config: c, at: /c}]}]}\n";
    let error = cluster.client.apply(manifests(yaml)).await.unwrap_err().to_string();
    assert!(error.contains("manifests[0].unit.tasks[0].env.E"), "{error}");
    assert!(error.contains("manifests[0].unit.tasks[0].mounts[0].config"), "{error}");
    let with = "kind: secret\nname: s\ndata: {other: x}\n---\nkind: config\nname: c\ndata: {}\n";
    let error = cluster.client.apply(manifests(&format!("{with}---\n{yaml}"))).await.unwrap_err();
    assert!(error.to_string().contains("no key `k`: it has other"), "{error}");
    let with = with.replace("other", "k");
    cluster.apply(&format!("{with}---\n{yaml}")).await;

    let digest = push(&cluster, "team/app", "1").await;
    cluster.apply("kind: unit\nname: y\nunit: {wasm: {artifact: team/app:1}}\n").await;
    let unit = cluster.client.unit(&NamespacePath::default_namespace(), "y").await.unwrap();
    assert_eq!(unit.template.tasks[0].program().reference(), format!("team/app:1@{digest}"));
    let wrong = "kind: unit\nname: z\nunit: {oci: {image: team/app:1}}\n";
    let error = cluster.client.apply(manifests(wrong)).await.unwrap_err().to_string();
    assert!(error.contains("unit.oci.image") && error.contains("is a wasm program"), "{error}");
    // Each variant is held to the same.
    let yaml = "kind: unit\nname: v\nunit: {variants: [{oci: {image: 'registry.example/app:1'}}, \
        {wasm: {artifact: 'team/app:1'}}]}\n";
    let in_vain = yaml.replace("registry.example", "team").replace("'}}]", "', http: {}}}]");
    let error = cluster.client.apply(manifests(&in_vain)).await.unwrap_err().to_string();
    assert!(error.contains("unit.variants[0].oci.image: `team/app:1` is a wasm"), "{error}");
    assert!(error.contains("unit.variants[1].wasm.http: `team/app:1`"), "{error}");
    cluster.apply(yaml).await;
    let unit = cluster.client.unit(&NamespacePath::default_namespace(), "v").await.unwrap();
    let variants = unit.template.tasks[0].variants.iter();
    let references: Vec<_> = variants.map(|program| program.reference().to_owned()).collect();
    assert_eq!(references, ["registry.example/app:1".to_owned(), format!("team/app:1@{digest}")]);
    let Object::Artifact(artifact) =
        cluster.client.get(&key(Kind::Artifact, "team/app:1")).await.unwrap()
    else {
        panic!("an artifact")
    };
    assert_eq!(artifact.digest, digest);
}

/// Pushes the smallest program: `(module (func (export "_start")))`.
async fn push(cluster: &Cluster, repository: &str, tag: &str) -> Digest {
    let http = plain_client();
    let digest_of = |bytes: &[u8]| Digest::of_sha256(&sha2::Sha256::digest(bytes).into());
    const PROGRAM: &[u8] = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x07\x0a\x01\x06_start\0\0\x0a\x04\x01\x02\0\x0b";
    let (module, config) = (PROGRAM.to_vec(), b"{}".to_vec());
    for blob in [&module, &config] {
        let url =
            cluster.url(&format!("/v2/{repository}/blobs/uploads/?digest={}", digest_of(blob)));
        let answer = http.post(url).body(blob.clone()).send().await.unwrap();
        assert_eq!(answer.status(), 201, "{}", answer.text().await.unwrap());
    }
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.wasm.config.v0+json", "digest": digest_of(&config), "size": config.len()},
        "layers": [{"mediaType": "application/wasm", "digest": digest_of(&module), "size": module.len()}],
    });
    let bytes = manifest.to_string().into_bytes();
    let digest = digest_of(&bytes);
    let request = http
        .put(cluster.url(&format!("/v2/{repository}/manifests/{tag}")))
        .header("content-type", "application/vnd.oci.image.manifest.v1+json")
        .body(bytes);
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 201, "{}", answer.text().await.unwrap());
    digest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_document_is_openapi_and_names_exactly_the_routes() {
    let cluster = Cluster::start().await;
    let http = plain_client();
    let text =
        http.get(cluster.url("/v1/openapi.json")).send().await.unwrap().text().await.unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    // Somebody else's model of OpenAPI 3.1 reads it.
    let read: aide::openapi::OpenApi = serde_json::from_str(&text).unwrap();
    assert!(read.paths.is_some_and(|paths| paths.paths.len() > 20));
    check_references(&document, &document);
    let mut ids = std::collections::BTreeSet::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            assert!(ids.insert(operation["operationId"].to_string()), "{path}: taken id");
            assert!(operation["responses"]["default"].is_object());
            let named = operation["parameters"].as_array().unwrap();
            let in_path = named.iter().filter(|parameter| parameter["in"] == "path").count();
            assert_eq!(in_path, path.matches('{').count(), "{path}");
            // The route is there: whatever it answers, it is not that there is no such path or method.
            let real = path
                .replace("{namespace}", "default")
                .replace("{name}", "x")
                .replace("{stream}", "x");
            let method = method.to_uppercase().parse().unwrap();
            let answer = http
                .request(method, cluster.url(&real))
                .header("accept", "*/*")
                .send()
                .await
                .unwrap();
            assert_ne!(answer.status(), 405, "{path}");
            if answer.status() == 404 {
                let text = answer.text().await.unwrap();
                assert!(!text.contains("there is nothing at"), "{path}: {text}");
            }
        }
    }
    let table = crate::api::routes().finish().1;
    assert_eq!(table, document);
    let schema = http.get(cluster.url("/v1/schema")).send().await.unwrap().text().await.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&schema).unwrap(), brig_api::manifest::json_schema());
}

/// Every `$ref` leads somewhere.
fn check_references(document: &Value, value: &Value) {
    match value {
        Value::Object(object) => {
            if let Some(Value::String(reference)) = object.get("$ref") {
                let pointer = reference.strip_prefix('#').unwrap();
                assert!(document.pointer(pointer).is_some(), "{reference}");
            }
            object.values().for_each(|value| check_references(document, value));
        }
        Value::Array(items) => items.iter().for_each(|value| check_references(document, value)),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_token_nothing_is_open() {
    let cluster = Cluster::with_token("s3cret-token").await;
    assert!(cluster.client.version().await.is_ok());
    let stranger = Client::new(cluster.client.server(), None).unwrap();
    assert_eq!(stranger.version().await.unwrap_err().code(), Some(Code::Unauthenticated));
    let wrong = Client::new(cluster.client.server(), Some("s3cret-tokem")).unwrap();
    assert_eq!(wrong.version().await.unwrap_err().code(), Some(Code::Unauthenticated));
    let http = plain_client();
    for path in ["/v1/node-session", "/v1/node-streams/x", "/v1/openapi.json", "/v1/nothing"] {
        let (status, _) = problem(http.get(cluster.url(path))).await;
        assert_eq!(status, 401, "{path}");
    }
    let answer = http.get(cluster.url("/v2/")).send().await.unwrap();
    assert_eq!(answer.status(), 401);
    assert!(answer.headers()["www-authenticate"].to_str().unwrap().starts_with("Basic"));
    let with = http.get(cluster.url("/v2/")).basic_auth("anybody", Some("s3cret-token"));
    assert_eq!(with.send().await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_serves_one_server_and_a_taken_port_is_named() {
    let cluster = Cluster::start().await;
    let config = |listen: &str, data_dir: std::path::PathBuf| ServerConfig {
        listen: listen.parse().unwrap(),
        database: format!("sqlite:{}", cluster.data_dir().join("other.db").display()),
        data_dir,
        token: None,
    };
    let start = |config| async { run(config, Default::default()).await.unwrap_err() };
    let other = cluster.data_dir().join("other");
    let error = start(config(&cluster.address(), other.clone())).await;
    assert!(
        matches!(error, StartError::Listen { .. })
            && error.to_string().contains(&cluster.address())
    );
    let error = start(config("127.0.0.1:0", cluster.data_dir().join("server"))).await;
    assert!(matches!(error, StartError::Locked(_)), "{error}");
    let mut unreadable = config("127.0.0.1:0", other);
    unreadable.database = "mysql://x".into();
    assert!(matches!(start(unreadable).await, StartError::Store(_)));
}
