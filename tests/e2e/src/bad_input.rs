//! What users and the world get wrong: each gets a clear error that names the thing and the way out.

use std::fs;

use crate::harness::{Cluster, brig_alone, guest, has_containers, image, tool};

#[test]
fn a_file_that_is_no_wasm_is_named() {
    let cluster = Cluster::dev();
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("notes.wasm");
    fs::write(&text, "just a text").unwrap();
    let ran = cluster.brig(&["run", "--rm", &text.display().to_string()]);
    ran.fails(1, &["notes.wasm"]);
    let native = folder.path().join("native.wasm");
    fs::copy("/bin/true", &native).unwrap();
    cluster.brig(&["push", &native.display().to_string(), "x:1"]).fails(1, &["native.wasm", "ELF"]);
    // The first bytes are right, the rest is not.
    let mut broken = fs::read(guest("hello.wasm")).unwrap();
    broken.truncate(broken.len() / 2);
    let cut = folder.path().join("cut.wasm");
    fs::write(&cut, broken).unwrap();
    let ran = cluster.brig(&["run", "--rm", &cut.display().to_string()]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(ran.stderr.contains("cut"), "{ran:#?}");
    cluster.brig(&["run", "--rm", "/no/such/file.wasm"]).fails(3, &["/no/such/file.wasm"]);
}

#[test]
fn an_import_that_nobody_grants_is_named() {
    let cluster = Cluster::dev();
    let folder = tempfile::tempdir().unwrap();
    // (module (import "nowhere" "nothing" (func)) (memory (export "memory") 1) (func (export "_start")))
    let module: &[u8] = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x02\x13\x01\x07nowhere\x07nothing\0\0\x03\x02\x01\0\x05\x03\x01\0\x01\x07\x13\x02\x06memory\x02\0\x06_start\0\x01\x0a\x04\x01\x02\0\x0b";
    let path = folder.path().join("needy.wasm");
    fs::write(&path, module).unwrap();
    cluster
        .brig(&["run", "--rm", &path.display().to_string()])
        .fails(2, &["unit.wasm.artifact", "`nowhere.nothing`"]);
    // An http component is no command, and says what to do.
    cluster.brig(&["run", "--rm", &guest("web.wasm")]).fails(2, &["unit.wasm.http", "--http"]);
}

#[test]
fn an_image_for_another_machine_is_refused_by_name() {
    if !has_containers() {
        return;
    }
    let cluster = Cluster::dev();
    let host = cluster.url.strip_prefix("http://").unwrap();
    let (source, target) =
        (format!("oci:{}:foreign", image("layout")), format!("docker://{host}/team/foreign:1"));
    tool("skopeo", &[&"copy", &"--dest-tls-verify=false", &source, &target]);
    cluster.brig(&["run", "--rm", "team/foreign:1", "--", "true"]).fails(1, &["arm64", "amd64"]);
}

#[test]
fn a_corrupt_blob_is_found_and_named() {
    let cluster = Cluster::dev();
    cluster.ok(&["push", &guest("hello.wasm"), "team/hello:1"]);
    let hello = fs::read(guest("hello.wasm")).unwrap();
    let mut corrupted = 0;
    let mut folders = vec![cluster.data.join("server")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().filter_map(Result::ok) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if fs::read(&path).is_ok_and(|bytes| bytes == hello) {
                let mut bytes = hello.clone();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                // A new file, as a bad disk would not ask for permission either.
                fs::remove_file(&path).unwrap();
                fs::write(&path, bytes).unwrap();
                corrupted += 1;
            }
        }
    }
    assert_eq!(corrupted, 1, "the blob is in the registry once");
    cluster.ok(&["run", "--detach", "--name", "hello", "team/hello:1"]);
    cluster.wait("the blob to be named", || {
        let unit = cluster.unit("hello");
        let message = unit["message"].as_str().unwrap_or_default();
        unit["reason"] == "PullFailed"
            && message.contains("sha256:")
            && message.contains("push the artifact again")
    });
    // The way out that it names; the unit goes on by itself.
    cluster.ok(&["push", &guest("hello.wasm"), "team/hello:1"]);
    cluster.wait_for_state("hello", "succeeded");
}

#[test]
fn manifests_are_refused_with_the_field_and_the_nearest_name() {
    let cluster = Cluster::dev();
    let apply = |manifest: &str| cluster.with_input(&["apply", "-f", "-"], manifest);
    apply("kind: service\nname: x\nreplica: 2\nunit: {wasm: {artifact: a}}\n")
        .fails(2, &["replica", "Did you mean `replicas`?"]);
    apply("kind: service\nname: x\nunit: {wasm: {artefact: a}}\n")
        .fails(2, &["unit.wasm", "`artifact`"]);
    apply("kind: service\nname: Bad_Name\nunit: {wasm: {artifact: a}}\n")
        .fails(2, &["Bad_Name", "lower-case"]);
    apply("kind: pod\nname: x\n").fails(2, &["`pod`", "service"]);
    apply(": : :").fails(2, &["YAML"]);
    apply("").fails(2, &["no manifests"]);
    apply("kind: service\nname: x\nunit: {wasm: {artifact: 'nobody/pushed-this:1'}}\n")
        .fails(2, &["nobody/pushed-this:1", "brig push"]);
    apply("kind: service\nname: x\nnamespace: nowhere\nunit: {wasm: {artifact: a}}\n")
        .fails(2, &["nowhere"]);
    assert_eq!(
        cluster.ok(&["get", "services", "-o", "json"]).trim(),
        "[]",
        "nothing of that was applied"
    );
}

#[test]
fn an_apply_takes_effect_whole_or_not_at_all() {
    let cluster = Cluster::dev();
    let ran = cluster.with_input(
        &["apply", "-f", "-"],
        "kind: config\nname: good\ndata: {a: b}\n---\nkind: config\nname: lost\nnamespace: nowhere\ndata: {a: b}\n",
    );
    assert_ne!(ran.code, 0);
    assert_eq!(cluster.ok(&["get", "configs", "-o", "name"]).trim(), "");
}

#[test]
fn a_name_that_is_taken_is_named() {
    let cluster = Cluster::dev();
    let probe = guest("probe.wasm");
    cluster.ok(&["run", "--detach", "--name", "mine", &probe, "--", "ticker"]);
    let ran = cluster.brig(&["run", "--detach", "--name", "mine", &probe, "--", "ticker"]);
    ran.fails(1, &["mine"]);
}

#[test]
fn a_unit_larger_than_any_node_waits_and_says_what_would_be_enough() {
    let cluster = Cluster::dev();
    let name = cluster.ok(&[
        "run",
        "--detach",
        "--name",
        "huge",
        "--memory",
        "900Ti",
        &guest("hello.wasm"),
    ]);
    assert_eq!(name.trim(), "huge");
    cluster.wait("a refusal", || cluster.unit("huge")["reason"] == "Unschedulable");
    assert_eq!(cluster.unit("huge")["state"], "pending");
    let why = cluster.ok(&["why", "huge"]);
    assert!(why.contains("memory") && why.contains("900Ti"), "{why}");
    let node = cluster.json(&["node", "ls", "-o", "json"])[0]["name"].as_str().unwrap().to_owned();
    let why = cluster.ok(&["why", "huge", "--node", &node]);
    assert!(why.contains(&format!("huge can't go to {node}:")) && why.contains("900Ti"), "{why}");
    cluster.brig(&["why", "huge", "--node", "nowhere"]).fails(3, &["nowhere"]);
    let history = cluster.ok(&["why", "huge", "--history"]);
    assert!(history.contains(" ago: huge waits"), "{history}");
    // It is in nobody's way.
    assert_eq!(cluster.brig(&["run", "--rm", &guest("hello.wasm")]).code, 0);
    cluster.ok(&["delete", "huge"]);
}

#[test]
fn a_quota_holds() {
    let cluster = Cluster::dev();
    cluster.apply("kind: namespace\nname: small\nquota: {cpu: 150m, memory: 1Gi}\n");
    for name in ["one", "two"] {
        cluster.ok(&[
            "run",
            "--detach",
            "-n",
            "small",
            "--name",
            name,
            "--cpu",
            "100m",
            &guest("probe.wasm"),
            "--",
            "ticker",
        ]);
    }
    cluster.wait_for_state("one", "running");
    cluster.wait("the refusal", || cluster.unit("two")["reason"] == "QuotaExceeded");
    cluster.ok(&["delete", "-n", "small", "one"]);
    cluster.wait_for_state("two", "running");
}

#[test]
fn a_full_disk_is_named_and_heals() {
    if !has_containers() {
        return;
    }
    // A small filesystem of the test's own, mounted where the node keeps its data.
    let folder = tempfile::tempdir().unwrap();
    let small = folder.path().join("small");
    fs::create_dir(&small).unwrap();
    let mounted = small.display().to_string();
    tool("mount", &[&"-t", &"tmpfs", &"-o", &"size=24m", &"tmpfs", &mounted]);
    let outcome = std::panic::catch_unwind(|| {
        let mut cluster = Cluster::apart();
        cluster.node.as_mut().unwrap().terminate();
        let data = cluster.data.join("node");
        fs::remove_dir_all(&data).unwrap();
        std::os::unix::fs::symlink(&small, &data).unwrap();
        cluster.start_node();
        let filler = small.join("filler");
        tool(
            "sh",
            &[&"-c", &format!("head -c 64m /dev/zero > {} 2>/dev/null; true", filler.display())],
        );
        // CPython does not fit any more.
        cluster.ok(&[
            "run",
            "--detach",
            "--name",
            "big",
            "--memory",
            "256Mi",
            &guest("python.wasm"),
            "--",
            "-c",
            "print(6 * 7)",
        ]);
        cluster.wait("the full disk to be told", || {
            cluster.unit("big").to_string().contains("DiskFull")
                || cluster.ok(&["events"]).to_lowercase().contains("no space")
        });
        assert_ne!(cluster.brig(&["version"]).code, 5, "the control plane goes on");
        cluster.ok(&["delete", "--detach", "big"]);
        fs::remove_file(&filler).unwrap();
        cluster.wait("the unit to be gone", || cluster.unit("big").is_null());
        assert_eq!(
            cluster.brig(&["run", "--rm", &guest("hello.wasm")]).code,
            0,
            "it heals by itself"
        );
        cluster.node.as_mut().unwrap().kill();
    });
    tool("umount", &[&"--lazy", &mounted]);
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn wrong_use_and_an_absent_server_have_their_exit_codes() {
    brig_alone(&["no-such-command"]).fails(2, &[]);
    brig_alone(&["get", "pods"]).fails(2, &["`pods`"]);
    let node = ["node", "--data", "/tmp/brig-never"];
    brig_alone(&[&node[..], &["--taint", "gpu"]].concat()).fails(2, &["KEY=VALUE:EFFECT"]);
    brig_alone(&[&node[..], &["--resource", "cpu=4"]].concat()).fails(2, &["by itself"]);
    brig_alone(&["--server", "http://127.0.0.1:1", "ps"])
        .fails(5, &["http://127.0.0.1:1", "brig dev"]);
    brig_alone(&["--server", "nonsense", "ps"]).fails(2, &["nonsense"]);
    brig_alone(&["server", "--data", "/tmp/brig-never", "--listen", "0.0.0.0:0"])
        .fails(1, &["token"]);
    let cluster = Cluster::dev();
    cluster.brig(&["get", "service", "nobody"]).fails(3, &["nobody"]);
    cluster.brig(&["logs", "nobody"]).fails(3, &["nobody"]);
    cluster.brig(&["why", "nobody"]).fails(3, &["nobody"]);
    cluster.brig(&["sql", "delete from units"]).fails(2, &[]);
    cluster.brig(&["sql", "select * from secret_texts"]).fails(2, &[]);
}
