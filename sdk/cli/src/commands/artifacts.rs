//! `push` and `pull`.

use std::path::{Path, PathBuf};

use brig_api::oci::{Document, INDEX, MANIFEST, WASM_CONFIG};
use brig_api::reference::Reference;
use brig_client::registry::{ContentStore, FetchedManifest};

use crate::arguments::{Pull, Push};
use crate::artifact;
use crate::failure::{FAILED, Failure, NOT_FOUND};
use crate::output::print;
use crate::progress::Bars;
use crate::target::name_from_artifact;

use super::Session;

pub(crate) async fn push(session: &Session<'_>, arguments: &Push) -> Result<(), Failure> {
    let target: Reference =
        arguments.reference.parse().map_err(|error| Failure::usage(format!("{error}")))?;
    if !arguments.path.exists() {
        return Err(Failure::new(
            NOT_FOUND,
            format!("{}: no such file or directory", arguments.path.display()),
        ));
    }
    let pushed = artifact::push(&session.client, &arguments.path, &target).await?;
    print(&format!("{target}@{}\n", pushed.digest))
}

pub(crate) async fn pull(session: &Session<'_>, arguments: &Pull) -> Result<(), Failure> {
    let reference: Reference =
        arguments.reference.parse().map_err(|error| Failure::usage(format!("{error}")))?;
    let registry = artifact::registry(&session.client)?;
    // Beside the target, so that the last step is a rename.
    let name = name_from_artifact(&arguments.reference);
    let beside = arguments
        .path
        .as_deref()
        .and_then(Path::parent)
        .filter(|folder| !folder.as_os_str().is_empty());
    let scratch = tempfile::Builder::new()
        .prefix(".brig-pull-")
        .tempdir_in(beside.unwrap_or_else(|| Path::new(".")))?;
    // A content store is an image layout but for its two index files.
    let layout = scratch.path().join("layout");
    let store = ContentStore::open(&layout)?;
    let (top, _) = registry.pull(&reference, &store, &Bars::new()).await?;
    let wasm = match &top.document {
        Document::Image(manifest) if manifest.config.media_type == WASM_CONFIG => {
            manifest.layers.first()
        }
        Document::Image(_) | Document::Index(_) => None,
    };
    let target = if let Some(layer) = wasm {
        let target =
            arguments.path.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.wasm")));
        put(&store.path(&layer.digest), &target)?;
        target
    } else {
        let target = arguments.path.clone().unwrap_or_else(|| PathBuf::from(&name));
        store.write(&top.digest, &top.bytes)?;
        write_index(&layout, &top, &reference)?;
        put(&layout, &target)?;
        target
    };
    print(&format!("{}\n", target.display()))
}

/// What makes blobs an OCI image layout (image specification 1.1, image-layout).
fn write_index(layout: &Path, top: &FetchedManifest, reference: &Reference) -> Result<(), Failure> {
    let media_type = match &top.document {
        Document::Image(manifest) => manifest.media_type.as_deref().unwrap_or(MANIFEST),
        Document::Index(index) => index.media_type.as_deref().unwrap_or(INDEX),
    };
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": media_type,
            "digest": top.digest,
            "size": top.bytes.len(),
            "annotations": {"org.opencontainers.image.ref.name": reference.tag.as_deref().unwrap_or("latest")},
        }],
    });
    std::fs::remove_dir_all(layout.join("partial"))?;
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(std::fs::write(layout.join("index.json"), index.to_string())?)
}

fn put(from: &Path, target: &Path) -> Result<(), Failure> {
    if target.exists() {
        return Err(Failure::new(
            FAILED,
            format!("{} exists: name another place, or remove it", target.display()),
        ));
    }
    Ok(std::fs::rename(from, target)?)
}
