//! OCI image layouts, as a folder or a tar: what is in them, and pushing it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use brig_api::Digest;
use brig_api::oci::{Descriptor, Document, ImageIndex, MANIFEST_BYTES_MAX};
use brig_api::reference::Reference;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::error::RegistryError;
use super::progress::Progress;
use super::push::Source;
use super::store::blocking;
use super::{RegistryClient, Transferred};

/// The annotation by which a layout names its images.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Most entries of a tar that is looked through.
const TAR_ENTRIES_MAX: usize = 100_000;

/// A layout: where each of its files is.
#[derive(Debug)]
struct Layout {
    path: PathBuf,
    /// For a tar: where each entry's bytes are, and how many.
    entries: Option<HashMap<String, (u64, u64)>>,
}

/// A manifest of the layout, with its bytes.
struct Held {
    descriptor: Descriptor,
    bytes: Bytes,
    document: Document,
}

impl Layout {
    fn open(path: &Path) -> Result<Self, RegistryError> {
        let metadata =
            std::fs::metadata(path).map_err(|source| RegistryError::file(path, source))?;
        let entries = if metadata.is_dir() { None } else { Some(tar_entries(path)?) };
        let layout = Self { path: path.to_owned(), entries };
        if layout.find("oci-layout").is_none() {
            return Err(layout.invalid("it has no file `oci-layout`".to_owned()));
        }
        Ok(layout)
    }

    fn invalid(&self, why: String) -> RegistryError {
        RegistryError::NotLayout { path: self.path.clone(), why }
    }

    /// Where a file of the layout is, and its length.
    fn find(&self, name: &str) -> Option<(PathBuf, u64, u64)> {
        match &self.entries {
            Some(entries) => {
                let (offset, size) = entries.get(name)?;
                Some((self.path.clone(), *offset, *size))
            }
            None => {
                let path = self.path.join(name);
                let metadata = std::fs::symlink_metadata(&path).ok()?;
                metadata.is_file().then_some((path, 0, metadata.len()))
            }
        }
    }

    fn read(&self, name: &str) -> Result<Bytes, RegistryError> {
        use std::io::{Read as _, Seek as _};
        let (path, offset, size) =
            self.find(name).ok_or_else(|| self.invalid(format!("it has no file `{name}`")))?;
        if size > MANIFEST_BYTES_MAX {
            return Err(self.invalid(format!("`{name}` is larger than {MANIFEST_BYTES_MAX} bytes")));
        }
        let mut bytes = Vec::new();
        std::fs::File::open(&path)
            .and_then(|mut file| {
                file.seek(std::io::SeekFrom::Start(offset))?;
                file.take(size).read_to_end(&mut bytes)
            })
            .map_err(|source| RegistryError::file(&path, source))?;
        Ok(Bytes::from(bytes))
    }

    /// A blob's place; an error that names it when it is missing or of another length.
    fn blob(&self, blob: &Descriptor) -> Result<Source, RegistryError> {
        let name = blob_name(&blob.digest);
        match self.find(&name) {
            Some((path, offset, size)) if size == blob.size => Ok(Source::File { path, offset }),
            Some((_, _, size)) => {
                Err(self
                    .invalid(format!("`{name}` has {size} bytes, its manifest says {}", blob.size)))
            }
            None => Err(self.invalid(format!("it names the blob `{name}` but does not hold it"))),
        }
    }

    fn manifest(&self, descriptor: &Descriptor) -> Result<Held, RegistryError> {
        let name = blob_name(&descriptor.digest);
        let bytes = self.read(&name)?;
        let found = Digest::of_sha256(&Sha256::digest(&bytes).into());
        if found != descriptor.digest {
            return Err(self.invalid(format!(
                "`{name}` is corrupt: its bytes have the digest {found}; make the layout again"
            )));
        }
        let document = Document::parse(&bytes, Some(&descriptor.media_type))
            .map_err(|why| self.invalid(format!("`{name}`: {why}")))?;
        Ok(Held { descriptor: descriptor.clone(), bytes, document })
    }

    /// The manifest to push: the only one, or the one with the reference's tag as its name.
    fn choose(&self, tag: Option<&str>) -> Result<Held, RegistryError> {
        let text = self.read("index.json")?;
        let index: ImageIndex = serde_json::from_slice(&text)
            .map_err(|error| self.invalid(format!("`index.json`: {error}")))?;
        let name_of = |entry: &Descriptor| entry.annotations.get(REF_NAME).cloned();
        let chosen = match index.manifests.as_slice() {
            [] => return Err(self.invalid("its `index.json` names no image".to_owned())),
            [only] => only,
            several => several
                .iter()
                .find(|entry| tag.is_some() && name_of(entry).as_deref() == tag)
                .ok_or_else(|| {
                    let names: Vec<_> = several.iter().filter_map(name_of).take(20).collect();
                    self.invalid(format!(
                        "it holds {} images ({}) and none is named like the tag; push with the tag \
                         of one of them",
                        several.len(),
                        names.join(", ")
                    ))
                })?,
        };
        self.manifest(chosen)
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn tar_entries(path: &Path) -> Result<HashMap<String, (u64, u64)>, RegistryError> {
    let storage = |source| RegistryError::file(path, source);
    let not_tar = |why: std::io::Error| RegistryError::NotLayout {
        path: path.to_owned(),
        why: format!("it is no folder and cannot be read as a tar ({why})"),
    };
    let file = std::fs::File::open(path).map_err(storage)?;
    let mut archive = tar::Archive::new(file);
    let mut found = HashMap::new();
    // With seeking, a blob is passed over instead of read.
    for entry in archive.entries_with_seek().map_err(not_tar)?.take(TAR_ENTRIES_MAX) {
        let entry = entry.map_err(not_tar)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let name = name.trim_start_matches("./").to_owned();
        found.insert(name, (entry.raw_file_position(), entry.size()));
    }
    Ok(found)
}

impl RegistryClient {
    /// Pushes an image from an OCI layout (a folder or a tar) as `reference`. Of several images in the layout
    /// the one that is named like the reference's tag is taken. An index is pushed with all its platforms.
    ///
    /// # Errors
    /// [`RegistryError::NotLayout`] before anything is sent when something is missing or corrupt; otherwise
    /// what the registry says.
    pub async fn push_layout(
        &self,
        path: &Path,
        reference: &Reference,
        progress: &dyn Progress,
    ) -> Result<Transferred, RegistryError> {
        let (owned, tag) = (path.to_owned(), reference.tag.clone());
        let (layout, held) = blocking(move || {
            let layout = Layout::open(&owned)?;
            let top = layout.choose(tag.as_deref())?;
            // Parents before children, so backwards is the order to push in.
            let mut held = vec![top];
            let mut next = 0;
            while let Some(manifest) = held.get(next) {
                if let Document::Index(index) = &manifest.document {
                    let children: Result<Vec<_>, _> =
                        index.manifests.iter().map(|child| layout.manifest(child)).collect();
                    held.extend(children?);
                }
                next += 1;
                if held.len() > brig_api::oci::DESCRIPTORS_MAX {
                    return Err(layout.invalid("its index names too many manifests".to_owned()));
                }
            }
            Ok((layout, held))
        })
        .await?;
        let digest = held.first().map(|top| top.descriptor.digest.clone());
        let digest = digest.ok_or_else(|| layout.invalid("it is empty".to_owned()))?;
        let mut done = Transferred { digest, bytes_sent: 0, blobs_known: 0 };
        for (nth, manifest) in held.iter().enumerate().rev() {
            if let Document::Image(image) = &manifest.document {
                let kept = |blob: &&Descriptor| blob.urls.is_empty();
                for blob in std::iter::once(&image.config).chain(&image.layers).filter(kept) {
                    let source = layout.blob(blob)?;
                    let sent = self.push_blob(reference, blob, &source, progress).await?;
                    done.bytes_sent += sent;
                    done.blobs_known += usize::from(sent == 0);
                }
            }
            let pinned = reference.pinned(manifest.descriptor.digest.clone());
            let name = if nth == 0 { reference } else { &pinned };
            self.push_manifest(name, manifest.document.media_type(), &manifest.bytes).await?;
        }
        Ok(done)
    }
}
