//! How a node is set up.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use brig_api::placement::Taint;
use brig_api::unit_spec::Runtime;
use brig_api::{Milli, NodeName, Resources};

/// How a node is set up.
#[derive(Clone)]
pub struct NodeConfig {
    /// Its name, unique in the cluster.
    pub name: NodeName,
    /// Where it keeps everything; one agent at a time.
    pub data: PathBuf,
    /// Control planes, any of which will do: `http://HOST:PORT` or `HOST:PORT`.
    pub servers: Vec<String>,
    /// What it shows them.
    pub token: Option<String>,
    /// The address of this machine on which its units listen and are reached.
    pub address: IpAddr,
    /// Attributes besides those that the agent finds out.
    pub attributes: BTreeMap<String, String>,
    /// What keeps units away that do not tolerate it.
    pub taints: Vec<Taint>,
    /// Named resources that the agent can't find out, such as GPUs: whole devices (`brig_api::placement` says what
    /// they are called).
    pub scalars: BTreeMap<String, Milli>,
    /// What is kept back for the system.
    pub reserved: Resources,
    /// Directories that units may mount, each with everything below it. None by default: a mount of the
    /// machine's files is the machine's operator to grant.
    pub host_paths: Vec<PathBuf>,
    /// What it offers to run, of what it can; everything where none is named.
    pub runtimes: Vec<Runtime>,
    /// The program that runs wasm.
    pub shim_wasm: PathBuf,
    /// The program that runs containers.
    pub shim_oci: PathBuf,
    /// End the units when the agent is shut down; they run again with it. Else they run on without it.
    pub stops_units_at_shutdown: bool,
}

/// The token never reaches a log.
impl std::fmt::Debug for NodeConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeConfig")
            .field("name", &self.name)
            .field("data", &self.data)
            .field("servers", &self.servers)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// A server's address can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a server's address: expected `http://HOST:PORT`")]
pub struct InvalidServer(String);

/// `ws://HOST:PORT` of a server as it was written.
///
/// # Errors
/// [`InvalidServer`]
pub fn websocket_base(server: &str) -> Result<String, InvalidServer> {
    Ok(format!("ws://{}", authority(server)?))
}

/// `http://HOST:PORT` of a server as it was written.
///
/// # Errors
/// [`InvalidServer`]
pub fn http_base(server: &str) -> Result<String, InvalidServer> {
    Ok(format!("http://{}", authority(server)?))
}

fn authority(server: &str) -> Result<&str, InvalidServer> {
    let invalid = || InvalidServer(server.to_owned());
    let authority = server
        .strip_prefix("http://")
        .or_else(|| server.strip_prefix("ws://"))
        .unwrap_or(server)
        .trim_end_matches('/');
    let is_authority = !authority.is_empty()
        && authority
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b'?' | b'#' | b'@'));
    if is_authority { Ok(authority) } else { Err(invalid()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_taken_with_and_without_a_scheme() {
        for server in ["http://127.0.0.1:7777", "127.0.0.1:7777/", "ws://127.0.0.1:7777"] {
            assert_eq!(websocket_base(server).unwrap(), "ws://127.0.0.1:7777");
        }
        for bad in ["", "https://host", "http://host/path", "user@host", "http://a b"] {
            assert!(websocket_base(bad).is_err(), "{bad}");
        }
    }
}
