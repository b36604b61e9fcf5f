//! Revisions and the change feed: no gaps, in order, resumed where one left off.

use brig_api::change::Change;
use brig_api::wasm::{Capability, WasmFacts, WasmForm, WasmKind, WasmMemory};
use brig_api::{Kind, Revision};
use brig_store::{EventFilter, NewArtifact, Store, StoreError};

use super::harness::{
    Fresh, NOW, facts, key, lone_unit, manifests, namespace, node_name, on_both, placed_unit,
};

on_both!(
    concurrent_writers_take_revisions_without_gaps,
    the_feed_is_resumed_in_pieces,
    a_trimmed_feed_asks_to_list_again,
    subscribers_wake_after_a_commit,
    commits_are_told_as_the_feed_has_them,
    a_write_that_changes_nothing_takes_no_revision,
    events_are_filtered,
    tags_are_set_and_removed,
    one_leader_at_a_time,
    what_was_written_is_there_after_opening_again,
);

async fn whole_feed(store: &Store) -> Vec<Change> {
    store.changes_since(Revision(1), 10_000).await.unwrap()
}

async fn concurrent_writers_take_revisions_without_gaps(fresh: Fresh) {
    const WRITERS: usize = 6;
    const WRITES: usize = 10;
    let rival = fresh.another().await;
    let tasks: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = if writer % 2 == 0 { fresh.store.clone() } else { rival.clone() };
            tokio::spawn(async move {
                for write in 0..WRITES {
                    let unit = lone_unit(&format!("w{writer}-{write}"));
                    store.unit_create(unit, NOW).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let revisions: Vec<_> = whole_feed(&fresh.store).await.iter().map(|c| c.revision.0).collect();
    let expected: Vec<u64> = (2..2 + (WRITERS * WRITES) as u64).collect();
    assert_eq!(revisions, expected);
    assert_eq!(fresh.store.revision().await.unwrap().0, *expected.last().unwrap());
    rival.close().await;
}

async fn the_feed_is_resumed_in_pieces(Fresh { store, .. }: Fresh) {
    let three = "{kind: config, name: NAME-a, data: {}}\n---\n{kind: config, name: NAME-b, data: {}}\n---\n{kind: config, name: NAME-c, data: {}}";
    for round in 0..4 {
        let yaml = three.replace("NAME", &format!("r{round}"));
        store.apply(&manifests(&yaml), NOW).await.unwrap();
    }
    store.object_delete(&key(Kind::Config, "r0-b"), NOW).await.unwrap();
    let whole = whole_feed(&store).await;
    assert_eq!(whole.len(), 13);
    assert_eq!(whole.last().unwrap().object, None, "it was deleted");
    for limit in [1, 2, 3, 4, 100] {
        let (mut seen, mut pieces, mut revision) = (Vec::new(), 0, Revision(1));
        loop {
            let piece = store.changes_since(revision, limit).await.unwrap();
            let Some(last) = piece.last() else { break };
            assert_eq!(piece.len() % 3, usize::from(last.object.is_none()), "whole revisions");
            revision = last.revision;
            seen.extend(piece);
            pieces += 1;
        }
        assert_eq!(seen, whole, "each change once, in order (limit {limit}, {pieces} pieces)");
    }
}

async fn a_trimmed_feed_asks_to_list_again(Fresh { store, .. }: Fresh) {
    placed_unit(&store, "web", "node-1").await;
    for index in 0..10 {
        store.unit_create(lone_unit(&format!("u{index}")), NOW).await.unwrap();
    }
    let newest = store.revision().await.unwrap();
    store.changes_trim(3).await.unwrap();
    assert_eq!(store.revision().await.unwrap(), newest, "forgetting is no change");
    let oldest = Revision(newest.0 - 3);
    let too_old = |error: &StoreError| matches!(error, StoreError::RevisionTooOld { oldest: said } if *said == oldest);
    let error = store.changes_since(Revision(oldest.0 - 1), 10).await.unwrap_err();
    assert!(too_old(&error), "{error}");
    let error = store.changes_since(Revision(0), 10).await.unwrap_err();
    assert!(too_old(&error), "{error}");
    assert_eq!(store.changes_since(oldest, 10).await.unwrap().len(), 3);
    assert_eq!(store.changes_since(newest, 10).await.unwrap(), []);
    let error = store.changes_since(Revision(newest.0 + 1), 10).await.unwrap_err();
    assert!(too_old(&error), "a revision from before a restored backup: {error}");
    assert_eq!(store.event_list(&EventFilter::default()).await.unwrap().len(), 3);
    let plans = store.sql("select sequence from plans", 10).await.unwrap();
    assert_eq!(plans.rows, Vec::<Vec<serde_json::Value>>::new(), "forgotten too");
    store.changes_trim(100).await.unwrap();
    assert_eq!(store.changes_since(oldest, 10).await.unwrap().len(), 3);
}

async fn subscribers_wake_after_a_commit(Fresh { store, .. }: Fresh) {
    let mut watch = store.subscribe();
    assert_eq!(*watch.borrow_and_update(), Revision(1), "the newest at the start");
    let unit = store.unit_create(lone_unit("web"), NOW).await.unwrap();
    watch.changed().await.unwrap();
    let seen = *watch.borrow_and_update();
    assert_eq!(seen, unit.meta.revision);
    assert_eq!(store.changes_since(Revision(seen.0 - 1), 10).await.unwrap().len(), 1);
    store.unit_create(lone_unit("web"), NOW).await.unwrap_err();
    assert!(!watch.has_changed().unwrap(), "nothing was committed");
}

async fn commits_are_told_as_the_feed_has_them(Fresh { store, .. }: Fresh) {
    let mut commits = store.commits();
    let before = store.revision().await.unwrap();
    placed_unit(&store, "web", "node-1").await;
    let yaml = "{kind: secret, name: s, data: {k: v}}\n---\n{kind: config, name: c, data: {}}";
    store.apply(&manifests(yaml), NOW).await.unwrap();
    store.object_delete(&key(Kind::Config, "c"), NOW).await.unwrap();
    let feed = store.changes_since(before, 100).await.unwrap();
    let mut told = Vec::new();
    while let Ok(changes) = commits.try_recv() {
        assert!(changes.iter().all(|change| change.revision == changes[0].revision));
        told.extend(changes.iter().cloned());
    }
    assert_eq!(told, feed);
}

async fn a_write_that_changes_nothing_takes_no_revision(Fresh { store, .. }: Fresh) {
    placed_unit(&store, "web", "node-1").await;
    let before = store.revision().await.unwrap();
    store.node_register(&node_name("node-1"), facts(), NOW).await.unwrap();
    store.statuses_report(&node_name("node-1"), &[], NOW).await.unwrap();
    store.namespace_default_ensure(NOW).await.unwrap();
    store.leader_try("me", NOW, 1_000).await.unwrap();
    store.apply(&[], NOW).await.unwrap();
    assert_eq!(store.revision().await.unwrap(), before);
    assert_eq!(whole_feed(&store).await.last().unwrap().revision, before);
}

async fn events_are_filtered(Fresh { store, .. }: Fresh) {
    placed_unit(&store, "web", "node-1").await;
    store.apply(&manifests("{kind: namespace, name: team}"), NOW).await.unwrap();
    let reasons = async |filter: EventFilter| {
        let events = store.event_list(&filter).await.unwrap();
        events
            .into_iter()
            .map(|event| format!("{} {}", event.kind, event.reason))
            .collect::<Vec<_>>()
    };
    let all = ["node Registered", "unit Created", "unit Placed", "namespace Created"];
    assert_eq!(reasons(EventFilter::default()).await, all);
    let units = EventFilter { kind: Some(Kind::Unit), ..Default::default() };
    assert_eq!(reasons(units).await, all[1..3]);
    let newest = EventFilter { limit: Some(2), ..Default::default() };
    assert_eq!(reasons(newest).await, all[2..]);
    let later = EventFilter { since_revision: Some(Revision(3)), ..Default::default() };
    assert_eq!(reasons(later).await, all[2..]);
    let default = EventFilter { namespace: Some(namespace("default")), ..Default::default() };
    assert_eq!(reasons(default).await, all[1..3]);
    let named = EventFilter { name: Some("team".to_owned()), ..Default::default() };
    assert_eq!(reasons(named).await, all[3..]);
    let impossible = EventFilter { name: Some("te\0am".to_owned()), ..Default::default() };
    assert_eq!(reasons(impossible).await, [""; 0]);
}

async fn tags_are_set_and_removed(Fresh { store, .. }: Fresh) {
    let artifact = |tag: &str, byte: u8| NewArtifact {
        repository: "team-a/shop".to_owned(),
        tag: tag.to_owned(),
        digest: brig_api::Digest::of_sha256(&[byte; 32]),
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        kind: brig_api::object::ArtifactKind::Wasm,
        size_bytes: 1 << 40,
        wasm: (byte == 1).then(wasm_facts),
    };
    let one = store.artifact_put(artifact("1", 1), NOW).await.unwrap();
    assert_eq!(store.artifact_put(artifact("1", 1), NOW + 1).await.unwrap(), one, "no change");
    assert_eq!(store.artifact_get("team-a/shop", "1").await.unwrap(), Some(one.clone()));
    assert_eq!(one.wasm, Some(wasm_facts()));
    let kinds = store.sql("SELECT wasm_kind FROM artifacts", 10).await.unwrap();
    assert!(format!("{kinds:?}").contains("http-p2"), "{kinds:?}");
    let moved = store.artifact_put(artifact("1", 2), NOW + 2).await.unwrap();
    assert_eq!(moved.wasm, None);
    assert_eq!(moved.meta.created_ms, NOW);
    store.artifact_put(artifact("2", 2), NOW).await.unwrap();
    store.artifact_put(artifact("latest", 3), NOW).await.unwrap();
    assert_eq!(store.artifact_get("team-a/shop", "1").await.unwrap(), Some(moved.clone()));
    assert_eq!(store.artifact_get("team-a/shop", "no\0tag").await.unwrap(), None);
    assert_eq!(store.artifact_list().await.unwrap().len(), 3);
    let removed = store.artifact_delete_digest("team-a/shop", &moved.digest, NOW).await.unwrap();
    assert_eq!(removed, 2);
    assert!(!store.artifact_delete("team-a/shop", "1", NOW).await.unwrap());
    store.object_delete(&key(Kind::Artifact, "team-a/shop:latest"), NOW).await.unwrap();
    assert_eq!(store.artifact_list().await.unwrap(), []);
    let wrong =
        NewArtifact { repository: "Shop".to_owned(), tag: "a b".to_owned(), ..artifact("1", 1) };
    let error = store.artifact_put(wrong, NOW).await.unwrap_err();
    assert!(matches!(&error, StoreError::Invalid(faults) if faults.len() == 2), "{error}");
}

fn wasm_facts() -> WasmFacts {
    WasmFacts {
        form: WasmForm::Component,
        kind: WasmKind::HttpP2,
        memory: WasmMemory { count: 2, initial_bytes: u64::MAX, maximum_bytes: None },
        capabilities: [Capability::OutgoingHttp].into(),
        foreign: vec![],
        imports: vec!["wasi:http/outgoing-handler@0.2.0".to_owned()],
        exports: vec!["wasi:http/incoming-handler@0.2.0".to_owned()],
        names_left_out: 0,
        languages: vec!["Rust".to_owned()],
        tools: vec![],
    }
}

async fn one_leader_at_a_time(Fresh { store, .. }: Fresh) {
    assert!(store.leader_try("a", NOW, 1_000).await.unwrap());
    assert!(!store.leader_try("b", NOW + 999, 1_000).await.unwrap());
    assert!(store.leader_try("a", NOW + 999, 1_000).await.unwrap(), "renewed");
    assert!(!store.leader_try("b", NOW + 1_998, 1_000).await.unwrap());
    assert!(store.leader_try("b", NOW + 1_999, 1_000).await.unwrap(), "it ran out");
}

async fn what_was_written_is_there_after_opening_again(fresh: Fresh) {
    placed_unit(&fresh.store, "web", "node-1").await;
    let before = fresh.store.model_load().await.unwrap();
    let feed = whole_feed(&fresh.store).await;
    fresh.store.close().await;
    let error = fresh.store.revision().await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    let again = fresh.another().await;
    assert_eq!(again.model_load().await.unwrap(), before);
    assert_eq!(whole_feed(&again).await, feed);
    again.close().await;
}
