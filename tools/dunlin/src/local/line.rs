//! Lines of JSON over a stream: bounded in length, read without trust.

use std::io::{self, Read, Write};

use serde::Serialize;
use thiserror::Error;

/// The longest request. One takes some hundred bytes, and what its user wrote.
pub(crate) const REQUEST_BYTES_MAX: usize = 1 << 20;

/// The longest response: a report. Formula: both ends' spans, 2 × 4,096 and 1,024 for each of at
/// most 64 lanes as far as they were recorded, of some 110 bytes; a few MiB in the largest moves.
pub(crate) const RESPONSE_BYTES_MAX: usize = 16 << 20;

/// How much is read at once.
const READ_BYTES: usize = 16 << 10;

/// Why there is no next line.
#[derive(Debug, Error)]
pub(crate) enum LineError {
    /// The line does not end within the limit.
    #[error("a line is longer than {0} bytes")]
    TooLong(usize),
    /// The stream failed.
    #[error(transparent)]
    Stream(#[from] io::Error),
}

/// Reads lines from a stream.
pub(crate) struct LineReader<R> {
    stream: R,
    bytes_max: usize,
    pending: Vec<u8>,
    searched: usize,
}

impl<R: Read> LineReader<R> {
    /// A reader of `stream`, for lines of at most `bytes_max`.
    pub(crate) fn new(stream: R, bytes_max: usize) -> Self {
        Self {
            stream,
            bytes_max,
            pending: Vec::new(),
            searched: 0,
        }
    }

    /// The stream.
    pub(crate) fn stream(&self) -> &R {
        &self.stream
    }

    /// The next line without its end; `None` at the end of the stream (a line that was begun and
    /// not ended is dropped).
    pub(crate) fn next_line(&mut self) -> Result<Option<Vec<u8>>, LineError> {
        loop {
            let unsearched = self.pending.get(self.searched..).unwrap_or_default();
            if let Some(found) = unsearched.iter().position(|byte| *byte == b'\n') {
                let end = self.searched + found;
                let behind = self.pending.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.pending, behind);
                line.pop();
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.pending.len();
            if self.pending.len() > self.bytes_max {
                return Err(LineError::TooLong(self.bytes_max));
            }
            let mut buffer = [0; READ_BYTES];
            let read = match self.stream.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            if read == 0 {
                return Ok(None);
            }
            self.pending
                .extend_from_slice(buffer.get(..read).unwrap_or_default());
        }
    }
}

/// Writes a value as one line.
pub(crate) fn write_line(stream: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in pieces of three.
    struct Dribble<'a>(&'a [u8]);

    impl Read for Dribble<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.0.len().min(3);
            let (now, later) = self.0.split_at(count);
            buffer[..count].copy_from_slice(now);
            self.0 = later;
            Ok(count)
        }
    }

    #[test]
    fn lines_come_whole_however_they_arrive() {
        let mut lines = LineReader::new(Dribble(b"first\n\nsecond one\nrest"), 16 << 10);
        assert_eq!(lines.next_line().unwrap().unwrap(), b"first");
        assert_eq!(lines.next_line().unwrap().unwrap(), b"");
        assert_eq!(lines.next_line().unwrap().unwrap(), b"second one");
        assert!(lines.next_line().unwrap().is_none());
    }

    #[test]
    fn a_line_without_end_is_not_gathered_without_end() {
        let mut lines = LineReader::new(io::repeat(b'x'), REQUEST_BYTES_MAX);
        let line = lines.next_line();
        assert!(matches!(line, Err(LineError::TooLong(REQUEST_BYTES_MAX))));
        assert!(lines.pending.capacity() <= 4 * REQUEST_BYTES_MAX);
    }
}
