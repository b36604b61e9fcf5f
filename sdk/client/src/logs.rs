//! Follows the output of a unit's tasks.

use brig_api::NamespacePath;
use brig_api::logline::{LogLine, Stream};
use brig_api::request::LogQuery;
use reqwest::{Method, Response};

use crate::api::unit_key;
use crate::error::ClientError;
use crate::http::{Client, escaped, object_path};

/// Longest line of a log as the server sends it: task, time and flags in front of at most 16 KiB.
const LINE_BYTES_MAX: usize = 64 << 10;

/// A line of a task's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskLine {
    /// The task.
    pub task: String,
    /// When, Unix milliseconds.
    pub time_ms: i64,
    /// Which stream.
    pub stream: Stream,
    /// The bytes, without a newline.
    pub bytes: Vec<u8>,
    /// A newline followed.
    pub ends_line: bool,
}

/// The lines of a log, as they come.
#[derive(Debug)]
pub struct LogStream {
    response: Response,
    buffer: Vec<u8>,
    /// Where in `buffer` the next line begins.
    position: usize,
}

impl Client {
    /// Opens the log of a unit. With `follow`, lines come until the unit has ended.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn logs(
        &self,
        namespace: &NamespacePath,
        unit: &str,
        query: &LogQuery,
    ) -> Result<LogStream, ClientError> {
        let mut path =
            format!("{}/logs?follow={}", object_path(&unit_key(namespace, unit)), query.follow);
        if let Some(task) = &query.task {
            path.push_str(&format!("&task={}", escaped(task.as_str())));
        }
        if let Some(tail) = query.tail {
            path.push_str(&format!("&tail={tail}"));
        }
        let response = self.send(self.request(Method::GET, &path)).await?;
        Ok(LogStream { response, buffer: Vec::new(), position: 0 })
    }
}

impl LogStream {
    /// The next line; None at the end.
    ///
    /// # Errors
    /// [`ClientError::Broken`] when the connection breaks or a line is not one.
    pub async fn next(&mut self) -> Result<Option<TaskLine>, ClientError> {
        loop {
            let rest = &self.buffer[self.position..];
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line = parse(&rest[..end])
                    .ok_or_else(|| ClientError::Broken("not a line of a log".into()))?;
                self.position += end + 1;
                return Ok(Some(line));
            }
            if rest.len() > LINE_BYTES_MAX {
                return Err(ClientError::Broken("a line of the log is too long".into()));
            }
            self.buffer.drain(..self.position);
            self.position = 0;
            match self
                .response
                .chunk()
                .await
                .map_err(|error| ClientError::Broken(Box::new(error)))?
            {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None if self.buffer.is_empty() => return Ok(None),
                None => {
                    return Err(ClientError::Broken(
                        "the log ended in the middle of a line".into(),
                    ));
                }
            }
        }
    }
}

fn parse(line: &[u8]) -> Option<TaskLine> {
    let space = line.iter().position(|byte| *byte == b' ')?;
    let task = std::str::from_utf8(&line[..space]).ok()?.to_owned();
    let LogLine { time_ms, stream, bytes, ends_line } = LogLine::parse(&line[space + 1..])?;
    Some(TaskLine { task, time_ms, stream, bytes: bytes.to_vec(), ends_line })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_its_task() {
        let line = parse(b"main 17 e P hello  world").unwrap();
        assert_eq!((line.task.as_str(), line.time_ms, line.stream), ("main", 17, Stream::Stderr));
        assert_eq!((line.bytes.as_slice(), line.ends_line), (&b"hello  world"[..], false));
        assert_eq!(parse(b"main"), None);
        assert_eq!(parse(b"main x"), None);
    }
}
