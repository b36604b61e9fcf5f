//! Finds the shim binaries beside `brig`; when `brig` was started by `cargo run`, builds them first.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{FAILED, Failure};

/// The shim binaries.
pub(crate) struct ShimPaths {
    pub(crate) wasm: PathBuf,
    pub(crate) oci: PathBuf,
}

/// What `cargo run` adds to its program's environment (the Cargo book, "Environment variables").
const RUN_PREFIXES: [&str; 2] = ["CARGO_PKG_", "CARGO_MANIFEST_"];
const RUN_NAMES: [&str; 5] =
    ["CARGO", "CARGO_BIN_NAME", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE", "OUT_DIR"];

const SHIMS: [&str; 2] = ["brig-shim-wasm", "brig-shim-oci"];

/// Where the shims are. Names the missing one and the way out when one can't be found.
pub(crate) fn find() -> Result<ShimPaths, Failure> {
    let folder = match std::env::var_os("BRIG_SHIM_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => {
            let own = std::env::current_exe()?;
            own.parent().map(Path::to_path_buf).unwrap_or_default()
        }
    };
    let is_run_by_cargo =
        std::env::var_os("CARGO_PKG_NAME").is_some_and(|name| name == env!("CARGO_PKG_NAME"));
    if is_run_by_cargo {
        build(&folder)?;
    }
    check(&folder)?;
    Ok(ShimPaths { wasm: folder.join(SHIMS[0]), oci: folder.join(SHIMS[1]) })
}

fn check(folder: &Path) -> Result<(), Failure> {
    let missing: Vec<_> =
        SHIMS.iter().filter(|name| !folder.join(name).is_file()).copied().collect();
    if missing.is_empty() {
        return Ok(());
    }
    let (missing, folder) = (missing.join(", "), folder.display());
    Err(Failure::new(
        FAILED,
        format!(
            "{missing} not found in {folder}: install the shims beside `brig`, or set BRIG_SHIM_DIR"
        ),
    ))
}

/// `cargo run` builds only `brig` itself. So the shims are built the same way, into the same folder, and one
/// command is all the set-up. Quick when they are up to date.
fn build(folder: &Path) -> Result<(), Failure> {
    let Some(cargo) = std::env::var_os("CARGO") else { return Ok(()) };
    if check(folder).is_err() {
        crate::say("building the shims too; this takes some minutes, once");
    }
    let mut command = Command::new(cargo);
    // Build scripts that watch a variable which `cargo run` sets for its program would run again, and all that
    // depends on them, this very binary too, would be built again: here and at the next `cargo run`.
    for (name, _) in std::env::vars_os() {
        let is_of_cargo_run = name.to_str().is_some_and(|name| {
            RUN_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || RUN_NAMES.contains(&name)
        });
        if is_of_cargo_run {
            command.env_remove(name);
        }
    }
    // The workspace's default members, as `cargo run` takes them too: so what both need is built once.
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).arg("build");
    if folder.file_name().is_some_and(|name| name == "release") {
        command.arg("--release");
    }
    if command.status()?.success() {
        return Ok(());
    }
    Err(Failure::new(FAILED, "the shims could not be built: see what cargo says above"))
}
