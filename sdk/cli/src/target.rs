//! What a command is about: `KIND/NAME`, or the name of a unit.

use brig_api::object::ObjectKey;
use brig_api::{Kind, NamespacePath, ResourceName};

use crate::failure::Failure;

/// Reads `service/web`, `svc/web` or `web` (a unit).
pub(crate) fn parse(text: &str, namespace: &NamespacePath) -> Result<ObjectKey, Failure> {
    match text.split_once('/') {
        Some((kind, name)) => {
            key(kind.parse().map_err(|error| Failure::usage(format!("{error}")))?, name, namespace)
        }
        None => key(Kind::Unit, text, namespace),
    }
}

/// The key of a resource by kind and name.
pub(crate) fn key(kind: Kind, name: &str, namespace: &NamespacePath) -> Result<ObjectKey, Failure> {
    let namespace = match kind {
        Kind::Namespace | Kind::Node | Kind::Artifact => None,
        Kind::Service | Kind::Job | Kind::Unit | Kind::Secret | Kind::Config => {
            name.parse::<ResourceName>().map_err(|error| Failure::usage(error.to_string()))?;
            Some(namespace.clone())
        }
    };
    Ok(ObjectKey { kind, namespace, name: name.to_owned() })
}

/// A name for a unit or service, made from a file name or reference: `dir/My App.wasm` gives `my-app`.
pub(crate) fn name_from_artifact(artifact: &str) -> String {
    let last = artifact.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let stem = last.split(['@', ':']).next().unwrap_or_default();
    let stem = stem.strip_suffix(".wasm").or_else(|| stem.strip_suffix(".tar")).unwrap_or(stem);
    let mut name = String::new();
    for c in stem.chars().flat_map(char::to_lowercase) {
        if c.is_ascii_alphanumeric() {
            name.push(c);
        } else if !name.ends_with('-') && !name.is_empty() {
            name.push('-');
        }
    }
    name.truncate(40);
    let name = name.trim_end_matches('-');
    if name.is_empty() { "unit".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_from_artifacts() {
        for (artifact, name) in [
            ("dir/My App.wasm", "my-app"),
            ("team-a/shop:1.4", "shop"),
            ("docker.io/library/redis@sha256:00", "redis"),
            ("image.tar", "image"),
            ("layout/", "layout"),
            ("---", "unit"),
        ] {
            assert_eq!(name_from_artifact(artifact), name);
            assert!(name_from_artifact(artifact).parse::<ResourceName>().is_ok());
        }
        assert!(name_from_artifact(&"x".repeat(300)).len() <= 40);
    }

    #[test]
    fn a_bare_name_is_a_unit() {
        let namespace = NamespacePath::default_namespace();
        assert_eq!(parse("web", &namespace).unwrap().kind, Kind::Unit);
        assert_eq!(parse("svc/web", &namespace).unwrap().kind, Kind::Service);
        assert_eq!(parse("node/n.1", &namespace).unwrap().namespace, None);
        assert!(parse("pod/x", &namespace).unwrap_err().message.contains("`pod`"));
        assert!(parse("Bad", &namespace).is_err());
    }
}
