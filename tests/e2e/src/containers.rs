//! Real images, made of Debian packages, pushed with skopeo, run as containers.

use std::path::Path;

use crate::harness::{Cluster, get, has_containers, image, tool};

/// Pushes an image of the test layout with skopeo, as any OCI client would.
fn skopeo_push(cluster: &Cluster, tag: &str, reference: &str) {
    let host = cluster.url.strip_prefix("http://").unwrap();
    let (source, target) =
        (format!("oci:{}:{tag}", image("layout")), format!("docker://{host}/{reference}"));
    tool("skopeo", &[&"copy", &"--dest-tls-verify=false", &source, &target]);
}

#[test]
fn an_image_pushed_by_skopeo_runs_and_comes_back_the_same() {
    if !has_containers() {
        return;
    }
    let cluster = Cluster::dev();
    skopeo_push(&cluster, "busybox", "team/busybox:1");
    let ran = cluster.brig(&[
        "run",
        "--rm",
        "team/busybox:1",
        "--",
        "sh",
        "-c",
        "echo hello; echo oops >&2; exit 3",
    ]);
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (3, "hello\n", "oops\n"),
        "{ran:#?}"
    );
    let folder = tempfile::tempdir().unwrap();
    let host = cluster.url.strip_prefix("http://").unwrap();
    let (source, target) =
        (format!("docker://{host}/team/busybox:1"), format!("oci:{}:1", folder.path().display()));
    tool("skopeo", &[&"copy", &"--src-tls-verify=false", &source, &target]);
    let digest = |layout: &str, tag: &str| {
        let reference = format!("oci:{layout}:{tag}");
        tool("skopeo", &[&"inspect", &"--format", &"{{.Digest}}", &reference])
    };
    assert_eq!(
        digest(&image("layout"), "busybox"),
        digest(&folder.path().display().to_string(), "1")
    );
}

#[test]
fn a_layout_folder_and_a_tar_are_pushed_and_run() {
    if !has_containers() {
        return;
    }
    let cluster = Cluster::dev();
    for input in ["busybox", "busybox.tar"] {
        let ran = cluster.brig(&["run", "--rm", &image(input), "--", "echo", "from", input]);
        assert_eq!((ran.code, ran.stdout), (0, format!("from {input}\n")), "{}", ran.stderr);
    }
}

#[test]
fn nginx_from_debian_serves_as_a_service() {
    if !has_containers() {
        return;
    }
    let cluster = Cluster::dev();
    skopeo_push(&cluster, "nginx", "team/nginx:1");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    cluster.apply(&format!(
        "kind: service\nname: site\nunit:\n  resources: {{cpu: 200m, memory: 128Mi}}\n  env: {{PORT: {port}}}\n  oci: {{image: team/nginx:1, ports: [{port}]}}\n"
    ));
    cluster.wait_for_service("site", 1);
    cluster.wait("nginx to answer", || {
        crate::harness::try_get(&format!("http://127.0.0.1:{port}/")).is_ok_and(|(s, _)| s == 200)
    });
    assert!(get(&format!("http://127.0.0.1:{port}/")).1.to_lowercase().contains("nginx"));
    cluster.ok(&["delete", "service/site"]);
    assert!(crate::harness::try_get(&format!("http://127.0.0.1:{port}/")).is_err(), "it is gone");
}

#[test]
fn python_from_debian_runs_with_environment_user_and_mounts() {
    if !has_containers() {
        return;
    }
    let cluster = Cluster::dev();
    skopeo_push(&cluster, "python", "team/python:1");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("in.txt"), "21").unwrap();
    cluster.apply("kind: secret\nname: s\ndata: {key: hush-hush}\n");
    cluster.apply(&format!(
        "kind: unit\nname: py\nunit:\n  restart: never\n  env: {{A: b, S: {{secret: s, key: key}}}}\n  mounts: [{{host: {}, at: /in, read_only: true}}]\n  oci: {{image: team/python:1, user: nobody, working_dir: /tmp, args: [-c, 'import os; print(2 * int(open(\"/in/in.txt\").read()), os.environ[\"A\"], len(os.environ[\"S\"]), os.getuid(), os.getcwd())']}}\n",
        folder.path().display()
    ));
    cluster.wait_for_state("py", "succeeded");
    assert_eq!(cluster.ok(&["logs", "py"]).trim(), "42 b 9 65534 /tmp");
    for text in [
        cluster.ok(&["describe", "py"]),
        cluster.ok(&["get", "secrets", "-o", "json"]),
        cluster.ok(&["events"]),
    ] {
        assert!(!text.contains("hush-hush"), "a secret is seen: {text}");
    }
}

#[test]
fn limits_hold_and_out_of_memory_is_told_as_such() {
    if !has_containers() {
        return;
    }
    let cluster = Cluster::dev();
    cluster.ok(&["push", &image("busybox"), "busybox:1"]);
    let ran = cluster.brig(&[
        "run",
        "--rm",
        "--memory",
        "16Mi",
        "busybox:1",
        "--",
        "sh",
        "-c",
        "x=$(head -c 64000000 /dev/zero | tr '\\0' 'x'); echo ${#x}",
    ]);
    ran.fails(137, &["OutOfMemory", "16"]);
    let ran = cluster.brig(&[
        "run",
        "--rm",
        "busybox:1",
        "--",
        "sh",
        "-c",
        "grep -E 'Seccomp:|NoNewPrivs' /proc/self/status",
    ]);
    let lines: Vec<_> = ran.stdout.split_whitespace().collect();
    assert_eq!(lines, ["NoNewPrivs:", "1", "Seccomp:", "2"], "{ran:#?}");
}

#[test]
fn exec_runs_inside_and_stop_keeps_to_the_grace_period() {
    if !has_containers() {
        return;
    }
    let cluster = Cluster::dev();
    cluster.ok(&["push", &image("busybox"), "busybox:1"]);
    // The shell, as process 1, ignores SIGTERM: only the kill after the grace period ends it.
    cluster.apply(
        "kind: unit\nname: box\nunit:\n  grace_ms: 500\n  oci: {image: 'busybox:1', args: [sh, -c, 'trap \"\" TERM; while true; do sleep 1; done']}\n",
    );
    cluster.wait_for_state("box", "running");
    let ran = cluster.brig(&["exec", "box", "--", "sh", "-c", "echo inside; cat; exit 5"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (5, "inside\n"), "{ran:#?}");
    let ran = cluster.with_input(&["exec", "-i", "box", "--", "wc", "-c"], "12345");
    assert_eq!((ran.code, ran.stdout.trim()), (0, "5"), "{ran:#?}");
    cluster.brig(&["exec", "box", "--", "/no/such/program"]).fails(127, &[]);
    cluster.ok(&["stop", "box"]);
    cluster.wait_for_state("box", "stopped");
    let unit = cluster.unit("box");
    assert_eq!(unit["reason"], "Requested");
}

#[test]
fn nothing_is_left_of_a_cluster_that_ended() {
    if !has_containers() {
        return;
    }
    let mut cluster = Cluster::dev();
    cluster.ok(&["push", &image("busybox"), "busybox:1"]);
    cluster.apply("kind: service\nname: box\nreplicas: 2\nunit:\n  grace_ms: 200\n  oci: {image: 'busybox:1', args: [sleep, '1000']}\n");
    cluster.wait_for_service("box", 2);
    assert_eq!(cluster.shims("oci").len(), 2);
    cluster.ok(&["delete", "service/box"]);
    cluster.wait("the shims to end", || cluster.shims("oci").is_empty());
    assert_eq!(cluster.server.as_mut().unwrap().terminate(), Some(0));
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&cluster.data.display().to_string()), "mounts are left: {mounts}");
    for hierarchy in ["/sys/fs/cgroup/memory/brig", "/sys/fs/cgroup/brig"] {
        let left =
            std::fs::read_dir(hierarchy).into_iter().flatten().filter_map(Result::ok).filter(
                |entry| {
                    // Other tests' clusters may run at the same time; ours had this service only.
                    entry.path().is_dir()
                        && entry.file_name().to_string_lossy().contains("box")
                        && Path::new(&entry.path()).exists()
                },
            );
        assert_eq!(left.count(), 0, "cgroups are left in {hierarchy}");
    }
}
