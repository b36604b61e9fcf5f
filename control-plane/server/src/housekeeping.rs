//! What must be done now and then: trim the change feed, sweep artifacts that nothing names.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use brig_api::object::Object;
use brig_api::reference::Reference;
use brig_api::unit_spec::UnitTemplate;
use brig_api::{Digest, Kind};
use brig_store::StoreError;

use crate::app::App;
use crate::limits::{GARBAGE_AGE, GARBAGE_PERIOD, REVISIONS_KEPT, TRIM_PERIOD};
use crate::problem::chain;

/// Goes on until the server stops.
pub(crate) async fn run(app: Arc<App>) {
    tokio::join!(
        every(&app, TRIM_PERIOD, async |app: &App| {
            if *app.is_leader.borrow()
                && let Err(error) = app.store.changes_trim(REVISIONS_KEPT).await
            {
                tracing::warn!(error = %chain(&error), "the change feed could not be trimmed");
            }
        }),
        every(&app, GARBAGE_PERIOD, async |app: &App| collect(app).await),
    );
}

async fn every(app: &App, period: Duration, work: impl AsyncFn(&App)) {
    loop {
        let next = async {
            tokio::time::sleep(period).await;
            work(app).await;
        };
        // Work that is under way is left: a sweep of a large registry takes longer than a stop may.
        tokio::select! {
            () = app.stop.cancelled() => return,
            () = next => {}
        }
    }
}

async fn collect(app: &App) {
    let pinned = match pinned(app).await {
        Ok(pinned) => pinned.into_iter().collect::<Vec<_>>(),
        Err(error) => {
            tracing::warn!(error = %chain(&error), "artifacts in use could not be listed");
            return;
        }
    };
    match app.registry.collect(&pinned, GARBAGE_AGE).await {
        Ok(collected) => tracing::info!(?collected, "the registry was swept"),
        Err(error) => tracing::warn!(error = %chain(&error), "the registry could not be swept"),
    }
}

/// Digests that something stored runs, whatever became of their tags.
async fn pinned(app: &App) -> Result<BTreeSet<Digest>, StoreError> {
    let mut pinned = BTreeSet::new();
    for kind in [Kind::Service, Kind::Job, Kind::Unit] {
        let (_, objects) = app.store.object_list(kind, None).await?;
        for object in &objects {
            pinned.extend(template_of(object).into_iter().flat_map(digests));
        }
    }
    Ok(pinned)
}

fn template_of(object: &Object) -> Option<&UnitTemplate> {
    match object {
        Object::Service(service) => Some(&service.spec.unit),
        Object::Job(job) => Some(&job.spec.unit),
        Object::Unit(unit) => Some(&unit.template),
        _ => None,
    }
}

fn digests(template: &UnitTemplate) -> Vec<Digest> {
    let programs = template.tasks.iter().flat_map(|task| task.variants.iter());
    let references = programs.filter_map(|program| program.reference().parse::<Reference>().ok());
    references.filter_map(|reference| reference.digest).collect()
}

#[cfg(test)]
mod tests {
    use brig_api::manifest::{Format, parse};

    use super::*;

    #[test]
    fn every_variant_keeps_its_artifact() {
        let digest = |letter: &str| format!("sha256:{}", letter.repeat(64));
        let (wasm, oci) = (digest("a"), digest("b"));
        let text = format!(
            "kind: unit\nname: x\nunit: {{variants: [{{wasm: {{artifact: 'a/b@{wasm}'}}}}, {{oci: {{image: 'a/c@{oci}'}}}}]}}"
        );
        let manifest = parse(&text, Format::Yaml, None).unwrap().remove(0).check().unwrap();
        let brig_api::Manifest::Unit(spec) = manifest else { panic!("a unit") };
        let found: Vec<_> = digests(&spec.unit).iter().map(ToString::to_string).collect();
        assert_eq!(found, [wasm, oci]);
    }
}
