//! From our types to columns and back: both databases have signed numbers, texts and nothing else that we use.

use std::borrow::Cow;
use std::fmt::Display;
use std::str::FromStr;

use brig_api::problem::FieldError;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::StoreError;

/// A number for a column; the largest that either database holds is 2^63 - 1.
pub(crate) fn number(what: &str, value: u64) -> Result<i64, StoreError> {
    i64::try_from(value).map_err(|_| {
        let message = format!("{value} is too large: at most {} can be stored", i64::MAX);
        StoreError::Invalid(vec![FieldError { path: what.to_owned(), message }])
    })
}

/// A number from a column.
pub(crate) fn unsigned<T: TryFrom<i64>>(what: &str, value: i64) -> Result<T, StoreError> {
    T::try_from(value).map_err(|_| corrupt(what, format!("{value} is out of range")))
}

/// Something with a name, from a column that holds the name.
pub(crate) fn named<T>(
    what: &str,
    parse: fn(&str) -> Option<T>,
    text: &str,
) -> Result<T, StoreError> {
    parse(text).ok_or_else(|| corrupt(what, format!("`{text}` is not known")))
}

/// An id from a column.
pub(crate) fn id<T: FromStr<Err: Display>>(what: &str, text: &str) -> Result<T, StoreError> {
    text.parse().map_err(|error| corrupt(what, error))
}

/// JSON for a column.
pub(crate) fn to_json<T: Serialize + ?Sized>(what: &str, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| corrupt(what, error))
}

/// JSON from a column.
pub(crate) fn from_json<T: DeserializeOwned>(what: &str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| corrupt(what, error))
}

/// A text for a column. PostgreSQL stores no NUL, so none is taken on either database.
pub(crate) fn text<'a>(what: &str, text: &'a str) -> Result<&'a str, StoreError> {
    if text.contains('\0') {
        let message = "holds a NUL character, which cannot be stored: take it out".to_owned();
        return Err(StoreError::Invalid(vec![FieldError { path: what.to_owned(), message }]));
    }
    Ok(text)
}

/// A text of a machine for a column: it is not sent again for the sake of a NUL.
pub(crate) fn cleaned(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        Cow::Owned(text.replace('\0', "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

pub(crate) fn corrupt(what: &str, message: impl Display) -> StoreError {
    StoreError::Corrupt { what: what.to_owned(), message: message.to_string() }
}
