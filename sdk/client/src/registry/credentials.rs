//! User names and passwords for registries, from the file that `docker login` and `skopeo login` write.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::error::RegistryError;

/// The key under which Docker keeps its own registry's login.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// A login.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// User name.
    pub user: String,
    /// Password or token.
    pub password: String,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Logins by registry host.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    by_host: BTreeMap<String, Credential>,
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

impl Credentials {
    /// Reads a Docker configuration file (`config.json`, or the `auth.json` of podman and skopeo). Logins kept
    /// by a helper program are not read: such an entry has no `auth`.
    ///
    /// # Errors
    /// [`RegistryError::File`] when the file cannot be read, [`RegistryError::Setup`] when it is no such file.
    pub fn from_docker_config(path: &Path) -> Result<Self, RegistryError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| RegistryError::file(path, source))?;
        Self::parse(&text).map_err(|why| {
            RegistryError::Setup(format!("{} is no Docker configuration: {why}", path.display()))
        })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let config: DockerConfig = serde_json::from_str(text).map_err(|error| {
            // Without the text around it: there are passwords in this file.
            format!("line {}, column {}", error.line(), error.column())
        })?;
        let mut by_host = BTreeMap::new();
        for (key, entry) in config.auths {
            if let Some(credential) = entry.credential() {
                by_host.insert(host_of(&key).to_owned(), credential);
            }
        }
        Ok(Self { by_host })
    }

    /// Adds a login for `host[:port]`.
    #[must_use]
    pub fn with(mut self, host: &str, credential: Credential) -> Self {
        self.by_host.insert(host.to_owned(), credential);
        self
    }

    /// The login for a registry, if one is known.
    #[must_use]
    pub fn of(&self, registry: &str) -> Option<&Credential> {
        self.by_host.get(registry)
    }
}

impl DockerAuth {
    fn credential(self) -> Option<Credential> {
        let Some(auth) = self.auth else {
            return Some(Credential { user: self.username?, password: self.password? });
        };
        let text = String::from_utf8(STANDARD.decode(auth.trim()).ok()?).ok()?;
        let (user, password) = text.trim_end_matches('\0').split_once(':')?;
        Some(Credential { user: user.to_owned(), password: password.to_owned() })
    }
}

fn host_of(key: &str) -> &str {
    if key == DOCKER_HUB_KEY {
        return "docker.io";
    }
    let host = key.split_once("://").map_or(key, |(_, rest)| rest);
    host.split('/').next().unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_read_as_docker_writes_them_and_never_shown() {
        let text = format!(
            r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{}"}},
                "registry.example:5000":{{"username":"u","password":"p"}},"helper.example":{{}}}},
                "credsStore":"desktop"}}"#,
            STANDARD.encode("me:secret:1")
        );
        let credentials = Credentials::parse(&text).unwrap();
        assert_eq!(credentials.of("docker.io").unwrap().password, "secret:1");
        assert_eq!(credentials.of("registry.example:5000").unwrap().user, "u");
        assert_eq!(credentials.of("helper.example"), None);
        assert!(!format!("{credentials:?}").contains("secret"));
        assert!(!Credentials::parse(r#"{"auths":{"x":{"auth":12}}}"#).unwrap_err().contains("12"));
    }
}
