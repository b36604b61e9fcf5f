//! The HTTP side of the registry: from a method and a path to what is done, and headers of the answer.

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use brig_api::Digest;
use brig_api::oci::INDEX;
use http::{HeaderMap, Method, StatusCode, header};
use serde::Deserialize;

use super::Registry;
use super::blobs::read_in_pieces;
use super::error::RegistryError;
use super::path::{self, Target, UploadId, Wanted};

/// The header with the digest of what is sent or was taken.
const CONTENT_DIGEST: &str = "docker-content-digest";
/// The header by which clients know the protocol.
const API_VERSION: &str = "docker-distribution-api-version";
/// Most names in one answer of a listing; also the number where the client asks for none.
const LISTED_MAX: usize = 1000;

type Answer = Result<Response, RegistryError>;

/// The distribution API under `/v2/`.
pub fn router(registry: Registry) -> Router {
    Router::new()
        .route("/v2", any(version))
        .route("/v2/", any(version))
        .route("/v2/{*path}", any(dispatch))
        .with_state(registry)
}

async fn version() -> Response {
    ([(API_VERSION, "registry/2.0")], axum::Json(serde_json::json!({}))).into_response()
}

#[derive(Debug, Default, Deserialize)]
struct Parameters {
    digest: Option<String>,
    mount: Option<String>,
    n: Option<usize>,
    last: Option<String>,
    #[serde(rename = "artifactType")]
    artifact_type: Option<String>,
}

async fn dispatch(
    State(registry): State<Registry>,
    Path(path): Path<String>,
    Query(parameters): Query<Parameters>,
    method: Method,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let target = path::parse(&path)?;
    match (target, method) {
        (Target::Catalog, Method::GET) => registry.catalog(&parameters).await,
        (Target::Tags { repository }, Method::GET) => registry.tags(repository, &parameters).await,
        (Target::Referrers { digest }, Method::GET) => {
            registry.referrers(&digest, parameters.artifact_type.as_deref()).await
        }
        (Target::Manifest { repository, wanted }, method) => {
            registry.manifest(repository, wanted, &method, &headers, body).await
        }
        (Target::Blob { digest, .. }, Method::GET | Method::HEAD) => {
            registry.blob(&digest, &headers).await
        }
        (Target::Blob { .. }, Method::DELETE) => Err(RegistryError::Unsupported(
            "a blob goes when no manifest names it any longer; delete the manifest",
        )),
        (Target::NewUpload { repository }, Method::POST) => {
            registry.begin(&repository, &parameters, &headers, body).await
        }
        (Target::Upload { repository, id }, method) => {
            registry.upload(&repository, &id, &method, &parameters, &headers, body).await
        }
        _ => Err(RegistryError::Unsupported("no such method on this path")),
    }
}

impl Registry {
    async fn manifest(
        &self,
        repository: String,
        wanted: Wanted,
        method: &Method,
        headers: &HeaderMap,
        body: Body,
    ) -> Answer {
        match *method {
            Method::GET | Method::HEAD => {
                let found = self.inner.manifest(&repository, &wanted).await?;
                let headers = [
                    (header::CONTENT_TYPE.as_str(), found.media_type),
                    (CONTENT_DIGEST, found.digest.to_string()),
                    (header::ETAG.as_str(), format!("\"{}\"", found.digest)),
                ];
                Ok((headers, found.bytes).into_response())
            }
            Method::PUT => {
                let content_type =
                    headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
                let taken =
                    self.inner.put_manifest(repository.clone(), wanted, content_type, body).await?;
                let location = format!("/v2/{repository}/manifests/{}", taken.digest);
                let mut answer = created(&location, &taken.digest);
                if let Some(subject) = taken.subject.and_then(|d| d.as_str().parse().ok()) {
                    answer.headers_mut().insert("oci-subject", subject);
                }
                Ok(answer)
            }
            Method::DELETE => {
                self.inner.delete_manifest(&repository, &wanted).await?;
                Ok(StatusCode::ACCEPTED.into_response())
            }
            _ => Err(RegistryError::Unsupported("manifests are read, put and deleted")),
        }
    }

    async fn blob(&self, digest: &Digest, headers: &HeaderMap) -> Answer {
        let blobs = &self.inner.blobs;
        // A client that asks whether it must push the blob relies on the answer: keep the blob for a while.
        let now = (self.inner.config.now)();
        let size = blobs
            .touch(digest, now)
            .await?
            .ok_or_else(|| RegistryError::BlobUnknown { digest: digest.clone() })?;
        let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
        let (status, start, length) = match range.map(|text| parse_range(text, size)) {
            None | Some(Range::Whole) => (StatusCode::OK, 0, size),
            Some(Range::Part { start, length }) => (StatusCode::PARTIAL_CONTENT, start, length),
            Some(Range::Outside) => {
                let outside = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
                return Ok((StatusCode::RANGE_NOT_SATISFIABLE, outside).into_response());
            }
        };
        let is_whole = status == StatusCode::OK;
        let pieces = read_in_pieces(blobs.clone(), digest.clone(), start, length, is_whole);
        let headers = [
            (header::CONTENT_TYPE.as_str(), "application/octet-stream".to_owned()),
            (header::CONTENT_LENGTH.as_str(), length.to_string()),
            (header::ACCEPT_RANGES.as_str(), "bytes".to_owned()),
            (CONTENT_DIGEST, digest.to_string()),
            (header::ETAG.as_str(), format!("\"{digest}\"")),
        ];
        let mut answer = (status, headers, Body::from_stream(pieces)).into_response();
        if !is_whole
            && let Ok(range) = format!("bytes {start}-{}/{size}", start + length - 1).parse()
        {
            answer.headers_mut().insert(header::CONTENT_RANGE, range);
        }
        Ok(answer)
    }

    async fn begin(
        &self,
        repository: &str,
        parameters: &Parameters,
        headers: &HeaderMap,
        body: Body,
    ) -> Answer {
        if let Some(mount) = &parameters.mount
            && let Ok(digest) = path::digest(mount)
            && self.inner.blobs.touch(&digest, (self.inner.config.now)()).await?.is_some()
        {
            return Ok(created(&format!("/v2/{repository}/blobs/{digest}"), &digest));
        }
        let digest = parameters.digest.as_deref().map(path::digest).transpose()?;
        let id = self.inner.uploads.begin().await?;
        let Some(digest) = digest else {
            return Ok(accepted(StatusCode::ACCEPTED, repository, &id, 0));
        };
        self.inner.uploads.append(&id, body, content_length(headers)).await?;
        self.inner.uploads.finish(&id, &digest, &self.inner.blobs).await?;
        Ok(created(&format!("/v2/{repository}/blobs/{digest}"), &digest))
    }

    async fn upload(
        &self,
        repository: &str,
        id: &UploadId,
        method: &Method,
        parameters: &Parameters,
        headers: &HeaderMap,
        body: Body,
    ) -> Answer {
        let uploads = &self.inner.uploads;
        match *method {
            Method::GET => {
                let offset = uploads.offset(id).await?;
                Ok(accepted(StatusCode::NO_CONTENT, repository, id, offset))
            }
            Method::PATCH => {
                let announced = self.check_order(repository, id, headers).await?;
                let offset = uploads.append(id, body, announced).await?;
                Ok(accepted(StatusCode::ACCEPTED, repository, id, offset))
            }
            Method::PUT => {
                let digest = path::digest(parameters.digest.as_deref().unwrap_or_default())?;
                let announced = self.check_order(repository, id, headers).await?;
                uploads.append(id, body, announced).await?;
                uploads.finish(id, &digest, &self.inner.blobs).await?;
                Ok(created(&format!("/v2/{repository}/blobs/{digest}"), &digest))
            }
            Method::DELETE => {
                uploads.cancel(id).await?;
                Ok(StatusCode::NO_CONTENT.into_response())
            }
            _ => {
                Err(RegistryError::Unsupported("uploads are asked for, continued, put and deleted"))
            }
        }
    }

    /// Checks that a chunk follows what is there; the length that it announces.
    async fn check_order(
        &self,
        repository: &str,
        id: &UploadId,
        headers: &HeaderMap,
    ) -> Result<Option<u64>, RegistryError> {
        let length = content_length(headers);
        let Some(range) = headers.get(header::CONTENT_RANGE) else { return Ok(length) };
        let offset = self.inner.uploads.offset(id).await?;
        let bounds = range.to_str().ok().and_then(|text| {
            let (first, last) = text.trim_start_matches("bytes ").split_once('-')?;
            Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?))
        });
        match bounds {
            Some((first, last)) if first == offset && last >= first => {
                let announced = (last - first).saturating_add(1);
                match length {
                    Some(received) if received != announced => {
                        Err(RegistryError::SizeInvalid { announced, received })
                    }
                    _ => Ok(Some(announced)),
                }
            }
            _ => {
                let location = format!("/v2/{repository}/blobs/uploads/{}", id.as_str());
                Err(RegistryError::OutOfOrder { offset, location })
            }
        }
    }

    async fn tags(&self, repository: String, parameters: &Parameters) -> Answer {
        let artifacts = self.inner.index.list(Some(&repository)).await?;
        if artifacts.is_empty() {
            return Err(RegistryError::NameUnknown { repository });
        }
        let names = artifacts.into_iter().map(|artifact| artifact.tag).collect();
        let (tags, more) = page(names, parameters);
        let body = serde_json::json!({ "name": repository, "tags": tags });
        Ok(listing(&format!("/v2/{repository}/tags/list"), more.as_deref(), parameters, body))
    }

    async fn catalog(&self, parameters: &Parameters) -> Answer {
        let artifacts = self.inner.index.list(None).await?;
        let names = artifacts.into_iter().map(|artifact| artifact.repository).collect();
        let (repositories, more) = page(names, parameters);
        let body = serde_json::json!({ "repositories": repositories });
        Ok(listing("/v2/_catalog", more.as_deref(), parameters, body))
    }

    async fn referrers(&self, subject: &Digest, artifact_type: Option<&str>) -> Answer {
        let manifests = self.inner.referrers(subject, artifact_type).await?;
        let body = serde_json::json!({
            "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests
        });
        let mut answer = ([(header::CONTENT_TYPE, INDEX)], body.to_string()).into_response();
        if artifact_type.is_some()
            && let Ok(applied) = "artifactType".parse()
        {
            answer.headers_mut().insert("oci-filters-applied", applied);
        }
        Ok(answer)
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn created(location: &str, digest: &Digest) -> Response {
    let headers = [(header::LOCATION.as_str(), location), (CONTENT_DIGEST, digest.as_str())];
    (StatusCode::CREATED, headers).into_response()
}

fn accepted(status: StatusCode, repository: &str, id: &UploadId, offset: u64) -> Response {
    let headers = [
        (header::LOCATION.as_str(), format!("/v2/{repository}/blobs/uploads/{}", id.as_str())),
        // The specification has no way to say "nothing yet"; 0-0 is what all registries send.
        (header::RANGE.as_str(), format!("0-{}", offset.saturating_sub(1))),
        ("docker-upload-uuid", id.as_str().to_owned()),
    ];
    (status, headers).into_response()
}

/// A page of names in order, and the last of them when more follow.
fn page(mut names: Vec<String>, parameters: &Parameters) -> (Vec<String>, Option<String>) {
    names.sort();
    names.dedup();
    if let Some(last) = &parameters.last {
        names.retain(|name| name > last);
    }
    let count = parameters.n.unwrap_or(LISTED_MAX).min(LISTED_MAX);
    let has_more = names.len() > count;
    names.truncate(count);
    let more = names.last().filter(|_| has_more).cloned();
    (names, more)
}

fn listing(
    path: &str,
    more: Option<&str>,
    parameters: &Parameters,
    body: serde_json::Value,
) -> Response {
    let mut answer = axum::Json(body).into_response();
    let count = parameters.n.unwrap_or(LISTED_MAX).min(LISTED_MAX);
    if let Some(last) = more
        && let Ok(link) = format!("<{path}?n={count}&last={last}>; rel=\"next\"").parse()
    {
        answer.headers_mut().insert(header::LINK, link);
    }
    answer
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    Whole,
    Part { start: u64, length: u64 },
    Outside,
}

/// One range of RFC 9110; anything else than one range of bytes is answered with the whole, as the RFC allows.
fn parse_range(text: &str, size: u64) -> Range {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-'))
    else {
        return Range::Whole;
    };
    let end = size.saturating_sub(1);
    let bounds = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(start), Ok(last)) if last >= start => (start, last.min(end)),
        (Ok(start), Err(_)) if last.is_empty() => (start, end),
        (Err(_), Ok(suffix)) if first.is_empty() && suffix > 0 => {
            (size.saturating_sub(suffix), end)
        }
        _ => return Range::Whole,
    };
    if bounds.0 >= size {
        return Range::Outside;
    }
    Range::Part { start: bounds.0, length: bounds.1 - bounds.0 + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_stay_within_the_blob() {
        let part = |start, length| Range::Part { start, length };
        for (text, expected) in [
            ("bytes=0-", part(0, 10)),
            ("bytes=3-5", part(3, 3)),
            ("bytes=3-99", part(3, 7)),
            ("bytes=-4", part(6, 4)),
            ("bytes=-99", part(0, 10)),
            ("bytes=10-", Range::Outside),
            ("bytes=5-3", Range::Whole),
            ("bytes=a-b", Range::Whole),
            ("bytes=0-1,3-4", Range::Whole),
            ("lines=1-2", Range::Whole),
        ] {
            assert_eq!(parse_range(text, 10), expected, "{text}");
        }
        assert_eq!(parse_range("bytes=0-0", 0), Range::Outside);
    }

    #[test]
    fn pages_follow_one_another() {
        let names = || ["c", "a", "b", "a"].map(str::to_owned).to_vec();
        let parameters = |n, last: Option<&str>| Parameters {
            n,
            last: last.map(str::to_owned),
            ..Parameters::default()
        };
        let (first, more) = page(names(), &parameters(Some(2), None));
        assert_eq!((first, more.as_deref()), (vec!["a".to_owned(), "b".to_owned()], Some("b")));
        let (second, more) = page(names(), &parameters(Some(2), Some("b")));
        assert_eq!((second, more), (vec!["c".to_owned()], None));
        assert_eq!(page(names(), &parameters(Some(0), None)), (vec![], None));
    }
}
