//! A file that results go to. It is opened before anything is done, so that a path that can't be
//! written costs nobody an hour, or a move.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::exit::Exit;
use crate::failure::Failure;

/// An open file.
pub(crate) struct OutputFile {
    what: &'static str,
    path: PathBuf,
    file: File,
}

impl OutputFile {
    /// Opens the file for `what`, as in "the report". What is in it stays until there is something
    /// else.
    ///
    /// # Errors
    ///
    /// [`Exit::Usage`] when it can't be written.
    pub(crate) fn open(what: &'static str, path: &Path) -> Result<Self, Failure> {
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).open(path);
        file.map(|file| Self {
            what,
            path: path.to_owned(),
            file,
        })
        .map_err(|error| {
            let words = format!(
                "{what} can't be written to {}: {error}; nothing was done",
                path.display()
            );
            Failure::new(Exit::Usage, words)
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes bytes, in place of what was in the file.
    ///
    /// # Errors
    ///
    /// When the system does not take them.
    pub(crate) fn write(mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.empty()
            .and_then(|()| self.file.write_all(bytes))
            .map_err(|error| {
                let what = format!("{} {}", self.what, self.path.display());
                Failure::system(what, error)
            })
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
        let file = OutputFile::open("the result", &path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
        file.write(b"short").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "short");
        let failure = OutputFile::open("the page", Path::new("/nowhere/x"))
            .err()
            .unwrap();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.message.contains("the page"), "{}", failure.message);
        OutputFile::open("nothing", Path::new("/dev/null"))
            .unwrap()
            .write(b"gone")
            .unwrap();
    }
}
