//! Contract suites: the same cases for every implementation of a contract.
#![cfg(test)]

mod oci_shim;
mod shim_client;
mod shim_contract;
mod store_contract;
mod wasm_checkpoint;
mod wasm_hostile;
mod wasm_http;
mod wasm_programs;
mod wasm_shim;
mod wasm_stdin;
mod wasm_worker;
mod wasm_world;
