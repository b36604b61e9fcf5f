//! What a task is given, and what is refused.

use super::*;
use crate::program::ImageConfig;
use brig_api::Digest;
use brig_api::placement::Grants;
use brig_api::unit_spec::UnitTemplate;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use std::path::Path;

struct Known;

impl Programs for Known {
    fn fetch<'a>(
        &'a self,
        _namespace: &'a brig_api::NamespacePath,
        reference: &'a str,
        _runtime: brig_api::unit_spec::Runtime,
    ) -> BoxFuture<'a, Result<Fetched, Fault>> {
        let fetched = if reference.starts_with("image") {
            let entrypoint = vec!["/app".to_owned()];
            let user = reference.strip_prefix("image:of-").unwrap_or_default().to_owned();
            let config = ImageConfig { entrypoint, user, ..ImageConfig::default() };
            Fetched::Image { config, layers: vec!["/layer".into()] }
        } else {
            Fetched::Wasm { path: "/app.wasm".into(), digest: Digest::of_sha256(&[1; 32]) }
        };
        async move { Ok(fetched) }.boxed()
    }
}

fn assignment(tasks: &Value) -> Assignment {
    let template: UnitTemplate =
        serde_json::from_value(json!({"tasks": tasks, "restart": "never", "grace_ms": 1})).unwrap();
    let value = json!({
        "unit": "u1", "name": "web-1", "namespace": "team", "is_wanted": true, "placed_by": 1,
        "template": template,
        "identity": {"BRIG_UNIT": "web-1"},
        "texts": {"configs": {"c": {"file": "open"}}, "secrets": {"s": {"file": "hidden"}}},
    });
    serde_json::from_value(value).unwrap()
}

fn task(program: &Value, more: &Value) -> Value {
    let amount = json!({"cpu": "250m", "memory": "1Mi"});
    let mut task = json!({"name": "main", "resources": amount, "limits": amount});
    for part in [program, more] {
        task.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
    }
    json!([task])
}

fn preparer(data: &Path) -> Preparer {
    let compiler = crate::tests::fake_compiler::make(data);
    let compiled = CompiledCode::new(compiler, data.join("wasm-cache"));
    Preparer {
        disk: Arc::new(Disk::open(data).unwrap().0),
        programs: Arc::new(Known),
        held: HeldArtifacts::open(data, compiled.clone()),
        compiled,
        host_paths: vec![],
        address: "127.0.0.1".parse().unwrap(),
        architecture: "amd64",
    }
}

async fn prepare(
    tasks: &Value,
    ports: &BTreeMap<ResourceName, u16>,
) -> (tempfile::TempDir, Result<Vec<StartTask>, Fault>) {
    prepare_with(tasks, ports, Grants::default()).await
}

async fn prepare_with(
    tasks: &Value,
    ports: &BTreeMap<ResourceName, u16>,
    grants: Grants,
) -> (tempfile::TempDir, Result<Vec<StartTask>, Fault>) {
    let dir = tempfile::tempdir().unwrap();
    let preparer = preparer(dir.path());
    let assignment_of = |tasks| Assignment { grants, ..assignment(tasks) };
    let outcome = preparer.prepare(&assignment_of(tasks), 2, ports).await;
    let _ = std::fs::remove_dir_all(preparer.disk.secrets(&assignment(tasks).unit));
    (dir, outcome)
}

#[tokio::test]
async fn a_task_gets_its_variables_its_identity_and_its_files() {
    let more = json!({
        "env": {
            "PLAIN": "x", "BRIG_UNIT": "forged",
            "OPEN": {"config": "c", "key": "file"}, "HIDDEN": {"secret": "s", "key": "file"},
        },
        "mounts": [{"config": "c", "at": "/etc/c"}, {"secret": "s", "at": "/etc/s"}],
    });
    let program = json!({"wasm": {"artifact": "team/app:1", "args": ["-v"], "http": {"port": 81}}});
    let (dir, outcome) = prepare(&task(&program, &more), &BTreeMap::new()).await;
    let start = outcome.unwrap().remove(0);
    let env = |name: &str| start.env.get(name).map(String::as_str);
    assert_eq!(env("PLAIN"), Some("x"));
    assert_eq!(env("BRIG_UNIT"), Some("web-1"), "nobody's identity can be forged");
    assert_eq!((env("OPEN"), env("HIDDEN")), (Some("open"), Some("hidden")));
    assert_eq!(env("PORT"), Some("81"));
    assert_eq!(std::fs::read_to_string(start.mounts[0].source.join("file")).unwrap(), "open");
    assert!(start.mounts.iter().all(|mount| mount.read_only));
    assert!(!start.mounts[1].source.starts_with(dir.path()) || !Path::new("/dev/shm").exists());
    assert_eq!(start.key.0, "u1.main.2");
    let StartProgram::Wasm(wasm) = start.program else { panic!("not wasm") };
    assert_eq!(wasm.args, ["app", "-v"]);
    assert_eq!(wasm.http.unwrap().port(), 81);
}

#[tokio::test]
async fn a_wasm_program_finds_its_ports_its_config_and_its_buckets() {
    let program = json!({"wasm": {
        "artifact": "app", "ports": [0, 9000], "keyvalue": ["carts"], "clocks": "coarse",
        "config": {"plain": "x", "open": {"config": "c", "key": "file"}, "hidden": {"secret": "s", "key": "file"}},
    }});
    let tasks = task(&program, &json!({}));
    let grants = Grants { ports: vec![20_007], ..Grants::default() };
    let (dir, outcome) = prepare_with(&tasks, &BTreeMap::new(), grants).await;
    let start = outcome.unwrap().remove(0);
    assert_eq!((start.env["PORT"].as_str(), start.env["BRIG_PORT_1"].as_str()), ("20007", "9000"));
    let StartProgram::Wasm(wasm) = start.program else { panic!("not wasm") };
    assert_eq!(wasm.world.ports, [20_007, 9_000]);
    let config: Vec<_> = wasm.world.config.values().map(String::as_str).collect();
    assert_eq!(config, ["hidden", "open", "x"]);
    assert!(!format!("{:?}", wasm.world).contains("hidden"));
    let keyvalue = wasm.world.keyvalue.unwrap();
    assert_eq!(keyvalue.buckets, ["carts"]);
    assert!(keyvalue.file.starts_with(dir.path().canonicalize().unwrap().join("namespaces")));
    let program =
        json!({"wasm": {"artifact": "app", "config": {"k": {"secret": "s", "key": "other"}}}});
    let (_dir, outcome) = prepare(&task(&program, &json!({})), &BTreeMap::new()).await;
    let message = outcome.unwrap_err().message;
    assert!(message.contains("`config` key `k` of task `main`") && message.contains("`other`"));
}

#[tokio::test]
async fn a_port_that_was_picked_is_asked_for_again_unless_it_is_taken() {
    let program = json!({"wasm": {"artifact": "app", "http": {}}});
    let tasks = task(&program, &json!({}));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let ports = BTreeMap::from([(ResourceName::new("main").unwrap(), port)]);
    for (held, expected) in [(Some(listener), 0), (None, port)] {
        let (_dir, outcome) = prepare(&tasks, &ports).await;
        let StartProgram::Wasm(wasm) = outcome.unwrap().remove(0).program else { panic!() };
        assert_eq!(wasm.http.unwrap().port(), expected);
        drop(held);
    }
}

#[tokio::test]
async fn a_container_gets_a_scratch_directory_and_the_image_s_program() {
    let program = json!({"oci": {"image": "image:1", "ports": [8080]}});
    let (dir, outcome) = prepare(&task(&program, &json!({})), &BTreeMap::new()).await;
    let start = outcome.unwrap().remove(0);
    assert_eq!((start.env["PORT"].as_str(), start.limits.pids), ("8080", PIDS_DEFAULT));
    let StartProgram::Oci(oci) = start.program else { panic!("not oci") };
    assert_eq!((oci.args, oci.working_dir.as_str()), (vec!["/app".to_owned()], "/"));
    assert!(oci.scratch.starts_with(dir.path().canonicalize().unwrap().join("scratch")));
}

#[tokio::test]
async fn a_container_finds_its_ports_and_devices_and_can_not_be_told_others() {
    let amount = json!({"cpu": 1, "memory": "1Mi", "scalars": {"licence-x": 2}});
    let program = json!({"oci": {"image": "image:1", "ports": [0, 9000]}, "resources": amount});
    let tasks =
        task(&program, &json!({"env": {"BRIG_PORT_0": "1", "PORT": "2"}, "resources": amount}));
    let devices = [("licence-x".into(), vec![0, 3])].into();
    let grants = Grants { ports: vec![20_007], devices, ..Grants::default() };
    let (_dir, outcome) = prepare_with(&tasks, &BTreeMap::new(), grants).await;
    let env = outcome.unwrap().remove(0).env;
    assert_eq!((env["BRIG_PORT_0"].as_str(), env["BRIG_PORT_1"].as_str()), ("20007", "9000"));
    assert_eq!(env["BRIG_DEVICES_LICENCE_X"], "0,3");
    assert_eq!(env["PORT"], "2", "a variable of ours that has no prefix can be another's");
    let (_dir, outcome) = prepare(&tasks, &BTreeMap::new()).await;
    let fault = outcome.unwrap_err();
    assert_eq!(fault.reason, Reason::CreateFailed);
    assert!(fault.message.contains("`main` leaves a port open"), "{}", fault.message);
}

#[tokio::test]
async fn the_user_that_the_image_names_can_read_the_secrets_too() {
    use std::os::unix::fs::MetadataExt as _;
    let more = json!({"mounts": [{"secret": "s", "at": "/etc/s"}]});
    for (image, mode) in [("image:1", 0o400), ("image:of-www", 0o444)] {
        let tasks = task(&json!({"oci": {"image": image}}), &more);
        let dir = tempfile::tempdir().unwrap();
        let preparer = preparer(dir.path());
        let start = preparer.prepare(&assignment(&tasks), 2, &BTreeMap::new()).await.unwrap();
        let file = start[0].mounts[0].source.join("file").metadata().unwrap();
        let _ = std::fs::remove_dir_all(preparer.disk.secrets(&assignment(&tasks).unit));
        assert_eq!(file.mode() & 0o777, mode, "{image}");
    }
}

#[tokio::test]
async fn what_is_missing_or_not_allowed_is_named() {
    let wasm = json!({"wasm": {"artifact": "app"}});
    for (program, more, reason, words) in [
        (&wasm, json!({"env": {"A": {"secret": "no", "key": "k"}}}), Reason::MountRefused, "`no`"),
        (&wasm, json!({"env": {"A": {"config": "c", "key": "k"}}}), Reason::MountRefused, "`file`"),
        (&wasm, json!({"mounts": [{"config": "no", "at": "/x"}]}), Reason::MountRefused, "`no`"),
        (&wasm, json!({"mounts": [{"host": "/etc", "at": "/x"}]}), Reason::MountRefused, "/etc"),
        (
            &json!({"wasm": {"artifact": "image"}}),
            json!({}),
            Reason::InvalidArtifact,
            "write `oci`",
        ),
        (&json!({"oci": {"image": "app"}}), json!({}), Reason::InvalidArtifact, "write `wasm`"),
    ] {
        let (_dir, outcome) = prepare(&task(program, &more), &BTreeMap::new()).await;
        let fault = outcome.unwrap_err();
        assert_eq!(fault.reason, reason);
        assert!(fault.message.contains(words), "{}", fault.message);
    }
}
