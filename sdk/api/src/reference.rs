//! References to artifacts: `team-a/shop:1.4`, `docker.io/library/redis:7`, `team-a/shop@sha256:…`.

use std::fmt;
use std::str::FromStr;

use crate::Digest;

/// Longest repository name, as the OCI distribution specification's regular expression and registries have it.
pub const REPOSITORY_BYTES_MAX: usize = 255;
/// Longest tag, from the OCI distribution specification.
pub const TAG_BYTES_MAX: usize = 128;
/// The tag of a reference that names neither tag nor digest.
pub const DEFAULT_TAG: &str = "latest";

/// Where an artifact is found. Without a registry host it is in the cluster's built-in registry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// `host[:port]` of another registry; None for the built-in one.
    pub registry: Option<String>,
    /// `team-a/shop`.
    pub repository: String,
    /// `1.4`; kept beside a digest for people to read.
    pub tag: Option<String>,
    /// The digest, which wins over the tag.
    pub digest: Option<Digest>,
}

/// Why a text is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not an artifact reference: {why}; expected something like `team/app:1`, `host:5000/team/app:1` or `team/app@sha256:…`"
)]
pub struct InvalidReference {
    text: String,
    why: &'static str,
}

/// Is `text` a repository name: lower-case path components joined by slashes?
#[must_use]
pub fn is_repository(text: &str) -> bool {
    let component = |part: &str| {
        let bytes = part.as_bytes();
        let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        !bytes.is_empty()
            && edge(bytes[0])
            && edge(bytes[bytes.len() - 1])
            && bytes.iter().all(|b| edge(*b) || matches!(b, b'.' | b'_' | b'-'))
            && !part.contains("..")
    };
    text.len() <= REPOSITORY_BYTES_MAX && text.split('/').all(component)
}

/// Is `text` a tag: a letter, digit or underscore, then those and dots and hyphens?
#[must_use]
pub fn is_tag(text: &str) -> bool {
    let bytes = text.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= TAG_BYTES_MAX
        && (bytes[0].is_ascii_alphanumeric() || bytes[0] == b'_')
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn is_host(text: &str) -> bool {
    let (name, port) = text.rsplit_once(':').unwrap_or((text, "1"));
    name.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '[')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'[' | b']' | b':'))
        && port.parse::<u16>().is_ok()
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let invalid = |why| InvalidReference { text: text.chars().take(300).collect(), why };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = Digest::new(digest)
                    .map_err(|_| invalid("what follows `@` is no sha256 digest"))?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        let (registry, rest) = match rest.split_once('/') {
            Some((first, others)) if first.contains(['.', ':']) || first == "localhost" => {
                if !is_host(first) {
                    return Err(invalid("the part before the first slash is no host name"));
                }
                (Some(first.to_owned()), others)
            }
            _ => (None, rest),
        };
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag.to_owned())),
            None => (rest, None),
        };
        if !is_repository(repository) {
            return Err(invalid(
                "a repository is lower-case letters, digits, `.`, `_`, `-` in parts joined by slashes",
            ));
        }
        if tag.as_deref().is_some_and(|tag| !is_tag(tag)) {
            return Err(invalid("a tag is at most 128 letters, digits, `.`, `_`, `-`"));
        }
        Ok(Self { registry, repository: repository.to_owned(), tag, digest })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(registry) = &self.registry {
            write!(f, "{registry}/")?;
        }
        f.write_str(&self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl Reference {
    /// What to ask a registry's manifest endpoint for: the digest, else the tag, else `latest`.
    #[must_use]
    pub fn wanted(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => DEFAULT_TAG,
        }
    }

    /// The same reference, fixed to `digest`.
    #[must_use]
    pub fn pinned(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    /// As people name it: without the digest, where it has a tag as well.
    #[must_use]
    pub fn short(&self) -> Self {
        let digest = self.digest.clone().filter(|_| self.tag.is_none());
        Self { digest, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_taken_apart_and_put_together() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for text in [
            "shop".to_owned(),
            "team-a/shop:1.4".to_owned(),
            "docker.io/library/redis:7".to_owned(),
            "localhost/x:1".to_owned(),
            "127.0.0.1:5000/a/b".to_owned(),
            format!("team-a/shop:1@{digest}"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), text);
        }
        let reference: Reference = "127.0.0.1:5000/a/b".parse().unwrap();
        assert_eq!(reference.registry.as_deref(), Some("127.0.0.1:5000"));
        assert_eq!(reference.wanted(), "latest");
        assert_eq!("a/b".parse::<Reference>().unwrap().registry, None);
    }

    #[test]
    fn hostile_references_are_refused() {
        for bad in [
            "",
            "/",
            "a//b",
            "../etc",
            "a/../b",
            "A/b",
            "a:",
            "a:b:c",
            "a@sha256:00",
            "a b",
            "host:99999/x",
            "é/x",
            &"a".repeat(300),
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }
}
