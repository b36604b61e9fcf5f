//! Constraints: what a unit requires of a node's attributes.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use regex::{Regex, RegexBuilder};
use schemars::JsonSchema;
use semver::{Version, VersionReq};
use serde::{Deserialize, Serialize};

/// How an attribute is compared.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum Operator {
    /// The attribute exists and equals the one value.
    #[serde(rename = "=")]
    Equal,
    /// The attribute does not equal the one value (or is absent).
    #[serde(rename = "!=")]
    NotEqual,
    /// The attribute exists and is one of the values.
    #[serde(rename = "in")]
    In,
    /// The attribute is none of the values (or is absent).
    #[serde(rename = "not in")]
    NotIn,
    /// The attribute exists.
    #[serde(rename = "exists")]
    Exists,
    /// The attribute does not exist.
    #[serde(rename = "not exists")]
    NotExists,
    /// The attribute is a version that the one value, a requirement such as `>=6.1, <7`, allows. Only the numbers at
    /// its front count: `6.1.0-18-amd64` is 6.1.0.
    #[serde(rename = "version")]
    Version,
    /// The attribute matches the one value, a regular expression, somewhere.
    #[serde(rename = "regex")]
    Regex,
}

/// Largest compiled regular expression, in bytes: they come from users and are kept by the scheduler.
const REGEX_BYTES_MAX: usize = 64 << 10;

/// One requirement on a node's attributes, such as `{attribute: zone, operator: in, values: [a, b]}`.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(deny_unknown_fields)]
pub struct Constraint {
    /// The attribute's name, for instance `arch`, `os`, `hostname`, or one given to the node by its operator.
    pub attribute: String,
    /// The comparison.
    pub operator: Operator,
    /// What it is compared with; exactly one for `=`, `!=`, `version` and `regex`, none for `exists` and `not exists`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

impl Constraint {
    /// Does a node with these attributes satisfy the constraint?
    #[must_use]
    pub fn is_met_by(&self, attributes: &BTreeMap<String, String>) -> bool {
        let found = attributes.get(&self.attribute);
        let listed = || found.is_some_and(|value| self.values.contains(value));
        match self.operator {
            Operator::Equal | Operator::In => listed(),
            Operator::NotEqual | Operator::NotIn => !listed(),
            Operator::Exists => found.is_some(),
            Operator::NotExists => found.is_none(),
            Operator::Version => {
                let wanted = self.values.first().and_then(|text| VersionReq::parse(text).ok());
                let found = found.and_then(|text| leading_version(text));
                wanted.zip(found).is_some_and(|(wanted, found)| wanted.matches(&found))
            }
            Operator::Regex => {
                let pattern = self.values.first().and_then(|text| regex(text).ok());
                pattern.zip(found).is_some_and(|(pattern, found)| pattern.is_match(found))
            }
        }
    }

    /// What is wrong with the constraint as written, if anything.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let fits = match self.operator {
            Operator::Equal | Operator::NotEqual | Operator::Version | Operator::Regex => {
                self.values.len() == 1
            }
            Operator::In | Operator::NotIn => !self.values.is_empty(),
            Operator::Exists | Operator::NotExists => self.values.is_empty(),
        };
        if self.attribute.is_empty() {
            return Some("`attribute` must not be empty".to_owned());
        }
        if !fits {
            return Some(
                "`=`, `!=`, `version` and `regex` take exactly one value, `in` and `not in` at least one, `exists` and `not exists` none".to_owned(),
            );
        }
        let value = self.values.first()?;
        match self.operator {
            Operator::Version => VersionReq::parse(value).err().map(|error| {
                format!("`{value}` is no requirement of a version, such as `>=6.1, <7`: {error}")
            }),
            Operator::Regex => regex(value)
                .err()
                .map(|error| format!("`{value}` is no regular expression: {error}")),
            _ => None,
        }
    }
}

fn regex(pattern: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(pattern).size_limit(REGEX_BYTES_MAX).build()
}

/// The version that a text begins with: up to three numbers, missing ones are 0.
fn leading_version(text: &str) -> Option<Version> {
    let text = text.strip_prefix('v').unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let mut numbers = text.get(..end)?.split('.').map_while(|number| number.parse().ok());
    let major = numbers.next()?;
    Some(Version::new(major, numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)))
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.attribute;
        match self.operator {
            Operator::Equal => write!(f, "{name} = {}", self.values.join(",")),
            Operator::NotEqual => write!(f, "{name} != {}", self.values.join(",")),
            Operator::In => write!(f, "{name} in ({})", self.values.join(", ")),
            Operator::NotIn => write!(f, "{name} not in ({})", self.values.join(", ")),
            Operator::Exists => write!(f, "{name} exists"),
            Operator::NotExists => write!(f, "{name} not exists"),
            Operator::Version => write!(f, "{name} version {}", self.values.join(",")),
            Operator::Regex => write!(f, "{name} matching {}", self.values.join(",")),
        }
    }
}

/// A text that is no constraint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no constraint: {message}")]
pub struct InvalidConstraint {
    /// What was written.
    pub text: String,
    /// What is wrong with it, and what was expected.
    pub message: String,
}

impl FromStr for Constraint {
    type Err = InvalidConstraint;

    /// Reads what people write on a command line, and what [`Constraint`] is displayed as: `rack=r1`, `zone != b`,
    /// `zone in a,b`, `zone not in (a, b)`, `ssd exists`, `ssd not exists`, `kernel version >=6.1`, `hostname regex ^db`.
    fn from_str(text: &str) -> Result<Self, InvalidConstraint> {
        let invalid = |message: String| InvalidConstraint { text: text.to_owned(), message };
        let trimmed = text.trim();
        let end = trimmed.find(|c: char| c.is_whitespace() || c == '=' || c == '!');
        let (attribute, rest) = trimmed.split_at(end.unwrap_or(trimmed.len()));
        let rest = rest.trim();
        // Longer words first: `not in` before `in`.
        let found = FORMS.into_iter().find_map(|(word, operator)| {
            let values = rest.strip_prefix(word)?;
            let is_whole = !word.ends_with(char::is_alphabetic)
                || values.is_empty()
                || values.starts_with([' ', '(']);
            is_whole.then_some((operator, values.trim()))
        });
        let Some((operator, written)) = found else {
            return Err(invalid(
                "expected an attribute and a comparison, such as `rack=r1`, `zone in a,b` or `ssd exists`"
                    .to_owned(),
            ));
        };
        let values = match operator {
            Operator::In | Operator::NotIn => {
                let inner = written.strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
                let values = inner.unwrap_or(written).split(',').map(str::trim);
                values.filter(|value| !value.is_empty()).map(str::to_owned).collect()
            }
            _ if written.is_empty() => Vec::new(),
            _ => vec![written.to_owned()],
        };
        let constraint = Self { attribute: attribute.to_owned(), operator, values };
        constraint.fault().map_or(Ok(constraint), |fault| Err(invalid(fault)))
    }
}

/// How each comparison is written, a word before those that it ends with.
const FORMS: [(&str, Operator); 9] = [
    ("!=", Operator::NotEqual),
    ("=", Operator::Equal),
    ("not in", Operator::NotIn),
    ("in", Operator::In),
    ("not exists", Operator::NotExists),
    ("exists", Operator::Exists),
    ("version", Operator::Version),
    ("regex", Operator::Regex),
    ("matching", Operator::Regex),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constraints_are_read_as_people_write_them_and_as_they_are_displayed() {
        let read = |text: &str| text.parse::<Constraint>();
        for (text, displayed) in [
            ("rack=r1", "rack = r1"),
            (" rack =  r1 ", "rack = r1"),
            ("rack!=r1", "rack != r1"),
            ("zone in a,b", "zone in (a, b)"),
            ("zone in (a, b)", "zone in (a, b)"),
            ("zone not in a", "zone not in (a)"),
            ("ssd exists", "ssd exists"),
            ("ssd not exists", "ssd not exists"),
            ("kernel version >=6.1, <7", "kernel version >=6.1, <7"),
            ("hostname regex ^db", "hostname matching ^db"),
        ] {
            let constraint = read(text).unwrap();
            assert_eq!(constraint.to_string(), displayed);
            assert_eq!(read(displayed).unwrap(), constraint, "{displayed}");
        }
        for bad in ["", "rack", "=r1", "rack=", "zone in", "zone inside", "ssd exists now"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert!(read("rack ~ r1").unwrap_err().to_string().contains("`rack=r1`"));
    }

    #[test]
    fn each_operator_decides_on_presence_and_value() {
        let attributes = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
        let verdict = |attribute: &str, operator, values: &[&str]| {
            let values = values.iter().map(|v| (*v).to_owned()).collect();
            Constraint { attribute: attribute.to_owned(), operator, values }.is_met_by(&attributes)
        };
        for (attribute, operator, values, expected) in [
            ("zone", Operator::Equal, &["a"][..], true),
            ("zone", Operator::Equal, &["b"], false),
            ("rack", Operator::Equal, &["a"], false),
            ("zone", Operator::NotEqual, &["a"], false),
            ("rack", Operator::NotEqual, &["a"], true),
            ("zone", Operator::In, &["b", "a"], true),
            ("zone", Operator::NotIn, &["b"], true),
            ("rack", Operator::Exists, &[], false),
            ("rack", Operator::NotExists, &[], true),
            ("zone", Operator::Regex, &["^[ab]$"], true),
            ("zone", Operator::Regex, &["b"], false),
            ("rack", Operator::Regex, &[""], false),
            ("zone", Operator::Version, &[">=1"], false),
        ] {
            assert_eq!(
                verdict(attribute, operator, values),
                expected,
                "{attribute} {operator:?} {values:?}"
            );
        }
    }

    #[test]
    fn versions_are_compared_by_the_numbers_at_their_front() {
        let wanted = |requirement: &str| Constraint {
            attribute: "kernel".to_owned(),
            operator: Operator::Version,
            values: vec![requirement.to_owned()],
        };
        for (found, requirement, expected) in [
            ("6.1.0-18-amd64", ">=6.1", true),
            ("6.1.0-18-amd64", ">=6.2", false),
            ("v5.10", ">=5, <6", true),
            ("12", "=12", true),
            ("rolling", ">=1", false),
        ] {
            let attributes = BTreeMap::from([("kernel".to_owned(), found.to_owned())]);
            assert_eq!(
                wanted(requirement).is_met_by(&attributes),
                expected,
                "{found} {requirement}"
            );
        }
        assert!(wanted("newer").fault().is_some_and(|fault| fault.contains("`newer`")));
        assert_eq!(wanted(">=6.1, <7").fault(), None);
    }

    #[test]
    fn a_pattern_that_explodes_is_refused() {
        let constraint = Constraint {
            attribute: "a".to_owned(),
            operator: Operator::Regex,
            values: vec!["(a{1000}){1000}".to_owned()],
        };
        assert!(constraint.fault().is_some());
        assert!(!constraint.is_met_by(&BTreeMap::from([("a".to_owned(), "a".to_owned())])));
    }
}
