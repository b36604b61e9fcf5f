//! The documents' commands work as typed, and the demo does what the README says.

use std::path::Path;
use std::process::Command;

use crate::harness::{Cluster, guest, has_containers, image};

fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The blocks of a document that are marked `sh`, joined.
fn shell_blocks(document: &str) -> String {
    let mut script = String::new();
    for block in document.split("```sh\n").skip(1) {
        script.push_str(block.split("```").next().unwrap_or_default());
    }
    script
}

#[test]
fn the_tutorial_works_as_typed() {
    if !has_containers() {
        return;
    }
    let cluster = Cluster::dev();
    let tutorial = std::fs::read_to_string(root().join("docs/tutorial.md")).unwrap();
    let script = shell_blocks(&tutorial);
    assert!(script.lines().count() > 10, "the tutorial has commands");
    let folder = tempfile::tempdir().unwrap();
    // What the tutorial's reader has in the folder.
    for (name, from) in [
        ("hello.wasm", guest("hello.wasm")),
        ("web.wasm", guest("web.wasm")),
        ("busybox", image("busybox")),
    ] {
        std::os::unix::fs::symlink(from, folder.path().join(name)).unwrap();
    }
    let brig = cluster.command(&[]);
    let bin = Path::new(brig.get_program()).parent().unwrap().display().to_string();
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-x", "-c", &script])
        .current_dir(folder.path())
        .env("PATH", format!("{bin}:{}", std::env::var("PATH").unwrap_or_default()))
        .env("BRIG_SERVER", &cluster.url)
        .output()
        .unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(cluster.units().is_empty(), "the tutorial cleans up");
}

#[test]
fn the_demo_runs_to_its_end_and_leaves_nothing() {
    let brig = Cluster::dev().command(&[]).get_program().to_owned();
    let output = Command::new(brig)
        .arg("demo")
        .current_dir(root())
        .env_remove("CARGO_PKG_NAME")
        .output()
        .unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.contains(r#""squares""#), "jaq ran: {out}");
    assert!(err.contains("Nothing is left running"), "{err}");
    if has_containers() {
        assert!(
            err.contains("brig exec") && out.contains("it is "),
            "the container ran: {out}\n{err}"
        );
    }
}
