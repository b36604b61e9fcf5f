//! The shim contract on `brig-shim-oci`, and what only containers have. The image is made of busybox, whose path
//! `BRIG_TEST_BUSYBOX` names. Where containers can't run the tests say why and pass.

mod confinement;
mod exec;
mod recovery;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use brig_api::logline::Stream;
use brig_shim::exit::ExitRecord;
use brig_shim::message::{StartOci, StartProgram, StartTask};

use crate::shim_client::{ShimProcess, shim_binary, wait_until};
use crate::shim_contract::{ARGS, Does, Fixture, Runtime, contract_of_shims, output};

/// busybox applets that the image has links for.
const APPLETS: [&str; 23] = [
    "cat", "chmod", "chown", "echo", "env", "grep", "head", "hostname", "id", "ls", "mkdir",
    "mknod", "mount", "printf", "pwd", "rm", "seq", "sh", "sleep", "stty", "touch", "tty",
    "unshare",
];

pub(crate) struct Oci;

impl Oci {
    /// The runtime; None, and a word why, where containers can't run.
    pub(crate) fn available() -> Option<Self> {
        let check = Command::new(shim_binary("brig-shim-oci"))
            .arg("check")
            .output()
            .expect("the shim can be run");
        let report: serde_json::Value = serde_json::from_slice(&check.stdout).expect("JSON");
        if report["is_usable"] != true {
            println!("skipped: containers can't run here: {}", report["problems"]);
            return None;
        }
        if !busybox().is_file() {
            println!("skipped: {} is missing: install busybox-static", busybox().display());
            return None;
        }
        Some(Self)
    }
}

impl Runtime for Oci {
    fn start_shim(&self, _: &Path, dir: &Path) -> ShimProcess {
        let mut command = Command::new(shim_binary("brig-shim-oci"));
        command.arg("--dir").arg(dir);
        ShimProcess::start(command, dir)
    }

    fn program(&self, base: &Path, does: &Does) -> StartProgram {
        let script = match does {
            Does::Exit(code) => format!("exit {code}"),
            Does::Print { stdout, stderr } => {
                format!("printf '%s' '{stdout}'; printf '%s' '{stderr}' >&2")
            }
            Does::Sleep => "trap 'exit 143' TERM; echo ready; sleep 3600 & wait".to_owned(),
            Does::Spin => "echo ready; while :; do :; done".to_owned(),
            Does::TakeMemory => "x=0123456789abcdef; while :; do x=$x$x; done".to_owned(),
            Does::PrintArgsAndEnv => r#"for word in "$@"; do echo "$word"; done; env"#.to_owned(),
            Does::ReadFile(path) => format!("cat {path}"),
            Does::WriteFile(path) => format!("printf written > {path}"),
        };
        let mut program = shell(base, &script);
        program.args.push("sh".to_owned());
        program.args.extend(ARGS.map(str::to_owned));
        StartProgram::Oci(program)
    }
}

contract_of_shims!({
    let Some(oci) = Oci::available() else { return };
    oci
});

pub(crate) fn busybox() -> PathBuf {
    std::env::var_os("BRIG_TEST_BUSYBOX").map_or_else(|| "/bin/busybox".into(), PathBuf::from)
}

/// A container that runs a script in an image made of busybox, an /etc/passwd and an /etc/group.
pub(crate) fn shell(base: &Path, script: &str) -> StartOci {
    let (layer, scratch) = (base.join("layer"), base.join("scratch"));
    if !layer.exists() {
        make_layer(&layer);
        std::fs::create_dir(&scratch).expect("a fresh directory");
    }
    StartOci {
        layers: vec![layer],
        scratch,
        args: ["sh", "-c", script].map(str::to_owned).into(),
        user: String::new(),
        working_dir: "/".to_owned(),
        read_only_root: false,
        stop_signal: None,
    }
}

fn make_layer(layer: &Path) {
    for dir in ["bin", "etc", "tmp"] {
        std::fs::create_dir_all(layer.join(dir)).expect("a fresh directory");
    }
    std::fs::set_permissions(layer.join("tmp"), std::fs::Permissions::from_mode(0o1777)).unwrap();
    std::fs::copy(busybox(), layer.join("bin/busybox")).expect("busybox can be copied");
    for applet in APPLETS {
        std::os::unix::fs::symlink("busybox", layer.join("bin").join(applet)).unwrap();
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/srv/web:/bin/sh\n";
    std::fs::write(layer.join("etc/passwd"), passwd).unwrap();
    std::fs::write(layer.join("etc/group"), "root:x:0:\nweb:x:102:\nlog:x:104:web\n").unwrap();
}

/// A shim, and a task made of a script.
pub(crate) fn script(script: &str) -> Option<(Fixture, StartTask)> {
    let fixture = Fixture::new(&Oci::available()?);
    let program = shell(fixture.base.path(), script);
    let task = fixture.task("task", StartProgram::Oci(program));
    Some((fixture, task))
}

/// The container's part of a task.
pub(crate) fn oci(task: &mut StartTask) -> &mut StartOci {
    match &mut task.program {
        StartProgram::Oci(program) => program,
        StartProgram::Wasm(_) => panic!("the task is a container"),
    }
}

/// Runs a task to its end: the record, and its standard output.
pub(crate) fn run(fixture: &Fixture, task: &StartTask) -> (ExitRecord, String) {
    let mut client = fixture.shim.connect();
    client.start(task);
    let record = client.wait_exited(&task.key);
    (record, output(&task.log, Stream::Stdout))
}

/// Waits for a line of the task's standard output.
pub(crate) fn wait_for_line(task: &StartTask, line: &str) {
    wait_until(line, || output(&task.log, Stream::Stdout).lines().any(|found| found == line));
}

/// The process id of a running container's first process.
pub(crate) fn init_of(fixture: &Fixture) -> i32 {
    let record = std::fs::read(fixture.base.path().join("shim/container.json")).expect("a record");
    let record: serde_json::Value = serde_json::from_slice(&record).expect("JSON");
    record["init"]["pid"].as_i64().expect("a process id").try_into().expect("a small number")
}
