//! Which fields change, for people: `path: before -> after`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use crate::columns::corrupt;
use crate::error::StoreError;

/// Most differences of one resource that are listed.
const DIFFERENCES_MAX: usize = 50;
/// Most characters of a value that are shown.
const VALUE_CHARS_MAX: usize = 60;

/// The fields in which two specs differ, down to the leaves.
pub(crate) fn differences<T: Serialize>(before: &T, after: &T) -> Result<Vec<String>, StoreError> {
    let value = |spec: &T| serde_json::to_value(spec).map_err(|error| corrupt("spec", error));
    let mut found = Vec::new();
    compare("", Some(&value(before)?), Some(&value(after)?), &mut found);
    let more = found.len().saturating_sub(DIFFERENCES_MAX);
    found.truncate(DIFFERENCES_MAX);
    if more > 0 {
        found.push(format!("and {more} more"));
    }
    Ok(found)
}

/// The keys in which two secrets differ; never the texts.
pub(crate) fn texts_differences(
    before: &BTreeMap<String, String>,
    after: &BTreeMap<String, String>,
) -> Vec<String> {
    let keys: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let differs = keys.into_iter().filter(|key| before.get(*key) != after.get(*key));
    let word = |key: &str| match (before.get(key), after.get(key)) {
        (None, _) => "(none) -> (secret)",
        (_, None) => "(secret) -> (none)",
        _ => "(secret) -> (another secret)",
    };
    differs.map(|key| format!("data.{key}: {}", word(key))).collect()
}

fn compare(path: &str, before: Option<&Value>, after: Option<&Value>, found: &mut Vec<String>) {
    match (before, after) {
        (Some(Value::Object(before)), Some(Value::Object(after))) => {
            let keys: BTreeSet<_> = before.keys().chain(after.keys()).collect();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                compare(&path, before.get(key), after.get(key), found);
            }
        }
        (Some(Value::Array(before)), Some(Value::Array(after))) => {
            for index in 0..before.len().max(after.len()) {
                let path = format!("{path}[{index}]");
                compare(&path, before.get(index), after.get(index), found);
            }
        }
        (before, after) if before == after => {}
        (before, after) => found.push(format!("{path}: {} -> {}", shown(before), shown(after))),
    }
}

fn shown(value: Option<&Value>) -> String {
    let text = match value {
        None | Some(Value::Null) => return "(none)".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    match text.char_indices().nth(VALUE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn leaves_are_named_with_their_path() {
        let before = json!({"replicas": 1, "unit": {"tasks": [{"name": "a"}]}, "same": [1, 2]});
        let after = json!({"replicas": 3, "unit": {"tasks": [{"name": "b"}, {"name": "c"}]}, "same": [1, 2]});
        assert_eq!(
            differences(&before, &after).unwrap(),
            [
                "replicas: 1 -> 3",
                "unit.tasks[0].name: a -> b",
                "unit.tasks[1]: (none) -> {\"name\":\"c\"}"
            ]
        );
        assert!(differences(&before, &before).unwrap().is_empty());
    }

    #[test]
    fn long_values_and_lists_are_cut() {
        let before = json!({"text": "é".repeat(100)});
        let found = differences(&before, &json!({"text": ""})).unwrap();
        assert_eq!(found, [format!("text: {}… -> ", "é".repeat(60))]);
        let many = json!((0..100).collect::<Vec<_>>());
        let found = differences(&many, &json!([])).unwrap();
        assert_eq!((found.len(), found[50].as_str()), (51, "and 50 more"));
    }

    #[test]
    fn the_texts_of_secrets_are_not_shown() {
        let map = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let found =
            texts_differences(&map(&[("a", "1"), ("b", "2")]), &map(&[("b", "3"), ("c", "4")]));
        assert_eq!(
            found,
            [
                "data.a: (secret) -> (none)",
                "data.b: (secret) -> (another secret)",
                "data.c: (none) -> (secret)"
            ]
        );
    }
}
