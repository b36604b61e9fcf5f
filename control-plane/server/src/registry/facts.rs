//! What the wasm programs in the registry are and need: looked up in their bytes once, then remembered.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use brig_api::Digest;
use brig_api::object::ArtifactKind;
use brig_api::oci::{Document, MANIFEST_BYTES_MAX, Platform};
use brig_api::wasm::WasmFacts;
use tokio::sync::Semaphore;

use super::Inner;
use super::error::RegistryError;

/// Programs whose facts are remembered; beyond it all are forgotten, and looked up again.
const REMEMBERED_MAX: usize = 1_000;
/// Looks at a time: each may take [`brig_wasm::READ_BYTES_MAX`] of memory.
const LOOKS_MAX: usize = 4;

/// Facts of programs, by the digest of the wasm file; None of what can't be looked into.
pub(crate) struct FactsKnown {
    known: Mutex<HashMap<Digest, Option<Arc<WasmFacts>>>>,
    looks: Semaphore,
}

impl Default for FactsKnown {
    fn default() -> Self {
        Self { known: Mutex::default(), looks: Semaphore::new(LOOKS_MAX) }
    }
}

impl FactsKnown {
    fn get(&self, program: &Digest) -> Option<Option<Arc<WasmFacts>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(program).cloned()
    }

    fn remember(&self, program: &Digest, facts: Option<Arc<WasmFacts>>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED_MAX {
            known.clear();
        }
        known.insert(program.clone(), facts);
    }
}

impl Inner {
    /// What a manifest is: also by the configuration of an image, which may be for no machine but for wasm.
    pub(crate) async fn kind_of(&self, document: &Document) -> Result<ArtifactKind, RegistryError> {
        let Document::Image(manifest) = document else { return Ok(document.kind()) };
        if document.kind() != ArtifactKind::Image {
            return Ok(document.kind());
        }
        let config = self.blobs.read(&manifest.config.digest, MANIFEST_BYTES_MAX).await?;
        let platform = config.and_then(|bytes| serde_json::from_slice::<Platform>(&bytes).ok());
        let is_wasm = platform.is_some_and(|platform| platform.is_wasm());
        Ok(if is_wasm { ArtifactKind::Wasm } else { ArtifactKind::Image })
    }

    /// What the program of a wasm artifact is and needs. None of other artifacts, and where it can't be found out:
    /// then the node that runs it says what is wrong.
    pub(crate) async fn facts(
        &self,
        document: &Document,
    ) -> Result<Option<Arc<WasmFacts>>, RegistryError> {
        let Some(program) = program(document) else { return Ok(None) };
        if let Some(known) = self.facts.get(program) {
            return Ok(known);
        }
        let _permit = self.facts.looks.acquire().await;
        let path = self.blobs.path(program);
        let look = tokio::task::spawn_blocking(move || {
            let file = File::open(&path).map_err(brig_wasm::InspectError::from)?;
            brig_wasm::inspect(file)
        });
        let facts = match look.await {
            Ok(Ok(facts)) => Some(Arc::new(facts)),
            // It may be there the next time.
            Ok(Err(brig_wasm::InspectError::Read(error))) => {
                tracing::warn!(blob = %program, %error, "a wasm program could not be looked into");
                return Ok(None);
            }
            Ok(Err(error)) => {
                tracing::info!(blob = %program, %error, "a wasm program could not be looked into");
                None
            }
            Err(error) => {
                tracing::error!(blob = %program, %error, "looking into a wasm program failed");
                None
            }
        };
        self.facts.remember(program, facts.clone());
        Ok(facts)
    }
}

/// The blob that is the wasm file. One in an image's file tree is looked at by the node that unpacks it.
fn program(document: &Document) -> Option<&Digest> {
    match document {
        Document::Image(manifest) => manifest.wasm_layer().map(|layer| &layer.digest),
        Document::Index(_) => None,
    }
}
