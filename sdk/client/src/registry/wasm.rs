//! Wasm files as OCI artifacts, by the guidance of the CNCF: what a file is, its configuration, pushing it.

use std::io::{Cursor, Read as _};
use std::path::Path;

use brig_api::Digest;
use brig_api::oci::{Descriptor, ImageManifest, MANIFEST, WASM_CONFIG, WASM_LAYER};
use brig_api::reference::Reference;
use brig_api::wasm::WasmForm;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::error::RegistryError;
use super::progress::Progress;
use super::push::Source;
use super::store::blocking;
use super::{RegistryClient, Transferred};
use crate::error::ClientError;
use crate::http::Client;

/// Largest wasm file that is pushed; a node would not compile a larger one in useful time.
pub const WASM_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// Files up to this size are read and hashed on the spot: that takes less time than to start a thread for it.
const INLINE_BYTES_MAX: u64 = 512 * 1024;
/// All artifacts are of this time, so that the same file pushed twice has the same digest.
const CREATED: &str = "1970-01-01T00:00:00Z";

pub use brig_wasm::form_of;

/// The configuration of a wasm artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WasmConfig {
    /// When it was made.
    pub created: String,
    /// Always `wasm`.
    pub architecture: String,
    /// `wasip1` for modules, `wasip2` for components.
    pub os: String,
    /// Digests of the layers.
    pub layer_digests: Vec<Digest>,
    /// What a component needs and offers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub component: Option<ComponentInterfaces>,
}

/// Names of what a component imports and exports, such as `wasi:http/incoming-handler@0.2.0`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ComponentInterfaces {
    /// What it offers.
    #[serde(default)]
    pub exports: Vec<String>,
    /// What it needs.
    #[serde(default)]
    pub imports: Vec<String>,
}

/// What a file that is no wasm seems to be, and what to do about it.
#[must_use]
pub fn name_of_other(bytes: &[u8]) -> (&'static str, &'static str) {
    const BUILD: &str = "build it for a wasm target, such as `cargo build --target wasm32-wasip2`";
    match bytes {
        [] => ("empty", "build it again"),
        [0x7f, b'E', b'L', b'F', ..] => ("a native Linux program (ELF)", BUILD),
        [0xcf | 0xce, 0xfa, 0xed, 0xfe, ..] => ("a native macOS program (Mach-O)", BUILD),
        [b'M', b'Z', ..] => ("a native Windows program (PE)", BUILD),
        [0x1f, 0x8b, ..] => ("a gzip archive", "unpack it first; an image goes as an OCI layout"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("a zstd archive", "unpack it first"),
        [b'P', b'K', 3, 4, ..] => ("a zip archive", "unpack it first"),
        [0, b'a', b's', b'm', ..] => (
            "WebAssembly of an unknown version",
            "build it with current tools: modules are version 1, components version 13",
        ),
        _ if bytes.get(257..262) == Some(b"ustar") => {
            ("a tar archive", "an image goes as an OCI layout, with `oci-layout` and `index.json`")
        }
        _ if bytes.starts_with(b"(module") || bytes.starts_with(b"(component") => {
            ("WebAssembly as text", "make a binary of it with `wasm-tools parse`")
        }
        _ if std::str::from_utf8(bytes).is_ok() => ("text", BUILD),
        _ => ("binary data of an unknown kind", BUILD),
    }
}

/// The configuration of the wasm binary `bytes`, whose layer has the digest `layer`.
///
/// # Errors
/// What is wrong with the binary.
pub fn config_of(bytes: &[u8], layer: Digest) -> Result<WasmConfig, String> {
    let facts = brig_wasm::inspect(Cursor::new(bytes)).map_err(|error| error.to_string())?;
    let is_component = facts.form == WasmForm::Component;
    let interfaces = ComponentInterfaces { exports: facts.exports, imports: facts.imports };
    Ok(WasmConfig {
        created: CREATED.to_owned(),
        architecture: "wasm".to_owned(),
        os: if is_component { "wasip2" } else { "wasip1" }.to_owned(),
        layer_digests: vec![layer],
        component: is_component.then_some(interfaces),
    })
}

/// Reads a wasm file whole and says clearly when it is none.
fn read(path: &Path) -> Result<Bytes, RegistryError> {
    let storage = |source| RegistryError::file(path, source);
    let file = std::fs::File::open(path).map_err(storage)?;
    let mut bytes = Vec::new();
    let mut file = file.take(WASM_BYTES_MAX + 1);
    file.by_ref().take(1024).read_to_end(&mut bytes).map_err(storage)?;
    if form_of(&bytes).is_none() {
        let (found, hint) = name_of_other(&bytes);
        return Err(RegistryError::NotWasm { path: path.to_owned(), found, hint });
    }
    file.read_to_end(&mut bytes).map_err(storage)?;
    if bytes.len() as u64 > WASM_BYTES_MAX {
        let why = format!("it is larger than {WASM_BYTES_MAX} bytes");
        return Err(RegistryError::BrokenWasm { path: path.to_owned(), why });
    }
    Ok(Bytes::from(bytes))
}

/// A wasm file as an artifact, ready to be pushed.
#[derive(Debug, Clone)]
pub struct WasmPackage {
    digest: Digest,
    manifest: ImageManifest,
    bytes: Bytes,
    config: Bytes,
    layer: Bytes,
}

impl WasmPackage {
    /// Reads a wasm file: a module or a component, told apart by its first bytes.
    ///
    /// # Errors
    /// [`RegistryError::NotWasm`] and [`RegistryError::BrokenWasm`].
    pub async fn read(path: &Path) -> Result<Self, RegistryError> {
        let is_small = std::fs::metadata(path).is_ok_and(|file| file.len() <= INLINE_BYTES_MAX);
        if is_small {
            return package(path);
        }
        let owned = path.to_owned();
        blocking(move || package(&owned)).await
    }

    /// Digest of its manifest.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }
}

/// A file as a wasm artifact: its layer, its configuration, and its manifest with their bytes.
fn package(path: &Path) -> Result<WasmPackage, RegistryError> {
    let layer = read(path)?;
    let broken = |why| RegistryError::BrokenWasm { path: path.to_owned(), why };
    let digest = |bytes: &[u8]| Digest::of_sha256(&Sha256::digest(bytes).into());
    let layer_digest = digest(&layer);
    let config = config_of(&layer, layer_digest.clone()).map_err(broken)?;
    let config = serde_json::to_vec(&config).map_err(|error| broken(error.to_string()))?;
    let config = Bytes::from(config);
    let manifest = ImageManifest {
        schema_version: 2,
        media_type: Some(MANIFEST.to_owned()),
        artifact_type: None,
        config: Descriptor::new(WASM_CONFIG, digest(&config), config.len() as u64),
        layers: vec![Descriptor::new(WASM_LAYER, layer_digest, layer.len() as u64)],
        subject: None,
        annotations: std::collections::BTreeMap::new(),
    };
    let bytes = serde_json::to_vec(&manifest)
        .map(Bytes::from)
        .map_err(|error| RegistryError::Setup(error.to_string()))?;
    Ok(WasmPackage { digest: digest(&bytes), manifest, bytes, config, layer })
}

impl RegistryClient {
    /// Pushes a wasm file as `reference`.
    ///
    /// # Errors
    /// Those of [`WasmPackage::read`] before anything is sent; otherwise what the registry says.
    pub async fn push_wasm(
        &self,
        path: &Path,
        reference: &Reference,
        progress: &dyn Progress,
    ) -> Result<Transferred, RegistryError> {
        self.push_wasm_package(&WasmPackage::read(path).await?, reference, progress).await
    }

    /// As [`Self::push_wasm`], of a file that was read before.
    ///
    /// # Errors
    /// What the registry says.
    pub async fn push_wasm_package(
        &self,
        package: &WasmPackage,
        reference: &Reference,
        progress: &dyn Progress,
    ) -> Result<Transferred, RegistryError> {
        let mut done =
            Transferred { digest: package.digest.clone(), bytes_sent: 0, blobs_known: 0 };
        let blobs = [
            (&package.manifest.config, &package.config),
            (&package.manifest.layers[0], &package.layer),
        ];
        for (descriptor, bytes) in blobs {
            let source = Source::Memory(bytes.clone());
            let sent = self.push_blob(reference, descriptor, &source, progress).await?;
            done.bytes_sent += sent;
            done.blobs_known += usize::from(sent == 0);
        }
        self.push_manifest(reference, MANIFEST, &package.bytes).await?;
        Ok(done)
    }
}

impl Client {
    /// Names a wasm program in the cluster's registry by one request: the registry takes a manifest when it has all
    /// that the manifest names. False when it does not, or has something else against it: push the program then.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] and [`ClientError::Broken`].
    pub async fn wasm_name(
        &self,
        package: &WasmPackage,
        reference: &Reference,
    ) -> Result<bool, ClientError> {
        let path = format!("/v2/{}/manifests/{}", reference.repository, reference.wanted());
        self.put_bytes(&path, MANIFEST, package.bytes.clone()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_and_components_are_told_apart() {
        let module = b"\0asm\x01\0\0\0";
        let component = b"\0asm\x0d\0\x01\0";
        let digest = Digest::of_sha256(&[1; 32]);
        let config = config_of(module, digest.clone()).unwrap();
        assert_eq!((config.os.as_str(), config.component), ("wasip1", None));
        let config = config_of(component, digest).unwrap();
        assert_eq!(
            (config.os.as_str(), config.component),
            ("wasip2", Some(ComponentInterfaces::default()))
        );
        assert_eq!(form_of(b"\0asm\x02\0\0\0"), None);
    }

    #[test]
    fn a_cut_off_binary_is_found() {
        // A type section that says it has 100 bytes and has none.
        let bytes = b"\0asm\x01\0\0\0\x01\x64";
        assert!(config_of(bytes, Digest::of_sha256(&[1; 32])).is_err());
    }

    #[test]
    fn files_that_are_no_wasm_are_named() {
        let dir = tempfile::tempdir().unwrap();
        for (bytes, name) in [
            (&b"\x7fELF\x02\x01"[..], "ELF"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"#!/bin/sh\n", "text"),
            (b"(module)", "as text"),
            (b"", "empty"),
            (b"\0asm\x63\0\0\0", "unknown version"),
        ] {
            let path = dir.path().join("hello.wasm");
            std::fs::write(&path, bytes).unwrap();
            let error = package(&path).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("hello.wasm"), "{error}");
            assert!(error.contains("expected"), "{error}");
        }
    }
}
