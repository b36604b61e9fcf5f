//! The tables: how each resource is written to its columns and read back. One file per family, its SQL on top.

pub(crate) mod artifact;
pub(crate) mod change;
pub(crate) mod checkpoint;
pub(crate) mod config;
pub(crate) mod event;
pub(crate) mod job;
pub(crate) mod namespace;
pub(crate) mod node;
pub(crate) mod plan;
pub(crate) mod secret;
pub(crate) mod service;
pub(crate) mod unit;
pub(crate) mod usage;

use brig_api::unit_spec::UnitTemplate;
use brig_api::{Kind, NamespacePath, Resources};

use crate::columns::{corrupt, number, to_json};
use crate::error::StoreError;

/// The columns that make a template's request readable: written from it, never read back.
#[derive(Debug)]
pub(crate) struct TemplateColumns {
    pub(crate) runtime: &'static str,
    pub(crate) priority: i64,
    pub(crate) cpu_milli: i64,
    pub(crate) memory_bytes: i64,
    pub(crate) disk_bytes: i64,
    pub(crate) is_revocable: bool,
    pub(crate) gang: Option<String>,
    pub(crate) template: String,
}

impl TemplateColumns {
    pub(crate) fn new(template: &UnitTemplate) -> Result<Self, StoreError> {
        let request = template.request();
        let (cpu_milli, memory_bytes, disk_bytes) = amounts("unit.resources", &request)?;
        Ok(Self {
            runtime: template.runtime_label(),
            priority: i64::from(template.priority),
            cpu_milli,
            memory_bytes,
            disk_bytes,
            is_revocable: template.revocable,
            gang: template.gang.as_ref().map(|gang| gang.name.as_str().to_owned()),
            template: to_json("unit", template)?,
        })
    }
}

/// Cpu, memory and disk as columns hold them.
pub(crate) fn amounts(what: &str, resources: &Resources) -> Result<(i64, i64, i64), StoreError> {
    Ok((
        number(&format!("{what}.cpu"), resources.cpu.0)?,
        number(&format!("{what}.memory"), resources.memory.0)?,
        number(&format!("{what}.disk"), resources.disk.0)?,
    ))
}

/// A namespace as an argument of the list queries: those in it and below it, or all.
pub(crate) fn within(namespace: Option<&NamespacePath>) -> Option<&str> {
    namespace.map(NamespacePath::as_str)
}

pub(crate) fn kind(text: &str) -> Result<Kind, StoreError> {
    text.parse().map_err(|error| corrupt("kind", error))
}
