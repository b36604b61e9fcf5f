//! Compiled code on disk, shared by the shims of a node: one file per module, and a seal beside it.
//!
//! ```text
//! CACHE/<compatibility>/<sha256 of the module>.code   what the compiler made, read-only
//! CACHE/<compatibility>/<sha256 of the module>.seal   its kind and its own sha256
//! ```
//! What was not used for longest makes room for more, whatever version it was compiled for.
//!
//! wasmtime runs whatever it is given as compiled code, so the sum in the seal is checked whenever a shim maps
//! a file for the first time. Files appear by rename and are never changed. The directory belongs to the shims
//! alone (mode 0700): whoever can write there can run code as the node.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io::{self, BufRead, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use brig_api::Digest;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use tempfile::NamedTempFile;

use crate::clock::now_ms;
use crate::compiler::CODE_BYTES_MAX;

/// Largest seal that is read.
const SEAL_BYTES_MAX: u64 = 4 << 10;
/// Most compiled code that a node keeps: of some hundred interpreters. Its tenants choose what is compiled.
const STORE_BYTES_MAX: u64 = 8 << 30;
/// Most modules whose code a node keeps; they are looked through after each compilation.
const STORE_MODULES_MAX: usize = 10_000;
/// A file that is not complete is written to for seconds. One that is older was left by a compiler that was killed.
const INCOMPLETE_AGE_MAX_MS: i64 = 3_600_000;
/// How the name of a file that is not complete ends.
const INCOMPLETE: &str = "incomplete";

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
    /// All directories of all names.
    cache: PathBuf,
    pub(crate) compatibility: String,
    dir: PathBuf,
}

/// Compiled code whose seal was checked.
#[derive(Debug)]
pub(crate) struct SealedCode {
    /// The file that was checked, open: what is mapped is what was checked.
    pub(crate) file: File,
    pub(crate) kind: BinaryKind,
    code: Digest,
}

impl CodeStore {
    /// Opens (and creates) the directory of `compatibility` in `cache`.
    pub(crate) fn open(cache: &Path, compatibility: &str) -> io::Result<Self> {
        let store = Self::of(cache, compatibility);
        DirBuilder::new().recursive(true).mode(0o700).create(&store.dir)?;
        std::fs::set_permissions(&store.dir, PermissionsExt::from_mode(0o700))?;
        Ok(store)
    }

    /// The directory of `compatibility` in `cache`, for one who only reads there.
    pub(crate) fn of(cache: &Path, compatibility: &str) -> Self {
        let dir = cache.join(compatibility);
        Self { cache: cache.to_owned(), compatibility: compatibility.to_owned(), dir }
    }

    /// The code of a module that [`Self::fetch`] has found sound: a shim may read the directory, and the sum over an
    /// interpreter's code takes longer than mapping it.
    pub(crate) fn open_code(&self, module: &Digest) -> io::Result<SealedCode> {
        let (code_path, seal_path) = self.paths(module);
        let Seal { kind, code } = read_seal(&seal_path)?;
        Ok(SealedCode { file: File::open(code_path)?, kind, code })
    }

    /// The code of a module, if it is there and sound. A damaged entry is removed.
    pub(crate) fn fetch(&self, module: &Digest) -> io::Result<Option<SealedCode>> {
        let (code_path, seal_path) = self.paths(module);
        let found = match read_checked(&code_path, &seal_path) {
            Ok(found) => {
                mark_used(&found.file);
                return Ok(Some(found));
            }
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

    /// What the compiler is about to make, to be written and then put.
    pub(crate) fn incomplete(&self) -> io::Result<NamedTempFile> {
        tempfile::Builder::new().suffix(&format!(".{INCOMPLETE}")).tempfile_in(&self.dir)
    }

    /// Stores what the compiler made.
    pub(crate) fn put(
        &self,
        module: &Digest,
        kind: BinaryKind,
        code: NamedTempFile,
    ) -> io::Result<()> {
        let (code_path, seal_path) = self.paths(module);
        let mut file = code.reopen()?;
        let seal = Seal { kind, code: sum_of(&mut file)? };
        finish(code, &code_path)?;
        self.publish(&seal_path, &serde_json::to_vec(&seal)?)?;
        self.make_room_for_more();
        Ok(())
    }

    fn make_room_for_more(&self) {
        if let Err(error) = self.make_room(STORE_BYTES_MAX, STORE_MODULES_MAX) {
            // There is room for this one; the next compiler tries again.
            tracing::warn!(error = %error, "old compiled code could not be removed");
        }
    }

    /// Writes a module's code for another node's store: the seal on one line, then the code.
    pub(crate) fn export(&self, module: &Digest, out: &mut impl Write) -> io::Result<()> {
        let Some(SealedCode { mut file, kind, code }) = self.fetch(module)? else {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("no code of {module} is here"),
            ));
        };
        serde_json::to_writer(&mut *out, &Seal { kind, code })?;
        out.write_all(b"\n")?;
        file.rewind()?;
        io::copy(&mut file, out)?;
        out.flush()
    }

    /// Stores what [`Self::export`] wrote on another node. The caller knows that it comes from there: code is run as it is.
    pub(crate) fn import(&self, module: &Digest, from: &mut impl BufRead) -> io::Result<()> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let mut line = Vec::new();
        from.by_ref().take(SEAL_BYTES_MAX).read_until(b'\n', &mut line)?;
        let seal: Seal = serde_json::from_slice(&line).map_err(|_| invalid("it has no seal"))?;
        let mut temporary = self.incomplete()?;
        let mut sum = sha2::Sha256::new();
        let mut left = CODE_BYTES_MAX;
        loop {
            let piece = from.fill_buf()?;
            let length = piece.len();
            if length == 0 {
                break;
            }
            left = left.checked_sub(length as u64).ok_or_else(|| invalid("it is too large"))?;
            sum.update(piece);
            temporary.write_all(piece)?;
            from.consume(length);
        }
        if Digest::of_sha256(&sum.finalize().into()) != seal.code {
            return Err(invalid("it is not what its seal says"));
        }
        let (code_path, seal_path) = self.paths(module);
        finish(temporary, &code_path)?;
        self.publish(&seal_path, &serde_json::to_vec(&seal)?)?;
        self.make_room_for_more();
        Ok(())
    }

    /// Removes what was not used for longest until so much is left, and what is incomplete and old.
    fn make_room(&self, bytes_max: u64, modules_max: usize) -> io::Result<()> {
        let now_ms = now_ms();
        let mut modules = Vec::new();
        for dir in std::fs::read_dir(&self.cache)? {
            let dir = dir?;
            if !dir.file_type()?.is_dir() {
                continue;
            }
            for entry in std::fs::read_dir(dir.path())? {
                let entry = entry?;
                // Another compiler may have removed it meanwhile.
                let Ok(metadata) = entry.metadata() else { continue };
                let (path, used_ms) = (entry.path(), unix_ms(metadata.modified()?));
                match path.extension().and_then(OsStr::to_str) {
                    Some("code") => modules.push((used_ms, metadata.len(), path)),
                    Some(INCOMPLETE) if used_ms < now_ms - INCOMPLETE_AGE_MAX_MS => {
                        remove_if_there(&path)?;
                    }
                    _ => {}
                }
            }
        }
        modules.sort();
        let mut bytes: u64 = modules.iter().map(|(_, length, _)| length).sum();
        let mut count = modules.len();
        for (_, length, code) in modules {
            if bytes <= bytes_max && count <= modules_max {
                break;
            }
            remove_if_there(&code.with_extension("seal"))?;
            remove_if_there(&code)?;
            bytes -= length;
            count -= 1;
        }
        Ok(())
    }

    fn publish(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut temporary = self.incomplete()?;
        temporary.write_all(bytes)?;
        finish(temporary, path)
    }

    fn paths(&self, module: &Digest) -> (PathBuf, PathBuf) {
        let code = brig_shim::code::path(&self.cache, &self.compatibility, module);
        let seal = code.with_extension("seal");
        (code, seal)
    }
}

/// Gives a file its name once it is whole on the disk.
fn finish(temporary: NamedTempFile, path: &Path) -> io::Result<()> {
    temporary.as_file().set_permissions(PermissionsExt::from_mode(0o444))?;
    temporary.as_file().sync_all()?;
    temporary.persist(path)?;
    Ok(())
}

fn read_seal(path: &Path) -> io::Result<Seal> {
    let mut seal = Vec::new();
    File::open(path)?.take(SEAL_BYTES_MAX).read_to_end(&mut seal)?;
    serde_json::from_slice(&seal).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn read_checked(code_path: &Path, seal_path: &Path) -> io::Result<SealedCode> {
    let seal = read_seal(seal_path)?;
    let mut file = File::open(code_path)?;
    if file.metadata()?.len() > CODE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is too large"));
    }
    let found = sum_of(&mut file)?;
    if found != seal.code {
        let message = format!("its seal says {}, it is {found}", seal.code);
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(SealedCode { file, kind: seal.kind, code: found })
}

fn sum_of(file: &mut File) -> io::Result<Digest> {
    let mut sum = sha2::Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(Digest::of_sha256(&sum.finalize().into()));
        }
        sum.update(&buffer[..count]);
    }
}

/// The time of last use is that of modification: files are never modified, and few disks keep the other.
fn mark_used(file: &File) {
    let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    let times = rustix::fs::Timestamps { last_access: now, last_modification: now };
    if let Err(error) = rustix::fs::futimens(file, &times) {
        tracing::debug!(error = %error, "the time of a use could not be kept");
    }
}

fn unix_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
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

    fn put(store: &CodeStore, module: &Digest, kind: BinaryKind, code: &[u8]) {
        let mut file = store.incomplete().unwrap();
        file.write_all(code).unwrap();
        store.put(module, kind, file).unwrap();
    }

    #[test]
    fn code_is_found_again_under_its_own_compatibility_only() {
        let cache = tempfile::tempdir().unwrap();
        let store = CodeStore::open(cache.path(), "one").unwrap();
        let module = digest(b"module");
        assert!(store.fetch(&module).unwrap().is_none());
        put(&store, &module, BinaryKind::Component, b"code");
        put(&store, &module, BinaryKind::Component, b"code");
        assert_eq!(store.fetch(&module).unwrap().unwrap().kind, BinaryKind::Component);
        let other = CodeStore::open(cache.path(), "two").unwrap();
        assert!(other.fetch(&module).unwrap().is_none());
    }

    #[test]
    fn code_travels_whole_or_not_at_all() {
        let cache = tempfile::tempdir().unwrap();
        let [here, there] = ["a", "b"].map(|name| cache.path().join(name));
        let [here, there] = [here, there].map(|cache| CodeStore::open(&cache, "one").unwrap());
        let module = digest(b"module");
        let error = here.export(&module, &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        put(&here, &module, BinaryKind::Component, b"code");
        let mut sent = Vec::new();
        here.export(&module, &mut sent).unwrap();
        let flipped: Vec<u8> = [&sent[..sent.len() - 1], b"f"].concat();
        let longer: Vec<u8> = [&sent[..], b"e"].concat();
        for broken in [&sent[..sent.len() - 1], &flipped, &longer, b"code", b"{}\ncode", b""] {
            let error = there.import(&module, &mut &broken[..]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(there.fetch(&module).unwrap().is_none());
        }
        assert_eq!(std::fs::read_dir(&there.dir).unwrap().count(), 0, "nothing half-done stays");
        there.import(&module, &mut &sent[..]).unwrap();
        let mut found = there.fetch(&module).unwrap().unwrap();
        let mut code = String::new();
        found.file.rewind().unwrap();
        found.file.read_to_string(&mut code).unwrap();
        assert_eq!((code.as_str(), found.kind), ("code", BinaryKind::Component));
    }

    /// Sets when a file was last used, in seconds after 1970.
    fn age(path: &Path, seconds: u64) {
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        File::open(path).unwrap().set_modified(time).unwrap();
    }

    #[test]
    fn what_was_not_used_for_longest_makes_room_whatever_it_was_compiled_for() {
        let cache = tempfile::tempdir().unwrap();
        let [old, new] = ["old", "new"].map(|name| CodeStore::open(cache.path(), name).unwrap());
        let [first, second, third] = ["1", "2", "3"].map(|text| digest(text.as_bytes()));
        for (store, module, used) in [(&old, &first, 10), (&old, &second, 20), (&new, &third, 30)] {
            put(store, module, BinaryKind::Module, b"0123456789");
            age(&store.paths(module).0, used);
        }
        assert!(old.fetch(&first).unwrap().is_some(), "it is used again");
        new.make_room(20, 3).unwrap();
        assert!(old.fetch(&second).unwrap().is_none() && !old.paths(&second).1.exists());
        assert!(old.fetch(&first).unwrap().is_some() && new.fetch(&third).unwrap().is_some());
        new.make_room(20, 0).unwrap();
        assert_eq!(std::fs::read_dir(&old.dir).unwrap().count(), 0);
    }

    #[test]
    fn what_a_killed_compiler_has_left_is_removed() {
        let cache = tempfile::tempdir().unwrap();
        let store = CodeStore::open(cache.path(), "one").unwrap();
        let [left, written] = ["a", "b"].map(|name| store.dir.join(format!("{name}.{INCOMPLETE}")));
        for path in [&left, &written] {
            std::fs::write(path, b"half").unwrap();
        }
        age(&left, 10);
        put(&store, &digest(b"module"), BinaryKind::Module, b"code");
        assert!(!left.exists() && written.exists());
    }

    #[test]
    fn one_flipped_byte_or_a_broken_seal_is_as_if_nothing_were_there() {
        let cache = tempfile::tempdir().unwrap();
        let store = CodeStore::open(cache.path(), "one").unwrap();
        let module = digest(b"module");
        let (code, seal) = store.paths(&module);
        for (path, bytes) in [(&code, &b"codf"[..]), (&code, b""), (&seal, b"{"), (&seal, b"")] {
            put(&store, &module, BinaryKind::Module, b"code");
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
