//! Where units may and should go, and when: what a unit asks of the scheduler besides resources.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::constraint::Constraint;
use crate::spec::Labels;
use crate::unit_spec::{Task, UnitTemplate, is_default};
use crate::variants::Choice;
use crate::{NamespacePath, ResourceName};

/// The topology key that stands for the node itself; every other key is an attribute of nodes, such as `zone`.
pub const OVER_NODE: &str = "node";
/// Weights of what is preferred go from minus this to plus this.
pub const WEIGHT_MAX: i32 = 100;
/// Most entries in each list of a unit's placement rules.
pub const RULES_MAX: usize = 16;
/// Most units of a gang.
pub const GANG_SIZE_MAX: u32 = 10_000;

/// Rules about the places of a unit, beside its `constraints`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PlacementRules {
    /// Nodes that are better, or worse with a negative weight.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prefer: Vec<Preference>,
    /// Taints that do not keep the unit away.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// Units whose neighbourhood is required, or preferred where a weight is given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub near: Vec<Neighbours>,
    /// Units whose neighbourhood is forbidden, or avoided where a weight is given. Holds both ways: a unit that others
    /// want to be away from does not go to them either.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub away: Vec<Neighbours>,
    /// How the units of the service or job are spread.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub spread: Vec<Spread>,
    /// No two units of the service or job on one node.
    #[serde(skip_serializing_if = "is_default")]
    pub distinct_hosts: bool,
    /// Whether the unit may have to wait for its programs on the node.
    #[serde(skip_serializing_if = "is_default")]
    pub artifacts: ArtifactRule,
}

/// Where a unit's programs have to be when it gets a node.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum ArtifactRule {
    /// Anywhere: the node fetches what it lacks.
    #[default]
    Anywhere,
    /// On the node already, all that the unit would run there.
    Present,
}

/// A kind of node that is preferred: `{when: {attribute: disk, operator: '=', values: [nvme]}, weight: 50}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Preference {
    /// Which nodes.
    pub when: Constraint,
    /// From -100 to 100; negative for nodes that are to be avoided.
    pub weight: i32,
}

/// Other units, and how far "near" reaches: `{units: {app: cache}, over: zone}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Neighbours {
    /// Labels that the other units have, all of them; at least one.
    pub units: Labels,
    /// `node`, or the attribute whose equal values make nodes neighbours, such as `zone` or `rack`.
    #[serde(default = "over_node")]
    pub over: String,
    /// The namespace that the other units are in or below: the unit's own or one above it. Without it: the unit's own
    /// namespace alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<NamespacePath>,
    /// From 1 to 100: a preference. Without it: a requirement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<i32>,
}

fn over_node() -> String {
    OVER_NODE.to_owned()
}

/// How the units of one service or job are spread over values of an attribute (or over nodes).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// `node`, or an attribute such as `zone`.
    pub over: String,
    /// How many more units one value may have than the least used one (with `targets`: than its part). Required to
    /// hold; without it the spread is a preference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_skew: Option<u32>,
    /// How much the preference counts, from 1 to 100; 50 where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<i32>,
    /// Parts in percent by value, such as `{a: 70, b: 30}`; equal parts where none are named.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub targets: BTreeMap<String, u32>,
}

/// What a taint does to units that do not tolerate it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum TaintEffect {
    /// None is placed there.
    NoSchedule,
    /// Other nodes are preferred.
    PreferNot,
    /// None is placed there, and those that are there are stopped and replaced elsewhere.
    Evict,
}

impl TaintEffect {
    const ALL: [Self; 3] = [Self::NoSchedule, Self::PreferNot, Self::Evict];

    /// `no-schedule`, `prefer-not` or `evict`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoSchedule => "no-schedule",
            Self::PreferNot => "prefer-not",
            Self::Evict => "evict",
        }
    }
}

/// Keeps units away from a node, but for those that tolerate it. Written `key=value:effect` or `key:effect`.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(deny_unknown_fields)]
pub struct Taint {
    /// What it is about, such as `gpu`.
    pub key: String,
    /// More about it; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// What it does.
    pub effect: TaintEffect,
}

/// Why a text is no taint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no taint: expected `KEY=VALUE:EFFECT` or `KEY:EFFECT`, the effect one of no-schedule, prefer-not and evict"
)]
pub struct InvalidTaint(String);

impl FromStr for Taint {
    type Err = InvalidTaint;
    fn from_str(text: &str) -> Result<Self, InvalidTaint> {
        let invalid = || InvalidTaint(text.to_owned());
        let (name, effect) = text.rsplit_once(':').ok_or_else(invalid)?;
        let effect = TaintEffect::ALL.into_iter().find(|known| known.as_str() == effect);
        let (key, value) = name.split_once('=').unwrap_or((name, ""));
        if key.is_empty() {
            return Err(invalid());
        }
        let effect = effect.ok_or_else(invalid)?;
        Ok(Self { key: key.to_owned(), value: value.to_owned(), effect })
    }
}

impl fmt::Display for Taint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value, effect } = self;
        let effect = effect.as_str();
        if value.is_empty() {
            write!(f, "{key}:{effect}")
        } else {
            write!(f, "{key}={value}:{effect}")
        }
    }
}

/// Taints that a unit puts up with: all with this key, or only those with this value or effect as well.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Toleration {
    /// The taint's key; `*` for every taint.
    pub key: String,
    /// The taint's value, where only that one is tolerated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// The taint's effect, where only that one is tolerated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
}

impl Toleration {
    /// Does it put up with `taint`?
    #[must_use]
    pub fn tolerates(&self, taint: &Taint) -> bool {
        (self.key == "*" || self.key == taint.key)
            && self.value.as_ref().is_none_or(|value| *value == taint.value)
            && self.effect.is_none_or(|effect| effect == taint.effect)
    }
}

/// Units that are placed together or not at all, whatever service or job they belong to: the first `size` units of the
/// namespace that name the gang wait for one another; those that come later join it one by one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gang {
    /// The same in all its units.
    pub name: ResourceName,
    /// How many units must be placed, or be there already.
    pub size: u32,
}

/// At most so many units with this key at a time, over all services and jobs of the namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Concurrency {
    /// The family, for instance `etl`.
    pub key: ResourceName,
    /// How many of it may be on nodes at a time.
    pub limit: u32,
}

/// Something that must be there first: exactly one of `service` (all its units run) and `job` (it succeeded).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dependency {
    /// A service of the namespace whose units all run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ResourceName>,
    /// A job of the namespace that succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<ResourceName>,
}

/// What a placement gave a unit besides room: decided with the node, the same for the unit's whole life there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Grants {
    /// Ports of the node for the ports that the unit's tasks left open (0), in the order of the tasks and their ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
    /// Devices by named resource, numbered from 0 on each node. One, shared, for a request of less than a device.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub devices: BTreeMap<String, Vec<u32>>,
    /// The runtime of each task, in their order: which of its variants it runs. Empty where no task has several.
    #[serde(skip_serializing_if = "is_default")]
    pub runtimes: Choice,
}

/// What one task has of its unit's [`Grants`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TaskGrants {
    /// All ports of the task in the order of its list: fixed ones as they are, open ones as they were chosen. None
    /// where the placement chose no port for an open one.
    pub ports: Vec<Option<u16>>,
    /// The devices by named resource.
    pub devices: BTreeMap<String, Vec<u32>>,
}

/// The environment variable that names the task's devices of a resource: `gpu` is `BRIG_DEVICES_GPU`.
#[must_use]
pub fn devices_variable(resource: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    format!("BRIG_DEVICES_{}", resource.chars().map(plain).collect::<String>())
}

impl Grants {
    /// What each task of `template` has of it, in the tasks' order.
    ///
    /// A fixed http port comes first. Devices are dealt out in the tasks' order where all
    /// tasks that ask for the resource ask for whole ones; a part of a device is shared by all tasks that ask for it.
    #[must_use]
    pub fn by_task(&self, template: &UnitTemplate) -> Vec<TaskGrants> {
        let template = &*template.chosen(self.runtimes);
        let mut chosen = self.ports.iter().copied();
        let mut tasks: Vec<_> = template
            .tasks
            .iter()
            .map(|task| {
                let http = task.program().http_port().map(Some);
                let own = task.program().ports().iter();
                let own = own.map(|port| if *port == 0 { chosen.next() } else { Some(*port) });
                let ports = http.into_iter().chain(own).collect();
                TaskGrants { ports, devices: BTreeMap::new() }
            })
            .collect();
        for (resource, devices) in &self.devices {
            let wanted = |task: &Task| task.resources.scalars.get(resource).map_or(0, |w| w.0);
            let is_whole = template.tasks.iter().all(|task| wanted(task).is_multiple_of(1_000));
            let mut rest = devices.as_slice();
            for (grants, task) in tasks.iter_mut().zip(&template.tasks) {
                if wanted(task) == 0 {
                    continue;
                }
                let count = usize::try_from(wanted(task) / 1_000).unwrap_or(usize::MAX);
                let count = if is_whole { count.min(rest.len()) } else { rest.len() };
                grants.devices.insert(resource.clone(), rest.iter().take(count).copied().collect());
                if is_whole {
                    rest = rest.get(count..).unwrap_or_default();
                }
            }
        }
        tasks
    }
}

/// The first and last port that are given to ports left open. Below those that Linux gives to outgoing connections.
pub const DYNAMIC_PORTS: (u16, u16) = (20_000, 29_999);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_are_read_as_they_are_written() {
        for text in ["gpu=yes:no-schedule", "spot:evict", "a=b:c=d:prefer-not"] {
            assert_eq!(text.parse::<Taint>().unwrap().to_string(), text);
        }
        for bad in ["gpu", "gpu:", ":evict", "gpu:never", "=x:evict"] {
            assert!(bad.parse::<Taint>().unwrap_err().to_string().contains(bad));
        }
    }

    #[test]
    fn a_toleration_may_name_key_value_and_effect() {
        let taint: Taint = "gpu=a100:evict".parse().unwrap();
        let toleration = |key: &str, value: Option<&str>, effect| Toleration {
            key: key.to_owned(),
            value: value.map(str::to_owned),
            effect,
        };
        assert!(toleration("*", None, None).tolerates(&taint));
        assert!(toleration("gpu", Some("a100"), Some(TaintEffect::Evict)).tolerates(&taint));
        assert!(!toleration("gpu", Some("b"), None).tolerates(&taint));
        assert!(!toleration("gpu", None, Some(TaintEffect::NoSchedule)).tolerates(&taint));
        assert!(!toleration("disk", None, None).tolerates(&taint));
    }

    #[test]
    fn a_task_gets_its_ports_in_its_own_order_and_its_devices() {
        let tasks = |gpu: [&str; 2]| -> UnitTemplate {
            let amount =
                |gpu| serde_json::json!({"cpu": 1, "memory": "1Mi", "scalars": {"gpu": gpu}});
            serde_json::from_value(serde_json::json!({"restart": "never", "grace_ms": 1, "tasks": [
                {"name": "a", "oci": {"image": "a", "ports": [0, 80, 0]}, "resources": amount(gpu[0]), "limits": {}},
                {"name": "b", "wasm": {"artifact": "b", "http": {"port": 81}}, "resources": {}, "limits": {}},
                {"name": "c", "oci": {"image": "c", "ports": [0, 0]}, "resources": amount(gpu[1]), "limits": {}},
            ]}))
            .unwrap()
        };
        let grants = |devices: &[u32]| Grants {
            ports: vec![20_000, 20_001, 20_002],
            devices: BTreeMap::from([("gpu".to_owned(), devices.to_vec())]),
            ..Grants::default()
        };
        let of = grants(&[0, 3, 5]).by_task(&tasks(["2", "1"]));
        assert_eq!(of[0].ports, [Some(20_000), Some(80), Some(20_001)]);
        assert_eq!(of[1].ports, [Some(81)]);
        assert_eq!(of[2].ports, [Some(20_002), None], "one was not chosen");
        assert_eq!((&of[0].devices["gpu"], &of[2].devices["gpu"]), (&vec![0, 3], &vec![5]));
        assert!(of[1].devices.is_empty(), "it asked for none");
        let shared = grants(&[4]).by_task(&tasks(["0.5", "0.5"]));
        assert_eq!((&shared[0].devices["gpu"], &shared[2].devices["gpu"]), (&vec![4], &vec![4]));
        let too_few = grants(&[]).by_task(&tasks(["2", "1"]));
        assert!(too_few[2].devices["gpu"].is_empty());
    }

    #[test]
    fn ports_of_a_wasm_program_that_listens_are_counted_and_chosen_like_a_container_s() {
        let template: UnitTemplate =
            serde_json::from_value(serde_json::json!({"restart": "never", "grace_ms": 1, "tasks": [
                {"name": "a", "wasm": {"artifact": "a", "ports": [0, 7000]}, "resources": {}, "limits": {}},
                {"name": "b", "wasm": {"artifact": "b", "http": {"port": 81}}, "resources": {}, "limits": {}},
            ]}))
            .unwrap();
        let grants = Grants { ports: vec![20_000], ..Grants::default() };
        assert_eq!(grants.by_task(&template)[0].ports, [Some(20_000), Some(7000)]);
        assert_eq!(template.open_ports(), 1);
        let ports = template.host_ports();
        let ports: Vec<_> =
            ports.iter().map(|port| (port.port, port.is_shared_by_service)).collect();
        assert_eq!(ports, [(81, true), (7000, false)], "only http ports are shared");
    }

    #[test]
    fn ports_are_those_of_the_variant_that_was_chosen() {
        use crate::unit_spec::Runtime;
        let template: UnitTemplate =
            serde_json::from_value(serde_json::json!({"restart": "never", "grace_ms": 1, "tasks": [
                {"name": "a", "variants": [
                    {"wasm": {"artifact": "a", "http": {"port": 80}}}, {"oci": {"image": "a", "ports": [0, 81]}}
                ], "resources": {}, "limits": {}},
                {"name": "b", "oci": {"image": "b", "ports": [0]}, "resources": {}, "limits": {}},
            ]}))
            .unwrap();
        let ports = |ports: &[u16], first| -> Vec<Vec<Option<u16>>> {
            let runtimes = [first, Runtime::Oci].into_iter().collect();
            let grants = Grants { ports: ports.to_vec(), runtimes, ..Grants::default() };
            grants.by_task(&template).into_iter().map(|task| task.ports).collect()
        };
        assert_eq!(ports(&[20_000], Runtime::Wasm), [vec![Some(80)], vec![Some(20_000)]]);
        assert_eq!(
            ports(&[20_000, 20_001], Runtime::Oci),
            [vec![Some(20_000), Some(81)], vec![Some(20_001)]]
        );
    }

    #[test]
    fn a_resource_has_a_variable_of_its_name() {
        assert_eq!(devices_variable("gpu"), "BRIG_DEVICES_GPU");
        assert_eq!(devices_variable("licence-x.1"), "BRIG_DEVICES_LICENCE_X_1");
    }
}
