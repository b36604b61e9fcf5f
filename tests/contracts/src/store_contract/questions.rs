//! Questions in SQL: what they can see, and that they can change nothing and read no secret.

use brig_store::{Backend, Store, StoreError};
use serde_json::{Value, json};
use sqlx::{Connection, Executor, PgConnection};

use super::harness::{Fresh, NOW, manifests, on_both, placed_unit};

on_both!(
    questions_are_answered,
    nothing_can_be_changed,
    secrets_cannot_be_read,
    a_slow_question_is_ended,
    large_answers_are_cut,
);

/// A text that no answer may hold.
const SECRET: &str = "hunter2-is-the-password";

async fn with_secret(store: &Store) {
    let yaml = format!("{{kind: secret, name: login, data: {{password: {SECRET}}}}}");
    store.apply(&manifests(&yaml), NOW).await.unwrap();
}

async fn questions_are_answered(Fresh { store, .. }: Fresh) {
    placed_unit(&store, "web", "node-1").await;
    let answer = store
        .sql("select name, cpu_milli, node, reason, 1.5 as ratio from units -- all\n;", 10)
        .await
        .unwrap();
    assert_eq!(answer.columns, ["name", "cpu_milli", "node", "reason", "ratio"]);
    assert_eq!(answer.rows, [[json!("web"), json!(100), json!("node-1"), Value::Null, json!(1.5)]]);
    let none = store.sql("select name, state from units where state = 'lost'", 10).await.unwrap();
    assert_eq!((none.columns.len(), none.rows.len()), (2, 0));
    for query in [
        "select node, sum(cpu_milli), sum(memory_bytes) from units where state in ('assigned', 'running') group by node order by 2 desc",
        "with live as (select * from units where desired = 'run') select count(*) from live",
        "select u.name, a.value from units u join node_attributes a on a.node = u.node where a.name = 'zone'",
        "select name, rank() over (partition by namespace order by priority desc) from units",
        "select kind, reason, count(*) from events group by kind, reason",
        "explain select * from units",
        "values (1, 'a'), (2, 'b')",
        "select name, keys from secrets",
        "select coalesce(reason, 'none') from units where name like 'w%' limit 5",
    ] {
        let answer = store.sql(query, 1_000).await;
        assert!(answer.as_ref().is_ok_and(|a| !a.is_truncated), "{query}: {answer:?}");
    }
    let error = store.sql("select nothing_like_it from units", 10).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Invalid(faults) if faults[0].message.contains("nothing_like_it")),
        "{error}"
    );
    let error = store.sql("select from where", 10).await.unwrap_err();
    assert!(matches!(error, StoreError::Invalid(_)), "{error}");
}

async fn nothing_can_be_changed(Fresh { store, .. }: Fresh) {
    placed_unit(&store, "web", "node-1").await;
    let before = store.model_load().await.unwrap();
    for query in [
        "insert into leases values ('a', 'b', 1)",
        "update units set state = 'lost'",
        "delete from units",
        "select 1; delete from units",
        "select 1; select 2",
        "with gone as (delete from units returning *) select * from gone",
        "pragma query_only = off",
        "select * from pragma_table_info('units'), units; pragma writable_schema = on",
        "attach '/tmp/other.db' as other",
        "create table t (a int)",
        "drop table units",
        "vacuum into '/tmp/copy.db'",
        "begin",
        "commit; delete from units",
        "rollback; delete from units",
        "set role none",
        "reset role",
        "copy units to program 'id'",
        "select * into t from units",
        "select * from units for update",
        "select pg_sleep(60)",
        "select pg_terminate_backend(1)",
        "select pg_read_file('/etc/passwd')",
        "select set_config('role', 'none', false)",
        "select \"set_config\"('transaction_read_only', 'off', false)",
        "select nextval('x')",
        "select load_extension('/tmp/x.so')",
        "select randomblob(1000000000)",
        "explain analyze delete from units",
        "do 'begin end'",
        "",
        "-- nothing",
    ] {
        let error = store.sql(query, 10).await.unwrap_err();
        assert!(matches!(error, StoreError::ReadOnly(_)), "{query}: {error}");
    }
    assert_eq!(store.model_load().await.unwrap(), before);
}

async fn secrets_cannot_be_read(Fresh { store, .. }: Fresh) {
    with_secret(&store).await;
    let tricks = [
        "select * from secret_texts",
        "select * from SECRET_TEXTS",
        "select * from \"secret_texts\"",
        "select * from \"SeCrEt_TeXtS\"",
        "select * from 'secret_texts'",
        "select * from [secret_texts]",
        "select * from `secret_texts`",
        "select * from main.secret_texts",
        "select * from public.\"secret_texts\"",
        "select * from secret_texts as t",
        "select (select text from secret_texts limit 1)",
        "select count(*) from secret_texts",
        "select name from units union all select text from secret_texts",
        "with t as (select * from secret_texts) select * from t",
        "with t as (table secret_texts) select * from t",
        "table secret_texts",
        "select state from checkpoint_states",
        "select * from \"Checkpoint_States\"",
        "select * from units where exists (select 1 from secret_texts where text like 'h%')",
        "explain analyze select * from secret_texts",
        "create view v as select * from secret_texts",
        "select * from U&\"secret\\005ftexts\"",
        "select * from U&\"secret!005ftexts\" uescape '!'",
        "select $$'$$, t.* from secret_texts t --'",
        "select E'\\'', t.* from secret_texts t --'",
        "select /* ' */ * from secret_texts --'",
        "select query_to_xml('select * from secret' || '_texts', true, true, '')",
        "select set_config('role', 'none', true), query_to_xml('select * from secret'||'_texts', true, true, '')",
        "select table_to_xml('secret' || '_texts', true, true, '')",
        "select most_common_vals from pg_stats",
        "select * from pg_statistic",
        "select data from sqlite_dbpage",
        "select pg_read_binary_file('base')",
        "select * from dblink('dbname=x', 'select 1') as t (a text)",
    ];
    for query in tricks {
        match store.sql(query, 100).await {
            Err(StoreError::ReadOnly(_) | StoreError::Invalid(_)) => {}
            other => panic!("{query}: {other:?}"),
        }
    }
    // What remains readable says nothing of the texts.
    for table in [
        "secrets",
        "changes",
        "events",
        "explanations",
        "information_schema.columns",
        "sqlite_schema",
    ] {
        if let Ok(answer) = store.sql(&format!("select * from {table}"), 10_000).await {
            assert!(!format!("{answer:?}").contains(SECRET), "{table}");
        }
    }
}

async fn a_slow_question_is_ended(Fresh { store, .. }: Fresh) {
    let slow =
        "with recursive n(x) as (select 1 union all select x + 1 from n) select count(*) from n";
    let error = store.sql(slow, 10).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Invalid(faults) if faults[0].message.contains("longer than")),
        "{error}"
    );
    let answer = store.sql("select 1", 10).await.unwrap();
    assert_eq!(answer.rows, [[1]], "the connection goes on");
}

async fn large_answers_are_cut(Fresh { store, .. }: Fresh) {
    let endless = "with recursive n(x) as (select 1 union all select x + 1 from n where x < 1000000) select x from n";
    let answer = store.sql(endless, 7).await.unwrap();
    assert_eq!((answer.rows.len(), answer.is_truncated), (7, true));
    let wide = "with recursive n(x, t) as (select 1, 'xxxxxxxxxx' union all select x + 1, t || t from n where x < 17) select t from n";
    let answer = store.sql(wide, 1_000).await.unwrap();
    assert!(!answer.is_truncated, "a megabyte");
    let wider = wide.replace("x < 17", "x < 21");
    let answer = store.sql(&wider, 1_000).await.unwrap();
    assert!(answer.is_truncated, "twenty megabytes");
    for _ in 0..5 {
        assert_eq!(store.sql("select 1", 10).await.unwrap().rows, [[1]]);
    }
    assert!(matches!(store.backend(), Backend::Sqlite | Backend::Postgres));
}

/// The role that questions run as is no way around the screen of their wording either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reader_role_has_no_right_on_secrets() {
    super::harness::on_postgres(async |Fresh { store, url }: Fresh| {
        with_secret(&store).await;
        let mut connection = PgConnection::connect(&url).await.unwrap();
        connection.execute("SET ROLE brig_reader").await.unwrap();
        assert!(connection.execute("SELECT * FROM secrets").await.is_ok());
        for sql in [
            "SELECT * FROM secret_texts",
            "SELECT * FROM checkpoint_states",
            "DELETE FROM units",
            "SELECT * FROM pg_statistic",
        ] {
            let error = connection.execute(sql).await.unwrap_err().to_string();
            assert!(error.contains("permission denied"), "{sql}: {error}");
        }
    })
    .await;
}
