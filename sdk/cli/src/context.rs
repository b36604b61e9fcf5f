//! Where the command's server, token and namespace come from: flags and environment, else a context of the
//! configuration file, else what fits `brig dev`.
//!
//! ```toml
//! current = "staging"
//! [contexts.staging]
//! server = "https://brig.example.com"
//! token = "…"
//! namespace = "team-a"
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;

use brig_api::NamespacePath;
use serde::Deserialize;

use crate::arguments::{Global, LISTEN_DEFAULT};
use crate::failure::Failure;

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    current: Option<String>,
    #[serde(default)]
    contexts: BTreeMap<String, Context>,
}

/// Whom to talk to, as whom, about what.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    pub(crate) server: Option<String>,
    pub(crate) token: Option<String>,
    pub(crate) namespace: Option<NamespacePath>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("server", &self.server)
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

impl Context {
    /// Puts together flags, environment and configuration file.
    pub(crate) fn resolve(global: &Global) -> Result<Self, Failure> {
        let named = match path() {
            Some(path) => match std::fs::read_to_string(&path) {
                Ok(text) => pick(&text, global.context.as_deref())
                    .map_err(|message| Failure::usage(format!("{}: {message}", path.display())))?,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    no_file(global.context.as_deref())?
                }
                Err(error) => return Err(Failure::usage(format!("{}: {error}", path.display()))),
            },
            None => no_file(global.context.as_deref())?,
        };
        Ok(Self {
            server: global.server.clone().or(named.server),
            token: global.token.clone().or(named.token),
            namespace: global.namespace.clone().or(named.namespace),
        })
    }

    /// The control plane's URL.
    pub(crate) fn server_url(&self) -> String {
        self.server.clone().unwrap_or_else(|| format!("http://{LISTEN_DEFAULT}"))
    }

    /// The namespace for things that live in one.
    pub(crate) fn namespace(&self) -> NamespacePath {
        self.namespace.clone().unwrap_or_else(NamespacePath::default_namespace)
    }
}

fn path() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("BRIG_CONFIG") {
        return Some(path.into());
    }
    let base = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let base =
        base.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")))?;
    Some(base.join("brig").join("config.toml"))
}

fn no_file(wanted: Option<&str>) -> Result<Context, Failure> {
    match wanted {
        None => Ok(Context::default()),
        Some(name) => Err(Failure::usage(format!(
            "there is no context `{name}`: there is no configuration file"
        ))),
    }
}

fn pick(text: &str, wanted: Option<&str>) -> Result<Context, String> {
    let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
    let Some(name) = wanted.or(file.current.as_deref()) else { return Ok(Context::default()) };
    file.contexts.get(name).cloned().ok_or_else(|| {
        let known = file.contexts.keys().cloned().collect::<Vec<_>>().join(", ");
        format!("there is no context `{name}`; there are: {known}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "current = 'a'\n[contexts.a]\nserver = 'http://a'\n[contexts.b]\nserver = 'http://b'\nnamespace = 'x'\n";

    #[test]
    fn a_context_is_the_named_or_the_current_one() {
        assert_eq!(pick(FILE, None).unwrap().server.as_deref(), Some("http://a"));
        assert_eq!(pick(FILE, Some("b")).unwrap().namespace.unwrap().as_str(), "x");
        assert!(pick(FILE, Some("c")).unwrap_err().contains("a, b"));
        assert!(pick("serber = 1", None).is_err());
        assert_eq!(pick("", None).unwrap().server, None);
    }
}
