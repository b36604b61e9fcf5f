//! An engine, and the thread that interrupts its guests.

use std::sync::Arc;

use anyhow::Context;
use wasmtime::Engine;

use crate::engine::{self, Settings};
use crate::ticker::Ticker;

/// What guests of one engine run on.
#[derive(Clone)]
pub(crate) struct Rig {
    pub(crate) engine: Engine,
    pub(crate) ticker: Arc<Ticker>,
}

impl Rig {
    /// A new engine with its own ticker.
    pub(crate) fn new(settings: Settings) -> anyhow::Result<Self> {
        let engine = engine::for_running(settings)
            .map_err(anyhow::Error::from)
            .context("setting up wasmtime")?;
        let ticker = Ticker::start(engine.clone()).context("starting a thread")?;
        Ok(Self { engine, ticker })
    }
}
