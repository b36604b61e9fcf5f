//! What the tour runs: guests that cargo builds, and an image made of Debian's busybox. Made once, then kept in
//! cargo's target directory.

use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};

use crate::failure::{FAILED, Failure};
use crate::say;

/// The version of jaq that is known to build for WASI preview 1; later ones need a terminal.
const JAQ_VERSION: &str = "1.6.0";

pub(super) struct Inputs {
    pub(super) jaq: PathBuf,
    pub(super) web: PathBuf,
    pub(super) manifest: PathBuf,
    pub(super) container_manifest: PathBuf,
    /// An OCI image layout, or why there is none.
    pub(super) busybox: Result<PathBuf, String>,
}

impl Inputs {
    /// Finds or builds everything.
    pub(super) fn prepare() -> Result<Self, Failure> {
        let examples = examples()?;
        let cache = cache()?;
        targets()?;
        let web = guest(&examples, "web", "wasm32-wasip2")?;
        let jaq = jaq(&cache)?;
        let busybox = busybox(&cache);
        Ok(Self {
            jaq,
            web,
            manifest: examples.join("tour.yaml"),
            container_manifest: examples.join("tour-containers.yaml"),
            busybox,
        })
    }
}

fn examples() -> Result<PathBuf, Failure> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let folder = folder.canonicalize().map_err(|_| {
        let message = "the demo's examples are not there: run it from a checkout, with `cargo run --release -- demo`";
        Failure::new(FAILED, message)
    })?;
    Ok(folder)
}

/// Beside the profile's folder of cargo's target directory.
fn cache() -> Result<PathBuf, Failure> {
    let own = std::env::current_exe()?;
    let target = own.parent().and_then(Path::parent);
    let cache = target
        .map_or_else(|| std::env::temp_dir().join("brig-demo-cache"), |target| target.join("demo"));
    std::fs::create_dir_all(&cache)?;
    Ok(cache)
}

fn run(what: &str, command: &mut Command) -> Result<(), Failure> {
    let status = command.status().map_err(|error| {
        let program = command.get_program().to_string_lossy().into_owned();
        Failure::new(FAILED, format!("{what}: could not run `{program}`: {error}"))
    })?;
    if status.success() {
        Ok(())
    } else {
        Err(Failure::new(FAILED, format!("{what} failed: see above")))
    }
}

/// Cargo and rustc must be those of this project, whatever directory the demo was started in.
fn tool(variable: &str, name: &str) -> Command {
    let mut command = Command::new(std::env::var_os(variable).unwrap_or_else(|| name.into()));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

fn targets() -> Result<(), Failure> {
    let targets = ["wasm32-wasip1", "wasm32-wasip2"];
    let listed = tool("RUSTUP", "rustup").args(["target", "list", "--installed"]).output();
    let installed = listed
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    if targets.iter().all(|target| installed.lines().any(|line| line == *target)) {
        return Ok(());
    }
    say("adding the targets wasm32-wasip1 and wasm32-wasip2 to the Rust toolchain");
    run("adding the wasm targets", tool("RUSTUP", "rustup").args(["target", "add"]).args(targets))
}

fn guest(examples: &Path, name: &str, target: &str) -> Result<PathBuf, Failure> {
    let target_dir = examples.join("target");
    let mut command = tool("CARGO", "cargo");
    command.current_dir(examples).args([
        "build",
        "--release",
        "--locked",
        "--quiet",
        "--package",
        name,
        "--target",
        target,
    ]);
    command.arg("--target-dir").arg(&target_dir);
    run(&format!("building the example `{name}`"), &mut command)?;
    Ok(target_dir.join(target).join("release").join(format!("{name}.wasm")))
}

fn jaq(cache: &Path) -> Result<PathBuf, Failure> {
    let wasm = cache.join("bin/jaq.wasm");
    if !wasm.exists() {
        say("building jaq, a program from the Rust community, for WASI; once, a minute or two");
        let mut command = tool("CARGO", "cargo");
        command.args([
            "install",
            "--locked",
            "--quiet",
            "--no-default-features",
            "--target",
            "wasm32-wasip1",
            "--root",
        ]);
        command.arg(cache).arg(format!("jaq@{JAQ_VERSION}"));
        run("building jaq", &mut command)?;
    }
    Ok(wasm)
}

fn busybox(cache: &Path) -> Result<PathBuf, String> {
    let layout = cache.join("busybox");
    if layout.join("index.json").exists() {
        return Ok(layout);
    }
    let binary = Path::new("/bin/busybox");
    if !binary.exists() {
        install_busybox()?;
    }
    let bytes = std::fs::read(binary).map_err(|error| format!("{}: {error}", binary.display()))?;
    write_layout(&layout, &bytes).map_err(|error| format!("{}: {error}", layout.display()))?;
    Ok(layout)
}

fn install_busybox() -> Result<(), String> {
    let way_out = "install the Debian package busybox-static to see one";
    if !rustix::process::geteuid().is_root() || !Path::new("/usr/bin/apt-get").exists() {
        return Err(way_out.to_owned());
    }
    say("installing the Debian package busybox-static, for the image of the tour");
    let apt = |arguments: &[&str]| {
        let status = Command::new("apt-get")
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .status();
        status.is_ok_and(|status| status.success())
    };
    let install =
        ["install", "--yes", "--quiet", "--quiet", "--no-install-recommends", "busybox-static"];
    if apt(&install) || (apt(&["update", "--quiet", "--quiet"]) && apt(&install)) {
        Ok(())
    } else {
        Err(way_out.to_owned())
    }
}

/// Writes an OCI image layout (image-layout version 1.0.0) with one layer: busybox and a link for each of its uses.
fn write_layout(layout: &Path, busybox: &[u8]) -> std::io::Result<()> {
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;
    let put = |bytes: &[u8]| -> std::io::Result<(String, usize)> {
        let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        std::fs::write(blobs.join(&hex), bytes)?;
        Ok((format!("sha256:{hex}"), bytes.len()))
    };
    let (layer, layer_size) = put(&busybox_layer(busybox)?)?;
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [layer]},
    });
    let (config, config_size) = put(config.to_string().as_bytes())?;
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": manifest_type,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": layer_size}],
    });
    let (manifest, manifest_size) = put(manifest.to_string().as_bytes())?;
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{"mediaType": manifest_type, "digest": manifest, "size": manifest_size}],
    });
    std::fs::write(layout.join("index.json"), index.to_string())
}

fn busybox_layer(busybox: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let header =
        |path: &str, kind: tar::EntryType, mode: u32, size: u64| -> std::io::Result<tar::Header> {
            let mut header = tar::Header::new_ustar();
            header.set_path(path)?;
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_size(size);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_cksum();
            Ok(header)
        };
    for (path, mode) in [
        ("bin/", 0o755),
        ("etc/", 0o755),
        ("tmp/", 0o1777),
        ("proc/", 0o555),
        ("dev/", 0o755),
        ("sys/", 0o555),
    ] {
        tar.append(&header(path, tar::EntryType::Directory, mode, 0)?, std::io::empty())?;
    }
    let size = u64::try_from(busybox.len()).unwrap_or(u64::MAX);
    tar.append(&header("bin/busybox", tar::EntryType::Regular, 0o755, size)?, busybox)?;
    for name in [
        "sh", "ls", "cat", "echo", "date", "sleep", "hostname", "id", "ps", "env", "wc", "head",
        "true", "false",
    ] {
        let mut link = header(&format!("bin/{name}"), tar::EntryType::Symlink, 0o777, 0)?;
        link.set_link_name("busybox")?;
        link.set_cksum();
        tar.append(&link, std::io::empty())?;
    }
    let passwd = b"root:x:0:0:root:/:/bin/sh\n";
    tar.append(&header("etc/passwd", tar::EntryType::Regular, 0o644, 26)?, &passwd[..])?;
    tar.into_inner()
}
