//! Who plans: one server at a time, and what happens when somebody else planned.

use brig_api::lifecycle::UnitState;
use brig_api::object::NodeState;
use brig_api::session::ToNode;
use brig_api::{Code, Kind};
use brig_core::{Decision, Plan};

use super::api::plain_client;
use super::harness::{Cluster, FakeNode, key, soon, unit_yaml};

async fn readiness(cluster: &Cluster) -> u16 {
    let answer = plain_client().get(cluster.url("/v1/readyz")).send().await.unwrap();
    answer.status().as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_of_somebody_else_makes_the_server_look_again() {
    let cluster = Cluster::start().await;
    let (mut node, _) = FakeNode::register(&cluster, "n1").await;
    let store = cluster.store().await;
    for round in 0..3 {
        // An old leader that thinks the node is gone: its plan is newer than what the server knows of.
        let model = store.model_load().await.unwrap();
        let plan = Plan {
            after: model.plan,
            based_on: model.revision,
            decisions: vec![Decision::NodeState {
                node: node.name.clone(),
                state: NodeState::Unreachable,
            }],
            explanations: Vec::new(),
            wake_at_ms: None,
        };
        match store.plan_commit(&plan, 1).await {
            Ok(_) => {}
            // The server was faster; that is as good.
            Err(brig_store::StoreError::PlanLost { .. }) => continue,
            Err(error) => panic!("{error}"),
        }
        cluster.apply(&unit_yaml(&format!("u{round}"))).await;
        assert!(matches!(node.hear().await, Some(ToNode::Assign { .. })));
        cluster.unit_in(&format!("u{round}"), &[UnitState::Assigned]).await;
    }
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_server_answers_but_plans_only_when_the_first_has_gone() {
    let Some(mut first) = Cluster::on_postgres().await else { return };
    let (node, _) = FakeNode::register(&first, "n1").await;
    let mut second = first.another().await;
    assert_eq!((readiness(&first).await, readiness(&second).await), (200, 503));

    // What one commits the other's watches show.
    let from = second.client.version().await.unwrap().revision;
    let mut watch = second.client.watch(Default::default(), from);
    first.apply("kind: config\nname: c\ndata: {}\n").await;
    let changes = soon("the other's change", watch.next()).await.unwrap();
    assert_eq!(changes[0].key, key(Kind::Config, "c"));

    let mut refused = FakeNode::connect(&second, "n2").await;
    let Some(ToNode::Refused { problem }) = refused.hear().await else { panic!("a refusal") };
    assert_eq!(problem.code, Code::Unavailable);

    drop(node);
    first.stop().await;
    let (mut node, _) = FakeNode::register(&second, "n1").await;
    second.apply(&unit_yaml("one")).await;
    assert!(matches!(node.hear().await, Some(ToNode::Assign { .. })));
    assert_eq!(readiness(&second).await, 200);
    second.stop().await;
}
