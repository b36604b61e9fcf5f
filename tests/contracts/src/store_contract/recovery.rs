//! What a crash leaves, what an operator is told, and that both databases have the same tables.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use brig_api::{Kind, Revision};
use brig_store::{Store, StoreError};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row, SqliteConnection};

use super::harness::{Fresh, NOW, lone_unit, manifests, on_both};

on_both!(
    an_abandoned_write_leaves_nothing,
    an_abandoned_write_that_was_committed_is_announced,
    a_killed_writer_leaves_whole_transactions,
    a_newer_database_is_refused,
    a_damaged_row_is_named,
);

/// Names the database that [`crash_child`] writes to until it is killed.
const CRASH_VARIABLE: &str = "BRIG_TEST_CRASH_DB";
/// Long enough for a loaded machine; nothing waits for it when all is well.
const PATIENCE: Duration = Duration::from_secs(60);

fn batch(name: &str, size: usize) -> String {
    let one =
        |index| format!("{{kind: unit, name: {name}-{index}, unit: {{wasm: {{artifact: a}}}}}}");
    (0..size).map(one).collect::<Vec<_>>().join("\n---\n")
}

async fn raw(url: &str, sql: &str) {
    let sql = AssertSqlSafe(sql.to_owned());
    if url.starts_with("sqlite") {
        let mut connection = SqliteConnection::connect(url).await.unwrap();
        connection.execute(sql).await.unwrap();
        connection.close().await.unwrap();
    } else {
        let mut connection = PgConnection::connect(url).await.unwrap();
        connection.execute(sql).await.unwrap();
        connection.close().await.unwrap();
    }
}

/// Units in whole batches of `size`, and a feed without gaps.
async fn check_whole(store: &Store, size: usize) {
    let (revision, units) = store.object_list(Kind::Unit, None).await.unwrap();
    assert_eq!(units.len() % size, 0, "{} units", units.len());
    let mut changes = store.changes_since(Revision(1), 10_000).await.unwrap();
    // The feed is read a moment after the list, and a commit that its asker gave up on may still go through in between.
    changes.retain(|change| change.revision <= revision);
    assert_eq!(changes.len(), units.len());
    let mut revisions: Vec<_> = changes.iter().map(|change| change.revision.0).collect();
    revisions.dedup();
    assert_eq!(revisions, (2..=revision.0).collect::<Vec<_>>());
}

async fn an_abandoned_write_leaves_nothing(Fresh { store, .. }: Fresh) {
    const SIZE: usize = 40;
    for round in 0..12_u32 {
        let (writer, yaml) = (store.clone(), batch(&format!("r{round}"), SIZE));
        let write = tokio::spawn(async move { writer.apply(&manifests(&yaml), NOW).await });
        // Somewhere between its begin and its end.
        for _ in 0..round * 7 {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_micros(u64::from(round) * 700)).await;
        write.abort();
        let _ = write.await;
        check_whole(&store, SIZE).await;
    }
    store.apply(&manifests(&batch("last", SIZE)), NOW).await.unwrap();
    check_whole(&store, SIZE).await;
}

async fn an_abandoned_write_that_was_committed_is_announced(Fresh { store, .. }: Fresh) {
    let mut committed = store.subscribe();
    for round in 0..60_u32 {
        let (writer, spec) = (store.clone(), lone_unit(&format!("u{round}")));
        let write = tokio::spawn(async move { writer.unit_create(spec, NOW).await });
        // Somewhere between its begin and its end; most often in its commit, which takes the longest.
        tokio::time::sleep(Duration::from_micros(u64::from(round) * 100)).await;
        write.abort();
        let _ = write.await;
        // On SQLite this waits for its turn behind the commit.
        store.leader_try("me", NOW, 0).await.unwrap();
        let newest = store.revision().await.unwrap();
        let heard = committed.wait_for(|revision| *revision >= newest);
        tokio::time::timeout(PATIENCE, heard).await.expect("whoever waits hears of it").unwrap();
    }
}

/// Not a case: what the next one starts in a process of its own, to kill it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crash_child() {
    let Ok(url) = std::env::var(CRASH_VARIABLE) else {
        return;
    };
    let store = Store::open(&url).await.unwrap();
    for round in 0.. {
        store.apply(&manifests(&batch(&format!("r{round}"), 3)), NOW).await.unwrap();
    }
}

async fn a_killed_writer_leaves_whole_transactions(fresh: Fresh) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store_contract::recovery::crash_child", "--nocapture"])
        .env(CRASH_VARIABLE, &fresh.url)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let writes = async {
        let mut tick = tokio::time::interval(Duration::from_millis(5));
        while fresh.store.revision().await.unwrap().0 < 30 {
            tick.tick().await;
            assert!(child.try_wait().unwrap().is_none(), "the writer ended by itself");
        }
    };
    let outcome = tokio::time::timeout(PATIENCE, writes).await;
    child.kill().unwrap();
    child.wait().unwrap();
    outcome.expect("the writer writes");
    let again = fresh.another().await;
    check_whole(&again, 3).await;
    again.apply(&manifests(&batch("after", 3)), NOW).await.unwrap();
    check_whole(&again, 3).await;
    again.close().await;
}

async fn a_newer_database_is_refused(fresh: Fresh) {
    fresh.store.close().await;
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 SELECT 9001, 'later', success, checksum, 0 FROM _sqlx_migrations WHERE version = 1";
    raw(&fresh.url, newer).await;
    let error = Store::open(&fresh.url).await.unwrap_err();
    let StoreError::TooNew { database: 9001, known } = error else { panic!("{error}") };
    assert_eq!(known, newest_migration());
    let message = error.to_string();
    let says = format!("up to {known}");
    assert!(message.contains("9001") && message.contains(&says), "{message}");
}

fn newest_migration() -> i64 {
    let folder =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../control-plane/store/migrations/sqlite");
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name());
    let number = |name: &std::ffi::OsString| name.to_str()?.split_once('_')?.0.parse().ok();
    files.filter_map(|name| number(&name)).max().unwrap()
}

async fn a_damaged_row_is_named(fresh: Fresh) {
    fresh.store.unit_create(lone_unit("web"), NOW).await.unwrap();
    raw(&fresh.url, "UPDATE units SET template = '{'").await;
    let error = fresh.store.model_load().await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Corrupt { what, .. } if what == "units.template"),
        "{error}"
    );
}

#[tokio::test]
async fn a_locked_file_is_named_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", dir.path().join("brig.db").display());
    let store = Store::open(&url).await.unwrap();
    let mut rival = SqliteConnection::connect(&url).await.unwrap();
    let lock = rival.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let error = store.unit_create(lone_unit("web"), NOW).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("locked by another process"), "{error}");
    assert_eq!(store.revision().await.unwrap(), Revision(1), "reading goes on");
    lock.rollback().await.unwrap();
    store.unit_create(lone_unit("web"), NOW).await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn a_new_file_is_for_its_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("brig.db");
    let store = Store::open(&format!("sqlite:{}", path.display())).await.unwrap();
    store.unit_create(lone_unit("web"), NOW).await.unwrap();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
        names.push(entry.file_name());
    }
    assert!(names.len() > 1, "the write-ahead log too: {names:?}");
    store.close().await;
}

#[tokio::test]
async fn a_store_that_cannot_be_opened_says_why() {
    for (url, expected) in [
        ("mysql://root:hunter2@db/brig", "expected `sqlite:PATH`"),
        ("sqlite::memory:", "would be lost"),
        ("sqlite:/nowhere/at/all/brig.db", "check that its folder exists"),
        ("postgres://brig@127.0.0.1:1/brig", "out of reach"),
    ] {
        let error = Store::open(url).await.unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains("hunter2"), "{url}: {error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("brig.db");
    std::fs::write(&path, "this is no database, but long enough to be read as one".repeat(100))
        .unwrap();
    let error = Store::open(&format!("sqlite:{}", path.display())).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
}

/// Table, column, and whether it may be empty.
type Columns = Vec<(String, String, bool)>;

async fn sqlite_columns(url: &str) -> Columns {
    const SQL: &str = "SELECT t.name, c.name, c.\"notnull\" = 0 FROM sqlite_schema t, pragma_table_info(t.name) c \
        WHERE t.type = 'table' AND t.name NOT LIKE '\\_%' ESCAPE '\\' ORDER BY t.name, c.cid";
    let mut connection = SqliteConnection::connect(url).await.unwrap();
    let rows = connection.fetch_all(SQL).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

async fn postgres_columns(url: &str) -> Columns {
    const SQL: &str = "SELECT table_name::text, column_name::text, is_nullable = 'YES' \
        FROM information_schema.columns WHERE table_schema = 'public' AND table_name NOT LIKE '\\_%' \
        ORDER BY table_name COLLATE \"C\", ordinal_position";
    let mut connection = PgConnection::connect(url).await.unwrap();
    let rows = connection.fetch_all(SQL).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_databases_have_the_same_tables() {
    super::harness::on_postgres(async |postgres: Fresh| {
        super::harness::on_sqlite(async |sqlite: Fresh| {
            let columns = sqlite_columns(&sqlite.url).await;
            assert!(columns.len() > 100, "{columns:?}");
            assert_eq!(columns, postgres_columns(&postgres.url).await);
        })
        .await;
    })
    .await;
}
