//! The shim contract on `brig-shim-wasm` in a container of its own, and what that container keeps from a shim that its
//! guests have taken over. Where containers can't run the tests say why and pass.

use std::path::{Path, PathBuf};
use std::process::Command;

use brig_shim::message::StartProgram;
use brig_shim::worker::{Libraries, Worker};

use crate::shim_client::{ShimProcess, shim_binary, wait_until};
use crate::shim_contract::{Does, Fixture, Runtime, contract_of_shims};
use crate::wasm_shim::{Wasm, cache};

/// A shim in a container.
pub(crate) struct Contained;

impl Contained {
    /// The runtime; None, and a word why, where workers can't have containers.
    pub(crate) fn available() -> Option<Self> {
        let check = Command::new(shim_binary("brig-shim-oci")).arg("check").output();
        let check = check.expect("the shim can be run").stdout;
        let report: serde_json::Value = serde_json::from_slice(&check).expect("JSON");
        if report["no_workers"].as_array().is_none_or(|why| !why.is_empty()) {
            println!("skipped: wasm shims can't have containers here: {report}");
            return None;
        }
        Some(Self)
    }
}

impl Runtime for Contained {
    fn start_shim(&self, base: &Path, dir: &Path) -> ShimProcess {
        let program = shim_binary("brig-shim-wasm");
        let said = Command::new(&program).arg("libraries").output().expect("it can be run").stdout;
        let Libraries { loader, files } = serde_json::from_slice(&said).expect("JSON");
        let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        let folders: Vec<_> = files.iter().map(|file| text(file.parent().unwrap())).collect();
        let loader = text(&loader.expect("a program with a loader"));
        let mut args = vec![loader, "--library-path".to_owned(), folders.join(":")];
        args.extend([text(&program), "--dir".to_owned(), text(dir)]);
        args.extend(["--cache".to_owned(), text(&cache())]);
        std::fs::create_dir_all(cache()).unwrap();
        let readable = files.into_iter().chain([program, cache()]).collect();
        start(dir, args, readable, vec![base.to_owned()])
    }

    fn program(&self, base: &Path, does: &Does) -> StartProgram {
        Wasm.program(base, does)
    }
}

contract_of_shims!({
    let Some(contained) = Contained::available() else { return };
    contained
});

fn start(
    dir: &Path,
    args: Vec<String>,
    readable: Vec<PathBuf>,
    writable: Vec<PathBuf>,
) -> ShimProcess {
    let (name, title) = ("wasm.team".to_owned(), "wasm-team".to_owned());
    let worker = Worker { name, title, users: 7, args, readable, writable, limits: None };
    worker.write(dir).expect("it can be written");
    let mut command = Command::new(shim_binary("brig-shim-oci"));
    command.arg("--dir").arg(dir).arg("worker");
    let log = std::fs::File::create(dir.join("shim.log")).expect("a log");
    command.stderr(log);
    ShimProcess::start(command, dir)
}

#[test]
fn a_shim_has_the_weight_that_its_agent_says() {
    let Some(contained) = Contained::available() else { return };
    let fixture = Fixture::new(&contained);
    let _client = fixture.shim.connect();
    let dir = fixture.base.path().join("shim");
    let record = std::fs::read(dir.join("container.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let name = record["cgroup"].as_str().expect("the name of a cgroup");
    // Of the older hierarchies and of the unified one.
    let files = [("cpu/brig", "cpu.shares"), ("brig", "cpu.weight")]
        .map(|(parent, file)| Path::new("/sys/fs/cgroup").join(parent).join(name).join(file));
    let file = files.iter().find(|file| file.exists()).expect("a cgroup with a weight");
    let mut seen = Vec::new();
    for cpu_milli in ["100", "2000", "0"] {
        let mut command = Command::new(shim_binary("brig-shim-oci"));
        let status = command.args(["weigh", "--dir"]).arg(&dir).arg(cpu_milli).status().unwrap();
        assert!(status.success());
        let weight = std::fs::read_to_string(file).unwrap();
        seen.push(weight.trim().parse::<u64>().expect("a number"));
    }
    assert!(seen[2] < seen[0] && seen[0] * 5 < seen[1], "{seen:?}");
}

/// Runs a script in the place of a shim; what it says.
fn said_inside(script: &str, base: &Path) -> Option<String> {
    Contained::available()?;
    let dir = base.join("shim");
    std::fs::create_dir(&dir).unwrap();
    let script = format!("{{ {script}\n}} >&2 2>&1; echo the-end >&2");
    let args = ["/bin/sh", "-c", &script].map(str::to_owned).into();
    let system = ["/bin", "/lib", "/lib64", "/usr"].map(PathBuf::from);
    let readable = system.into_iter().filter(|path| path.exists()).collect();
    let mut shim = start(&dir, args, readable, vec![base.join("own")]);
    let log = || std::fs::read_to_string(dir.join("shim.log")).unwrap();
    wait_until("the script has ended", || log().contains("the-end"));
    shim.wait_for_end();
    Some(log())
}

#[test]
fn who_takes_a_shim_over_is_nobody_and_finds_nothing() {
    let base = tempfile::tempdir().unwrap();
    std::fs::create_dir(base.path().join("own")).unwrap();
    std::fs::write(base.path().join("secret"), "of-another-namespace").unwrap();
    let own = base.path().join("own");
    let script = format!(
        "grep -E '^(Uid|CapEff|NoNewPrivs|Seccomp):' /proc/self/status
         cat /proc/self/uid_map
         ls -A {base} /root /home /var
         cat {base}/secret
         echo mine > {own}/file; ls -ln {own}/file
         echo x > /usr/anything; echo x > /anything; mknod /dev/disk b 254 0; mount -t tmpfs none /usr
         ls /proc | grep -c '^[0-9]'
         cat /proc/net/dev
         unshare -U true; kill -9 {outside}; hostname other",
        base = base.path().display(),
        own = own.display(),
        outside = std::process::id(),
    );
    let Some(said) = said_inside(&script, base.path()) else { return };
    let has = |text: &str| assert!(said.contains(text), "`{text}` is not in:\n{said}");
    // Capabilities over files (DAC_OVERRIDE, FOWNER), of which there are few.
    has("CapEff:\t000000000000000a");
    has("NoNewPrivs:\t1");
    has("Seccomp:\t2");
    let users: Vec<_> = said.lines().filter(|line| line.ends_with("65536")).collect();
    assert_eq!(users.len(), 1, "{said}");
    let first = (1_u32 << 30) + (7 << 16);
    assert_eq!(users[0].split_whitespace().collect::<Vec<_>>(), ["0", &first.to_string(), "65536"]);
    assert!(!said.contains("of-another-namespace"), "{said}");
    // Root's inside, and root's outside.
    has("/own/file");
    let metadata = std::fs::metadata(own.join("file")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&metadata), 0);
    for refused in
        ["/usr/anything", "/anything", "/dev/disk", "mount", "unshare", "kill", "hostname"]
    {
        let errors = [
            "must be root",
            "denied",
            "permitted",
            "Read-only",
            "cannot",
            "can't",
            "No such process",
        ];
        let is_refused =
            |line: &&str| line.contains(refused) && errors.iter().any(|e| line.contains(e));
        assert!(said.lines().any(|line| is_refused(&line)), "{refused} was not refused:\n{said}");
    }
    let interfaces: Vec<_> =
        said.lines().filter(|line| line.contains(": ") && line.contains("       0    0")).collect();
    assert!(interfaces.len() == 1 && interfaces[0].trim_start().starts_with("lo:"), "{said}");
}

#[test]
fn no_link_leads_a_worker_to_what_is_not_its_own() {
    let base = tempfile::tempdir().unwrap();
    std::fs::create_dir(base.path().join("precious")).unwrap();
    std::os::unix::fs::symlink(base.path().join("precious"), base.path().join("own")).unwrap();
    if Contained::available().is_none() {
        return;
    }
    let dir = base.path().join("shim");
    std::fs::create_dir(&dir).unwrap();
    let args = ["/bin/sh", "-c", "exit 0"].map(str::to_owned).into();
    let mut shim = start(&dir, args, vec!["/usr".into()], vec![base.path().join("own")]);
    assert!(!shim.wait_for_end().success());
    let log = std::fs::read_to_string(dir.join("shim.log")).unwrap();
    assert!(log.contains("opening") && log.contains("/own"), "{log}");
    assert!(!dir.join("container.json").exists(), "nothing is left to clean up");
}
