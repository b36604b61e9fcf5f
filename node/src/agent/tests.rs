//! The loop's answers to single events that come at the wrong time.

use std::sync::Arc;

use brig_api::NamespacePath;
use brig_api::unit_spec::Runtime;
use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::*;
use crate::plan::Fault;
use crate::program::Fetched;
use crate::shims::Programs;

/// Knows none.
struct NoPrograms;

impl crate::program::Programs for NoPrograms {
    fn fetch<'a>(
        &'a self,
        _namespace: &'a NamespacePath,
        reference: &'a str,
        _runtime: Runtime,
    ) -> BoxFuture<'a, Result<Fetched, Fault>> {
        let message = format!("`{reference}`: not found");
        async move { Err(Fault { reason: brig_api::lifecycle::Reason::PullFailed, message }) }
            .boxed()
    }
}

fn agent(data: &std::path::Path) -> Agent {
    let (disk, _) = Disk::open(data).unwrap();
    let disk = Arc::new(disk);
    let (events, _) = mpsc::channel(8);
    let programs = Programs { wasm: "/none".into(), oci: "/none".into(), holds_workers: false };
    let address = "127.0.0.1".parse().unwrap();
    let compiled = crate::compiled::CompiledCode::new("/none".into(), "/none".into());
    let preparer = Preparer {
        disk: disk.clone(),
        programs: Arc::new(NoPrograms),
        compiled: compiled.clone(),
        held: crate::held::HeldArtifacts::open(disk.root(), compiled),
        host_paths: vec![],
        address,
        architecture: "amd64",
    };
    Agent::new(Parts {
        shims: Shims::new(disk.clone(), programs, events.clone()),
        disk,
        preparer,
        events,
        token: None,
        address,
        boot_id: "boot".into(),
    })
}

#[tokio::test]
async fn no_secret_outlives_its_unit() {
    let data = tempfile::tempdir().unwrap();
    let mut agent = agent(data.path());
    let unit = UnitId::new("u1").unwrap();
    let dirs = [agent.disk.secrets(&unit), agent.disk.unit(&unit)];
    let make = || dirs.iter().for_each(|dir| std::fs::create_dir_all(dir.join("main")).unwrap());
    // Prepared when the unit had been withdrawn.
    make();
    agent.hear(Event::Prepared { unit: unit.clone(), run: 0, outcome: Ok(vec![]) });
    assert!(dirs.iter().all(|dir| !dir.exists()));
    // The same, and killed before it heard that.
    make();
    std::fs::remove_dir_all(&dirs[1]).unwrap();
    agent.recover().unwrap();
    assert!(dirs.iter().all(|dir| !dir.exists()));
}

#[tokio::test]
async fn a_shim_is_believed_of_its_own_tasks_alone() {
    let data = tempfile::tempdir().unwrap();
    let mut agent = agent(data.path());
    let record = UnitRecord { phase: Phase::Started, ..UnitRecord::assigned() };
    let assignment = crate::tests::fake_server::assignment("u1", "never");
    let namespace = assignment.namespace.clone();
    let id = assignment.unit.clone();
    agent.units.insert(id.clone(), Unit::new(assignment, record));
    let task = agent.units[&id].assignment.template.tasks[0].name.clone();
    let key = agent.units[&id].key(&task);
    agent.units.get_mut(&id).unwrap().tasks.insert(task.clone(), TaskSeen::Starting);
    let own = ShimId::Wasm(namespace.clone());
    let mut says = |shim: &ShimId, task: &TaskKey| {
        let running = FromShim::Running { task: task.clone(), http: None };
        agent.hear(Event::Shim(shim.clone(), ShimEvent::Heard(running)));
        agent.units[&id].tasks.values().next() == Some(&TaskSeen::Running { http: None })
    };
    let other_unit = TaskKey("u2.main.0".into());
    for stranger in [
        ShimId::Wasm(NamespacePath::new("other").unwrap()),
        ShimId::WasmUnit(namespace, key.clone()),
        ShimId::Oci(other_unit),
    ] {
        assert!(!says(&stranger, &key), "{stranger:?}");
    }
    // A key is the name of a folder that is removed when nobody wants the task.
    says(&own, &TaskKey("../../precious".into()));
    assert!(says(&own, &key));
    assert_eq!(agent.collecting, 0, "nothing is removed");
}
