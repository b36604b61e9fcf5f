//! Takes the paths below `/v2/` apart. Repositories have slashes in them, so the parts are found from the end.

use brig_api::Digest;
use brig_api::reference::{is_repository, is_tag};

use super::error::RegistryError;

/// What a path below `/v2/` names. Every part is checked: none can leave the registry's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// `_catalog`
    Catalog,
    /// `<name>/tags/list`
    Tags { repository: String },
    /// `<name>/manifests/<tag or digest>`
    Manifest { repository: String, wanted: Wanted },
    /// `<name>/blobs/<digest>`
    Blob { repository: String, digest: Digest },
    /// `<name>/blobs/uploads/`
    NewUpload { repository: String },
    /// `<name>/blobs/uploads/<id>`
    Upload { repository: String, id: UploadId },
    /// `<name>/referrers/<digest>`
    Referrers { digest: Digest },
}

/// A manifest by tag or by digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    Tag(String),
    Digest(Digest),
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => write!(f, "{digest}"),
        }
    }
}

/// The name of an upload: 32 hexadecimal digits that cannot be guessed, since who knows it may write to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct UploadId(String);

impl UploadId {
    pub(crate) fn random() -> Self {
        Self(format!("{:032x}", rand::random::<u128>()))
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (text.len() == 32 && text.bytes().all(is_hex)).then(|| Self(text.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Parses what follows `/v2/`, already percent-decoded.
pub(crate) fn parse(path: &str) -> Result<Target, RegistryError> {
    if path == "_catalog" {
        return Ok(Target::Catalog);
    }
    let unknown = || RegistryError::NoSuchPath { path: path.chars().take(300).collect() };
    let path = path.strip_suffix('/').unwrap_or(path);
    let (rest, last) = path.rsplit_once('/').ok_or_else(unknown)?;
    let (before, verb) = rest.rsplit_once('/').ok_or_else(unknown)?;
    match verb {
        "tags" if last == "list" => Ok(Target::Tags { repository: repository(before)? }),
        "manifests" => {
            let repository = repository(before)?;
            Ok(Target::Manifest { repository, wanted: wanted(last)? })
        }
        "blobs" if last == "uploads" => Ok(Target::NewUpload { repository: repository(before)? }),
        "blobs" => {
            let repository = repository(before)?;
            Ok(Target::Blob { repository, digest: digest(last)? })
        }
        "referrers" => {
            repository(before)?;
            Ok(Target::Referrers { digest: digest(last)? })
        }
        "uploads" => {
            let name = before.strip_suffix("/blobs").ok_or_else(unknown)?;
            let id = UploadId::parse(last).ok_or_else(|| RegistryError::UploadUnknown)?;
            Ok(Target::Upload { repository: repository(name)?, id })
        }
        _ => Err(unknown()),
    }
}

fn wanted(text: &str) -> Result<Wanted, RegistryError> {
    if text.contains(':') {
        return digest(text).map(Wanted::Digest);
    }
    if is_tag(text) {
        return Ok(Wanted::Tag(text.to_owned()));
    }
    Err(RegistryError::TagInvalid { tag: text.chars().take(200).collect() })
}

/// A repository's name, checked.
pub(crate) fn repository(text: &str) -> Result<String, RegistryError> {
    if is_repository(text) {
        return Ok(text.to_owned());
    }
    Err(RegistryError::NameInvalid { name: text.chars().take(300).collect() })
}

/// A digest, checked.
pub(crate) fn digest(text: &str) -> Result<Digest, RegistryError> {
    Digest::new(text)
        .map_err(|_| RegistryError::DigestInvalid { given: text.chars().take(200).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_may_be_nested_and_named_like_verbs() {
        let tags = |name: &str| Target::Tags { repository: name.to_owned() };
        assert_eq!(parse("team-a/dev/shop/tags/list").unwrap(), tags("team-a/dev/shop"));
        assert_eq!(parse("blobs/uploads/tags/list").unwrap(), tags("blobs/uploads"));
        let Target::Manifest { repository, wanted } = parse("manifests/manifests/1").unwrap()
        else {
            panic!("a manifest")
        };
        assert_eq!((repository.as_str(), wanted), ("manifests", Wanted::Tag("1".to_owned())));
        let id = "0123456789abcdef".repeat(2);
        assert!(matches!(
            parse(&format!("a/b/blobs/uploads/{id}")).unwrap(),
            Target::Upload { .. }
        ));
        assert!(matches!(parse("a/blobs/uploads/").unwrap(), Target::NewUpload { .. }));
        assert_eq!(parse("_catalog").unwrap(), Target::Catalog);
    }

    #[test]
    fn paths_that_could_leave_the_folder_are_refused() {
        let hex = "0".repeat(64);
        for bad in [
            "",
            "/",
            "x",
            "../manifests/1",
            "a/../b/manifests/1",
            "a//b/manifests/1",
            "a/manifests/..",
            "a/manifests/x:y",
            "a/blobs/sha256:../../../etc/passwd",
            "a/blobs/uploads/../../../../etc/passwd",
            "a/blobs/uploads/..",
            &format!("/blobs/sha256:{hex}"),
            &format!("A/blobs/sha256:{hex}"),
            &format!("a/blobs/sha512:{hex}"),
            "a/unknown/b",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
