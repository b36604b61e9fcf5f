//! Failures as users see them: the one table from what went wrong to `application/problem+json`.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::response::{IntoResponse, Response};
use brig_api::problem::{FieldError, PROBLEM_MEDIA_TYPE};
use brig_api::{Code, Problem};
use brig_store::StoreError;
use http::{HeaderValue, StatusCode, header};

/// A failed request. Made from a [`Problem`] or, by the table below, from an error of the store.
#[derive(Debug, Clone)]
pub(crate) struct Failure(pub(crate) Box<Problem>);

/// What a handler answers.
pub(crate) type Answer<T> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Self {
        Problem::new(code, detail).into()
    }

    /// One field at fault.
    pub(crate) fn field(path: impl Into<String>, message: impl Into<String>) -> Self {
        let field = FieldError { path: path.into(), message: message.into() };
        Problem::invalid("the request is not valid", vec![field]).into()
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self(Box::new(problem))
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let detail = error.to_string();
        let code = match &error {
            StoreError::NotFound(_) => Code::NotFound,
            StoreError::Conflict { .. } => Code::Conflict,
            StoreError::InUse { .. } => Code::InUse,
            StoreError::QuotaExceeded { .. } => Code::QuotaExceeded,
            StoreError::Invalid(fields) => {
                return Problem::invalid("the request is not valid", fields.clone()).into();
            }
            StoreError::ReadOnly(_) => Code::Invalid,
            StoreError::RevisionTooOld { .. } => Code::RevisionTooOld,
            StoreError::PlanLost { .. } | StoreError::Unavailable { .. } => Code::Unavailable,
            _ => {
                tracing::error!(error = %chain(&error), "the store failed");
                return Self::new(Code::Internal, "the server's database failed; its log says how");
            }
        };
        Self::new(code, detail)
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

impl From<PathRejection> for Failure {
    fn from(rejection: PathRejection) -> Self {
        Self::field("path", rejection.body_text())
    }
}

impl From<QueryRejection> for Failure {
    fn from(rejection: QueryRejection) -> Self {
        let text = rejection.body_text();
        let text = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
        Self::field("query", text)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(&*self.0)).into_response();
        let media_type = HeaderValue::from_static(PROBLEM_MEDIA_TYPE);
        response.headers_mut().insert(header::CONTENT_TYPE, media_type);
        response
    }
}

#[cfg(test)]
mod tests {
    use brig_api::object::ObjectKey;
    use brig_api::{Kind, PlanSequence, Revision};

    use super::*;

    #[test]
    fn each_failure_of_the_store_has_its_code_and_internal_ones_tell_nothing() {
        let key = || ObjectKey { kind: Kind::Node, namespace: None, name: "n1".into() };
        let message = || "why".to_owned();
        let field = FieldError { path: "a.b".into(), message: message() };
        for (error, code) in [
            (StoreError::NotFound(key()), Code::NotFound),
            (StoreError::Conflict { key: key(), message: message() }, Code::Conflict),
            (StoreError::InUse { key: key(), message: message() }, Code::InUse),
            (StoreError::QuotaExceeded { key: key(), message: message() }, Code::QuotaExceeded),
            (StoreError::Invalid(vec![field]), Code::Invalid),
            (StoreError::ReadOnly(message()), Code::Invalid),
            (StoreError::PlanLost { newest: PlanSequence(1) }, Code::Unavailable),
            (StoreError::RevisionTooOld { oldest: Revision(7) }, Code::RevisionTooOld),
            (
                StoreError::Unavailable { message: message(), source: "disk full".into() },
                Code::Unavailable,
            ),
            (StoreError::Corrupt { what: "row 5".into(), message: message() }, Code::Internal),
            (StoreError::Database("secret dsn".into()), Code::Internal),
        ] {
            let description = format!("{error:?}");
            let failure = Failure::from(error);
            assert_eq!(failure.0.code, code, "{description}");
            let text = failure.0.to_string();
            assert!(!text.contains("row 5") && !text.contains("dsn"), "{text}");
            let response = failure.into_response();
            assert_eq!(response.status().as_u16(), code.http_status());
            assert_eq!(response.headers()[header::CONTENT_TYPE], PROBLEM_MEDIA_TYPE);
        }
    }
}
