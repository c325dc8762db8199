//! The file that a move's report goes to. It is opened before the move is ordered, so that a path
//! that can't be written stops the command while nothing has happened yet.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use dunlin_engine::report::Report;

use crate::exit::Exit;
use crate::failure::Failure;

/// An open file for a report.
pub(super) struct ReportFile {
    path: PathBuf,
    file: File,
}

impl ReportFile {
    /// Opens the file. What is in it stays until there is a report.
    ///
    /// # Errors
    ///
    /// [`Exit::Usage`] when it can't be written.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(|error| {
                Failure::new(
                    Exit::Usage,
                    format!(
                        "the report can't be written to {}: {error}; nothing was moved",
                        path.display()
                    ),
                )
            })?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Writes the report, in place of what was in the file.
    ///
    /// # Errors
    ///
    /// When the system does not take it.
    pub(super) fn write(mut self, report: &Report) -> Result<(), Failure> {
        let text = super::json(report)?;
        self.empty()
            .and_then(|()| self.file.write_all(text.as_bytes()))
            .map_err(|error| Failure::system(format!("the report {}", self.path.display()), error))
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
    use crate::render::example;

    #[test]
    fn a_report_replaces_a_longer_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.json");
        std::fs::write(&path, "x".repeat(1 << 20)).unwrap();
        let file = ReportFile::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
        let report = example::moved();
        file.write(&report).unwrap();
        let read: Report = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(read, report);
    }
}
