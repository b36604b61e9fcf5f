//! Reads rotated task logs: what is there, then what comes; of several tasks together in the order of time.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use brig_api::ResourceName;
use brig_shim::file;
use brig_shim::log::rotated;

/// Bytes read at once.
const CHUNK_BYTES: usize = 64 << 10;
/// A batch is given out when it is larger than this.
const BATCH_BYTES: usize = 64 << 10;
/// A line that is longer than this is no line of a log; it is dropped.
const LINE_BYTES_MAX: usize = 1 << 20;
/// So often a file is looked for again that is being rotated away at that moment.
const ROTATION_TRIES: u32 = 16;

/// The logs of some tasks of a unit.
#[derive(Debug)]
pub(crate) struct Merged {
    tails: Vec<(ResourceName, Tail)>,
}

impl Merged {
    /// Opens them; with `tail`, at the last so many lines of each.
    pub(crate) fn open(
        tasks: Vec<(ResourceName, PathBuf)>,
        files_kept: u32,
        tail: Option<u32>,
    ) -> io::Result<Self> {
        let mut tails = Vec::new();
        for (task, path) in tasks {
            tails.push((task, Tail::open(path, files_kept, tail)?));
        }
        Ok(Self { tails })
    }

    /// The next lines, each with its task's name in front; empty when there are none now.
    pub(crate) fn next_batch(&mut self) -> io::Result<Vec<u8>> {
        let mut batch = Vec::new();
        while batch.len() < BATCH_BYTES {
            let Some(index) = self.earliest()? else { break };
            let (task, tail) = &mut self.tails[index];
            let Some(line) = tail.lines.pop_front() else { break };
            batch.extend_from_slice(task.as_str().as_bytes());
            batch.push(b' ');
            batch.extend_from_slice(&line);
        }
        Ok(batch)
    }

    fn earliest(&mut self) -> io::Result<Option<usize>> {
        let mut earliest: Option<(i64, usize)> = None;
        for (index, (_, tail)) in self.tails.iter_mut().enumerate() {
            if tail.lines.is_empty() {
                tail.refill()?;
            }
            let Some(line) = tail.lines.front() else { continue };
            let time_ms = time_of(line);
            if earliest.is_none_or(|(best, _)| time_ms < best) {
                earliest = Some((time_ms, index));
            }
        }
        Ok(earliest.map(|(_, index)| index))
    }
}

fn time_of(line: &[u8]) -> i64 {
    let end = line.iter().position(|byte| *byte == b' ').unwrap_or(0);
    std::str::from_utf8(&line[..end]).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// One task's log.
#[derive(Debug)]
struct Tail {
    path: PathBuf,
    files_kept: u32,
    file: Option<File>,
    lines: VecDeque<Vec<u8>>,
    partial: Vec<u8>,
}

impl Tail {
    fn open(path: PathBuf, files_kept: u32, tail: Option<u32>) -> io::Result<Self> {
        let mut file = match tail {
            Some(lines) => last_lines(&path, files_kept, u64::from(lines))?,
            None => None,
        };
        if file.is_none() {
            file = oldest(&path, files_kept)?;
        }
        Ok(Self { path, files_kept, file, lines: VecDeque::new(), partial: Vec::new() })
    }

    /// Reads until there is a whole line, or nothing more now.
    fn refill(&mut self) -> io::Result<()> {
        while self.lines.is_empty() {
            if self.file.is_none() {
                self.file = oldest(&self.path, self.files_kept)?;
            }
            let Some(file) = &self.file else { return Ok(()) };
            // Asked before reading: a file that was rotated away by then does not grow any more.
            let is_rotated = inode(&self.path)? != Some(file.metadata()?.ino());
            if self.read_chunk()? > 0 {
                continue;
            }
            if !is_rotated {
                return Ok(());
            }
            let Some(next) = self.successor()? else { return Ok(()) };
            self.file = Some(next);
            self.partial.clear();
        }
        Ok(())
    }

    fn read_chunk(&mut self) -> io::Result<usize> {
        let Some(file) = &mut self.file else { return Ok(0) };
        let mut bytes = vec![0; CHUNK_BYTES];
        let count = file.read(&mut bytes)?;
        for piece in bytes[..count].split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                self.lines.push_back(std::mem::take(&mut self.partial));
            } else if self.partial.len() > LINE_BYTES_MAX {
                self.partial.clear();
            }
        }
        Ok(count)
    }

    /// The file that was begun after the current one.
    fn successor(&self) -> io::Result<Option<File>> {
        let Some(current) = &self.file else { return Ok(None) };
        let current = current.metadata()?.ino();
        for _ in 0..ROTATION_TRIES {
            let position = self.position(current)?;
            let next = match position {
                // Rotated out of existence meanwhile: the oldest that is left comes next.
                None => return oldest(&self.path, self.files_kept),
                Some(0) => return Ok(None),
                Some(index) => open(&name(&self.path, index - 1))?,
            };
            // Unless files moved on between looking and opening.
            if self.position(current)? == position {
                return Ok(next);
            }
        }
        Ok(None)
    }

    /// The current file's number among the rotated ones, 0 for the newest.
    fn position(&self, wanted: u64) -> io::Result<Option<u32>> {
        for index in 0..=self.files_kept {
            if inode(&name(&self.path, index))? == Some(wanted) {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }
}

fn name(path: &Path, index: u32) -> PathBuf {
    if index == 0 { path.to_owned() } else { rotated(path, index) }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match file::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn inode(path: &Path) -> io::Result<Option<u64>> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn oldest(path: &Path, files_kept: u32) -> io::Result<Option<File>> {
    for index in (0..=files_kept).rev() {
        if let Some(file) = open(&name(path, index))? {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

/// The file in which the last `lines` lines begin, at their beginning; None when there are not so many.
fn last_lines(path: &Path, files_kept: u32, lines: u64) -> io::Result<Option<File>> {
    let mut wanted = lines;
    for index in 0..=files_kept {
        let Some(mut file) = open(&name(path, index))? else { continue };
        let (found, start) = find_back(&file, wanted)?;
        if let Some(start) = start {
            file.seek(SeekFrom::Start(start))?;
            return Ok(Some(file));
        }
        wanted -= found;
    }
    Ok(None)
}

/// Looks for the beginning of the last `wanted` lines of a file; also says how many lines it has, up to so many.
fn find_back(file: &File, wanted: u64) -> io::Result<(u64, Option<u64>)> {
    let mut end = file.metadata()?.len();
    let mut found = 0;
    let mut bytes = vec![0; CHUNK_BYTES];
    while end > 0 {
        let start = end.saturating_sub(u64::try_from(CHUNK_BYTES).unwrap_or(u64::MAX));
        let length = usize::try_from(end - start).unwrap_or(CHUNK_BYTES);
        let chunk = &mut bytes[..length];
        file.read_exact_at(chunk, start)?;
        for (offset, byte) in chunk.iter().enumerate().rev() {
            if *byte != b'\n' {
                continue;
            }
            if found == wanted {
                let line = start.saturating_add(u64::try_from(offset).unwrap_or(u64::MAX)) + 1;
                return Ok((found, Some(line)));
            }
            found += 1;
        }
        end = start;
    }
    Ok((found, (found == wanted).then_some(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use brig_api::logline::{LogLine, Stream};
    use brig_shim::log::LogWriter;
    use brig_shim::message::LogTarget;

    const KEPT: u32 = 2;

    fn writer(path: &Path) -> LogWriter {
        let target = LogTarget { path: path.to_owned(), bytes_max: 100, files_kept: KEPT };
        LogWriter::open(target).unwrap()
    }

    fn task(name: &str) -> ResourceName {
        ResourceName::new(name).unwrap()
    }

    fn outputs(merged: &mut Merged) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            let batch = merged.next_batch().unwrap();
            if batch.is_empty() {
                return all;
            }
            for line in batch.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let space = line.iter().position(|byte| *byte == b' ').unwrap();
                let name = std::str::from_utf8(&line[..space]).unwrap();
                let line = LogLine::parse(&line[space + 1..]).unwrap();
                all.push(format!("{name}:{}", String::from_utf8_lossy(line.bytes)));
            }
        }
    }

    #[test]
    fn lines_are_followed_over_rotations_none_twice_and_none_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("main.log");
        let mut merged = Merged::open(vec![(task("main"), path.clone())], KEPT, None).unwrap();
        assert!(outputs(&mut merged).is_empty());
        let mut writer = writer(&path);
        let (mut seen, mut expected) = (Vec::new(), Vec::new());
        for number in 0..200 {
            writer.write(number, Stream::Stdout, format!("n{number}\n").as_bytes());
            expected.push(format!("main:n{number}"));
            // Sometimes one line, sometimes several files behind (but no more than are kept).
            if number % 7 == 0 || number % 11 == 0 {
                seen.extend(outputs(&mut merged));
            }
        }
        seen.extend(outputs(&mut merged));
        assert_eq!(seen, expected);
    }

    #[test]
    fn the_last_lines_are_found_also_in_older_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("main.log");
        let mut log = writer(&path);
        for number in 0..18 {
            log.write(number, Stream::Stdout, format!("line {number}\n").as_bytes());
        }
        assert!(rotated(&path, 1).exists());
        for tail in [0_u32, 1, 5, 8, 12] {
            let open = Merged::open(vec![(task("main"), path.clone())], KEPT, Some(tail));
            let lines = outputs(&mut open.unwrap());
            let first = 18 - tail;
            let expected: Vec<_> = (first..18).map(|n| format!("main:line {n}")).collect();
            assert_eq!(lines, expected, "tail {tail}");
        }
        let all = Merged::open(vec![(task("main"), path)], KEPT, Some(1000));
        assert!(outputs(&mut all.unwrap()).len() > 12);
    }

    #[test]
    fn several_tasks_come_in_the_order_of_time() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a.log"), dir.path().join("b.log"));
        let (mut log_a, mut log_b) = (writer(&a), writer(&b));
        log_a.write(1, Stream::Stdout, b"one\n");
        log_b.write(2, Stream::Stderr, b"two\n");
        log_a.write(3, Stream::Stdout, b"three\n");
        let mut merged = Merged::open(vec![(task("a"), a), (task("b"), b)], KEPT, None).unwrap();
        assert_eq!(outputs(&mut merged), ["a:one", "b:two", "a:three"]);
        log_b.write(4, Stream::Stdout, b"four");
        assert_eq!(outputs(&mut merged), ["b:four"]);
    }
}
