//! The tables `secrets` and `secret_texts`. The second one is read here alone.

use std::collections::BTreeMap;

use brig_api::object::{Meta, Secret};
use brig_api::{NamespacePath, Revision};

use super::within;
use crate::columns::{from_json, id, number, text, to_json, unsigned};
use crate::database::{Tx, on_db};
use crate::error::StoreError;

macro_rules! select {
    ($tail:literal) => {
        concat!("SELECT namespace, name, keys, revision, created_ms FROM secrets ", $tail)
    };
}
const SECRET_GET: &str = select!("WHERE namespace = $1 AND name = $2");
const SECRETS_WITHIN: &str = select!(
    "WHERE CAST($1 AS TEXT) IS NULL OR namespace = $1 OR substr(namespace, 1, length($1) + 1) = $1 || '/' \
     ORDER BY namespace, name"
);
const SECRET_PUT: &str = "INSERT INTO secrets (namespace, name, keys, revision, created_ms) \
    VALUES ($1, $2, $3, $4, $5) ON CONFLICT (namespace, name) DO UPDATE SET keys = excluded.keys, \
    revision = excluded.revision";
const SECRET_REMOVE: &str = "DELETE FROM secrets WHERE namespace = $1 AND name = $2";
const TEXTS: &str = "SELECT key, text FROM secret_texts WHERE namespace = $1 AND name = $2";
const TEXTS_REMOVE: &str = "DELETE FROM secret_texts WHERE namespace = $1 AND name = $2";
const TEXT_INSERT: &str =
    "INSERT INTO secret_texts (namespace, name, key, text) VALUES ($1, $2, $3, $4)";

#[derive(sqlx::FromRow)]
struct SecretRow {
    namespace: String,
    name: String,
    keys: String,
    revision: i64,
    created_ms: i64,
}

impl TryFrom<SecretRow> for Secret {
    type Error = StoreError;

    fn try_from(row: SecretRow) -> Result<Self, StoreError> {
        Ok(Self {
            name: id("secrets.name", &row.name)?,
            namespace: id("secrets.namespace", &row.namespace)?,
            keys: from_json("secrets.keys", &row.keys)?,
            meta: Meta {
                revision: Revision(unsigned("secrets.revision", row.revision)?),
                created_ms: row.created_ms,
            },
        })
    }
}

/// The secret of that name, without its texts.
pub(crate) async fn secret_get(
    db: &mut Tx,
    namespace: &NamespacePath,
    name: &str,
) -> Result<Option<Secret>, StoreError> {
    let row: Option<SecretRow> = on_db!(db, |connection| {
        let query = sqlx::query_as(SECRET_GET).bind(namespace.as_str()).bind(name);
        query.fetch_optional(connection).await
    })?;
    row.map(Secret::try_from).transpose()
}

/// All secrets, or those in a namespace and below it, without their texts.
pub(crate) async fn secret_list(
    db: &mut Tx,
    namespace: Option<&NamespacePath>,
) -> Result<Vec<Secret>, StoreError> {
    let rows: Vec<SecretRow> = on_db!(db, |connection| {
        sqlx::query_as(SECRETS_WITHIN).bind(within(namespace)).fetch_all(connection).await
    })?;
    rows.into_iter().map(Secret::try_from).collect()
}

/// A secret's texts by key.
pub(crate) async fn secret_texts(
    db: &mut Tx,
    namespace: &NamespacePath,
    name: &str,
) -> Result<BTreeMap<String, String>, StoreError> {
    let rows: Vec<(String, String)> = on_db!(db, |connection| {
        let query = sqlx::query_as(TEXTS).bind(namespace.as_str()).bind(name);
        query.fetch_all(connection).await
    })?;
    Ok(rows.into_iter().collect())
}

/// Writes a secret and its texts, new or in place of those it had.
pub(crate) async fn secret_put(
    db: &mut Tx,
    secret: &Secret,
    texts: &BTreeMap<String, String>,
) -> Result<(), StoreError> {
    let (namespace, name) = (secret.namespace.as_str(), secret.name.as_str());
    let keys = to_json("keys", &secret.keys)?;
    let revision = number("revision", secret.meta.revision.0)?;
    on_db!(db, |connection| {
        let query = sqlx::query(SECRET_PUT)
            .bind(namespace)
            .bind(name)
            .bind(&keys)
            .bind(revision)
            .bind(secret.meta.created_ms);
        query.execute(connection).await.map(drop)
    })?;
    on_db!(db, |connection| {
        sqlx::query(TEXTS_REMOVE).bind(namespace).bind(name).execute(connection).await.map(drop)
    })?;
    for (key, value) in texts {
        let value = text("data", value)?;
        on_db!(db, |connection| {
            let query = sqlx::query(TEXT_INSERT).bind(namespace).bind(name).bind(key).bind(value);
            query.execute(connection).await.map(drop)
        })?;
    }
    Ok(())
}

/// Removes a secret, and its texts.
pub(crate) async fn secret_remove(
    db: &mut Tx,
    namespace: &NamespacePath,
    name: &str,
) -> Result<(), StoreError> {
    on_db!(db, |connection| {
        let query = sqlx::query(SECRET_REMOVE).bind(namespace.as_str()).bind(name);
        query.execute(connection).await.map(drop)
    })?;
    Ok(())
}
