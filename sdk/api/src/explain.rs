//! Why a unit is where it is, or is nowhere yet: what `brig why` prints.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::unit_spec::Runtime;
use crate::{NodeName, PlanSequence, ResourceName, UnitId};

/// The newest decision of the scheduler about a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// The unit.
    pub unit: UnitId,
    /// The plan in which it was decided.
    pub plan: PlanSequence,
    /// When, Unix milliseconds.
    pub decided_ms: i64,
    /// How many nodes there were.
    pub nodes: u32,
    /// The policy that decided, by name and version.
    #[serde(default)]
    pub policy: Cow<'static, str>,
    /// Placed or not.
    pub verdict: Verdict,
    /// How many nodes each filter turned down, most first; also given for a placed unit.
    pub refusals: Vec<Refusal>,
}

/// The outcome for one unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// A node was found.
    Placed {
        /// The node.
        node: NodeName,
        /// Its scores, in the order of the policy.
        scores: Vec<Score>,
        /// The sum of weighted scores.
        total: i64,
        /// The best of those that lost, best first; empty when no other node could take it.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        next: Vec<Candidate>,
        /// Which of its variants it runs there, by task; empty where no task has several.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        variants: BTreeMap<ResourceName, Runtime>,
    },
    /// It waits: no node fits, the namespace may not have it, or something has to happen before.
    Refused {
        /// One sentence: what is in the way, and what would be enough.
        message: String,
    },
}

/// A node that could have taken the unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Candidate {
    /// The node.
    pub node: NodeName,
    /// Its scores, in the order of the policy.
    pub scores: Vec<Score>,
    /// Its sum of weighted scores.
    pub total: i64,
}

/// One part of the policy and what it gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Score {
    /// The score's name, such as `bin-packing`.
    pub name: Cow<'static, str>,
    /// From 0 to 1000.
    pub points: i64,
    /// How much it counts.
    pub weight: i64,
}

/// How many nodes one filter turned down, and an example of why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refusal {
    /// The filter's name, such as `resources`; docs/scheduler.md lists them.
    pub filter: Cow<'static, str>,
    /// How many nodes it turned down.
    pub nodes: u32,
    /// The nearest miss in words, such as `memory: wanted 64Gi, at most 23Gi free (node-1)`.
    pub detail: String,
}

/// What the scheduler says of one unit and one node: what `brig why UNIT --node NODE` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeVerdict {
    /// The unit.
    pub unit: UnitId,
    /// The node.
    pub node: NodeName,
    /// Could it go there?
    pub verdict: NodeFit,
    /// What is in the way, in the order of the filters; empty when it fits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub obstacles: Vec<NodeObstacle>,
    /// What the node's scores would be, in the order of the policy; empty when it does not fit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scores: Vec<Score>,
    /// The sum of weighted scores, when it fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<i64>,
    /// Which of its variants it would run there, by task; empty where no task has several, and when it does not fit.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variants: BTreeMap<ResourceName, Runtime>,
}

/// Whether one node can take one unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeFit {
    /// It can.
    Fits,
    /// It can't.
    Refused,
}

/// One thing that keeps a unit from a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeObstacle {
    /// The filter's name, such as `resources`; docs/scheduler.md lists them.
    pub filter: Cow<'static, str>,
    /// What it found, such as `memory: wanted 64Gi, 23Gi free`.
    pub detail: String,
}

impl NodeVerdict {
    /// The verdict in words and lines; ends with a line break.
    #[must_use]
    pub fn render(&self, unit: &ResourceName) -> String {
        let node = &self.node;
        let mut lines = match self.verdict {
            NodeFit::Fits => vec![format!("{unit} fits on {node}{}.", chosen(&self.variants))],
            NodeFit::Refused => vec![format!("{unit} can't go to {node}:")],
        };
        if let Some(total) = self.total {
            lines.push(format!("  score  {total} = {}", terms(&self.scores)));
        }
        for NodeObstacle { filter, detail } in &self.obstacles {
            lines.push(format!("  {filter:<10}  {detail}"));
        }
        lines.push(String::new());
        lines.join("\n")
    }
}

impl Explanation {
    /// The decision in words and lines, as `brig why` prints it; ends with a line break.
    #[must_use]
    pub fn render(&self, unit: &ResourceName) -> String {
        let mut lines = Vec::new();
        match &self.verdict {
            Verdict::Placed { node, scores, total, next, variants } => {
                let (plan, chosen) = (self.plan, chosen(variants));
                lines.push(format!("{unit} was placed on {node} by plan {plan}{chosen}."));
                lines.push(format!("  score  {total} = {}", terms(scores)));
                for Candidate { node, scores, total } in next {
                    lines.push(format!("  next   {node} with {total} = {}", terms(scores)));
                }
                if next.is_empty() {
                    lines.push("  next   no other node could take it".to_owned());
                }
            }
            Verdict::Refused { message } => lines.push(format!("{unit} waits: {message}.")),
        }
        if !self.refusals.is_empty() {
            let nodes = self.nodes;
            lines.push(format!("Turned down, of {nodes} {}:", counted(nodes, "node", "nodes")));
        }
        for Refusal { filter, nodes, detail } in &self.refusals {
            let line = format!("  {filter:<10} {nodes:>5}  {detail}");
            lines.push(line.trim_end().to_owned());
        }
        lines.push(String::new());
        lines.join("\n")
    }
}

/// How it is told which variants run, behind a clause: `, as oci`, or `, with log as oci, web as wasm` where there are several tasks that leave a choice.
#[must_use]
pub fn chosen(variants: &BTreeMap<ResourceName, Runtime>) -> String {
    let mut all = variants.iter().map(|(task, runtime)| (task.as_str(), runtime.as_str()));
    match (all.next(), all.next()) {
        (None, _) => String::new(),
        (Some((_, runtime)), None) => format!(", as {runtime}"),
        (Some(first), Some(second)) => {
            let told = [first, second].into_iter().chain(all);
            let told: Vec<_> = told.map(|(task, runtime)| format!("{task} as {runtime}")).collect();
            format!(", with {}", told.join(", "))
        }
    }
}

/// `bin-packing 187 x 4 + balance 875 x 1`; what gives nothing is left out.
fn terms(scores: &[Score]) -> String {
    let given = scores.iter().filter(|score| score.points != 0);
    let terms: Vec<_> =
        given.map(|Score { name, points, weight }| format!("{name} {points} x {weight}")).collect();
    if terms.is_empty() { "0".to_owned() } else { terms.join(" + ") }
}

fn counted<'t>(count: u32, one: &'t str, many: &'t str) -> &'t str {
    if count == 1 { one } else { many }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(verdict: NodeFit) -> NodeVerdict {
        NodeVerdict {
            unit: UnitId::new("u1").unwrap(),
            node: NodeName::new("node-1").unwrap(),
            verdict,
            obstacles: Vec::new(),
            scores: Vec::new(),
            total: None,
            variants: BTreeMap::new(),
        }
    }

    #[test]
    fn the_variant_is_told_and_the_task_where_several_leave_a_choice() {
        let of = |variants: &[(&str, Runtime)]| {
            let all = variants
                .iter()
                .map(|(task, runtime)| (ResourceName::new(*task).unwrap(), *runtime));
            chosen(&all.collect())
        };
        assert_eq!(of(&[]), "");
        assert_eq!(of(&[("main", Runtime::Oci)]), ", as oci");
        assert_eq!(
            of(&[("web", Runtime::Wasm), ("log", Runtime::Oci)]),
            ", with log as oci, web as wasm"
        );
    }

    #[test]
    fn one_node_is_told_with_its_score_or_with_all_that_is_in_the_way() {
        let unit = ResourceName::new("web-1").unwrap();
        let score =
            |name: &str, points, weight| Score { name: name.to_owned().into(), points, weight };
        let fits = NodeVerdict {
            scores: vec![score("bin-packing", 187, 4), score("balance", 875, 1)],
            total: Some(1623),
            ..verdict(NodeFit::Fits)
        };
        let expected =
            "web-1 fits on node-1.\n  score  1623 = bin-packing 187 x 4 + balance 875 x 1\n";
        assert_eq!(fits.render(&unit), expected);
        let obstacle = |filter: &str, detail: &str| NodeObstacle {
            filter: filter.to_owned().into(),
            detail: detail.to_owned(),
        };
        let refused = NodeVerdict {
            obstacles: vec![
                obstacle("taints", "gpu=yes:no-schedule is not tolerated"),
                obstacle("resources", "memory: wanted 64Gi, 23Gi free"),
            ],
            ..verdict(NodeFit::Refused)
        };
        let expected = "\
web-1 can't go to node-1:
  taints      gpu=yes:no-schedule is not tolerated
  resources   memory: wanted 64Gi, 23Gi free
";
        assert_eq!(refused.render(&unit), expected);
        let text = serde_json::to_string(&refused).unwrap();
        assert!(text.contains(r#""verdict":"refused""#), "{text}");
        assert_eq!(serde_json::from_str::<NodeVerdict>(&text).unwrap(), refused);
    }
}
