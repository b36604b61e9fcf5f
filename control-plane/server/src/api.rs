//! The `/v1` API: what each path does.

mod admission;
mod apply;
mod checkpoints;
mod exec;
mod logs;
mod object;
mod preview;
mod simulate;
mod system;
mod usage;
mod watch;
mod why;

use crate::node::{session, stream};
use crate::route::{Operation, Routes};

/// Every route under `/v1`.
pub(crate) fn routes() -> Routes {
    Routes::default()
        .merge(system::routes())
        .merge(apply::routes())
        .merge(simulate::routes())
        .merge(object::routes())
        .merge(why::routes())
        .merge(usage::routes())
        .merge(checkpoints::routes())
        .merge(logs::routes())
        .merge(exec::routes())
        .merge(watch::routes())
        .merge(crate::compiled::routes())
        .add(
            Operation::get("/v1/node-session", "nodeSession", "A node's session")
                .upgrades("JSON messages of the session protocol, both ways."),
            session::connect,
        )
        .add(
            Operation::get(
                "/v1/node-streams/{stream}",
                "nodeStream",
                "A node opens a stream that it was asked for over its session",
            )
            .upgrades("Binary messages: lines of a log, or frames of an exec."),
            stream::dial,
        )
}
