//! End-to-end tests: the real command, daemons, shims, programs and images, as a user would use them.
//!
//! What they need from outside is made by the scripts in `tests/setup`, and found through the environment that
//! `tests/run` sets: BRIG_BIN_DIR, BRIG_TEST_GUESTS, BRIG_TEST_IMAGES, BRIG_TEST_POSTGRES.
#![cfg(test)]

mod harness;

mod artifacts;
mod bad_input;
mod checkpoints;
mod commands;
mod containers;
mod crashes;
mod documents;
mod mixed;
mod programs;
mod wasm;
