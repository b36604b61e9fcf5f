//! What a node may say of itself: the rules for its named resources, taints and volumes.

use std::str::FromStr;

use crate::Milli;
use crate::object::NodeFacts;
use crate::problem::FieldError;

/// Most devices of one named resource on one node: they are numbered, and each is kept track of.
pub const DEVICES_MAX: u64 = 1_024;
/// Most named resources of a node.
pub const SCALARS_MAX: usize = 64;
/// Most taints of a node.
pub const TAINTS_MAX: usize = 64;
/// Most directories that a node's units may mount, by both their names.
pub const VOLUMES_MAX: usize = 256;
/// Longest name of a resource, key or value of a taint.
const NAME_BYTES_MAX: usize = 63;
/// The resources that every node has; no named one can be called so.
const BUILT_IN: [&str; 3] = ["cpu", "memory", "disk"];

/// Devices of a named resource, as an operator writes them: `gpu=4`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices {
    /// The resource's name.
    pub name: String,
    /// How many, in thousandths; always whole.
    pub amount: Milli,
}

/// Why a text is no [`Devices`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no named resource: {why}")]
pub struct InvalidDevices {
    text: String,
    why: String,
}

impl FromStr for Devices {
    type Err = InvalidDevices;
    fn from_str(text: &str) -> Result<Self, InvalidDevices> {
        let invalid = |why: String| InvalidDevices { text: text.to_owned(), why };
        let expected = || "expected NAME=COUNT, such as `gpu=4`".to_owned();
        let (name, count) = text.split_once('=').ok_or_else(|| invalid(expected()))?;
        let amount = count.parse::<Milli>().map_err(|_| invalid(expected()))?;
        match devices_fault(name, amount) {
            Some(why) => Err(invalid(why)),
            None => Ok(Self { name: name.to_owned(), amount }),
        }
    }
}

/// What is wrong with so many devices of that name.
fn devices_fault(name: &str, amount: Milli) -> Option<String> {
    if BUILT_IN.contains(&name) {
        return Some(format!("`{name}` is what the node finds out by itself"));
    }
    let is_plain =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_plain) {
        return Some(format!(
            "a name has 1 to {NAME_BYTES_MAX} lower-case letters, digits, `.`, `_` and `-`"
        ));
    }
    let is_counted =
        amount.0.is_multiple_of(1_000) && (1_000..=DEVICES_MAX * 1_000).contains(&amount.0);
    (!is_counted).then(|| format!("a node has 1 to {DEVICES_MAX} whole devices of it"))
}

impl NodeFacts {
    /// Every rule that the facts break, with its path; none for facts that a server takes.
    #[must_use]
    pub fn faults(&self) -> Vec<FieldError> {
        let mut found = Vec::new();
        let mut add = |path: String, message: String| found.push(FieldError { path, message });
        for (name, amount) in &self.allocatable.scalars {
            if let Some(why) = devices_fault(name, *amount) {
                add(format!("allocatable.scalars.{name}"), why);
            }
        }
        for (path, count, max) in [
            ("allocatable.scalars", self.allocatable.scalars.len(), SCALARS_MAX),
            ("taints", self.taints.len(), TAINTS_MAX),
            ("volumes", self.volumes.len(), VOLUMES_MAX),
        ] {
            if count > max {
                add(path.to_owned(), format!("{count} are too many: at most {max}"));
            }
        }
        for (index, taint) in self.taints.iter().enumerate() {
            let is_plain = |text: &str| {
                text.len() <= NAME_BYTES_MAX
                    && !text.contains(|c: char| c.is_control() || c.is_whitespace() || c == ':')
            };
            if taint.key.is_empty()
                || taint.key == "*"
                || !is_plain(&taint.key)
                || !is_plain(&taint.value)
            {
                let message = format!(
                    "`{taint}`: key and value have at most {NAME_BYTES_MAX} bytes without spaces and `:`, and the key is neither empty nor `*`"
                );
                add(format!("taints[{index}]"), message);
            }
        }
        for (index, volume) in self.volumes.iter().enumerate() {
            if !volume.starts_with('/')
                || volume.contains('\0')
                || volume.split('/').any(|part| part == "..")
            {
                add(
                    format!("volumes[{index}]"),
                    format!("`{volume}` is no absolute path without `..`"),
                );
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::Resources;

    #[test]
    fn devices_are_whole_and_have_a_name_of_their_own() {
        let devices: Devices = "gpu=4".parse().unwrap();
        assert_eq!((devices.name.as_str(), devices.amount), ("gpu", Milli(4_000)));
        for (bad, words) in [
            ("gpu", "NAME=COUNT"),
            ("gpu=x", "NAME=COUNT"),
            ("gpu=0", "1 to 1024 whole"),
            ("gpu=1.5", "whole devices"),
            ("gpu=1025", "1 to 1024"),
            ("cpu=2", "by itself"),
            ("GPU=1", "lower-case"),
            ("=1", "lower-case"),
        ] {
            let fault = bad.parse::<Devices>().unwrap_err().to_string();
            assert!(fault.contains(words) && fault.contains(bad), "{fault}");
        }
    }

    #[test]
    fn every_fault_of_a_node_is_told_with_its_path() {
        let scalars =
            BTreeMap::from([("gpu".to_owned(), Milli(2_000)), ("cpu".to_owned(), Milli(1_000))]);
        let taint = |text: &str| text.parse().unwrap();
        let facts = NodeFacts {
            allocatable: Resources { scalars, ..Resources::default() },
            attributes: BTreeMap::new(),
            taints: vec![taint("gpu=yes:no-schedule"), taint("*:evict")],
            volumes: vec!["/data".to_owned(), "data".to_owned()],
            runtimes: vec![],
            address: String::new(),
            agent_version: String::new(),
            boot_id: String::new(),
        };
        let paths: Vec<_> = facts.faults().into_iter().map(|fault| fault.path).collect();
        assert_eq!(paths, ["allocatable.scalars.cpu", "taints[1]", "volumes[1]"]);
        let many = NodeFacts { taints: vec![taint("a:evict"); TAINTS_MAX + 1], ..facts };
        assert!(many.faults().iter().any(|fault| fault.path == "taints"));
    }
}
