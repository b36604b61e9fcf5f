//! What is left after ends of every kind: nothing.

use std::path::Path;
use std::process::Command;

use brig_api::lifecycle::Reason;
use brig_shim::exit::ExitRecord;
use brig_shim::message::StopSignal;

use super::{init_of, oci, run, script, wait_for_line};
use crate::shim_client::{shim_binary, wait_until};
use crate::shim_contract::Fixture;

/// Directories of cgroups that name the fixture's container.
fn cgroups(fixture: &Fixture) -> Vec<std::path::PathBuf> {
    let record = std::fs::read(fixture.base.path().join("shim/container.json"));
    let Ok(record) = record else { return Vec::new() };
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let name = record["cgroup"].as_str().unwrap();
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").unwrap();
    let mut roots: Vec<_> = hierarchies.map(|entry| entry.unwrap().path()).collect();
    roots.push("/sys/fs/cgroup".into());
    roots.iter().map(|root| root.join("brig").join(name)).filter(|path| path.is_dir()).collect()
}

fn kill(pid: &str) {
    let status = Command::new("kill").args(["-9", pid]).status().unwrap();
    assert!(status.success());
}

/// Kills the shim as a crash would.
fn kill_shim(fixture: &mut Fixture) {
    fixture.shim.kill();
    assert!(!fixture.shim.wait_for_end().success());
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

#[test]
fn an_end_leaves_no_cgroup_no_mount_and_no_file() {
    let Some((mut fixture, task)) =
        script("echo written > /tmp/file; trap 'exit 0' TERM; echo ready; sleep 3600 & wait")
    else {
        return;
    };
    let mut client = fixture.shim.connect();
    client.start(&task);
    wait_for_line(&task, "ready");
    let cgroups = cgroups(&fixture);
    assert!(!cgroups.is_empty());
    client.stop(&task.key, StopSignal::Terminate);
    assert_eq!(client.wait_exited(&task.key).code, 0);
    client.remove(&task.key);
    drop(client);
    assert!(fixture.shim.wait_for_end().success());
    assert!(cgroups.iter().all(|path| !path.exists()), "{cgroups:?}");
    assert!(is_empty(&fixture.base.path().join("scratch")));
    let left: Vec<_> = std::fs::read_dir(fixture.base.path().join("shim"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["shim.sock"]);
}

#[test]
fn cleaning_up_after_a_killed_shim_leaves_nothing_and_may_be_repeated() {
    let Some((mut fixture, task)) =
        script("echo written > /tmp/file; echo ready; sleep 3600 & wait")
    else {
        return;
    };
    fixture.shim.connect().start(&task);
    wait_for_line(&task, "ready");
    let (init, cgroups) = (init_of(&fixture), cgroups(&fixture));
    assert!(!cgroups.is_empty());
    kill_shim(&mut fixture);
    assert!(Path::new(&format!("/proc/{init}")).exists(), "the container goes on");
    let base = fixture.base.path();
    for _ in 0..2 {
        let status = Command::new(shim_binary("brig-shim-oci"))
            .args(["cleanup", "--dir"])
            .arg(base.join("shim"))
            .status()
            .unwrap();
        assert!(status.success());
    }
    wait_until("the process is gone", || {
        std::fs::read_to_string(format!("/proc/{init}/stat"))
            .map_or(true, |stat| stat.contains(") Z "))
    });
    assert!(cgroups.iter().all(|path| !path.exists()), "{cgroups:?}");
    assert!(is_empty(&base.join("scratch")));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(base.to_str().unwrap()));
    assert_eq!(ExitRecord::read(&task.dir).unwrap(), None);
}

#[test]
fn an_end_by_a_signal_that_nobody_asked_for_is_told() {
    let Some((fixture, task)) = script("echo ready; sleep 3600 & wait") else { return };
    let mut client = fixture.shim.connect();
    client.start(&task);
    wait_for_line(&task, "ready");
    kill(&init_of(&fixture).to_string());
    let record = client.wait_exited(&task.key);
    assert_eq!((record.code, record.reason), (137, Some(Reason::Signalled)));
    assert!(record.message.unwrap().contains("SIGKILL"));
}

#[test]
fn a_failed_start_leaves_nothing_either() {
    let Some((fixture, mut task)) = script("true") else { return };
    oci(&mut task).layers.push("/nowhere/layer".into());
    let (record, _) = run(&fixture, &task);
    assert_eq!(record.reason, Some(Reason::CreateFailed));
    assert!(record.message.unwrap().contains("/nowhere/layer"));
    wait_until("the scratch directory is empty", || is_empty(&fixture.base.path().join("scratch")));
}

#[test]
fn secrets_in_the_environment_are_on_no_disk() {
    let Some((fixture, mut task)) = script("echo ready; sleep 3600 & wait") else { return };
    task.env.insert("PASSWORD".to_owned(), "correct-horse-battery".to_owned());
    fixture.shim.connect().start(&task);
    wait_for_line(&task, "ready");
    let found = Command::new("grep")
        .args(["-rlI", "--exclude-dir=root", "correct-horse-battery"])
        .arg(fixture.base.path())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}

#[test]
fn output_up_to_the_very_end_is_logged() {
    let Some((fixture, mut task)) = script("seq 1 200000; printf end") else { return };
    task.log.bytes_max = 64 << 20;
    let (record, output) = run(&fixture, &task);
    assert_eq!(record.code, 0);
    assert!(output.ends_with("200000\nend"), "{}", output.len());
    assert_eq!(output.lines().count(), 200_001);
}
