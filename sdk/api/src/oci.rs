//! Documents of the OCI image specification as the registry, its clients and the nodes read them.
//!
//! Sources: OCI image specification 1.1 (manifest, index, descriptor), Docker's schema 2 (same fields, other
//! media types), and the CNCF guidance for wasm artifacts (`application/vnd.wasm.config.v0+json`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::object::ArtifactKind;

/// An image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An index: manifests for several platforms.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker's name for a manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's name for an index.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// The configuration of an image.
pub const IMAGE_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Docker's name for the configuration of an image.
pub const DOCKER_IMAGE_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// The configuration of a wasm artifact.
pub const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
/// The one layer of a wasm artifact.
pub const WASM_LAYER: &str = "application/wasm";
/// What older tools call the layer of a wasm artifact.
pub const WASM_LAYERS_LEGACY: [&str; 2] = [
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.module.wasm.content.layer.v1+wasm",
];
/// Annotations by which an image says that its program is wasm, each with the values that say so.
const WASM_ANNOTATIONS: [(&str, &[&str]); 2] = [
    ("module.wasm.image/variant", &["compat", "compat-smart"]),
    ("run.oci.handler", &["wasm", "wasmtime", "wasmedge", "wasmer"]),
];
/// All manifests and indexes that Brigantine reads, in order of preference, for `Accept`.
pub const ACCEPTED: [&str; 4] = [MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_INDEX];

/// Largest manifest or index: what the distribution specification asks registries to take at least.
pub const MANIFEST_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Most layers, or manifests of an index, in one document. Real images have at most 127.
pub const DESCRIPTORS_MAX: usize = 512;

/// Names a blob: what it is, how long it is, and its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob holds.
    pub media_type: String,
    /// The SHA-256 of its bytes.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Where else it may be had; a layer with these need not be in the registry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// The machine it is for; in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// The kind of artifact; in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Free texts, such as `org.opencontainers.image.ref.name`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// A descriptor with nothing but the three fields that each has.
    #[must_use]
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            urls: Vec::new(),
            platform: None,
            artifact_type: None,
            annotations: BTreeMap::new(),
        }
    }
}

/// A kind of machine, in Go's names: `linux`, `amd64`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Platform {
    /// `amd64`, `arm64` and so on.
    #[serde(default)]
    pub architecture: String,
    /// `linux` and so on.
    #[serde(default)]
    pub os: String,
    /// `v7`, `v8` and so on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// Is it no machine, but wasm? Tools name it by the architecture, the system, or both.
    #[must_use]
    pub fn is_wasm(&self) -> bool {
        matches!(self.architecture.as_str(), "wasm" | "wasm32")
            || matches!(self.os.as_str(), "wasi" | "wasip1" | "wasip2")
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// One image or artifact: a configuration and layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageManifest {
    /// Always 2.
    pub schema_version: u32,
    /// Its own media type; some tools leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The kind of an artifact that is no image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// The manifest that this one is about, such as the image that a signature signs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free texts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Manifests for several platforms under one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageIndex {
    /// Always 2.
    pub schema_version: u32,
    /// Its own media type; some tools leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The kind of an artifact that is no image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The manifests.
    pub manifests: Vec<Descriptor>,
    /// The manifest that this index is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free texts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What a registry's manifest endpoint holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image or artifact.
    Image(ImageManifest),
    /// Several.
    Index(ImageIndex),
}

/// Why bytes are no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDocument {
    /// Larger than [`MANIFEST_BYTES_MAX`].
    #[error("a manifest has at most {MANIFEST_BYTES_MAX} bytes; this one has {0}")]
    TooLarge(u64),
    /// No JSON of the right shape.
    #[error("the manifest is no valid JSON document of the OCI image specification: {0}")]
    Json(String),
    /// Neither layers nor manifests.
    #[error(
        "the manifest has neither `config` and `layers` (an image) nor `manifests` (an index); \
         expected one of the two"
    )]
    NoKnownShape,
    /// Another schema, such as Docker's first.
    #[error(
        "the manifest has schemaVersion {0}; only version 2 is read: push it again with a newer tool"
    )]
    SchemaVersion(u64),
    /// Says one thing in its media type and another in its fields or headers.
    #[error("the manifest is of type `{found}`, but `{expected}` was announced")]
    MediaType {
        /// By the header or descriptor.
        expected: String,
        /// By the document.
        found: String,
    },
    /// More than [`DESCRIPTORS_MAX`] layers or manifests.
    #[error("the manifest names {0} blobs; at most {DESCRIPTORS_MAX} are taken")]
    TooMany(usize),
}

impl Document {
    /// Reads a manifest. `announced` is the media type that came with it (header or descriptor), where one did.
    ///
    /// # Errors
    /// [`InvalidDocument`] when it is too large, of another shape, or not what was announced.
    pub fn parse(bytes: &[u8], announced: Option<&str>) -> Result<Self, InvalidDocument> {
        if bytes.len() as u64 > MANIFEST_BYTES_MAX {
            return Err(InvalidDocument::TooLarge(bytes.len() as u64));
        }
        let json = |error: serde_json::Error| InvalidDocument::Json(error.to_string());
        let value: serde_json::Value = serde_json::from_slice(bytes).map_err(json)?;
        match value.get("schemaVersion").and_then(serde_json::Value::as_u64) {
            Some(2) => {}
            Some(other) => return Err(InvalidDocument::SchemaVersion(other)),
            None => return Err(InvalidDocument::NoKnownShape),
        }
        // Exactly one of the two: a document that is both could be read as one thing here and another there.
        let document = match (value.get("manifests").is_some(), value.get("layers").is_some()) {
            (true, false) => Self::Index(serde_json::from_value(value).map_err(json)?),
            (false, true) => Self::Image(serde_json::from_value(value).map_err(json)?),
            _ => return Err(InvalidDocument::NoKnownShape),
        };
        if document.children().count() > DESCRIPTORS_MAX {
            return Err(InvalidDocument::TooMany(document.children().count()));
        }
        if let Some(expected) = announced.filter(|expected| ACCEPTED.contains(expected))
            && expected != document.media_type()
            && (document.says_its_type() || is_index(expected) != document.is_index())
        {
            return Err(InvalidDocument::MediaType {
                expected: expected.to_owned(),
                found: document.media_type().to_owned(),
            });
        }
        Ok(document)
    }

    fn says_its_type(&self) -> bool {
        match self {
            Self::Image(manifest) => manifest.media_type.is_some(),
            Self::Index(index) => index.media_type.is_some(),
        }
    }

    fn is_index(&self) -> bool {
        matches!(self, Self::Index(_))
    }

    /// Its media type; where it does not say, by its shape.
    #[must_use]
    pub fn media_type(&self) -> &str {
        match self {
            Self::Image(manifest) => match &manifest.media_type {
                Some(media_type) => media_type,
                None if manifest.config.media_type == DOCKER_IMAGE_CONFIG => DOCKER_MANIFEST,
                None => MANIFEST,
            },
            Self::Index(index) => index.media_type.as_deref().unwrap_or(INDEX),
        }
    }

    /// What it is to Brigantine.
    #[must_use]
    pub fn kind(&self) -> ArtifactKind {
        match self {
            Self::Index(_) => ArtifactKind::Index,
            Self::Image(manifest) => manifest.kind(),
        }
    }

    /// The blobs or manifests that it names: config and layers, or manifests.
    pub fn children(&self) -> impl Iterator<Item = &Descriptor> {
        let (config, others) = match self {
            Self::Image(manifest) => (Some(&manifest.config), &manifest.layers),
            Self::Index(index) => (None, &index.manifests),
        };
        config.into_iter().chain(others)
    }

    /// The manifest that it is about, if it is about one.
    #[must_use]
    pub fn subject(&self) -> Option<&Descriptor> {
        match self {
            Self::Image(manifest) => manifest.subject.as_ref(),
            Self::Index(index) => index.subject.as_ref(),
        }
    }
}

fn is_index(media_type: &str) -> bool {
    media_type == INDEX || media_type == DOCKER_INDEX
}

impl ImageManifest {
    /// What it is, by its layer, by what it says of itself, or by the media type of its configuration. That an image's
    /// program is wasm may also be told by the platform in its configuration.
    #[must_use]
    pub fn kind(&self) -> ArtifactKind {
        match self.config.media_type.as_str() {
            _ if self.wasm_layer().is_some() || self.says_wasm() => ArtifactKind::Wasm,
            WASM_CONFIG => ArtifactKind::Wasm,
            IMAGE_CONFIG | DOCKER_IMAGE_CONFIG => ArtifactKind::Image,
            _ => ArtifactKind::Other,
        }
    }

    /// The one layer that is a wasm file as it is, in no archive.
    #[must_use]
    pub fn wasm_layer(&self) -> Option<&Descriptor> {
        let [layer] = self.layers.as_slice() else { return None };
        let media_type = layer.media_type.as_str();
        let is_wasm = self.config.media_type == WASM_CONFIG
            || media_type == WASM_LAYER
            || WASM_LAYERS_LEGACY.contains(&media_type);
        is_wasm.then_some(layer)
    }

    /// Is it an image that is marked as one with a wasm program in its file tree?
    fn says_wasm(&self) -> bool {
        self.is_image()
            && WASM_ANNOTATIONS.iter().any(|(name, values)| {
                self.annotations.get(*name).is_some_and(|value| values.contains(&value.as_str()))
            })
    }

    /// Has it the configuration of a container image?
    #[must_use]
    pub fn is_image(&self) -> bool {
        matches!(self.config.media_type.as_str(), IMAGE_CONFIG | DOCKER_IMAGE_CONFIG)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(config: &str, layer: &str, media_type: &str) -> String {
        let digest = format!("sha256:{}", "1".repeat(64));
        format!(
            r#"{{"schemaVersion":2{media_type},"config":{{"mediaType":"{config}","digest":"{digest}","size":2}},
            "layers":[{{"mediaType":"{layer}","digest":"{digest}","size":3}}]}}"#
        )
    }

    #[test]
    fn a_manifest_without_a_media_type_goes_by_its_shape() {
        let text = image(IMAGE_CONFIG, "application/vnd.oci.image.layer.v1.tar+gzip", "");
        let document = Document::parse(text.as_bytes(), Some(MANIFEST)).unwrap();
        assert_eq!((document.media_type(), document.kind()), (MANIFEST, ArtifactKind::Image));
        assert_eq!(document.children().count(), 2);
        let docker = image(DOCKER_IMAGE_CONFIG, "x", "");
        assert_eq!(Document::parse(docker.as_bytes(), None).unwrap().media_type(), DOCKER_MANIFEST);
    }

    #[test]
    fn wasm_is_known_by_its_config_or_its_layer() {
        for (config, layer, kind) in [
            (WASM_CONFIG, WASM_LAYER, ArtifactKind::Wasm),
            ("application/vnd.oci.empty.v1+json", WASM_LAYER, ArtifactKind::Wasm),
            ("application/vnd.oci.empty.v1+json", WASM_LAYERS_LEGACY[0], ArtifactKind::Wasm),
            ("application/vnd.wasm.config.v1+json", WASM_LAYERS_LEGACY[1], ArtifactKind::Wasm),
            (IMAGE_CONFIG, WASM_LAYER, ArtifactKind::Wasm),
            ("application/vnd.oci.empty.v1+json", "text/plain", ArtifactKind::Other),
        ] {
            let text = image(config, layer, "");
            assert_eq!(Document::parse(text.as_bytes(), None).unwrap().kind(), kind, "{config}");
        }
    }

    #[test]
    fn an_image_may_say_that_its_program_is_wasm() {
        let text = image(IMAGE_CONFIG, "application/vnd.oci.image.layer.v1.tar+gzip", "");
        let mut manifest: ImageManifest = serde_json::from_str(&text).unwrap();
        for (name, value, kind) in [
            ("module.wasm.image/variant", "compat", ArtifactKind::Wasm),
            ("module.wasm.image/variant", "compat-smart", ArtifactKind::Wasm),
            ("run.oci.handler", "wasm", ArtifactKind::Wasm),
            ("run.oci.handler", "krun", ArtifactKind::Image),
        ] {
            manifest.annotations = [(name.to_owned(), value.to_owned())].into();
            assert_eq!((manifest.kind(), manifest.wasm_layer()), (kind, None), "{name}: {value}");
        }
        for (os, architecture, is_wasm) in [
            ("wasi", "wasm", true),
            ("wasip1", "", true),
            ("linux", "wasm32", true),
            ("linux", "amd64", false),
        ] {
            let platform =
                Platform { os: os.into(), architecture: architecture.into(), variant: None };
            assert_eq!(platform.is_wasm(), is_wasm, "{platform}");
        }
    }

    #[test]
    fn documents_that_are_two_things_or_none_are_refused() {
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"schemaVersion":1}"#,
            r#"{"schemaVersion":2}"#,
            r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#,
            r#"{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"md5:0","size":1}]}"#,
            r#"{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"sha256:00","size":-1}]}"#,
        ] {
            assert!(Document::parse(bad.as_bytes(), None).is_err(), "{bad}");
        }
        let says = format!(r#","mediaType":"{MANIFEST}""#);
        let text = image(IMAGE_CONFIG, "x", &says);
        assert!(matches!(
            Document::parse(text.as_bytes(), Some(INDEX)),
            Err(InvalidDocument::MediaType { .. })
        ));
    }
}
