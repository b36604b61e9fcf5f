//! The table `configs`.

use brig_api::object::{Config, Meta};
use brig_api::spec::ConfigSpec;
use brig_api::{NamespacePath, Revision};

use super::within;
use crate::columns::{from_json, id, number, to_json, unsigned};
use crate::database::{Tx, on_db};
use crate::error::StoreError;

macro_rules! select {
    ($tail:literal) => {
        concat!("SELECT namespace, name, data, revision, created_ms FROM configs ", $tail)
    };
}
const CONFIG_GET: &str = select!("WHERE namespace = $1 AND name = $2");
const CONFIGS_WITHIN: &str = select!(
    "WHERE CAST($1 AS TEXT) IS NULL OR namespace = $1 OR substr(namespace, 1, length($1) + 1) = $1 || '/' \
     ORDER BY namespace, name"
);
const CONFIG_PUT: &str = "INSERT INTO configs (namespace, name, data, revision, created_ms) \
    VALUES ($1, $2, $3, $4, $5) ON CONFLICT (namespace, name) DO UPDATE SET data = excluded.data, \
    revision = excluded.revision";
const CONFIG_REMOVE: &str = "DELETE FROM configs WHERE namespace = $1 AND name = $2";

#[derive(sqlx::FromRow)]
struct ConfigRow {
    namespace: String,
    name: String,
    data: String,
    revision: i64,
    created_ms: i64,
}

impl TryFrom<ConfigRow> for Config {
    type Error = StoreError;

    fn try_from(row: ConfigRow) -> Result<Self, StoreError> {
        Ok(Self {
            spec: ConfigSpec {
                name: id("configs.name", &row.name)?,
                namespace: id("configs.namespace", &row.namespace)?,
                data: from_json("configs.data", &row.data)?,
            },
            meta: Meta {
                revision: Revision(unsigned("configs.revision", row.revision)?),
                created_ms: row.created_ms,
            },
        })
    }
}

/// The config of that name.
pub(crate) async fn config_get(
    db: &mut Tx,
    namespace: &NamespacePath,
    name: &str,
) -> Result<Option<Config>, StoreError> {
    let row: Option<ConfigRow> = on_db!(db, |connection| {
        let query = sqlx::query_as(CONFIG_GET).bind(namespace.as_str()).bind(name);
        query.fetch_optional(connection).await
    })?;
    row.map(Config::try_from).transpose()
}

/// All configs, or those in a namespace and below it.
pub(crate) async fn config_list(
    db: &mut Tx,
    namespace: Option<&NamespacePath>,
) -> Result<Vec<Config>, StoreError> {
    let rows: Vec<ConfigRow> = on_db!(db, |connection| {
        sqlx::query_as(CONFIGS_WITHIN).bind(within(namespace)).fetch_all(connection).await
    })?;
    rows.into_iter().map(Config::try_from).collect()
}

/// Writes a config, new or changed.
pub(crate) async fn config_put(db: &mut Tx, config: &Config) -> Result<(), StoreError> {
    let data = to_json("data", &config.spec.data)?;
    let revision = number("revision", config.meta.revision.0)?;
    on_db!(db, |connection| {
        let query = sqlx::query(CONFIG_PUT)
            .bind(config.spec.namespace.as_str())
            .bind(config.spec.name.as_str())
            .bind(&data)
            .bind(revision)
            .bind(config.meta.created_ms);
        query.execute(connection).await.map(drop)
    })?;
    Ok(())
}

/// Removes a config's row.
pub(crate) async fn config_remove(
    db: &mut Tx,
    namespace: &NamespacePath,
    name: &str,
) -> Result<(), StoreError> {
    on_db!(db, |connection| {
        let query = sqlx::query(CONFIG_REMOVE).bind(namespace.as_str()).bind(name);
        query.execute(connection).await.map(drop)
    })?;
    Ok(())
}
