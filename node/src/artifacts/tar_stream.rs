//! A tar read from a stream, with caps on everything that a header can ask for.
//!
//! The `tar` crate reads the headers; the walk is our own because that crate takes long names of any length into
//! memory, and a layer may come from anybody.

use std::collections::BTreeMap;
use std::io::Read;

use tar::{EntryType, Header};

use super::unpack::UnpackError;

/// Tar is made of blocks of this size.
const BLOCK: usize = 512;
/// Largest extension headers of one entry, together: long names, and attributes such as capabilities.
const EXTENSION_BYTES_MAX: u64 = 1024 * 1024;
/// The prefix by which tars carry extended attributes.
const XATTR_PREFIX: &str = "SCHILY.xattr.";

/// One file, directory or link of a tar. Its bytes follow in the stream.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) entry_type: EntryType,
    pub(crate) size: u64,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mode: u32,
    pub(crate) mtime: i64,
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
}

/// A tar that is read from its begin to its end, once.
#[derive(Debug)]
pub(crate) struct TarStream<R> {
    reader: R,
    /// Bytes of the current entry, with padding, that were not read.
    rest: u64,
    data: u64,
}

/// What extension headers say about the next entry.
#[derive(Debug, Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    records: BTreeMap<String, Vec<u8>>,
}

impl<R: Read> TarStream<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { reader, rest: 0, data: 0 }
    }

    /// The next entry; None at the end. What was left of the one before is passed over.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, UnpackError> {
        let mut extensions = Extensions::default();
        let mut room = EXTENSION_BYTES_MAX;
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = header.entry_size().map_err(|error| UnpackError::broken(&error))?;
            self.begin(size);
            match header.entry_type() {
                EntryType::GNULongName => {
                    extensions.path = Some(trimmed(self.extension(size, &mut room)?));
                }
                EntryType::GNULongLink => {
                    extensions.link = Some(trimmed(self.extension(size, &mut room)?));
                }
                EntryType::XHeader => {
                    let bytes = self.extension(size, &mut room)?;
                    extensions.read(&bytes)?;
                }
                // What it says holds for all entries; images carry only comments in it.
                EntryType::XGlobalHeader => drop(self.extension(size, &mut room)?),
                _ => {
                    let entry = extensions.entry(&header, size)?;
                    if entry.size != size {
                        self.begin(entry.size);
                    }
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// Reads on to the very end of the stream, which its digest is of.
    pub(crate) fn drain(mut self) -> Result<(), UnpackError> {
        std::io::copy(&mut self.reader, &mut std::io::sink()).map_err(UnpackError::read)?;
        Ok(())
    }

    fn begin(&mut self, size: u64) {
        self.data = size;
        self.rest = size.div_ceil(BLOCK as u64).saturating_mul(BLOCK as u64);
    }

    fn skip_rest(&mut self) -> Result<(), UnpackError> {
        let skipped =
            std::io::copy(&mut self.reader.by_ref().take(self.rest), &mut std::io::sink())
                .map_err(UnpackError::read)?;
        if skipped < self.rest {
            return Err(UnpackError::Broken { why: "the tar ends within an entry".to_owned() });
        }
        (self.rest, self.data) = (0, 0);
        Ok(())
    }

    fn header(&mut self) -> Result<Option<Header>, UnpackError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.reader.read(&mut block[filled..]).map_err(UnpackError::read)? {
                0 if filled == 0 => return Ok(None),
                0 => {
                    return Err(UnpackError::Broken {
                        why: "the tar ends within a header".to_owned(),
                    });
                }
                count => filled += count,
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        // The sum counts its own field as spaces.
        let sum =
            block[..148].iter().chain(&block[156..]).map(|byte| u32::from(*byte)).sum::<u32>()
                + 8 * 32;
        match header.cksum() {
            Ok(found) if found == sum => Ok(Some(header)),
            _ => Err(UnpackError::Broken {
                why: "a header has a wrong checksum; it is no tar".to_owned(),
            }),
        }
    }

    /// An extension header, taken out of the `room` that an entry has for them: any number of them may come before it.
    fn extension(&mut self, size: u64, room: &mut u64) -> Result<Vec<u8>, UnpackError> {
        *room = room.checked_sub(size).ok_or_else(|| UnpackError::Broken {
            why: format!(
                "an entry's extension headers have more than {EXTENSION_BYTES_MAX} bytes, the most that are taken"
            ),
        })?;
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes).map_err(UnpackError::read)?;
        Ok(bytes)
    }
}

/// Reads the bytes of the current entry.
impl<R: Read> Read for TarStream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let want = usize::try_from(self.data).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.reader.read(&mut buffer[..want])?;
        if count == 0 && want > 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.data -= count as u64;
        self.rest -= count as u64;
        Ok(count)
    }
}

impl Extensions {
    /// PAX records: `<length> <key>=<value>\n`, where the length is of the whole record.
    fn read(&mut self, bytes: &[u8]) -> Result<(), UnpackError> {
        let broken = || UnpackError::Broken { why: "a PAX header cannot be read".to_owned() };
        let mut rest = bytes;
        while !rest.is_empty() {
            let space = rest.iter().position(|byte| *byte == b' ').ok_or_else(broken)?;
            let length: usize = std::str::from_utf8(&rest[..space])
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or_else(broken)?;
            let record = rest.get(space + 1..length).ok_or_else(broken)?;
            let record = record.strip_suffix(b"\n").ok_or_else(broken)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(broken)?;
            let key = std::str::from_utf8(&record[..equals]).map_err(|_| broken())?;
            self.records.insert(key.to_owned(), record[equals + 1..].to_vec());
            rest = &rest[length..];
        }
        Ok(())
    }

    fn number<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>, UnpackError> {
        let Some(value) = self.records.get(key) else { return Ok(None) };
        let text = String::from_utf8_lossy(value);
        // Times may have a fraction.
        let whole = text.split('.').next().unwrap_or_default();
        whole.parse().map(Some).map_err(|_| UnpackError::Broken {
            why: format!("the PAX header `{key}` is no number"),
        })
    }

    fn entry(self, header: &Header, size: u64) -> Result<Entry, UnpackError> {
        let broken = |error: std::io::Error| UnpackError::broken(&error);
        let path = match (self.records.get("path"), &self.path) {
            (Some(path), _) | (None, Some(path)) => path.clone(),
            (None, None) => header.path_bytes().into_owned(),
        };
        let link = match (self.records.get("linkpath"), &self.link) {
            (Some(link), _) | (None, Some(link)) => link.clone(),
            (None, None) => {
                header.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default()
            }
        };
        let mtime = match self.number("mtime")? {
            Some(mtime) => mtime,
            None => i64::try_from(header.mtime().map_err(broken)?).unwrap_or_default(),
        };
        let size = self.number("size")?.unwrap_or(size);
        let uid = match self.number("uid")? {
            Some(uid) => uid,
            None => header.uid().map_err(broken)?,
        };
        let gid = match self.number("gid")? {
            Some(gid) => gid,
            None => header.gid().map_err(broken)?,
        };
        let xattrs = self
            .records
            .into_iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(XATTR_PREFIX)?.to_owned(), value)))
            .collect();
        let mode = header.mode().map_err(broken)?;
        let entry_type = match header.entry_type() {
            // As the first tars wrote folders.
            EntryType::Regular if path.ends_with(b"/") => EntryType::Directory,
            other => other,
        };
        let size = if has_bytes(entry_type) { size } else { 0 };
        Ok(Entry { path, link, entry_type, size, uid, gid, mode, mtime, xattrs })
    }
}

/// Links, folders and nodes have none, whatever size their header gives.
fn has_bytes(entry_type: EntryType) -> bool {
    use EntryType::{Block, Char, Directory, Fifo, Link, Symlink};
    !matches!(entry_type, Link | Symlink | Char | Block | Directory | Fifo)
}

/// Without the zero that GNU tar puts at the end.
fn trimmed(mut bytes: Vec<u8>) -> Vec<u8> {
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes
}
