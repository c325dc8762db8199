//! The file that a guest's serial port writes to. The guest decides how much comes, so the file has
//! a bound.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The longest the file gets, but for [`DROPPED`]: many boots' worth of a chatty kernel, and little
/// beside a guest's memory, which runtime directories share (tmpfs).
const FILE_BYTES_MAX: u64 = 16 << 20;

/// What the file ends with once it is full.
const DROPPED: &[u8] = b"\n[dunlin: this file is full, what follows is dropped]\n";

/// A file that takes what fits, and drops the rest.
#[derive(Debug)]
pub(super) struct SerialFile {
    file: File,
    left: u64,
}

impl SerialFile {
    /// Opens the file, behind what is in it already.
    ///
    /// # Errors
    ///
    /// When it can't be made or written. A link is not followed.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Self::open_bounded(path, FILE_BYTES_MAX)
    }

    fn open_bounded(path: &Path, bytes_max: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        let left = bytes_max.saturating_sub(file.metadata()?.len());
        Ok(Self { file, left })
    }
}

impl Write for SerialFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Ok(bytes.len());
        }
        let fit = usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len()));
        let written = self.file.write(bytes.get(..fit).unwrap_or(bytes))?;
        self.left -= written as u64;
        if self.left == 0 {
            self.file.write_all(DROPPED)?;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_says_so_once_and_grows_no_more() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm1.serial");
        let full = [b"0123456789".as_slice(), DROPPED].concat();
        SerialFile::open_bounded(&path, 10)
            .unwrap()
            .write_all(b"0123")
            .unwrap();
        // What was there before counts.
        let mut serial = SerialFile::open_bounded(&path, 10).unwrap();
        serial.write_all(b"456789abc").unwrap();
        serial.write_all(b"def").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), full);
        let mut serial = SerialFile::open_bounded(&path, 10).unwrap();
        serial.write_all(b"ghi").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), full);
    }
}
