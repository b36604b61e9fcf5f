//! Why a unit is where it is, or is nowhere yet: what `brig why` prints.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    pub policy: String,
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
    pub name: String,
    /// From 0 to 1000.
    pub points: i64,
    /// How much it counts.
    pub weight: i64,
}

/// How many nodes one filter turned down, and an example of why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refusal {
    /// The filter's name, such as `resources`; docs/scheduler.md lists them.
    pub filter: String,
    /// How many nodes it turned down.
    pub nodes: u32,
    /// The nearest miss in words, such as `memory: wanted 64Gi, at most 23Gi free (node-1)`.
    pub detail: String,
}

impl Explanation {
    /// The decision in words and lines, as `brig why` prints it; ends with a line break.
    #[must_use]
    pub fn render(&self, unit: &ResourceName) -> String {
        let mut lines = Vec::new();
        match &self.verdict {
            Verdict::Placed { node, scores, total, next } => {
                lines.push(format!("{unit} was placed on {node} by plan {}.", self.plan));
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

/// `bin-packing 187 x 4 + balance 875 x 1`; what gives nothing is left out.
fn terms(scores: &[Score]) -> String {
    let given = scores.iter().filter(|score| score.points != 0);
    let terms: Vec<_> = given
        .map(|Score { name, points, weight }| format!("{name} {points} x {weight}"))
        .collect();
    if terms.is_empty() { "0".to_owned() } else { terms.join(" + ") }
}

fn counted<'t>(count: u32, one: &'t str, many: &'t str) -> &'t str {
    if count == 1 { one } else { many }
}
