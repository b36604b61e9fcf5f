//! Locking, and reading back what was written at each point where an agent may be killed.

use super::*;
use crate::record::Phase;
use brig_api::session::Assignment;

fn assignment(unit: &str) -> Assignment {
    let text = serde_json::json!({
        "unit": unit, "name": "web", "namespace": "team/dev", "is_wanted": true, "placed_by": 3,
        "template": {
            "tasks": [{
                "name": "main", "wasm": {"artifact": "team/app:1"},
                "resources": {"cpu": "100m", "memory": "64Mi"},
                "limits": {"cpu": "100m", "memory": "64Mi"},
            }],
            "restart": "always", "grace_ms": 1000,
        },
        "identity": {}, "texts": {
            "configs": {"c": {"key": "open"}}, "secrets": {"s": {"key": "hidden-text"}},
        },
    });
    serde_json::from_value(text).unwrap()
}

#[test]
fn a_second_agent_is_refused_and_told_why() {
    let dir = tempfile::tempdir().unwrap();
    let first = Disk::open(dir.path()).unwrap();
    let error = Disk::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("another agent") && error.contains("--data"), "{error}");
    drop(first);
    assert!(Disk::open(dir.path()).is_ok());
}

#[test]
fn nobody_else_on_the_machine_reaches_images_containers_and_units() {
    let dir = tempfile::tempdir().unwrap();
    // As an agent before this one left it.
    std::fs::create_dir(dir.path().join("artifacts")).unwrap();
    let (disk, _lock) = Disk::open(dir.path()).unwrap();
    for entry in std::fs::read_dir(disk.root()).unwrap().map(Result::unwrap) {
        let metadata = entry.metadata().unwrap();
        let mode = metadata.permissions().mode() & 0o777;
        assert!(metadata.is_file() || mode == 0o700, "{}: {mode:o}", entry.path().display());
    }
}

#[test]
fn units_are_read_back_without_the_texts_of_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, _lock) = Disk::open(dir.path()).unwrap();
    let assignment = assignment("u1");
    disk.write_assignment(&assignment).unwrap();
    let bytes = std::fs::read(disk.unit(&assignment.unit).join("assignment.json")).unwrap();
    assert!(!String::from_utf8_lossy(&bytes).contains("hidden-text"));
    // Killed here: the unit is as it was assigned.
    let (units, damaged) = disk.units().unwrap();
    assert_eq!((units[0].record.phase, damaged.len()), (Phase::Preparing, 0));
    assert_eq!(units[0].assignment.texts.configs, assignment.texts.configs);
    let mut record = UnitRecord::assigned();
    record.phase = Phase::Started;
    disk.write_record(&assignment.unit, &record, true).unwrap();
    // Killed while the next one was being written.
    std::fs::write(disk.unit(&assignment.unit).join("state.new"), b"{").unwrap();
    assert_eq!(disk.units().unwrap().0[0].record, record);
    let logs = disk.logs(&assignment, Runtime::Wasm);
    std::fs::create_dir_all(&logs).unwrap();
    disk.remove_unit(&assignment.namespace, &assignment.unit).unwrap();
    disk.remove_unit(&assignment.namespace, &assignment.unit).unwrap();
    assert!(!logs.exists());
    std::fs::create_dir_all(&logs).unwrap();
    disk.retain_wasm_logs([&assignment.unit]).unwrap();
    assert!(logs.exists());
    disk.retain_wasm_logs([]).unwrap();
    assert!(!logs.exists());
    assert!(disk.units().unwrap().0.is_empty());
}

#[test]
fn damaged_files_are_named_and_harm_no_other_unit() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, _lock) = Disk::open(dir.path()).unwrap();
    for unit in ["u1", "u2", "u3"] {
        disk.write_assignment(&assignment(unit)).unwrap();
    }
    let unit = |text| UnitId::new(text).unwrap();
    std::fs::write(disk.unit(&unit("u2")).join("state.json"), b"").unwrap();
    std::fs::rename(disk.unit(&unit("u3")), disk.unit(&unit("u4"))).unwrap();
    let (units, damaged) = disk.units().unwrap();
    assert_eq!((units.len(), damaged), (1, vec![unit("u2"), unit("u4")]));
}

#[test]
fn shims_and_runs_are_found_by_their_directories() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, _lock) = Disk::open(dir.path()).unwrap();
    let wasm = ShimId::Wasm(NamespacePath::new("team/dev").unwrap());
    let key = TaskKey("u1.main.0".into());
    let oci = ShimId::Oci(key.clone());
    let paths = [disk.shim(&wasm), disk.task(&wasm, &key), disk.shim(&oci), disk.scratch(&key)];
    for path in paths {
        std::fs::create_dir_all(path).unwrap();
    }
    assert_eq!(disk.shims().unwrap(), [wasm.clone(), oci.clone()]);
    let both = [&wasm, &oci].map(|shim| (shim.clone(), key.clone()));
    assert_eq!(disk.tasks().unwrap(), BTreeSet::from(both));
    disk.remove_task(&oci, &key).unwrap();
    assert!(!disk.shim(&oci).exists() && disk.task(&wasm, &key).exists());
    disk.remove_task(&wasm, &key).unwrap();
    assert!(disk.tasks().unwrap().is_empty());
}
