//! Typed client of the control plane's API: what `brig`, nodes, tests and third parties use.
//!
//! ```no_run
//! # async fn example() -> Result<(), brig_client::ClientError> {
//! let client = brig_client::Client::new("http://127.0.0.1:7117", None)?;
//! for object in client.list(brig_api::Kind::Unit, None).await?.items {
//!     println!("{}", object.key());
//! }
//! # Ok(())
//! # }
//! ```
#![warn(missing_docs)]

mod api;
mod compiled;
mod error;
mod http;
mod logs;
pub mod registry;
mod stdio;
mod watch;

pub use api::EventQuery;
pub use error::ClientError;
pub use http::Client;
pub use logs::{LogStream, TaskLine};
pub use stdio::{StdioReader, StdioStream, StdioWriter};
pub use watch::{WatchFilter, WatchStream};
