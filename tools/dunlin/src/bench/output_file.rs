//! A file that results go to. It is opened before anything is measured, so that a path that can't be
//! written costs nobody an hour.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::exit::Exit;
use crate::failure::Failure;

/// An open file.
pub(crate) struct OutputFile {
    path: PathBuf,
    file: File,
}

impl OutputFile {
    /// Opens the file. What is in it stays until there is something else.
    ///
    /// # Errors
    ///
    /// [`Exit::Usage`] when it can't be written.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).open(path);
        file.map(|file| Self {
            path: path.to_owned(),
            file,
        })
        .map_err(|error| {
            let words = format!(
                "{} can't be written: {error}; nothing was measured",
                path.display()
            );
            Failure::new(Exit::Usage, words)
        })
    }

    /// Writes a text, in place of what was in the file.
    ///
    /// # Errors
    ///
    /// When the system does not take it.
    pub(crate) fn write(mut self, text: &str) -> Result<(), Failure> {
        self.empty()
            .and_then(|()| self.file.write_all(text.as_bytes()))
            .map_err(|error| Failure::system(self.path.display(), error))
    }

    fn empty(&self) -> std::io::Result<()> {
        // A pipe or a device has nothing to be emptied of.
        if self.file.metadata()?.is_file() {
            self.file.set_len(0)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_replaces_a_longer_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("result");
        std::fs::write(&path, "x".repeat(1 << 20)).unwrap();
        let file = OutputFile::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
        file.write("short").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "short");
        let failure = OutputFile::open(Path::new("/nowhere/x")).err().unwrap();
        assert_eq!(failure.exit, Exit::Usage);
    }
}
