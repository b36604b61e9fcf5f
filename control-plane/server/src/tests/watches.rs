//! Watches: every revision once and in order, across restarts; and applies that are cut off.

use brig_api::{Code, Kind, Revision};
use brig_client::WatchFilter;

use super::harness::{Cluster, key, manifests, soon, unit_yaml};

fn config(name: &str, value: u32) -> String {
    format!("kind: config\nname: {name}\ndata: {{v: '{value}'}}\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_across_a_restart_without_loss_or_duplicates() {
    let mut cluster = Cluster::start().await;
    let from = cluster.client.version().await.unwrap().revision;
    let mut watch = cluster.client.watch(WatchFilter::default(), from);
    let mut revisions = Vec::new();
    for round in 0..3 {
        for value in 0..5 {
            cluster.apply(&config("c", round * 10 + value)).await;
        }
        // Half of it is read before the restart, half after.
        for _ in 0..2 {
            let changes = soon("a change", watch.next()).await.unwrap();
            revisions.push(changes[0].revision.0);
        }
        cluster.restart().await;
    }
    while revisions.len() < 15 {
        let changes = soon("a change", watch.next()).await.unwrap();
        revisions.push(changes[0].revision.0);
    }
    let expected: Vec<u64> = (from.0 + 1..=from.0 + 15).collect();
    assert_eq!(revisions, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_shows_only_what_it_is_for() {
    let cluster = Cluster::start().await;
    let from = cluster.client.version().await.unwrap().revision;
    let filter = WatchFilter { kind: Some(Kind::Config), namespace: Some("a".parse().unwrap()) };
    let mut watch = cluster.client.watch(filter, from);
    cluster.apply("kind: namespace\nname: a\n---\nkind: namespace\nname: a/b\n").await;
    cluster.apply(&config("elsewhere", 1)).await;
    cluster.apply("kind: config\nname: c\nnamespace: a/b\ndata: {}\n").await;
    let changes = soon("a change", watch.next()).await.unwrap();
    assert_eq!((changes.len(), changes[0].key.name.as_str()), (1, "c"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_that_the_feed_does_not_hold_is_refused() {
    let cluster = Cluster::start().await;
    let mut watch = cluster.client.watch(WatchFilter::default(), Revision(1_000_000));
    let error = soon("the answer", watch.next()).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::RevisionTooOld));
    let answer = reqwest_get(&cluster, "/v1/watch", ("last-event-id", "x")).await;
    assert_eq!(answer.status(), 422);
}

async fn reqwest_get(
    cluster: &Cluster,
    path: &str,
    (name, value): (&str, &str),
) -> reqwest::Response {
    let client = super::api::plain_client();
    client.get(cluster.url(path)).header(name, value).send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_apply_that_is_cut_off_takes_effect_whole_or_not_at_all() {
    const COUNT: usize = 60;
    let cluster = Cluster::start().await;
    for round in 0..12_u64 {
        let yaml: Vec<_> = (0..COUNT)
            .map(|n| unit_yaml(&format!("u{round}-{n}")).replace("unit\n", "unit\nlabels: {}\n"))
            .collect();
        let request = cluster.client.apply(manifests(&yaml.join("---\n")));
        // Dropping the request closes its connection wherever the server is with it by then.
        let _ = tokio::time::timeout(std::time::Duration::from_millis(round * 2), request).await;
        let list = cluster.client.list(Kind::Unit, None).await.unwrap();
        let prefix = format!("u{round}-");
        let found = list.items.iter().filter(|item| item.key().name.starts_with(&prefix)).count();
        assert!(found == 0 || found == COUNT, "{found} of {COUNT} in round {round}");
    }
    assert!(cluster.client.get(&key(Kind::Namespace, "default")).await.is_ok());
}
