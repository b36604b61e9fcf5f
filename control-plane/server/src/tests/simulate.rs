//! What-if over the API: the answer, and that nothing changes.

use brig_api::constraint::{Constraint, Operator};
use brig_api::lifecycle::{Reason, UnitState};
use brig_api::simulate::{Addition, Growth, Loss, SimulateRequest, Simulation};
use brig_api::{Code, Kind, Problem};
use brig_client::ClientError;
use serde_json::{Value, json};

use super::api::plain_client;
use super::harness::{Cluster, FakeNode, manifests, soon};

fn unit(name: &str, cores: u32) -> String {
    format!(
        "kind: unit\nname: {name}\nunit: {{resources: {{cpu: '{cores}'}}, wasm: {{artifact: registry.example/app:1}}}}\n"
    )
}

fn add(yaml: &str, count: Option<u32>) -> SimulateRequest {
    let manifests = manifests(yaml).into_iter();
    let add = manifests.map(|manifest| Addition { manifest, count }).collect();
    SimulateRequest { add, ..SimulateRequest::default() }
}

/// What a simulation answers once it is its turn: a request that was cut off may still be at work.
async fn simulate(cluster: &Cluster, request: &SimulateRequest) -> Simulation {
    soon("the turn of a simulation", async {
        loop {
            match cluster.client.simulate(request).await {
                Err(ClientError::Problem(problem)) if problem.code == Code::Unavailable => {
                    tokio::task::yield_now().await;
                }
                answer => return answer.unwrap(),
            }
        }
    })
    .await
}

async fn questions_are_answered_and_nothing_changes(cluster: &mut Cluster) {
    // Four cores each.
    let (_one, _) = FakeNode::register(cluster, "n1").await;
    let (_two, _) = FakeNode::register(cluster, "n2").await;
    for name in ["a", "b"] {
        cluster.apply(&unit(name, 3)).await;
        cluster.unit_in(name, &[UnitState::Assigned]).await;
    }
    let units = || async { cluster.client.list(Kind::Unit, None).await.unwrap().items };
    let revision = || async { cluster.client.version().await.unwrap().revision };
    let before = (units().await, revision().await);

    let fits = simulate(cluster, &add(&unit("x", 1), Some(2))).await;
    assert_eq!((fits.fits, &*fits.answer), (true, "Yes: all 2 units fit"));
    assert_eq!((fits.before.used.cpu.0, fits.after.used.cpu.0), (6_000, 8_000));
    let crowded = simulate(cluster, &add(&unit("x", 1), Some(40))).await;
    assert!(!crowded.fits && crowded.waits[0].units == 38, "{crowded:?}");
    assert!(crowded.waits[0].message.contains("enough would be"), "{crowded:?}");

    let lose = vec![Loss { node: Some("n1".parse().unwrap()), constraints: vec![] }];
    let lost = simulate(cluster, &SimulateRequest { lose, ..Default::default() }).await;
    assert_eq!((lost.before.nodes, lost.after.nodes, lost.lost.len()), (2, 1, 1), "{lost:?}");
    assert_eq!(lost.lost[0].reason, Reason::NodeLost);
    let (attribute, values) = ("arch".to_owned(), vec!["x86_64".to_owned()]);
    let constraints = vec![Constraint { attribute, operator: Operator::In, values }];
    let lose = vec![Loss { node: None, constraints }];
    let all = simulate(cluster, &SimulateRequest { lose, ..Default::default() }).await;
    assert_eq!((all.lost_nodes.len(), all.lost.len(), all.after.units), (2, 2, 0));

    let grow = vec![Growth { like: "n2".parse().unwrap(), count: 9 }];
    let request = SimulateRequest { grow, ..add(&unit("x", 1), Some(38)) };
    let grown = simulate(cluster, &request).await;
    assert!(grown.fits && grown.after.nodes == 11, "{grown:?}");

    // A namespace and its quota come along; what is not counted is applied as it stands.
    let mut request = add("kind: namespace\nname: team\nquota: {cpu: '1'}\n", None);
    let inside = unit("x", 1).replace("name: x\n", "name: x\nnamespace: team\n");
    request.add.extend(add(&inside, Some(2)).add);
    let quota = simulate(cluster, &request).await;
    assert_eq!(quota.quotas.len(), 1, "{quota:?}");
    assert_eq!(quota.waits[0].reason, Some(Reason::QuotaExceeded));

    assert_eq!((units().await, revision().await), before);
    cluster.stop().await;
}

#[tokio::test]
async fn questions_are_answered_and_nothing_changes_on_sqlite() {
    questions_are_answered_and_nothing_changes(&mut Cluster::start().await).await;
}

#[tokio::test]
async fn questions_are_answered_and_nothing_changes_on_postgres() {
    if let Some(mut cluster) = Cluster::on_postgres().await {
        questions_are_answered_and_nothing_changes(&mut cluster).await;
    }
}

#[tokio::test]
async fn rude_scenarios_are_refused_with_the_field() {
    let mut cluster = Cluster::start().await;
    let (_node, _) = FakeNode::register(&cluster, "n1").await;
    let post = async |body: &Value| -> Problem {
        let request = plain_client().post(cluster.url("/v1/simulate")).json(body);
        let response = request.send().await.unwrap();
        let problem: Problem = response.json().await.unwrap();
        assert_eq!(problem.code, Code::Invalid, "{body}: {problem}");
        problem
    };
    let unit: Value = json!({"kind": "unit", "name": "x", "unit": {"wasm": {"artifact": "registry.example/app:1"}}});
    let service = json!({"kind": "service", "name": "x", "replica": 1, "unit": unit["unit"]});
    let constraint = json!({"attribute": "rack", "operator": "=", "values": ["r9"]});
    for (body, path, says) in [
        (json!({}), "", "nothing happens"),
        (json!("x"), "", "expected"),
        (json!({"add": [], "lose": [], "grow": []}), "", "nothing happens"),
        (json!({"lost": []}), "lost", "unknown field `lost`"),
        (json!({"lose": [{"node": "nowhere"}]}), "lose[0].node", "`nowhere`"),
        (json!({"lose": [{"node": "No Where"}]}), "lose[0].node", "lower-case"),
        (json!({"lose": [{}]}), "lose[0]", "either"),
        (json!({"lose": [{"constraints": [constraint]}]}), "lose[0].constraints", "rack = r9"),
        (json!({"lose": vec![json!({"node": "n1"}); 1_000]}), "lose", "at most 100"),
        (json!({"add": [{"manifest": unit, "count": 1_000_000_000}]}), "add[0].count", "10000"),
        (json!({"add": [{"manifest": unit, "count": -1}]}), "add[0].count", "-1"),
        (
            json!({"add": [{"manifest": {"kind": "node", "name": "n"}}]}),
            "add[0].manifest.kind",
            "no kind",
        ),
        (
            json!({"add": [{"manifest": {"kind": "namespace", "name": "n"}, "count": 2}]}),
            "add[0].count",
            "once",
        ),
        (json!({"add": [{"manifest": service}]}), "add[0].manifest.replica", "`replicas`"),
        (json!({"add": [{"manifest": unit}, {"manifest": null}]}), "add[1].manifest", "a map"),
        (json!({"grow": [{"like": "n2", "count": 1}]}), "grow[0].like", "`n2`"),
        (json!({"grow": [{"like": "n1", "count": 4_000_000_000u32}]}), "grow", "10000"),
    ] {
        let problem = post(&body).await;
        let found =
            problem.fields.iter().any(|field| field.path == path && field.message.contains(says));
        assert!(found, "{body}: {problem:?}");
    }
    cluster.stop().await;
}
