//! The line format of task logs, on disk and on the wire: `TIME STREAM FLAG BYTES`, newline.
//!
//! `1763850000123 o F hello` is the line `hello` on standard output at that Unix millisecond. The flag `P` says
//! that the program's output was not ended by a newline there (a prompt, or a very long line cut in pieces),
//! so that the exact bytes can be put together again. The idea is that of the CRI log format.

/// Most bytes of a program's output in one log line; longer lines are cut into pieces with flag `P`.
pub const LINE_BYTES_MAX: usize = 16 << 10;

/// Which of a task's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    /// Standard output, `o`.
    Stdout,
    /// Standard error, `e`.
    Stderr,
}

/// One line of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLine<'a> {
    /// Unix milliseconds.
    pub time_ms: i64,
    /// Where it was written to.
    pub stream: Stream,
    /// The output, without its newline.
    pub bytes: &'a [u8],
    /// A newline followed in the output.
    pub ends_line: bool,
}

impl<'a> LogLine<'a> {
    /// Appends the line as it stands in a log file, newline included.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        let stream = match self.stream {
            Stream::Stdout => 'o',
            Stream::Stderr => 'e',
        };
        let flag = if self.ends_line { 'F' } else { 'P' };
        out.extend_from_slice(format!("{} {stream} {flag} ", self.time_ms).as_bytes());
        out.extend_from_slice(self.bytes);
        out.push(b'\n');
    }

    /// Reads a line of a log file, without its newline. None when it is not in the format.
    #[must_use]
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let time_ms = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
        let stream = match parts.next()? {
            b"o" => Stream::Stdout,
            b"e" => Stream::Stderr,
            _ => return None,
        };
        let ends_line = match parts.next()? {
            b"F" => true,
            b"P" => false,
            _ => return None,
        };
        Some(Self { time_ms, stream, bytes: parts.next()?, ends_line })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_round_trip_with_any_bytes() {
        for (bytes, ends_line) in
            [(&b"hello"[..], true), (b"", true), (b"a b  c", false), (&[0, 255, b' '], true)]
        {
            let line = LogLine { time_ms: 17, stream: Stream::Stderr, bytes, ends_line };
            let mut out = Vec::new();
            line.write_to(&mut out);
            assert_eq!(out.pop(), Some(b'\n'));
            assert_eq!(LogLine::parse(&out), Some(line));
        }
    }

    #[test]
    fn other_lines_are_refused() {
        for bad in [&b""[..], b"x", b"1 o F", b"1 x F y", b"1 o X y", b"a o F y"] {
            assert_eq!(LogLine::parse(bad), None);
        }
    }
}
