//! Compiled code on disk, shared by the shims of a node: one file per module, and a seal beside it.
//!
//! ```text
//! CACHE/<compatibility>/<sha256 of the module>.code   what the compiler made, read-only
//! CACHE/<compatibility>/<sha256 of the module>.seal   its kind and its own sha256
//! ```
//! wasmtime runs whatever it is given as compiled code, so the sum in the seal is checked whenever a shim maps
//! a file for the first time. Files appear by rename and are never changed. The directory belongs to the shims
//! alone (mode 0700): whoever can write there can run code as the node.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use brig_api::Digest;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

/// Largest seal that is read.
const SEAL_BYTES_MAX: u64 = 4 << 10;
/// Largest compiled file that is mapped.
const CODE_BYTES_MAX: u64 = 4 << 30;

/// The two kinds of wasm binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BinaryKind {
    /// A core module.
    Module,
    /// A component.
    Component,
}

impl BinaryKind {
    /// By the first eight bytes; None when it is no wasm.
    pub(crate) fn detect(bytes: &[u8]) -> Option<Self> {
        match bytes.get(..8)? {
            b"\0asm\x01\0\0\0" => Some(Self::Module),
            b"\0asm\x0d\0\x01\0" => Some(Self::Component),
            _ => None,
        }
    }
}

/// What is written beside compiled code.
#[derive(Debug, Serialize, Deserialize)]
struct Seal {
    kind: BinaryKind,
    code: Digest,
}

/// The directory for one compatibility name.
#[derive(Debug, Clone)]
pub(crate) struct CodeStore {
    dir: PathBuf,
}

/// Compiled code whose seal was checked.
#[derive(Debug)]
pub(crate) struct SealedCode {
    /// The file that was checked, open: what is mapped is what was checked.
    pub(crate) file: File,
    pub(crate) kind: BinaryKind,
}

impl CodeStore {
    /// Opens (and creates) the directory of `compatibility` in `cache`.
    pub(crate) fn open(cache: &Path, compatibility: &str) -> io::Result<Self> {
        let dir = cache.join(compatibility);
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o700))?;
        Ok(Self { dir })
    }

    /// The code of a module, if it is there and sound. A damaged entry is removed.
    pub(crate) fn fetch(&self, module: &Digest) -> io::Result<Option<SealedCode>> {
        let (code_path, seal_path) = self.paths(module);
        let found = match read_checked(&code_path, &seal_path) {
            Ok(found) => return Ok(Some(found)),
            Err(error) => error,
        };
        match found.kind() {
            io::ErrorKind::NotFound => Ok(None),
            io::ErrorKind::InvalidData => {
                tracing::warn!(module = %module, error = %found, "compiled code is damaged");
                remove_if_there(&seal_path)?;
                remove_if_there(&code_path)?;
                Ok(None)
            }
            _ => Err(found),
        }
    }

    /// Stores what the compiler made.
    pub(crate) fn put(&self, module: &Digest, kind: BinaryKind, code: &[u8]) -> io::Result<()> {
        let (code_path, seal_path) = self.paths(module);
        let seal = Seal { kind, code: Digest::of_sha256(&sha2::Sha256::digest(code).into()) };
        self.publish(&code_path, code)?;
        self.publish(&seal_path, &serde_json::to_vec(&seal)?)
    }

    fn publish(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut temporary = tempfile::NamedTempFile::new_in(&self.dir)?;
        temporary.write_all(bytes)?;
        temporary.as_file().set_permissions(PermissionsExt::from_mode(0o444))?;
        temporary.as_file().sync_all()?;
        temporary.persist(path)?;
        Ok(())
    }

    fn paths(&self, module: &Digest) -> (PathBuf, PathBuf) {
        let name = module.hex();
        (self.dir.join(format!("{name}.code")), self.dir.join(format!("{name}.seal")))
    }
}

fn read_checked(code_path: &Path, seal_path: &Path) -> io::Result<SealedCode> {
    let mut seal = Vec::new();
    File::open(seal_path)?.take(SEAL_BYTES_MAX).read_to_end(&mut seal)?;
    let seal: Seal = serde_json::from_slice(&seal)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let mut file = File::open(code_path)?;
    if file.metadata()?.len() > CODE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is too large"));
    }
    let mut sum = sha2::Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        sum.update(&buffer[..count]);
    }
    let found = Digest::of_sha256(&sum.finalize().into());
    if found != seal.code {
        let message = format!("its seal says {}, it is {found}", seal.code);
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(SealedCode { file, kind: seal.kind })
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(bytes: &[u8]) -> Digest {
        Digest::of_sha256(&sha2::Sha256::digest(bytes).into())
    }

    #[test]
    fn code_is_found_again_under_its_own_compatibility_only() {
        let cache = tempfile::tempdir().unwrap();
        let store = CodeStore::open(cache.path(), "one").unwrap();
        let module = digest(b"module");
        assert!(store.fetch(&module).unwrap().is_none());
        store.put(&module, BinaryKind::Component, b"code").unwrap();
        store.put(&module, BinaryKind::Component, b"code").unwrap();
        assert_eq!(store.fetch(&module).unwrap().unwrap().kind, BinaryKind::Component);
        let other = CodeStore::open(cache.path(), "two").unwrap();
        assert!(other.fetch(&module).unwrap().is_none());
    }

    #[test]
    fn one_flipped_byte_or_a_broken_seal_is_as_if_nothing_were_there() {
        let cache = tempfile::tempdir().unwrap();
        let store = CodeStore::open(cache.path(), "one").unwrap();
        let module = digest(b"module");
        let (code, seal) = store.paths(&module);
        for (path, bytes) in [(&code, &b"codf"[..]), (&code, b""), (&seal, b"{"), (&seal, b"")] {
            store.put(&module, BinaryKind::Module, b"code").unwrap();
            std::fs::remove_file(path).unwrap();
            std::fs::write(path, bytes).unwrap();
            assert!(store.fetch(&module).unwrap().is_none(), "{}", path.display());
            assert!(!code.exists() && !seal.exists());
        }
    }

    #[test]
    fn binaries_are_told_apart_by_their_first_bytes() {
        assert_eq!(BinaryKind::detect(b"\0asm\x01\0\0\0rest"), Some(BinaryKind::Module));
        assert_eq!(BinaryKind::detect(b"\0asm\x0d\0\x01\0"), Some(BinaryKind::Component));
        for other in
            [&b""[..], b"\0asm", b"#!/bin/sh\n", b"\0asm\x02\0\0\0", b"\x7fELF\x02\x01\x01\0"]
        {
            assert_eq!(BinaryKind::detect(other), None);
        }
    }
}
