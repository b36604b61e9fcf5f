//! What a container gets, and what it is kept from.

use brig_api::lifecycle::Reason;
use brig_shim::message::{BindMount, StopSignal};

use super::{oci, run, script, wait_for_line};

#[test]
fn system_calls_and_privileges_beyond_the_default_are_refused() {
    let Some((fixture, task)) = script(
        "grep -E '^(Seccomp|NoNewPrivs|CapEff|CapBnd|CapAmb):' /proc/self/status | head -5
         mknod /tmp/disk b 254 0 2>/dev/null || echo no-mknod
         mount -t tmpfs none /tmp 2>/dev/null || echo no-mount
         unshare -U true 2>/dev/null || echo no-user-namespace
         echo 1 > /proc/sys/vm/drop_caches 2>/dev/null || echo no-sysctl
         echo x > /proc/sysrq-trigger 2>/dev/null || echo no-sysrq",
    ) else {
        return;
    };
    let (record, output) = run(&fixture, &task);
    assert_eq!(record.code, 0, "{record:?}");
    for expected in [
        "Seccomp:\t2",
        "NoNewPrivs:\t1",
        "CapEff:\t00000000a00405fb",
        "CapBnd:\t00000000a00405fb",
        "CapAmb:\t0000000000000000",
        "no-mknod",
        "no-mount",
        "no-user-namespace",
        "no-sysctl",
        "no-sysrq",
    ] {
        assert!(output.lines().any(|line| line == expected), "{expected}: {output}");
    }
}

#[test]
fn the_host_shows_as_little_as_possible() {
    let Some((fixture, task)) = script(
        "head -c 1 /proc/kcore | grep -q . || echo kcore-is-empty
         [ -z \"$(ls /sys/firmware 2>/dev/null)\" ] && echo firmware-is-empty
         touch /sys/here 2>/dev/null || echo sys-is-read-only
         touch /etc/hosts.new && touch /etc/hostname 2>/dev/null || echo hostname-is-read-only
         for dir in /sys/fs/cgroup /sys/fs/cgroup/*; do
             mkdir $dir/below 2>/dev/null && echo cgroup-is-writable: $dir; done
         ls /proc | grep -c '^[0-9]*$'
         hostname; ls /dev",
    ) else {
        return;
    };
    let (record, output) = run(&fixture, &task);
    assert_eq!(record.code, 0, "{record:?}");
    let lines: Vec<_> = output.lines().collect();
    for expected in
        ["kcore-is-empty", "firmware-is-empty", "sys-is-read-only", "hostname-is-read-only"]
    {
        assert!(lines.contains(&expected), "{expected}: {output}");
    }
    assert!(!output.contains("cgroup-is-writable"), "{output}");
    assert!(lines.contains(&"contract-task"), "{output}");
    assert!(
        lines.contains(&"null") && !output.contains("sda") && !output.contains("vda"),
        "{output}"
    );
}

#[test]
fn users_are_looked_up_in_the_image() {
    let command = "id -u; id -g; id -G; echo $HOME; grep CapEff /proc/self/status; touch /etc/x || echo refused";
    let Some((fixture, mut task)) = script(command) else { return };
    oci(&mut task).user = "web".to_owned();
    let (_, output) = run(&fixture, &task);
    let expected = "101\n102\n102 104\n/srv/web\nCapEff:\t0000000000000000\nrefused\n";
    assert_eq!(output, expected);

    let Some((fixture, mut task)) = script("true") else { return };
    oci(&mut task).user = "mallory".to_owned();
    let (record, _) = run(&fixture, &task);
    assert_eq!(record.reason, Some(Reason::CreateFailed));
    assert!(record.message.unwrap().contains("user `mallory` is not in the image's /etc/passwd"));
}

#[test]
fn a_read_only_root_refuses_writes_and_mounts_do_not() {
    let Some((fixture, mut task)) =
        script("touch /x 2>/dev/null || echo refused; touch /data/x && echo written")
    else {
        return;
    };
    oci(&mut task).read_only_root = true;
    let source = fixture.base.path().join("source");
    std::fs::create_dir(&source).unwrap();
    task.mounts.push(BindMount { source, at: "/data".to_owned(), read_only: false });
    let (_, output) = run(&fixture, &task);
    assert_eq!(output, "refused\nwritten\n");
}

#[test]
fn links_in_the_image_lead_nowhere_outside() {
    let Some((fixture, mut task)) = script("cat /real/file; pwd") else { return };
    let base = fixture.base.path();
    let layer = base.join("layer");
    // The same path on the host and in the image: what goes through the link must land in the image.
    let outside = base.join("outside");
    std::fs::create_dir(&outside).unwrap();
    for dir in [layer.join("real"), layer.join(outside.strip_prefix("/").unwrap())] {
        std::fs::create_dir_all(dir).unwrap();
    }
    let out = format!("/../../../..{}", outside.display());
    std::os::unix::fs::symlink(out, layer.join("escape")).unwrap();
    std::os::unix::fs::symlink("/real", layer.join("data")).unwrap();
    let source = base.join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("file"), "mounted\n").unwrap();
    task.mounts.push(BindMount { source, at: "/data".to_owned(), read_only: true });
    oci(&mut task).working_dir = "/escape/made".to_owned();
    let (record, output) = run(&fixture, &task);
    assert_eq!(record.code, 0, "{record:?}");
    assert_eq!(output.lines().next(), Some("mounted"));
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);

    let Some((fixture, mut task)) = script("true") else { return };
    let link = fixture.base.path().join("layer/dangling");
    std::os::unix::fs::symlink("/nothing", link).unwrap();
    oci(&mut task).working_dir = "/dangling/made".to_owned();
    let (record, _) = run(&fixture, &task);
    assert!(record.message.as_ref().unwrap().contains("a link to nothing"), "{record:?}");
}

#[test]
fn an_image_whose_dev_is_a_link_touches_nothing_of_the_host() {
    for name in ["dev", "proc", "sys"] {
        let Some((fixture, task)) = script("true") else { return };
        // The same path on the host and in the image, so that the link leads somewhere on both.
        let outside = fixture.base.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("ptmx"), "kept").unwrap();
        let layer = fixture.base.path().join("layer");
        std::fs::create_dir_all(layer.join(outside.strip_prefix("/").unwrap())).unwrap();
        std::os::unix::fs::symlink(&outside, layer.join(name)).unwrap();
        let (record, _) = run(&fixture, &task);
        let left: Vec<_> =
            std::fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["ptmx"], "{name}");
        assert_eq!(record.reason, Some(Reason::InvalidArtifact), "{record:?}");
        assert!(record.message.unwrap().contains(&format!("/{name} is not a directory")));
    }
}

#[test]
fn a_link_to_nothing_does_not_keep_the_containers_own_files_out() {
    let Some((fixture, task)) = script("cat /etc/resolv.conf >/tmp/x && echo there") else {
        return;
    };
    let link = fixture.base.path().join("layer/etc/resolv.conf");
    std::os::unix::fs::symlink("../run/systemd/resolve/stub-resolv.conf", link).unwrap();
    let (record, output) = run(&fixture, &task);
    assert_eq!((record.code, output.as_str()), (0, "there\n"), "{record:?}");
}

#[test]
fn a_working_directory_is_made_where_the_image_has_none() {
    let Some((fixture, mut task)) = script("pwd") else { return };
    oci(&mut task).working_dir = "/srv/app/data".to_owned();
    assert_eq!(run(&fixture, &task).1, "/srv/app/data\n");
}

#[test]
fn no_more_processes_than_the_limit() {
    let Some((fixture, mut task)) = script(
        "i=0; while [ $i -lt 40 ]; do sleep 3600 & i=$((i+1)); done 2>/dev/null; echo all-started",
    ) else {
        return;
    };
    task.limits.pids = 16;
    let (record, output) = run(&fixture, &task);
    assert_ne!(record.code, 0, "{record:?}");
    assert!(!output.contains("all-started"));
}

#[test]
fn a_child_that_is_killed_for_memory_is_told_as_such() {
    let Some((fixture, task)) = script(
        "sh -c 'x=0123456789abcdef; while :; do x=$x$x; done'; code=$?; echo $code; exit $code",
    ) else {
        return;
    };
    let (record, output) = run(&fixture, &task);
    assert_eq!(output, "137\n");
    assert_eq!((record.code, record.reason), (137, Some(Reason::OutOfMemory)));
    assert!(record.message.unwrap().contains("64Mi"));
}

#[test]
fn a_limit_too_small_for_a_container_is_named() {
    let Some((fixture, mut task)) = script("true") else { return };
    task.limits.memory_bytes = 1 << 20;
    let (record, _) = run(&fixture, &task);
    assert_eq!(record.reason, Some(Reason::LimitTooSmall));
    assert!(record.message.unwrap().contains("1Mi"));
}

#[test]
fn programs_that_can_not_run_are_told_apart() {
    type Prepare = fn(&std::path::Path);
    let arm: Prepare = |layer| {
        let mut head = [0; 64];
        head[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xb7\0");
        write_program(&layer.join("bin/app"), &head);
    };
    let no_loader: Prepare = |layer| write_program(&layer.join("bin/app"), b"#!/no/such/shell\n");
    let no_program: Prepare = |layer| write_program(&layer.join("bin/app"), b"hello");
    let no_mode: Prepare = |layer| std::fs::write(layer.join("bin/app"), "#!/bin/sh\n").unwrap();
    let nothing: Prepare = |_| {};
    for (prepare, code, reason, words) in [
        (arm, 126, Reason::InvalidArtifact, "is for aarch64"),
        (no_loader, 127, Reason::InvalidArtifact, "interpreter"),
        (no_program, 126, Reason::InvalidArtifact, "neither"),
        (no_mode, 126, Reason::CreateFailed, "may not be executed"),
        (nothing, 127, Reason::CreateFailed, "`app` was not found"),
    ] {
        let Some((fixture, mut task)) = script("") else { return };
        prepare(&fixture.base.path().join("layer"));
        oci(&mut task).args = vec!["app".to_owned()];
        let (record, _) = run(&fixture, &task);
        assert_eq!((record.code, record.reason), (code, Some(reason)), "{record:?}");
        assert!(record.message.as_ref().unwrap().contains(words), "{record:?}");
    }
}

fn write_program(path: &std::path::Path, bytes: &[u8]) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, bytes).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn the_stop_signal_of_the_image_is_sent() {
    let Some((fixture, mut task)) =
        script("trap 'echo usr1; exit 5' USR1; echo ready; sleep 3600 & wait")
    else {
        return;
    };
    oci(&mut task).stop_signal = Some("SIGUSR1".to_owned());
    let mut client = fixture.shim.connect();
    client.start(&task);
    wait_for_line(&task, "ready");
    client.stop(&task.key, StopSignal::Terminate);
    let record = client.wait_exited(&task.key);
    assert_eq!((record.code, record.reason), (5, None));
}
