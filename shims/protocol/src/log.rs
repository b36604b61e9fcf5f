//! Writes a task's output to rotated log files, in the format of [`brig_api::logline`].

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use brig_api::logline::{LINE_BYTES_MAX, LogLine, Stream};

use crate::message::LogTarget;

/// Cuts output into lines and appends them to a log file; rotates it by renaming.
///
/// A write that fails (a full disk) drops the output and counts it: a program is never held up by its log.
#[derive(Debug)]
pub struct LogWriter {
    target: LogTarget,
    file: Option<File>,
    size: u64,
    dropped_bytes: u64,
    buffer: Vec<u8>,
}

impl LogWriter {
    /// Opens the log, appending to what is there.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub fn open(target: LogTarget) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(&target.path)?;
        let size = file.metadata()?.len();
        Ok(Self { target, file: Some(file), size, dropped_bytes: 0, buffer: Vec::new() })
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
        self.buffer = buffer;
    }

    /// Output that could not be written, in bytes.
    #[must_use]
    pub fn dropped_bytes(&self) -> u64 {
        self.dropped_bytes
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if self.size > 0 && self.size.saturating_add(length) > self.target.bytes_max {
            self.rotate()?;
        }
        if self.file.is_none() {
            self.file = Some(OpenOptions::new().create(true).append(true).open(&self.target.path)?);
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        file.write_all(bytes)?;
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
        if self.target.files_kept == 0 {
            std::fs::remove_file(&self.target.path)?;
        } else {
            std::fs::rename(&self.target.path, rotated(&self.target.path, 1))?;
        }
        self.size = 0;
        Ok(())
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
