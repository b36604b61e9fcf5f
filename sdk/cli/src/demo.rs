//! `brig demo`: the tour. Runs this very command as a user would, prints what it runs, and cleans up.

mod inputs;
mod stage;

use std::time::Duration;

use crate::arguments::Demo;
use crate::failure::Failure;
use crate::say;

use inputs::Inputs;
use stage::Stage;

/// Longest time that anything of the tour may take to get into the state that the tour waits for.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs the tour.
pub(crate) fn run(arguments: &Demo) -> Result<(), Failure> {
    // First, so that the building of shims and guests is over before anything runs.
    crate::shims::find()?;
    let inputs = Inputs::prepare()?;
    let mut stage = Stage::open()?;
    say(&format!(
        "\nA control plane and a node run on {}, with their data in {}",
        stage.server(),
        stage.data().display()
    ));
    let outcome = tour(&mut stage, &inputs).and_then(|()| {
        if arguments.keep {
            say(&format!(
                "\nEverything keeps running. Try: BRIG_SERVER={} brig ps",
                stage.server()
            ));
            say("Ctrl-C ends it.");
            stage.wait_for_interrupt()?;
        }
        clean_up(&mut stage, &inputs)
    });
    let closed = stage.close();
    outcome.and(closed)?;
    say("\nDone. Nothing is left running, and the temporary directory is gone.");
    say("Next: docs/tutorial.md, or `brig dev` and `brig run your.wasm`.");
    Ok(())
}

fn tour(stage: &mut Stage, inputs: &Inputs) -> Result<(), Failure> {
    chapter("A WASI program that nobody here wrote (jaq, a clone of jq), uploaded and run");
    let jaq = inputs.jaq.display().to_string();
    stage.brig(&[
        "run",
        "--rm",
        "--memory",
        "128Mi",
        &jaq,
        "--",
        "--null-input",
        "[range(5)] | {sum: add, squares: map(. * .)}",
    ])?;

    chapter("Artifacts in the built-in registry: any OCI client can push and pull there too");
    stage.brig(&["push", &jaq, "demo/jaq:1"])?;
    stage.brig(&["push", &inputs.web.display().to_string(), "demo/web:1"])?;
    if let Ok(busybox) = &inputs.busybox {
        stage.brig(&["push", &busybox.display().to_string(), "demo/busybox:1"])?;
    }
    stage.brig(&["images"])?;

    chapter("A service and a job of wasm programs, and a container, from manifests");
    stage.brig(&["apply", "-f", &inputs.manifest.display().to_string()])?;
    match &inputs.busybox {
        Ok(_) if stage.has_containers()? => {
            stage.brig(&["apply", "-f", &inputs.container_manifest.display().to_string()])?;
            stage.wait_for_running("demo", "clock", 1, PATIENCE)?;
        }
        Ok(_) => say(
            "Containers are not possible on this machine (they need root on Linux): the tour goes on with wasm.",
        ),
        Err(why) => say(&format!("No container in this tour: {why}")),
    }
    stage.wait_for_running("demo", "web", 2, PATIENCE)?;
    stage.wait_for_job("demo", "squares", PATIENCE)?;
    stage.brig(&["ps"])?;

    chapter("Each unit of the service answers");
    for url in stage.endpoints("demo", "web")? {
        stage.get(&url)?;
    }

    chapter("Logs, reasons, and the whole state in SQL");
    stage.brig(&["logs", "--namespace", "demo", "job/squares"])?;
    if stage.has_unit_of("demo", "clock")? {
        stage.brig(&["logs", "--namespace", "demo", "--tail", "1", "service/clock"])?;
        let clock = stage.unit_of("demo", "clock")?;
        stage.brig(&["exec", "--namespace", "demo", &clock, "--", "cat", "/etc/hostname"])?;
    }
    let web = stage.unit_of("demo", "web")?;
    stage.brig(&["why", "--namespace", "demo", &web])?;
    stage.brig(&["sql", "select node, runtime, count(*) as units, sum(cpu_milli) as cpu_milli from units where state = 'running' group by node, runtime"])
}

fn clean_up(stage: &mut Stage, inputs: &Inputs) -> Result<(), Failure> {
    chapter("Cleaning up");
    if stage.has_unit_of("demo", "clock")? {
        stage.brig(&["delete", "-f", &inputs.container_manifest.display().to_string()])?;
    }
    stage.brig(&["delete", "-f", &inputs.manifest.display().to_string()])?;
    stage.brig(&["ps"])
}

fn chapter(title: &str) {
    say(&format!("\n── {title}"));
}
