//! The vocabulary of Brigantine: ids, specs, states, resources, wire messages and errors. No I/O, no async.
//!
//! Every other crate speaks these types; there is one type per concept, used in manifests, over HTTP, in the
//! change feed and in the scheduler's model. What a user writes is checked here ([`manifest`], [`validate`]),
//! what machines say to one another is defined here ([`session`], [`stdio`]).
#![warn(missing_docs)]

pub mod allow_host;
pub mod asks;
pub mod change;
pub mod checkpoint;
pub mod constraint;
pub mod explain;
pub mod facts;
pub mod id;
pub mod lifecycle;
pub mod logline;
pub mod manifest;
pub mod object;
pub mod oci;
pub mod placement;
pub mod problem;
pub mod quantity;
pub mod reference;
pub mod request;
pub mod resources;
pub mod session;
pub mod simulate;
pub mod spec;
pub mod stdio;
pub mod unit_spec;
pub mod usage;
pub mod validate;
pub mod variants;
pub mod wasm;

pub use id::{Digest, NamespacePath, NodeName, PlanSequence, ResourceName, Revision, UnitId};
pub use manifest::Manifest;
pub use object::{Kind, Object};
pub use problem::{Code, Problem};
pub use quantity::{Bytes, Milli, MilliCpu};
pub use resources::Resources;
