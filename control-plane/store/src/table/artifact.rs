//! The table `artifacts`.

use brig_api::Revision;
use brig_api::object::{Artifact, ArtifactKind, Meta};

use crate::columns::{from_json, id, named, number, text, to_json, unsigned};
use crate::database::{Tx, on_db};
use crate::error::StoreError;

macro_rules! select {
    ($tail:literal) => {
        concat!(
            "SELECT repository, tag, digest, media_type, kind, size_bytes, wasm, revision, created_ms FROM artifacts ",
            $tail
        )
    };
}
const ARTIFACT_GET: &str = select!("WHERE repository = $1 AND tag = $2");
const ARTIFACTS: &str = select!("ORDER BY repository, tag");
const ARTIFACTS_OF_DIGEST: &str = select!("WHERE repository = $1 AND digest = $2 ORDER BY tag");
const ARTIFACT_PUT: &str = "INSERT INTO artifacts (repository, tag, digest, media_type, kind, size_bytes, wasm_kind, \
    wasm, revision, created_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (repository, tag) DO UPDATE SET \
    digest = excluded.digest, media_type = excluded.media_type, kind = excluded.kind, \
    size_bytes = excluded.size_bytes, wasm_kind = excluded.wasm_kind, wasm = excluded.wasm, revision = excluded.revision";
const ARTIFACT_REMOVE: &str = "DELETE FROM artifacts WHERE repository = $1 AND tag = $2";

#[derive(sqlx::FromRow)]
struct ArtifactRow {
    repository: String,
    tag: String,
    digest: String,
    media_type: String,
    kind: String,
    size_bytes: i64,
    wasm: Option<String>,
    revision: i64,
    created_ms: i64,
}

impl TryFrom<ArtifactRow> for Artifact {
    type Error = StoreError;

    fn try_from(row: ArtifactRow) -> Result<Self, StoreError> {
        Ok(Self {
            digest: id("artifacts.digest", &row.digest)?,
            kind: named("artifacts.kind", ArtifactKind::parse, &row.kind)?,
            size_bytes: unsigned("artifacts.size_bytes", row.size_bytes)?,
            wasm: row.wasm.map(|wasm| from_json("artifacts.wasm", &wasm)).transpose()?,
            repository: row.repository,
            tag: row.tag,
            media_type: row.media_type,
            meta: Meta {
                revision: Revision(unsigned("artifacts.revision", row.revision)?),
                created_ms: row.created_ms,
            },
        })
    }
}

/// What a tag names.
pub(crate) async fn artifact_get(
    db: &mut Tx,
    repository: &str,
    tag: &str,
) -> Result<Option<Artifact>, StoreError> {
    let row: Option<ArtifactRow> = on_db!(db, |connection| {
        sqlx::query_as(ARTIFACT_GET).bind(repository).bind(tag).fetch_optional(connection).await
    })?;
    row.map(Artifact::try_from).transpose()
}

/// All tags.
pub(crate) async fn artifact_list(db: &mut Tx) -> Result<Vec<Artifact>, StoreError> {
    let rows: Vec<ArtifactRow> =
        on_db!(db, |connection| sqlx::query_as(ARTIFACTS).fetch_all(connection).await)?;
    rows.into_iter().map(Artifact::try_from).collect()
}

/// The tags of a repository that name a digest.
pub(crate) async fn artifact_list_of_digest(
    db: &mut Tx,
    repository: &str,
    digest: &str,
) -> Result<Vec<Artifact>, StoreError> {
    let rows: Vec<ArtifactRow> = on_db!(db, |connection| {
        sqlx::query_as(ARTIFACTS_OF_DIGEST)
            .bind(repository)
            .bind(digest)
            .fetch_all(connection)
            .await
    })?;
    rows.into_iter().map(Artifact::try_from).collect()
}

/// Writes a tag, new or changed.
pub(crate) async fn artifact_put(db: &mut Tx, artifact: &Artifact) -> Result<(), StoreError> {
    let media_type = text("media_type", &artifact.media_type)?;
    let size_bytes = number("size_bytes", artifact.size_bytes)?;
    let wasm = artifact.wasm.as_ref().map(|wasm| to_json("wasm", wasm)).transpose()?;
    let wasm_kind = artifact.wasm.as_ref().map(|wasm| wasm.kind.as_str());
    let revision = number("revision", artifact.meta.revision.0)?;
    on_db!(db, |connection| {
        let query = sqlx::query(ARTIFACT_PUT)
            .bind(&artifact.repository)
            .bind(&artifact.tag)
            .bind(artifact.digest.as_str())
            .bind(media_type)
            .bind(artifact.kind.as_str())
            .bind(size_bytes)
            .bind(wasm_kind)
            .bind(wasm)
            .bind(revision)
            .bind(artifact.meta.created_ms);
        query.execute(connection).await.map(drop)
    })?;
    Ok(())
}

/// Removes a tag's row.
pub(crate) async fn artifact_remove(
    db: &mut Tx,
    repository: &str,
    tag: &str,
) -> Result<(), StoreError> {
    on_db!(db, |connection| {
        sqlx::query(ARTIFACT_REMOVE).bind(repository).bind(tag).execute(connection).await.map(drop)
    })?;
    Ok(())
}
