//! `brig`, the command: for people, scripts, and to start the daemons.

mod arguments;
mod artifact;
mod attach;
mod commands;
mod context;
mod daemons;
mod demo;
mod failure;
mod load;
mod output;
mod progress;
mod rows;
mod shims;
mod target;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use arguments::{Arguments, Command};
use context::Context;
use failure::Failure;

fn main() -> ExitCode {
    // clap's own code for wrong use is 2, as ours.
    let arguments = Arguments::parse();
    output::set_color(arguments.global.color);
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                say(&format!("brig: {}", failure.message));
            }
            ExitCode::from(failure.code)
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let context = Context::resolve(&arguments.global)?;
    match arguments.command {
        Command::Demo(demo) => demo::run(&demo),
        Command::Dev(dev) => daemons::dev(dev, &context),
        Command::Server(server) => daemons::server(server, &context),
        Command::Node(arguments::Node { command: None, agent: Some(agent) }) => {
            daemons::node(agent, &context)
        }
        Command::Schema => output::print(&output::json(&brig_api::manifest::json_schema())?),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "brig", &mut script);
            output::print(&String::from_utf8_lossy(&script))
        }
        command => {
            // One thread is all that a command needs, and starts sooner.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let outcome = runtime.block_on(commands::run(command, &context));
            // Reading standard input may block a thread that nobody waits for.
            runtime.shutdown_background();
            outcome
        }
    }
}

/// Tells the user something on standard error, so that standard output stays for results.
pub(crate) fn say(text: &str) {
    // Nobody reads it any more: nothing to do about that.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
