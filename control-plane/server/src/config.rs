//! What a server is started with, and what it refuses to start with.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

/// How to run a server.
#[derive(Clone)]
pub struct ServerConfig {
    /// Where to listen; port 0 picks a free one.
    pub listen: SocketAddr,
    /// `sqlite:PATH` or `postgres://…`.
    pub database: String,
    /// Folder for artifacts and the server's lock; created when missing.
    pub data_dir: PathBuf,
    /// What every caller must present. Without one, everybody who can connect may do everything; so only loopback
    /// addresses are allowed then.
    pub token: Option<String>,
}

/// Neither the token nor the database's password reach a log.
impl fmt::Debug for ServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerConfig")
            .field("listen", &self.listen)
            .field("data_dir", &self.data_dir)
            .field("has_token", &self.token.is_some())
            .finish_non_exhaustive()
    }
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Everybody on the network could run programs.
    #[error(
        "will not listen on {0} without a token, because everybody who reaches it could run programs: set a token (BRIG_TOKEN), or listen on 127.0.0.1"
    )]
    OpenToAll(SocketAddr),
    /// The token can't be sent in a header.
    #[error(
        "the token must be 1 to {TOKEN_BYTES_MAX} visible ASCII characters without spaces or `:`"
    )]
    Token,
    /// The address is taken or not of this machine.
    #[error(
        "can't listen on {address}: {source}; choose another address with --listen, or port 0 for a free one"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The data folder can't be used.
    #[error("can't use the data folder {}: {source}", .path.display())]
    DataDir {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another server runs on the folder.
    #[error("the data folder {} is in use by another server: stop that one, or choose another folder with --data", .0.display())]
    Locked(PathBuf),
    /// The database can't be opened.
    #[error("can't open the database: {0}")]
    Store(#[source] Box<brig_store::StoreError>),
    /// The registry can't be opened.
    #[error("can't open the registry: {0}")]
    Registry(String),
}

/// Longest token.
pub(crate) const TOKEN_BYTES_MAX: usize = 512;

impl ServerConfig {
    /// Refuses what would be unsafe.
    ///
    /// # Errors
    /// [`StartError::OpenToAll`] and [`StartError::Token`].
    pub fn check(&self) -> Result<(), StartError> {
        match &self.token {
            None if !self.listen.ip().is_loopback() => Err(StartError::OpenToAll(self.listen)),
            Some(token) if !is_token(token) => Err(StartError::Token),
            _ => Ok(()),
        }
    }
}

fn is_token(text: &str) -> bool {
    (1..=TOKEN_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(listen: &str, token: Option<&str>) -> ServerConfig {
        ServerConfig {
            listen: listen.parse().unwrap(),
            database: "sqlite:x".into(),
            data_dir: "x".into(),
            token: token.map(str::to_owned),
        }
    }

    #[test]
    fn an_open_server_listens_on_loopback_only() {
        assert!(config("127.0.0.1:0", None).check().is_ok());
        assert!(config("[::1]:0", None).check().is_ok());
        assert!(config("0.0.0.0:0", Some("s3cret")).check().is_ok());
        for listen in ["0.0.0.0:80", "[::]:80", "192.0.2.1:80"] {
            let error = config(listen, None).check().unwrap_err().to_string();
            assert!(error.contains(listen) && error.contains("BRIG_TOKEN"), "{error}");
        }
    }

    #[test]
    fn a_token_must_fit_into_a_header() {
        for bad in ["", "a b", "a\nb", "ä", "a:b"] {
            assert!(config("127.0.0.1:0", Some(bad)).check().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_token_is_not_in_debug_output() {
        let mut config = config("127.0.0.1:0", Some("hush-hush"));
        config.database = "postgres://u:hush-hush@h/d".into();
        assert!(!format!("{config:?}").contains("hush"));
    }
}
