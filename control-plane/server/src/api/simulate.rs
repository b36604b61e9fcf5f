//! What-if: the scheduler on a copy of the model, away from the conductor's thread.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use brig_api::request::MANIFESTS_MAX;
use brig_api::simulate::{Growth, Loss, SimulateRequest, Simulation};
use brig_api::{Code, Manifest};
use brig_core::{Arrival, Scenario};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::admission::admit;
use super::apply::{draft, refused};
use crate::app::App;
use crate::extract::Body;
use crate::problem::{Answer, Failure};
use crate::questions::ask;
use crate::route::{Operation, Routes};

pub(super) fn routes() -> Routes {
    Routes::default().add(
        Operation::post(
            "/v1/simulate",
            "simulate",
            "What the scheduler would do if nodes were lost or joined, or manifests arrived, until nothing changes any more; changes nothing",
        )
        .body::<SimulateRequest>()
        .answers::<Simulation>(),
        simulate,
    )
}

/// A [`SimulateRequest`] whose manifests are yet to be read, so that every fault of every manifest is told at once.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    lose: Vec<Loss>,
    add: Vec<WrittenAddition>,
    grow: Vec<Growth>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenAddition {
    manifest: Value,
    #[serde(default)]
    count: Option<u32>,
}

async fn simulate(
    State(app): State<Arc<App>>,
    Body(written): Body<Written>,
) -> Answer<Json<Simulation>> {
    // Held to the end of the work, also when who asked goes away meanwhile.
    let turn = take_turn(&app.simulations)?;
    let scenario = read(&app, written).await?;
    let newest = app.store.revision().await?;
    // A copy, so that the work holds up nobody; units in it are shared with the original.
    let (model, moment) =
        ask(&app, newest, |model, moment| (model.clone(), moment.clone())).await?;
    let called_off = CancellationToken::new();
    // Who asked may go away, or have waited for too long: this ends with the request.
    let _asking = called_off.clone().drop_guard();
    let working = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        brig_core::simulate(model, &scenario, &moment, &|| called_off.is_cancelled())
    });
    let simulated = working.await.map_err(|error| {
        tracing::error!(error = %error, "a simulation failed");
        Failure::new(Code::Internal, "the scheduler failed at this; the server's log says how")
    })?;
    simulated.map(Json).map_err(refused)
}

fn take_turn(turns: &Arc<Semaphore>) -> Answer<OwnedSemaphorePermit> {
    Arc::clone(turns).try_acquire_owned().map_err(|_| {
        let detail = "another simulation is under way, and each takes a copy of the cluster: try again when it is done";
        Failure::new(Code::Unavailable, detail)
    })
}

/// Checks and admits what arrives. What is not counted goes through the store, which knows what it would change.
async fn read(app: &App, written: Written) -> Answer<Scenario> {
    let Written { lose, add, grow } = written;
    if add.len() > MANIFESTS_MAX {
        let message = format!("expected at most {MANIFESTS_MAX} manifests, found {}", add.len());
        return Err(Failure::field("add", message));
    }
    let mut drafts = Vec::with_capacity(add.len());
    let mut counts = Vec::with_capacity(add.len());
    let mut faults = Vec::new();
    for (index, WrittenAddition { manifest, count }) in add.into_iter().enumerate() {
        counts.push(count);
        match draft(manifest, format!("add[{index}].manifest")) {
            Ok(draft) => drafts.push(draft),
            Err(found) => faults.extend(found),
        }
    }
    if !faults.is_empty() {
        return Err(refused(faults));
    }
    let mut applied: Vec<Manifest> = Vec::new();
    let mut arrive = Vec::new();
    let admitted = admit(app, drafts).await?;
    for (index, (manifest, count)) in admitted.into_iter().zip(counts).enumerate() {
        match count {
            Some(count) => arrive.push(Arrival { path: format!("add[{index}]"), manifest, count }),
            None => applied.push(manifest),
        }
    }
    let put = match applied.is_empty() {
        true => Vec::new(),
        false => app.store.apply_preview(&applied).await?.1,
    };
    Ok(Scenario { lose, grow, put, arrive })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulation_while_another_is_under_way_is_refused() {
        let turns = Arc::new(Semaphore::new(crate::limits::SIMULATIONS_MAX));
        let turn = take_turn(&turns).unwrap();
        let refused = take_turn(&turns).unwrap_err().0;
        assert_eq!(refused.code, Code::Unavailable);
        assert!(refused.detail.contains("try again"), "{}", refused.detail);
        drop(turn);
        drop(take_turn(&turns).unwrap());
    }
}
