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
