//! What a node fetches to run: wasm programs and images, checked, kept once, unpacked once.
//!
//! ```text
//! <data>/artifacts/blobs/sha256/<hex>    manifests, configurations, wasm, compressed layers
//! <data>/artifacts/partial/<hex>         the begin of a blob whose transfer broke; the next fetch goes on there
//! <data>/artifacts/layers/<hex>          a layer unpacked, in overlayfs's format, named by its diff id
//! ```
//!
//! Everything is named by its digest, so what is there is right: a blob gets its name after its digest was
//! checked, a layer after the digest of its tar was.

mod error;
mod image;
mod layers;
mod platform;
mod tar_stream;
#[cfg(test)]
mod tests;
mod unpack;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use brig_api::Digest;
use brig_api::object::ArtifactKind;
use brig_api::oci::{Descriptor, Document, ImageManifest, MANIFEST_BYTES_MAX};
use brig_api::reference::Reference;
use brig_api::unit_spec::Runtime;
use brig_api::wasm::WasmForm;
use brig_client::registry::wasm::{WasmConfig, form_of, name_of_other};
use brig_client::registry::{ContentStore, Progress, RegistryClient};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

pub use error::ArtifactError;
pub use image::{ImageConfig, ProcessConfig};
pub use layers::UnpackLimits;
pub use platform::this_machine;

use layers::LayerStore;

/// Blobs that are fetched at the same time, over all artifacts: more only share the same line.
const FETCHES_MAX: usize = 4;
/// Layers that are unpacked at the same time: each takes a core and the disk.
const UNPACKS_MAX: usize = 2;
/// Most layers of an image. Builders stop at 127; overlayfs takes 500.
pub const LAYERS_MAX: usize = 127;
/// Largest image, compressed.
pub const IMAGE_BYTES_MAX: u64 = 32 * 1024 * 1024 * 1024;
/// Largest wasm program; a node would not compile a larger one in useful time.
pub const WASM_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// Wasm programs that are remembered; beyond it all are forgotten, and looked at again.
const PROGRAMS_KNOWN_MAX: usize = 1_024;
/// Largest configuration of an image.
const CONFIG_BYTES_MAX: u64 = MANIFEST_BYTES_MAX;

/// Something that can be run, on this node's disk.
#[derive(Debug, Clone)]
pub enum Artifact {
    /// A wasm program.
    Wasm(WasmArtifact),
    /// A container image.
    Image(ImageArtifact),
}

/// A wasm program on disk.
#[derive(Debug, Clone)]
pub struct WasmArtifact {
    /// The binary.
    pub path: PathBuf,
    /// Digest of the binary.
    pub digest: Digest,
    /// Digest of the manifest.
    pub manifest: Digest,
    /// Module or component, by its first bytes.
    pub form: WasmForm,
    /// What the artifact says about itself, where it says anything.
    pub config: Option<WasmConfig>,
}

/// An image on disk.
#[derive(Debug, Clone)]
pub struct ImageArtifact {
    /// Digest of the manifest for this machine.
    pub manifest: Digest,
    /// How to run it.
    pub config: ImageConfig,
    /// The unpacked layers, lowest first, for overlayfs's `lowerdir` (which wants the highest first).
    pub layers: Vec<PathBuf>,
}

/// The node's artifacts. Cheap to clone.
#[derive(Clone)]
pub struct Artifacts {
    inner: Arc<Inner>,
}

struct Inner {
    client: RegistryClient,
    store: ContentStore,
    layers: LayerStore,
    fetches: Semaphore,
    unpacks: Semaphore,
    /// One lock for each thing that somebody is busy with.
    busy: Mutex<HashMap<(Work, Digest), Turn>>,
    /// Blobs that this process has seen to be what their name says.
    checked: Mutex<std::collections::HashSet<Digest>>,
    /// Wasm programs that this process has looked at, by the digest of their manifest: the next start of one reads
    /// nothing.
    programs: Mutex<HashMap<Digest, WasmArtifact>>,
}

/// The lock of one piece of work; gone when nobody holds it or waits for it.
type Turn = Weak<tokio::sync::Mutex<()>>;

/// What somebody is busy with. The blob of a layer that is not compressed has the layer's own digest, and is fetched
/// while that layer is being unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Work {
    Fetch,
    Unpack,
}

impl Artifacts {
    /// Opens the node's artifacts in `<data>/artifacts`, and removes what a crash left half-done.
    ///
    /// # Errors
    /// [`ArtifactError`] when a folder cannot be made or cleaned.
    pub fn open(
        data: &std::path::Path,
        client: RegistryClient,
        limits: UnpackLimits,
    ) -> Result<Self, ArtifactError> {
        let root = data.join("artifacts");
        let store = ContentStore::open(&root)?;
        let layers = LayerStore::open(root.join("layers"), limits)?;
        Ok(Self {
            inner: Arc::new(Inner {
                client,
                store,
                layers,
                fetches: Semaphore::new(FETCHES_MAX),
                unpacks: Semaphore::new(UNPACKS_MAX),
                busy: Mutex::default(),
                checked: Mutex::default(),
                programs: Mutex::default(),
            }),
        })
    }

    /// Fetches what `reference` names, as far as it is not there. A reference with a digest that is there
    /// whole needs no network. Of an index with something for each `runtime` that for the given one.
    ///
    /// # Errors
    /// [`ArtifactError`], which says which reason a unit gets ([`ArtifactError::reason`]).
    pub async fn fetch(
        &self,
        reference: &Reference,
        runtime: Runtime,
        progress: &dyn Progress,
    ) -> Result<Artifact, ArtifactError> {
        if let Some(program) = self.inner.program(reference) {
            progress.end(&program.digest, true);
            return Ok(Artifact::Wasm(program));
        }
        let (digest, manifest) = self.inner.image_manifest(reference, runtime).await?;
        if let Some(layer) = manifest.wasm_layer() {
            let program = self.inner.wasm(reference, digest, &manifest, layer, progress).await?;
            return Ok(Artifact::Wasm(program));
        }
        match manifest.kind() {
            ArtifactKind::Wasm | ArtifactKind::Image if manifest.is_image() => {
                self.inner.image(reference, digest, &manifest, progress).await
            }
            _ => Err(ArtifactError::NotRunnable {
                reference: reference.to_string(),
                config: manifest.config.media_type,
            }),
        }
    }

    /// As [`Self::fetch`], for a task that runs wasm.
    ///
    /// # Errors
    /// Also [`ArtifactError::WrongRuntime`] for an image.
    pub async fn fetch_wasm(
        &self,
        reference: &Reference,
        progress: &dyn Progress,
    ) -> Result<WasmArtifact, ArtifactError> {
        match self.fetch(reference, Runtime::Wasm, progress).await? {
            Artifact::Wasm(wasm) => Ok(wasm),
            Artifact::Image(_) => Err(ArtifactError::WrongRuntime {
                reference: reference.to_string(),
                found: "a container image",
                wanted: "a wasm program",
                instead: "`oci: {image: …}`",
            }),
        }
    }

    /// As [`Self::fetch`], for a task that runs a container.
    ///
    /// # Errors
    /// Also [`ArtifactError::WrongRuntime`] for a wasm program.
    pub async fn fetch_image(
        &self,
        reference: &Reference,
        progress: &dyn Progress,
    ) -> Result<ImageArtifact, ArtifactError> {
        match self.fetch(reference, Runtime::Oci, progress).await? {
            Artifact::Image(image) => Ok(image),
            Artifact::Wasm(_) => Err(ArtifactError::WrongRuntime {
                reference: reference.to_string(),
                found: "a wasm program",
                wanted: "a container image",
                instead: "`wasm: {artifact: …}`",
            }),
        }
    }
}

impl Inner {
    /// The wasm program that the reference names by its digest, if it was looked at before and is still there.
    fn program(&self, reference: &Reference) -> Option<WasmArtifact> {
        let digest = reference.digest.as_ref()?;
        let known = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(digest).filter(|program| self.store.has(&program.digest)).cloned()
    }

    fn remember(&self, program: &WasmArtifact) {
        let mut known = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= PROGRAMS_KNOWN_MAX {
            known.clear();
        }
        known.insert(program.manifest.clone(), program.clone());
    }

    /// The manifest to run: what the reference names, or this machine's out of an index.
    async fn image_manifest(
        &self,
        reference: &Reference,
        runtime: Runtime,
    ) -> Result<(Digest, ImageManifest), ArtifactError> {
        let (digest, document) = self.document(reference).await?;
        let index = match document {
            Document::Image(manifest) => return Ok((digest, manifest)),
            Document::Index(index) => index,
        };
        let chosen = platform::choose(reference, &index, &this_machine(), runtime)?;
        let (digest, document) = self.document(&reference.pinned(chosen.digest.clone())).await?;
        match document {
            Document::Image(manifest) => Ok((digest, manifest)),
            Document::Index(_) => {
                Err(ArtifactError::NestedIndex { reference: reference.to_string(), digest })
            }
        }
    }

    /// A manifest from the disk, where the reference has its digest, else from the registry.
    async fn document(&self, reference: &Reference) -> Result<(Digest, Document), ArtifactError> {
        if let Some(digest) = &reference.digest
            && let Some(bytes) = self.read(digest, MANIFEST_BYTES_MAX).await?
            && let Ok(document) = Document::parse(&bytes, None)
        {
            return Ok((digest.clone(), document));
        }
        let fetched = self.client.manifest(reference).await?;
        let (store, digest, bytes) =
            (self.store.clone(), fetched.digest.clone(), fetched.bytes.clone());
        layers::blocking(move || Ok(store.write(&digest, &bytes)?)).await?;
        Ok((fetched.digest, fetched.document))
    }

    async fn wasm(
        &self,
        reference: &Reference,
        digest: Digest,
        manifest: &ImageManifest,
        layer: &Descriptor,
        progress: &dyn Progress,
    ) -> Result<WasmArtifact, ArtifactError> {
        within(reference, layer.size, WASM_BYTES_MAX)?;
        within(reference, manifest.config.size, CONFIG_BYTES_MAX)?;
        self.blob(reference, &manifest.config, progress).await?;
        self.checked_blob(reference, layer, progress).await?;
        let config = self.read(&manifest.config.digest, CONFIG_BYTES_MAX).await?;
        let path = self.store.path(&layer.digest);
        let head = layers::read_head(&path).await?;
        let form = form_of(&head).ok_or_else(|| ArtifactError::NotWasm {
            reference: reference.to_string(),
            found: name_of_other(&head).0,
        })?;
        let program = WasmArtifact {
            path,
            digest: layer.digest.clone(),
            manifest: digest,
            form,
            config: config.and_then(|bytes| serde_json::from_slice(&bytes).ok()),
        };
        self.remember(&program);
        Ok(program)
    }

    async fn image(
        &self,
        reference: &Reference,
        digest: Digest,
        manifest: &ImageManifest,
        progress: &dyn Progress,
    ) -> Result<Artifact, ArtifactError> {
        let sum = manifest.layers.iter().fold(0, |sum: u64, layer| sum.saturating_add(layer.size));
        within(reference, sum, IMAGE_BYTES_MAX)?;
        within(reference, manifest.config.size, CONFIG_BYTES_MAX)?;
        if manifest.layers.len() > LAYERS_MAX {
            let count = manifest.layers.len();
            return Err(ArtifactError::TooManyLayers { reference: reference.to_string(), count });
        }
        self.blob(reference, &manifest.config, progress).await?;
        let bytes = self.read(&manifest.config.digest, CONFIG_BYTES_MAX).await?;
        let bytes = bytes.ok_or_else(|| ArtifactError::Config {
            reference: reference.to_string(),
            why: "it is corrupt on this node's disk; it was removed and is fetched again next time"
                .to_owned(),
        })?;
        let config = ImageConfig::parse(reference, &bytes, manifest.layers.len())?;
        let is_wasm = manifest.kind() == ArtifactKind::Wasm || config.platform.is_wasm();
        if !is_wasm {
            platform::check(reference, &config, &this_machine())?;
        }
        let diff_ids = config.rootfs.diff_ids.iter();
        let all = manifest
            .layers
            .iter()
            .zip(diff_ids)
            .map(|(layer, diff_id)| self.layer(reference, layer, diff_id, progress));
        let layers = futures::future::try_join_all(all).await?;
        if is_wasm {
            let program = self.wasm_in_image(reference, digest, &config, layers).await?;
            return Ok(Artifact::Wasm(program));
        }
        Ok(Artifact::Image(ImageArtifact { manifest: digest, config, layers }))
    }

    /// The wasm program that an image's entry point names: it becomes a blob of its own. Of the image's configuration
    /// nothing else is used.
    async fn wasm_in_image(
        &self,
        reference: &Reference,
        manifest: Digest,
        config: &ImageConfig,
        layers: Vec<PathBuf>,
    ) -> Result<WasmArtifact, ArtifactError> {
        let invalid = |why: String| ArtifactError::Config { reference: reference.to_string(), why };
        let entry = image::entry_point(config).ok_or_else(|| {
            let why = "it is for wasm, but has no entry point that names a file".to_owned();
            invalid(why)
        })?;
        let (store, name) = (self.store.clone(), entry.clone());
        let found = layers::blocking(move || {
            let Some(bytes) = layers::read_file(&layers, &entry, WASM_BYTES_MAX)? else {
                return Ok(None);
            };
            let digest = Digest::of_sha256(&Sha256::digest(&bytes).into());
            let form = form_of(&bytes);
            if form.is_some() {
                store.write(&digest, &bytes)?;
            }
            Ok(Some((digest, form, name_of_other(&bytes).0)))
        })
        .await?;
        let Some((digest, form, looks_like)) = found else {
            let why = format!(
                "its entry point `{}` is no file in its layers, or one of more than {WASM_BYTES_MAX} bytes",
                name.display()
            );
            return Err(invalid(why));
        };
        let form = form.ok_or_else(|| ArtifactError::NotWasm {
            reference: reference.to_string(),
            found: looks_like,
        })?;
        let path = self.store.path(&digest);
        let program = WasmArtifact { path, digest, manifest, form, config: None };
        self.remember(&program);
        Ok(program)
    }

    /// A layer, unpacked. The compressed blob goes once that is done: it can be fetched again.
    async fn layer(
        &self,
        reference: &Reference,
        layer: &Descriptor,
        diff_id: &Digest,
        progress: &dyn Progress,
    ) -> Result<PathBuf, ArtifactError> {
        if let Some(path) = self.layers.find(diff_id) {
            progress.end(&layer.digest, true);
            return Ok(path);
        }
        // By its diff id: two blobs may hold the same layer, compressed in two ways.
        let _alone = self.alone(Work::Unpack, diff_id).await;
        if let Some(path) = self.layers.find(diff_id) {
            progress.end(&layer.digest, true);
            return Ok(path);
        }
        let mut is_second = false;
        loop {
            self.blob(reference, layer, progress).await?;
            let _permit = self.unpacks.acquire().await;
            let (layers, blob) = (self.layers.clone(), self.store.path(&layer.digest));
            let wanted = diff_id.clone();
            let unpacked = layers::blocking(move || layers.unpack(&blob, &wanted)).await;
            let error = match unpacked {
                Ok(path) => {
                    self.store.remove(&layer.digest)?;
                    return Ok(path);
                }
                Err(error) => error,
            };
            // A layer that cannot be unpacked may have been changed on disk since it came: then once more.
            let is_changed = self.drop_if_changed(&layer.digest).await?;
            if is_second || !is_changed {
                return Err(error.in_layer(reference, &layer.digest));
            }
            is_second = true;
        }
    }

    /// A blob, fetched when it is not there, and hashed when it was there before this process began.
    async fn checked_blob(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        progress: &dyn Progress,
    ) -> Result<(), ArtifactError> {
        let is_checked = |inner: &Self| {
            inner.checked.lock().unwrap_or_else(PoisonError::into_inner).contains(&blob.digest)
        };
        if self.store.has(&blob.digest) && !is_checked(self) {
            self.drop_if_changed(&blob.digest).await?;
        }
        self.blob(reference, blob, progress).await?;
        self.checked.lock().unwrap_or_else(PoisonError::into_inner).insert(blob.digest.clone());
        Ok(())
    }

    async fn blob(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        progress: &dyn Progress,
    ) -> Result<(), ArtifactError> {
        let _alone = self.alone(Work::Fetch, &blob.digest).await;
        let _permit = self.fetches.acquire().await;
        self.client.blob(reference, blob, &self.store, progress).await?;
        Ok(())
    }

    /// Removes a blob whose bytes are no longer what its name says; true when it did.
    async fn drop_if_changed(&self, digest: &Digest) -> Result<bool, ArtifactError> {
        let (store, digest) = (self.store.clone(), digest.clone());
        layers::blocking(move || {
            let found = store.digest_on_disk(&digest)?;
            if found == digest {
                return Ok(false);
            }
            tracing::warn!(blob = %digest, %found, "a blob changed on this node's disk and is fetched again");
            store.remove(&digest)?;
            Ok(true)
        })
        .await
    }

    async fn read(
        &self,
        digest: &Digest,
        bytes_max: u64,
    ) -> Result<Option<Vec<u8>>, ArtifactError> {
        let (store, digest) = (self.store.clone(), digest.clone());
        layers::blocking(move || Ok(store.read(&digest, bytes_max)?)).await
    }

    /// Waits until nobody else does this with `digest`: what two units need is fetched once.
    async fn alone(&self, work: Work, digest: &Digest) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            busy.retain(|_, lock| lock.strong_count() > 0);
            let key = (work, digest.clone());
            match busy.get(&key).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    let lock = Arc::new(tokio::sync::Mutex::new(()));
                    busy.insert(key, Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }
}

fn within(reference: &Reference, bytes: u64, bytes_max: u64) -> Result<(), ArtifactError> {
    if bytes > bytes_max {
        return Err(ArtifactError::TooLarge { reference: reference.to_string(), bytes, bytes_max });
    }
    Ok(())
}
