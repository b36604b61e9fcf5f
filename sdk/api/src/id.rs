//! Names and numbers that identify things, each a type of its own and checked when it is parsed.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Longest resource or node name, in bytes: a DNS label, because names become host names.
pub const NAME_BYTES_MAX: usize = 63;
/// Deepest namespace path: `a/b/c/d`.
pub const NAMESPACE_DEPTH_MAX: usize = 4;

/// Why a text is no valid id. The message names the text, the rule and an example.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a valid {what}: expected {expected}")]
pub struct InvalidId {
    /// What the text was meant to be, for instance `name`.
    pub what: &'static str,
    /// The offending text.
    pub text: String,
    /// The rule, in words, with an example.
    pub expected: &'static str,
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= NAME_BYTES_MAX
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && bytes[0] != b'-'
        && bytes[bytes.len() - 1] != b'-'
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $expected:literal, $pattern:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Checks and wraps `text`.
            ///
            /// # Errors
            /// [`InvalidId`] when the text breaks the rule of this type.
            pub fn new(text: impl Into<String>) -> Result<Self, InvalidId> {
                let text = text.into();
                let valid: fn(&str) -> bool = $valid;
                if valid(&text) {
                    Ok(Self(text))
                } else {
                    Err(InvalidId { what: $what, text, expected: $expected })
                }
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::new(text).map_err(serde::de::Error::custom)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "description": $expected, "pattern": $pattern })
            }
        }
    };
}

text_id!(
    /// The name of a resource within its namespace (and of a task within its unit): a DNS label.
    ResourceName, "name",
    "1 to 63 lower-case letters, digits and hyphens, not at the ends, such as `web-1`",
    "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
    is_label
);
text_id!(
    /// The name of a node, unique in the cluster: DNS labels joined by dots.
    NodeName, "node name",
    "lower-case letters, digits, hyphens and dots, such as `node-1.rack-2`",
    "^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$",
    |text| text.len() <= 253 && text.split('.').all(is_label)
);
text_id!(
    /// A namespace: a tenant's path in the tree of namespaces, such as `team-a` or `team-a/dev`.
    NamespacePath, "namespace",
    "one to four names joined by slashes, such as `team-a` or `team-a/dev`",
    "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(/[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?){0,3}$",
    |text| text.split('/').count() <= NAMESPACE_DEPTH_MAX && text.split('/').all(is_label)
);
text_id!(
    /// The identity of one unit for ever: names may be used again, ids are not.
    UnitId, "unit id",
    "letters, digits and hyphens as the control plane made them, such as `u42-1`",
    "^[a-z0-9-]{1,63}$",
    is_label
);
text_id!(
    /// A content address: `sha256:` and 64 lower-case hexadecimal digits.
    Digest, "digest",
    "`sha256:` followed by 64 lower-case hexadecimal digits",
    "^sha256:[0-9a-f]{64}$",
    |text| text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
);

impl NamespacePath {
    /// The namespace of those who name none.
    #[must_use]
    pub fn default_namespace() -> Self {
        Self("default".to_owned())
    }

    /// The namespace one level up, if there is one.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        self.0.rsplit_once('/').map(|(parent, _)| Self(parent.to_owned()))
    }

    /// Is `self` the same as `other` or below it?
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        self == other || self.0.strip_prefix(&other.0).is_some_and(|rest| rest.starts_with('/'))
    }
}

impl UnitId {
    /// The id of the `index`th unit that the plan `sequence` creates. A plan's sequence number is committed
    /// once, so the id is unique without a random source.
    #[must_use]
    pub fn of_plan(sequence: PlanSequence, index: usize) -> Self {
        Self(format!("p{}-{index}", sequence.0))
    }

    /// The id of the `index`th unit that the transaction of `revision` creates.
    #[must_use]
    pub fn of_revision(revision: Revision, index: usize) -> Self {
        Self(format!("r{}-{index}", revision.0))
    }
}

impl Digest {
    /// The 64 hexadecimal digits.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }

    /// Makes a digest of the 32 bytes of a SHA-256 sum.
    #[must_use]
    pub fn of_sha256(sum: &[u8; 32]) -> Self {
        let mut text = String::with_capacity(71);
        text.push_str("sha256:");
        for byte in sum {
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
            }
        }
        Self(text)
    }
}

/// The cluster's logical clock: one number per committed transaction, without gaps. Watches resume from it.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// The number of a committed plan; a plan commits only as the successor of the newest.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(transparent)]
pub struct PlanSequence(pub u64);

impl PlanSequence {
    /// The sequence number that the next plan has.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for PlanSequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "web-1", "0", &"x".repeat(63)] {
            assert!(ResourceName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "a/b", "é", &"x".repeat(64)] {
            assert!(ResourceName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn namespaces_form_a_tree() {
        let dev = NamespacePath::new("team/dev").unwrap();
        let team = NamespacePath::new("team").unwrap();
        assert_eq!(dev.parent(), Some(team.clone()));
        assert!(dev.is_within(&team) && team.is_within(&team) && !team.is_within(&dev));
        assert!(!NamespacePath::new("team-b").unwrap().is_within(&team));
        assert!(NamespacePath::new("a//b").is_err() && NamespacePath::new("a/b/c/d/e").is_err());
    }

    #[test]
    fn a_digest_is_checked_and_round_trips() {
        let digest = Digest::of_sha256(&[0xab; 32]);
        assert_eq!(digest.hex(), "ab".repeat(32));
        assert_eq!(Digest::new(digest.as_str()), Ok(digest));
        assert!(Digest::new("sha256:AB").is_err() && Digest::new("md5:00").is_err());
    }

    #[test]
    fn an_invalid_name_says_what_was_expected() {
        let error = ResourceName::new("Web").unwrap_err().to_string();
        assert!(error.contains("`Web`") && error.contains("lower-case"), "{error}");
    }
}
