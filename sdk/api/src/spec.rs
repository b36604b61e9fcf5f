//! What users ask for: the specs of namespaces, services, jobs, units, secrets and configs.
//!
//! Generic over the unit inside: [`UnitSpec`] as written, [`UnitTemplate`] once checked.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::unit_spec::{UnitSpec, UnitTemplate, is_default};
use crate::{NamespacePath, ResourceName, Resources};

/// The weight of a namespace that names none.
pub const WEIGHT_DEFAULT: u32 = 100;

/// How long after an attempt of a job's index began the next one starts at the earliest, where the job names none.
pub const RETRY_AFTER_MS_DEFAULT: u64 = 1_000;

/// Labels: short texts by which people find and group things.
pub type Labels = BTreeMap<String, String>;

fn default_namespace() -> NamespacePath {
    NamespacePath::default_namespace()
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(number: &u32) -> bool {
    *number == 1
}

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NamespaceSpec {
    /// The path, such as `team-a/dev`; the parent must exist.
    pub name: NamespacePath,
    /// Most that the live units of the namespace (and of those below it) may request together. No limit by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<Resources>,
    /// What the namespace (with those below it) can always have: others may borrow it while it is idle, and give it back
    /// when it is needed. Within the quota.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guarantee: Option<Resources>,
    /// Its part among its siblings where they compete, from 1 to 1000; 100 where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Most units that may be on nodes at a time, in the namespace and those below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_units: Option<u32>,
    /// Most services that may exist in the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_services: Option<u32>,
    /// Most jobs that may exist in the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_jobs: Option<u32>,
    /// What it is for, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
}

/// Keeps `replicas` interchangeable units running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec<U = UnitTemplate> {
    /// Unique among the namespace's services.
    pub name: ResourceName,
    /// Where it belongs.
    #[serde(default = "default_namespace")]
    pub namespace: NamespacePath,
    /// How many units.
    #[serde(default = "one")]
    pub replicas: u32,
    /// How many of them preemption may leave not running; 1 where none is named.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub max_unavailable: u32,
    /// What each of them runs.
    pub unit: U,
    /// For people.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

/// Runs units to completion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobSpec<U = UnitTemplate> {
    /// Unique among the namespace's jobs.
    pub name: ResourceName,
    /// Where it belongs.
    #[serde(default = "default_namespace")]
    pub namespace: NamespacePath,
    /// How many units may run at a time.
    #[serde(default = "one")]
    pub parallelism: u32,
    /// How many must succeed. Each has an index from 0, in its environment as `BRIG_JOB_INDEX`.
    #[serde(default = "one")]
    pub completions: u32,
    /// How many failed attempts each index may have before the job fails.
    #[serde(default, skip_serializing_if = "is_default")]
    pub retries: u32,
    /// How long after an attempt began the next one starts at the earliest, in milliseconds; doubled with each further
    /// attempt, at most six times. 1000 where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// What each unit runs.
    pub unit: U,
    /// For people.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

/// A unit on its own, without a service or job over it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoneUnitSpec<U = UnitTemplate> {
    /// Unique among the namespace's units.
    pub name: ResourceName,
    /// Where it belongs.
    #[serde(default = "default_namespace")]
    pub namespace: NamespacePath,
    /// What it runs.
    pub unit: U,
    /// For people.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Remove the unit by itself once it has ended and its exit was seen (`brig run --rm`).
    #[serde(default, skip_serializing_if = "is_default")]
    pub remove_when_done: bool,
}

/// Texts for units, by key: environment variables or files. Not for passwords.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfigSpec {
    /// Unique among the namespace's configs.
    pub name: ResourceName,
    /// Where it belongs.
    #[serde(default = "default_namespace")]
    pub namespace: NamespacePath,
    /// The texts.
    pub data: BTreeMap<String, String>,
}

/// Texts that nobody but the units that use them may read.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretSpec {
    /// Unique among the namespace's secrets.
    pub name: ResourceName,
    /// Where it belongs.
    #[serde(default = "default_namespace")]
    pub namespace: NamespacePath,
    /// The texts. Accepted on the way in, never given out again but to nodes.
    pub data: BTreeMap<String, String>,
}

/// A secret's texts never reach a log: `Debug` names the keys only.
impl std::fmt::Debug for SecretSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretSpec")
            .field("name", &self.name)
            .field("namespace", &self.namespace)
            .field("keys", &self.data.keys().collect::<Vec<_>>())
            .finish()
    }
}

/// A service as written.
pub type WrittenService = ServiceSpec<UnitSpec>;
/// A job as written.
pub type WrittenJob = JobSpec<UnitSpec>;
/// A lone unit as written.
pub type WrittenUnit = LoneUnitSpec<UnitSpec>;
