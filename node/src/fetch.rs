//! The agent's programs from the node's artifacts: the cluster's registry or any other.

use brig_api::NamespacePath;
use brig_api::lifecycle::Reason;
use brig_api::reference::Reference;
use brig_api::unit_spec::Runtime;
use brig_client::registry::Quiet;
use futures::FutureExt as _;
use futures::future::BoxFuture;

use crate::artifacts::{Artifact, Artifacts, ProcessConfig};
use crate::plan::Fault;
use crate::program::{Fetched, ImageConfig, Programs};

impl Programs for Artifacts {
    fn fetch<'a>(
        &'a self,
        _namespace: &'a NamespacePath,
        reference: &'a str,
        runtime: Runtime,
    ) -> BoxFuture<'a, Result<Fetched, Fault>> {
        async move {
            let parsed: Reference = reference.parse().map_err(|error| Fault {
                reason: Reason::InvalidArtifact,
                message: format!("{error}"),
            })?;
            let fetched = Self::fetch(self, &parsed, runtime, &Quiet)
                .await
                .map_err(|error| Fault { reason: error.reason(), message: with_causes(&error) })?;
            Ok(match fetched {
                Artifact::Wasm(wasm) => Fetched::Wasm { path: wasm.path, digest: wasm.digest },
                Artifact::Image(image) => Fetched::Image {
                    config: process(
                        image.config.platform.architecture,
                        image.config.config.unwrap_or_default(),
                    ),
                    layers: image.layers,
                },
            })
        }
        .boxed()
    }
}

fn process(architecture: String, config: ProcessConfig) -> ImageConfig {
    ImageConfig {
        architecture,
        env: config.env.unwrap_or_default(),
        entrypoint: config.entrypoint.unwrap_or_default(),
        cmd: config.cmd.unwrap_or_default(),
        user: config.user.unwrap_or_default(),
        working_dir: config.working_dir.unwrap_or_default(),
        stop_signal: config.stop_signal,
    }
}

/// An error and what led to it, each told once.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}
