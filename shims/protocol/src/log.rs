//! Writes a task's output to rotated log files, in the format of [`brig_api::logline`].

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use brig_api::logline::{LINE_BYTES_MAX, LogLine, Stream};

use crate::message::LogTarget;

/// A buffer larger than this is given back after use: a task of many holds one each, outside its memory limit.
const BUFFER_KEPT_BYTES: usize = 16 << 10;

/// Cuts output into lines and appends them to a log file; rotates it by renaming.
///
/// A write that fails (a full disk) drops the output and counts it: a program is never held up by its log.
#[derive(Debug)]
pub struct LogWriter {
    target: LogTarget,
    file: Option<File>,
    size: u64,
    /// The file ends within a line.
    is_torn: bool,
    dropped_bytes: u64,
    buffer: Vec<u8>,
}

impl LogWriter {
    /// Opens the log, appending to what is there.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub fn open(target: LogTarget) -> io::Result<Self> {
        let mut log = Self::when_needed(target);
        log.file()?;
        Ok(log)
    }

    /// A log whose file is opened, or made, with the first output: most tasks of many say nothing for long.
    #[must_use]
    pub fn when_needed(target: LogTarget) -> Self {
        Self { target, file: None, size: 0, is_torn: false, dropped_bytes: 0, buffer: Vec::new() }
    }

    fn file(&mut self) -> io::Result<&mut File> {
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                let file = open_or_make(&self.target.path)?;
                self.size = file.metadata()?.len();
                file
            }
        };
        Ok(self.file.insert(file))
    }

    /// Appends output as it came from the program. A last line without newline is written at once (flag `P`), so
    /// that prompts are seen; nothing is held back.
    pub fn write(&mut self, time_ms: i64, stream: Stream, output: &[u8]) {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        for piece in output.split_inclusive(|byte| *byte == b'\n') {
            let (line, ends_line) = match piece.split_last() {
                Some((b'\n', line)) => (line, true),
                _ => (piece, false),
            };
            let mut rest = line;
            while rest.len() > LINE_BYTES_MAX {
                let (head, tail) = rest.split_at(LINE_BYTES_MAX);
                LogLine { time_ms, stream, bytes: head, ends_line: false }.write_to(&mut buffer);
                rest = tail;
            }
            LogLine { time_ms, stream, bytes: rest, ends_line }.write_to(&mut buffer);
        }
        if self.append(&buffer).is_err() {
            self.dropped_bytes =
                self.dropped_bytes.saturating_add(u64::try_from(output.len()).unwrap_or(u64::MAX));
        }
        if buffer.capacity() <= BUFFER_KEPT_BYTES {
            self.buffer = buffer;
        }
    }

    /// Output that could not be written, in bytes.
    #[must_use]
    pub fn dropped_bytes(&self) -> u64 {
        self.dropped_bytes
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.file()?;
        if self.size > 0 && self.size.saturating_add(length) > self.target.bytes_max {
            self.rotate()?;
        }
        if self.is_torn {
            self.file()?.write_all(b"\n")?;
            self.is_torn = false;
            self.size = self.size.saturating_add(1);
        }
        let file = self.file()?;
        if let Err(error) = file.write_all(bytes) {
            // A disk that fills up takes a part. It stays, for readers may have it: the next line begins anew.
            let size = file.metadata().map_or(self.size, |metadata| metadata.len());
            self.is_torn = size > self.size;
            self.size = size;
            return Err(error);
        }
        self.size = self.size.saturating_add(length);
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        for index in (1..self.target.files_kept).rev() {
            let _ = std::fs::rename(
                rotated(&self.target.path, index),
                rotated(&self.target.path, index + 1),
            );
        }
        let moved = if self.target.files_kept == 0 {
            std::fs::remove_file(&self.target.path)
        } else {
            std::fs::rename(&self.target.path, rotated(&self.target.path, 1))
        };
        match moved {
            // Somebody took the file away: a new one begins all the same.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.size = 0;
        self.is_torn = false;
        Ok(())
    }
}

/// Opens a log for more; its directory is made with the first log of a unit.
fn open_or_make(path: &Path) -> io::Result<File> {
    let open = || OpenOptions::new().create(true).append(true).open(path);
    match (open(), path.parent()) {
        (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(parent)?;
            open()
        }
        (outcome, _) => outcome,
    }
}

/// The name of the `index`th older file, from 1.
#[must_use]
pub fn rotated(path: &Path, index: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{index}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(dir: &Path, bytes_max: u64) -> LogTarget {
        LogTarget { path: dir.join("main.log"), bytes_max, files_kept: 2 }
    }

    #[test]
    fn output_is_cut_into_lines_and_can_be_put_together_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(target(dir.path(), 1 << 20)).unwrap();
        let long = "x".repeat(LINE_BYTES_MAX + 1);
        let output = format!("a\n\nprompt> b\n{long}\nend");
        log.write(1, Stream::Stdout, output.as_bytes());
        let file = std::fs::read(dir.path().join("main.log")).unwrap();
        let mut again = Vec::new();
        for line in file.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let line = LogLine::parse(line).unwrap();
            again.extend_from_slice(line.bytes);
            again.extend_from_slice(if line.ends_line { b"\n" } else { b"" });
        }
        assert_eq!(again, output.as_bytes());
    }

    #[test]
    fn a_log_without_output_has_no_file_and_goes_on_where_another_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("unit");
        let mut first = LogWriter::when_needed(target(&dir, 100));
        let path = dir.join("main.log");
        assert!(!dir.exists());
        first.write(1, Stream::Stdout, &[b'x'; 60]);
        let mut second = LogWriter::when_needed(target(&dir, 100));
        second.write(1, Stream::Stdout, &[b'y'; 60]);
        assert!(std::fs::read(&path).unwrap().ends_with(b"y\n"));
        assert!(dir.join("main.log.1").exists(), "the size of what was there counts");
    }

    #[test]
    fn files_are_rotated_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(target(dir.path(), 100)).unwrap();
        for number in 0..40 {
            log.write(1, Stream::Stdout, format!("line {number}\n").as_bytes());
        }
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(read("main.log").contains("line 39"));
        assert!(
            read("main.log").len() <= 100
                && read("main.log.1").len() <= 100
                && read("main.log.2").len() <= 100
        );
        assert!(!dir.path().join("main.log.3").exists());
        assert_eq!(log.dropped_bytes(), 0);
    }

    #[test]
    fn a_log_goes_on_after_somebody_took_its_file_away() {
        for files_kept in [0, 2] {
            let dir = tempfile::tempdir().unwrap();
            let target = LogTarget { files_kept, ..target(dir.path(), 100) };
            let mut log = LogWriter::open(target).unwrap();
            log.write(1, Stream::Stdout, &[b'x'; 90]);
            std::fs::remove_file(dir.path().join("main.log")).unwrap();
            log.write(1, Stream::Stdout, b"later\n");
            let file = std::fs::read_to_string(dir.path().join("main.log")).unwrap();
            assert!(file.contains("later"));
            assert_eq!(log.dropped_bytes(), 0);
        }
    }

    #[test]
    fn a_line_after_a_torn_one_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(target(dir.path(), 100)).unwrap();
        // What a disk took before it was full.
        log.file.as_mut().unwrap().write_all(b"1 o F to").unwrap();
        log.is_torn = true;
        log.write(1, Stream::Stdout, b"later\n");
        let file = std::fs::read(dir.path().join("main.log")).unwrap();
        let last = file.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty()).unwrap();
        assert_eq!(LogLine::parse(last).unwrap().bytes, b"later");
    }

    #[test]
    fn output_of_many_short_lines_is_not_kept_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(target(dir.path(), 64 << 20)).unwrap();
        log.write(1, Stream::Stdout, &[b'\n'; 64 << 10]);
        assert!(log.buffer.capacity() <= BUFFER_KEPT_BYTES);
    }

    #[test]
    fn a_log_that_can_not_be_written_is_counted_and_harms_nobody() {
        let mut log = LogWriter::open(LogTarget {
            path: "/dev/full".into(),
            bytes_max: 1 << 20,
            files_kept: 0,
        })
        .unwrap();
        log.write(1, Stream::Stdout, b"lost\n");
        assert_eq!(log.dropped_bytes(), 5);
    }
}
