//! `cargo run -p simulator -- [--seeds COUNT] [--first SEED]`: runs the real core in a simulated cluster, once per seed.
//!
//! Nodes fall silent, reboot and return; messages are lost, doubled and delayed; two planners compete; users change
//! their minds. All of it follows from the seed, which is printed when an invariant breaks:
//! `cargo run -p simulator -- --seeds 1 --first SEED` shows the same again.
//!
//! `cargo run --release -p simulator -- replay FOLDER` plays published cluster traces through the same core instead, and
//! prints how well it did; see docs/benchmarks.md.

mod agent;
mod amounts;
mod database;
mod invariants;
mod planner;
mod random;
mod replay;
mod soundness;
mod workload;
mod world;

use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;

/// Seeds run where no number is given.
const SEEDS_DEFAULT: u64 = 1_000;

fn main() -> anyhow::Result<()> {
    let (mut seeds, mut first) = (SEEDS_DEFAULT, 0u64);
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.next_if(|argument| argument == "replay").is_some() {
        let folder = arguments.next().context("`replay` needs the folder of the traces")?;
        anyhow::ensure!(arguments.next().is_none(), "`replay` takes one folder and nothing else");
        return replay::run(Path::new(&folder), &mut std::io::stdout());
    }
    while let Some(flag) = arguments.next() {
        let text = arguments.next().with_context(|| format!("`{flag}` needs a number"))?;
        let number = text.parse().with_context(|| format!("`{text}` is no number"))?;
        match flag.as_str() {
            "--seeds" => seeds = number,
            "--first" => first = number,
            _ => anyhow::bail!(
                "`{flag}` is unknown: expected `--seeds COUNT`, `--first SEED` or `replay FOLDER`"
            ),
        }
    }
    for seed in first..first.saturating_add(seeds) {
        world::run(seed)?;
    }
    writeln!(std::io::stdout(), "{seeds} seeds from {first}: every invariant held")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_invariant_holds_for_three_hundred_seeds() {
        for seed in 0..300 {
            super::world::run(seed).unwrap();
        }
    }
}
