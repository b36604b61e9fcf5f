//! Reading requests: body, path and query, with failures that name the field.

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use brig_api::Code;
use brig_api::request::BODY_BYTES_MAX;
use http::header;
use http::request::Parts;
use serde::de::DeserializeOwned;

use crate::problem::Failure;

/// The JSON body.
pub(crate) struct Body<T>(pub(crate) T);
/// The parameters of the path, percent-decoded and checked.
pub(crate) struct PathOf<T>(pub(crate) T);
/// The query.
pub(crate) struct QueryOf<T>(pub(crate) T);

/// A request to become a WebSocket.
pub(crate) struct Upgrade(pub(crate) WebSocketUpgrade);

impl<S: Send + Sync> FromRequestParts<S> for Upgrade {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let upgrade = WebSocketUpgrade::from_request_parts(parts, state).await;
        upgrade.map(Self).map_err(|rejection| {
            let detail = format!("expected a WebSocket here: {}", rejection.body_text());
            Failure::new(Code::Invalid, detail)
        })
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        check_is_json(&request)?;
        let bytes = axum::body::to_bytes(request.into_body(), BODY_BYTES_MAX).await;
        let bytes = bytes.map_err(|error| too_large_or_broken(&error))?;
        read_json(&bytes).map(Self)
    }
}

/// Other media types are refused, also because a browser sends those to any address without asking first.
fn check_is_json(request: &Request) -> Result<(), Failure> {
    let media_type = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let essence = media_type.and_then(|v| v.split(';').next()).map(str::trim);
    if essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/json")) {
        return Ok(());
    }
    let written =
        media_type.map_or_else(|| "no content type".to_owned(), |found| format!("`{found}`"));
    Err(Failure::new(
        Code::Invalid,
        format!("expected a body with `Content-Type: application/json`, found {written}"),
    ))
}

fn too_large_or_broken(error: &axum::Error) -> Failure {
    let text = crate::problem::chain(error);
    if text.contains("length limit exceeded") {
        let detail = format!("the body is too large: at most {BODY_BYTES_MAX} bytes are read");
        Failure::new(Code::TooLarge, detail)
    } else {
        Failure::new(Code::Invalid, format!("the body could not be read: {text}"))
    }
}

fn read_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let path = if path == "." { String::new() } else { path };
        Failure::field(path, error.into_inner().to_string())
    })?;
    deserializer.end().map_err(|error| Failure::field("", error.to_string()))?;
    Ok(value)
}

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for PathOf<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let Path(value) = Path::from_request_parts(parts, state).await?;
        Ok(Self(value))
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for QueryOf<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let Query(value) = Query::from_request_parts(parts, state).await?;
        Ok(Self(value))
    }
}
