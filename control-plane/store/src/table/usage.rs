//! `unit_usage` and `namespace_usage`.

use std::collections::{BTreeMap, HashMap};

use brig_api::usage::Usage;
use brig_api::{NamespacePath, UnitId};

use crate::columns::{id, unsigned};
use crate::database::Tx;
use crate::error::StoreError;
use crate::many::{execute_many, fetch_many};

const USAGES_BY_UNITS: &str = "SELECT unit_id, cpu_ns, memory_byte_s, memory_peak_bytes, throttled_ns FROM unit_usage \
    WHERE unit_id IN (SELECT column1 FROM (VALUES {rows}) AS asked)";
const USAGES_PUT: &str = "INSERT INTO unit_usage \
    (unit_id, cpu_ns, memory_byte_s, memory_peak_bytes, throttled_ns, updated_ms) VALUES {rows} \
    ON CONFLICT (unit_id) DO UPDATE SET cpu_ns = excluded.cpu_ns, memory_byte_s = excluded.memory_byte_s, \
    memory_peak_bytes = excluded.memory_peak_bytes, throttled_ns = excluded.throttled_ns, updated_ms = excluded.updated_ms";
/// What is more than the column holds stays the most that it holds.
const NAMESPACES_ADD: &str = "INSERT INTO namespace_usage (namespace, day, cpu_ns, memory_byte_s) VALUES {rows} \
    ON CONFLICT (namespace, day) DO UPDATE SET \
    cpu_ns = CASE WHEN namespace_usage.cpu_ns > 9223372036854775807 - excluded.cpu_ns \
        THEN 9223372036854775807 ELSE namespace_usage.cpu_ns + excluded.cpu_ns END, \
    memory_byte_s = CASE WHEN namespace_usage.memory_byte_s > 9223372036854775807 - excluded.memory_byte_s \
        THEN 9223372036854775807 ELSE namespace_usage.memory_byte_s + excluded.memory_byte_s END";

type UsageRow = (String, i64, i64, i64, i64);

/// What is known of those units.
pub(crate) async fn usages_by_units(
    db: &mut Tx,
    units: &[&UnitId],
) -> Result<HashMap<UnitId, Usage>, StoreError> {
    let rows = fetch_many!(db, UsageRow, USAGES_BY_UNITS, 1, units, |query, unit| query
        .bind(unit.as_str()));
    let usages = rows.iter().map(|(unit, cpu, memory, peak, throttled)| {
        let usage = Usage {
            cpu_ns: unsigned("unit_usage.cpu_ns", *cpu)?,
            memory_byte_s: unsigned("unit_usage.memory_byte_s", *memory)?,
            memory_peak_bytes: unsigned("unit_usage.memory_peak_bytes", *peak)?,
            throttled_ns: unsigned("unit_usage.throttled_ns", *throttled)?,
        };
        Ok((id("unit_usage.unit_id", unit)?, usage))
    });
    usages.collect()
}

/// Writes what units used.
pub(crate) async fn usages_put(
    db: &mut Tx,
    usages: &[(&UnitId, Usage)],
    now_ms: i64,
) -> Result<(), StoreError> {
    execute_many!(db, USAGES_PUT, 6, usages, |query, (unit, usage)| {
        query
            .bind(unit.as_str())
            .bind(most(usage.cpu_ns))
            .bind(most(usage.memory_byte_s))
            .bind(most(usage.memory_peak_bytes))
            .bind(most(usage.throttled_ns))
            .bind(now_ms)
    });
    Ok(())
}

/// Adds to what namespaces used on a day.
pub(crate) async fn namespaces_add(
    db: &mut Tx,
    day: &str,
    used: &BTreeMap<NamespacePath, Usage>,
) -> Result<(), StoreError> {
    let rows: Vec<_> = used.iter().collect();
    execute_many!(db, NAMESPACES_ADD, 4, rows, |query, (namespace, usage)| {
        let query = query.bind(namespace.as_str()).bind(day);
        query.bind(most(usage.cpu_ns)).bind(most(usage.memory_byte_s))
    });
    Ok(())
}

fn most(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
