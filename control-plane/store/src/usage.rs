//! What units used: taken over from their nodes, and added up by namespace and day.
//!
//! Nodes tell what each unit has used in all, so what is told twice counts once; the difference to what was known goes to the
//! namespace, on the day on which it is told. It is no part of what is watched: no revision, no change.

use std::collections::{BTreeMap, BTreeSet};

use brig_api::usage::{Usage, UsageReport};
use brig_api::{NamespacePath, NodeName, UnitId};
use chrono::DateTime;

use crate::error::StoreError;
use crate::store::Store;
use crate::table::unit::unit_homes;
use crate::table::usage::{namespaces_add, usages_by_units, usages_put};
use crate::write::{Write, in_write};

impl Store {
    /// Takes over what units of a node used; about those that are gone or elsewhere nothing is kept.
    ///
    /// # Errors
    /// When the database fails; then nothing is kept.
    pub async fn usage_report(
        &self,
        node: &NodeName,
        reports: &[UsageReport],
        now_ms: i64,
    ) -> Result<(), StoreError> {
        in_write!(self, now_ms, |tx| take_over(&mut tx, node, reports).await)?;
        Ok(())
    }

    /// What a unit used, as far as its node has told; zeros for one that is not known.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn usage_get(&self, unit: &UnitId) -> Result<Usage, StoreError> {
        let mut db = self.pools().read().await?;
        let found = usages_by_units(&mut db, &[unit]).await?;
        db.commit().await?;
        Ok(found.get(unit).copied().unwrap_or_default())
    }
}

async fn take_over(
    tx: &mut Write,
    node: &NodeName,
    reports: &[UsageReport],
) -> Result<(), StoreError> {
    let ids: BTreeSet<&UnitId> = reports.iter().map(|report| &report.unit).collect();
    let homes = unit_homes(&mut tx.db, &ids.into_iter().collect::<Vec<_>>()).await?;
    let ours = reports.iter().filter_map(|report| {
        let (namespace, at) = homes.get(&report.unit)?;
        (at.as_ref() == Some(node)).then_some((&report.unit, namespace, report.usage))
    });
    use_up(tx, ours.collect()).await
}

/// Writes what units have used in all.
pub(crate) async fn use_up(
    tx: &mut Write,
    used: Vec<(&UnitId, &NamespacePath, Usage)>,
) -> Result<(), StoreError> {
    let ids: BTreeSet<&UnitId> = used.iter().map(|(unit, ..)| *unit).collect();
    let known = usages_by_units(&mut tx.db, &ids.into_iter().collect::<Vec<_>>()).await?;
    let mut newest: BTreeMap<&UnitId, (&NamespacePath, Usage)> = BTreeMap::new();
    for (unit, namespace, usage) in used {
        let (_, newer) = newest.entry(unit).or_insert_with(|| (namespace, Usage::default()));
        *newer = newer.or_newer(usage);
    }
    let mut rows: Vec<(&UnitId, Usage)> = Vec::new();
    let mut of_namespaces: BTreeMap<NamespacePath, Usage> = BTreeMap::new();
    for (id, (namespace, usage)) in newest {
        let before = known.get(id).copied().unwrap_or_default();
        let usage = usage.or_newer(before);
        if usage != before {
            rows.push((id, usage));
            let sum = of_namespaces.entry(namespace.clone()).or_default();
            *sum = sum.followed_by(usage.since(before));
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    tx.keep_rows();
    usages_put(&mut tx.db, &rows, tx.now_ms).await?;
    namespaces_add(&mut tx.db, &day_of(tx.now_ms), &of_namespaces).await
}

/// The date in UTC, such as `2026-11-25`.
fn day_of(now_ms: i64) -> String {
    let now = DateTime::from_timestamp_millis(now_ms).unwrap_or_default();
    now.date_naive().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (ms, day) in [
            (0, "1970-01-01"),
            (-1, "1969-12-31"),
            (951_782_399_999, "2000-02-28"),
            (951_782_400_000, "2000-02-29"),
            (1_795_564_800_000, "2026-11-25"),
            (i64::MAX, "1970-01-01"),
        ] {
            assert_eq!(day_of(ms), day);
        }
    }
}
