//! `simulator replay FOLDER`: plays cluster traces through the real scheduler and prints what came of it.
//!
//! The folder holds the traces as published (docs/benchmarks.md names the files); one that is absent is skipped. None is part
//! of this repository: some have no licence for that.

mod alibaba;
mod gauges;
mod google;
mod playback;
mod report;
mod trace;
mod workflows;

#[cfg(test)]
mod tests;

use std::io::{IsTerminal as _, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::time::{ClockId, clock_gettime};

use playback::Clocks;
use trace::Trace;

/// How one trace is read from the folder, and the files that it needs.
struct Source {
    files: &'static [&'static str],
    read: fn(&Path) -> anyhow::Result<Trace>,
}

const SOURCES: [Source; 4] = [
    Source { files: &[google::FILE], read: |folder| google::read(&folder.join(google::FILE)) },
    Source {
        files: &[alibaba::NODES_FILE, alibaba::PODS_FILE],
        read: |folder| {
            alibaba::read_as_it_was(
                &folder.join(alibaba::NODES_FILE),
                &folder.join(alibaba::PODS_FILE),
            )
        },
    },
    Source {
        files: &[alibaba::NODES_FILE, alibaba::PODS_FILE],
        read: |folder| {
            alibaba::read_piled_up(
                &folder.join(alibaba::NODES_FILE),
                &folder.join(alibaba::PODS_FILE),
            )
        },
    },
    Source {
        files: &[workflows::FOLDER],
        read: |folder| workflows::read(&folder.join(workflows::FOLDER)),
    },
];

/// Plays every trace of the folder and prints a table for each.
///
/// # Errors
/// A folder that is none; a file that is no trace, with the line; a scheduler that does not come to rest.
pub(crate) fn run(folder: &Path, output: &mut impl Write) -> anyhow::Result<()> {
    ensure!(folder.is_dir(), "{} is no folder: expected one with traces", folder.display());
    for source in &SOURCES {
        if let Some(absent) = source.files.iter().find(|file| !folder.join(file).exists()) {
            writeln!(output, "Skipped: the folder has no {absent}.\n")?;
            continue;
        }
        let trace = (source.read)(folder)?;
        let progress = progress(&trace);
        let outcome = playback::play(&trace, &stopwatch(), &|arrived| {
            progress.set_position(u64::try_from(arrived).unwrap_or(u64::MAX));
        })?;
        progress.finish_and_clear();
        writeln!(output, "{}", report::text(&trace, &outcome))?;
    }
    Ok(())
}

/// Tells the time.
fn stopwatch() -> impl Fn() -> Clocks {
    let told = |clock| {
        let time = clock_gettime(clock);
        let seconds = Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0));
        seconds + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0))
    };
    move || Clocks { wall: told(ClockId::Monotonic), cpu: told(ClockId::ThreadCPUTime) }
}

/// A bar over the arrivals, where somebody sees it.
fn progress(trace: &Trace) -> ProgressBar {
    let target = match std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let count = u64::try_from(trace.work.len()).unwrap_or(u64::MAX);
    let style =
        ProgressStyle::with_template("{msg}  {bar:30}  {pos}/{len} jobs arrived, {elapsed}");
    let bar = ProgressBar::with_draw_target(Some(count), target);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.with_message(trace.title.clone())
}
