//! What a replay showed, as a table that people and Markdown read.

use std::time::Duration;

use super::gauges::RESOURCES;
use super::playback::{Clocks, Outcome};
use super::trace::Trace;

/// The trace's name, what was assumed, and the table.
pub(crate) fn text(trace: &Trace, outcome: &Outcome) -> String {
    let rows = rows(outcome);
    let width = |cell: fn(&(String, String)) -> &String| {
        rows.iter().map(|row| cell(row).chars().count()).max().unwrap_or(0)
    };
    let (left, right) = (width(|row| &row.0), width(|row| &row.1));
    let mut text = format!("### {}\n\n", trace.title);
    for sentence in &trace.assumed {
        text.push_str(sentence);
        text.push('\n');
    }
    text.push_str(&format!("\n| {:left$} | {:right$} |\n| --- | --- |\n", "", "value"));
    for (name, value) in rows {
        text.push_str(&format!("| {name:left$} | {value:right$} |\n"));
    }
    text
}

fn rows(outcome: &Outcome) -> Vec<(String, String)> {
    let mut rows: Vec<(String, String)> = Vec::new();
    let mut row = |name: &str, value: String| rows.push((name.to_owned(), value));
    let readings = &outcome.readings;
    row("units", outcome.units.to_string());
    row("nodes", outcome.nodes.to_string());
    row("passes", outcome.passes.to_string());
    for (resource, reading) in RESOURCES.iter().zip(readings.utilisation) {
        if let Some((mean, peak)) = reading {
            let value = format!("mean {}, peak {}", percent(mean), percent(peak));
            row(&format!("utilisation of {resource}"), value);
        }
    }
    if let Some((resource, mean, at_peak)) = readings.fragmentation {
        let value = format!("mean {}, at the peak {}", percent(mean), percent(at_peak));
        row(&format!("fragmentation of free {resource}"), value);
    }
    row("waiting: median, p90", format!("{}, {}", wait(outcome, 50), wait(outcome, 90)));
    row("waiting: p99, longest", format!("{}, {}", wait(outcome, 99), wait(outcome, 100)));
    row("namespaces", readings.namespaces.to_string());
    row("fairness, Jain, of those that wait", index(readings.fairness_of_waiting));
    row("fairness, Jain, of all", index(readings.fairness));
    row("preemptions", outcome.preemptions.to_string());
    let never: usize = outcome.never.values().sum();
    row("units never placed", never.to_string());
    for (why, units) in &outcome.never {
        row(&format!("… for {why}"), units.to_string());
    }
    if outcome.ended_ms > 0 {
        row("last end, on the trace's clock", duration(outcome.ended_ms));
    }
    let Clocks { wall, cpu } = outcome.planning;
    let times = format!("{:.1} s, of the processor {:.1} s", wall.as_secs_f64(), cpu.as_secs_f64());
    row("time in the scheduler", times);
    let passes = u32::try_from(outcome.passes).unwrap_or(u32::MAX).max(1);
    let (mean, longest) = (milliseconds(cpu / passes), milliseconds(outcome.longest_pass));
    row("… of the processor per pass", format!("mean {mean}, longest {longest}"));
    rows
}

fn percent(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}

fn index(jain: Option<f64>) -> String {
    jain.map_or_else(|| "–".to_owned(), |jain| format!("{jain:.2}"))
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1_000.0)
}

/// The wait that so many percent of the units did not exceed (nearest rank).
fn wait(outcome: &Outcome, percent: usize) -> String {
    let rank = (outcome.waits_ms.len() * percent).div_ceil(100).saturating_sub(1);
    outcome.waits_ms.get(rank).map_or_else(|| "–".to_owned(), |wait_ms| duration(*wait_ms))
}

fn duration(ms: i64) -> String {
    let seconds = Duration::from_millis(ms.unsigned_abs()).as_secs_f64();
    match seconds {
        ..120.0 => format!("{seconds:.1} s"),
        120.0..7_200.0 => format!("{:.1} min", seconds / 60.0),
        7_200.0..172_800.0 => format!("{:.1} h", seconds / 3_600.0),
        _ => format!("{:.1} d", seconds / 86_400.0),
    }
}
