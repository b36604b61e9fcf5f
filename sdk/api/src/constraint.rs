//! Constraints: what a unit requires of a node's attributes.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
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
}

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
    /// What it is compared with; exactly one for `=` and `!=`, none for `exists` and `not exists`.
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
        }
    }

    /// What is wrong with the constraint as written, if anything.
    #[must_use]
    pub fn fault(&self) -> Option<&'static str> {
        let fits = match self.operator {
            Operator::Equal | Operator::NotEqual => self.values.len() == 1,
            Operator::In | Operator::NotIn => !self.values.is_empty(),
            Operator::Exists | Operator::NotExists => self.values.is_empty(),
        };
        if self.attribute.is_empty() {
            Some("`attribute` must not be empty")
        } else if fits {
            None
        } else {
            Some(
                "`=` and `!=` take exactly one value, `in` and `not in` at least one, `exists` and `not exists` none",
            )
        }
    }
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        ] {
            assert_eq!(
                verdict(attribute, operator, values),
                expected,
                "{attribute} {operator:?} {values:?}"
            );
        }
    }
}
