//! `logs`.

use brig_api::object::Unit;
use brig_api::request::LogQuery;
use brig_api::{Kind, NamespacePath};
use brig_client::TaskLine;
use futures::future::try_join_all;

use crate::arguments::Logs;
use crate::attach;
use crate::failure::{Failure, NOT_FOUND};
use crate::target;

use super::Session;

pub(crate) async fn logs(session: &Session<'_>, arguments: &Logs) -> Result<(), Failure> {
    let key = target::parse(&arguments.target, &session.context.namespace())?;
    let units: Vec<(NamespacePath, String)> = match key.kind {
        Kind::Unit => vec![(session.context.namespace(), key.name.clone())],
        Kind::Service | Kind::Job => {
            let mut units = super::ask::units_of(session, &key).await?;
            // One that waits for a node has said nothing yet.
            units.retain(|unit: &Unit| unit.node.is_some());
            units.into_iter().map(|unit| (unit.namespace, unit.name.to_string())).collect()
        }
        kind => {
            return Err(Failure::usage(format!(
                "a {kind} has no logs: name a unit, service or job"
            )));
        }
    };
    if units.is_empty() {
        return Err(Failure::new(NOT_FOUND, format!("{key} has no units that ran")));
    }
    let is_many = units.len() > 1;
    let shown =
        units.iter().map(|(namespace, unit)| show(session, arguments, namespace, unit, is_many));
    if arguments.follow {
        try_join_all(shown).await?;
    } else {
        for one in shown {
            one.await?;
        }
    }
    Ok(())
}

async fn show(
    session: &Session<'_>,
    arguments: &Logs,
    namespace: &NamespacePath,
    unit: &str,
    is_many: bool,
) -> Result<(), Failure> {
    let query =
        LogQuery { task: arguments.task.clone(), follow: arguments.follow, tail: arguments.tail };
    let mut lines = session.client.logs(namespace, unit, &query).await?;
    let prefix = |line: &TaskLine| {
        let mut prefix = String::new();
        if is_many {
            prefix.push_str(&format!("{unit} | "));
        }
        if line.task != brig_api::unit_spec::MAIN_TASK && arguments.task.is_none() {
            prefix.push_str(&format!("{} | ", line.task));
        }
        if arguments.timestamps {
            prefix.push_str(&format!("{} ", timestamp(line.time_ms)));
        }
        prefix
    };
    attach::show(&mut lines, prefix).await
}

/// A moment as RFC 3339 has it, in UTC.
fn timestamp(time_ms: i64) -> String {
    let (days, in_day_ms) = (time_ms.div_euclid(86_400_000), time_ms.rem_euclid(86_400_000));
    let (year, month, day) = civil(days);
    let (hours, minutes) = (in_day_ms / 3_600_000, in_day_ms / 60_000 % 60);
    let (seconds, millis) = (in_day_ms / 1000 % 60, in_day_ms % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{millis:03}Z")
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar (eras of 400 years, each
/// beginning on a first of March, so that leap days come last).
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_those_of_the_calendar() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_123, "2000-02-29T00:00:00.123Z"),
            (1_763_856_000_000, "2025-11-23T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(timestamp(ms), text);
        }
    }
}
