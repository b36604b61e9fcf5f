//! The configuration of an image: for which machine, how to run it, and the digests of its unpacked layers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use brig_api::Digest;
use brig_api::oci::Platform;
use brig_api::reference::Reference;
use serde::Deserialize;

use super::error::ArtifactError;

/// An image's configuration, as far as it is used (OCI image specification 1.1, `config.md`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ImageConfig {
    /// The machine it is for.
    #[serde(flatten)]
    pub platform: Platform,
    /// How to run it.
    #[serde(default)]
    pub config: Option<ProcessConfig>,
    /// Its layers.
    pub rootfs: RootFs,
}

/// The layers of an image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RootFs {
    /// Digests of the layers' tars, uncompressed, lowest first.
    pub diff_ids: Vec<Digest>,
}

/// What an image says about the process to run. Names as in the specification.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ProcessConfig {
    /// `user`, `uid`, `user:group` or `uid:gid`; empty for root.
    pub user: Option<String>,
    /// `KEY=value`.
    pub env: Option<Vec<String>>,
    /// The program and its first arguments.
    pub entrypoint: Option<Vec<String>>,
    /// More arguments, or the program where there is no entry point.
    pub cmd: Option<Vec<String>>,
    /// The working directory.
    pub working_dir: Option<String>,
    /// The signal that asks it to stop, such as `SIGTERM` or `15`.
    pub stop_signal: Option<String>,
    /// Ports it says it listens on, such as `80/tcp`.
    pub exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    /// Directories it wants volumes at.
    pub volumes: Option<BTreeMap<String, serde_json::Value>>,
}

/// The file that an image's entry point names, or its command where it has none, without a slash in front.
pub(crate) fn entry_point(config: &ImageConfig) -> Option<PathBuf> {
    let process = config.process();
    let words = process.entrypoint.unwrap_or_default();
    let named = words.into_iter().chain(process.cmd.unwrap_or_default()).next()?;
    let base = process.working_dir.unwrap_or_default();
    // A name without a slash would be searched for in `PATH`, which wasm has none of.
    let path = Path::new("/").join(base).join(named);
    let path = path.strip_prefix("/").ok()?.to_owned();
    (!path.as_os_str().is_empty()).then_some(path)
}

impl ImageConfig {
    pub(crate) fn parse(
        reference: &Reference,
        bytes: &[u8],
        layers: usize,
    ) -> Result<Self, ArtifactError> {
        let invalid = |why: String| ArtifactError::Config { reference: reference.to_string(), why };
        let config: Self = serde_json::from_slice(bytes)
            .map_err(|error| invalid(format!("it is no image configuration: {error}")))?;
        let named = config.rootfs.diff_ids.len();
        if named != layers {
            return Err(invalid(format!(
                "it names {named} layers and the manifest {layers}; build the image again"
            )));
        }
        Ok(config)
    }

    /// How to run it; nothing set when the image does not say.
    #[must_use]
    pub fn process(&self) -> ProcessConfig {
        self.config.clone().unwrap_or_default()
    }
}
