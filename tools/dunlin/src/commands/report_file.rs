//! The files that a move's report goes to. They are opened before the move is ordered, so that a
//! path that can't be written stops the command while nothing has happened yet.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use dunlin_engine::report::{Host, Report};
use dunlin_engine::telemetry::trace::{self, TraceNames};
use dunlin_engine::telemetry::{MoveTelemetry, Recording};

use crate::exit::Exit;
use crate::failure::Failure;
use crate::page;

/// In what form a report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The report itself.
    Json,
    /// A page to look at.
    Html,
    /// The timeline, for Perfetto and the like.
    Trace,
}

impl Form {
    fn of(self, report: &Report) -> Result<Vec<u8>, Failure> {
        match self {
            Self::Json => super::json(report).map(String::into_bytes),
            Self::Html => page::page(report).map(String::into_bytes),
            Self::Trace => timeline(report),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Json => "the report",
            Self::Html => "the page",
            Self::Trace => "the trace",
        }
    }
}

/// The timeline. Empty where nothing was measured: a move that reached nobody has none.
fn timeline(report: &Report) -> Result<Vec<u8>, Failure> {
    let nothing;
    let told = match &report.telemetry {
        Some(told) => told,
        None => {
            nothing = MoveTelemetry::new(Recording::default(), None, None);
            &nothing
        }
    };
    let host = |host: &Host| format!("Linux {}", host.kernel);
    let (source, destination) = (host(&report.hosts.source), host(&report.hosts.destination));
    let names = TraceNames {
        guest: &report.guest.name,
        source: &source,
        destination: &destination,
    };
    let mut text = Vec::new();
    trace::write(told, names, &mut text).map_err(|error| Failure::system("the trace", error))?;
    Ok(text)
}

/// Open files for a report.
#[derive(Default)]
pub(super) struct ReportFiles(Vec<ReportFile>);

impl ReportFiles {
    /// Opens the files that are asked for. What is in them stays until there is a report.
    ///
    /// # Errors
    ///
    /// [`Exit::Usage`] when one can't be written.
    pub(super) fn open(wanted: &[(Form, Option<&Path>)]) -> Result<Self, Failure> {
        let wanted = wanted
            .iter()
            .filter_map(|(form, path)| Some((*form, (*path)?)));
        let files = wanted.map(|(form, path)| ReportFile::open(form, path));
        files.collect::<Result<_, _>>().map(Self)
    }

    /// Writes the report to all of them, in place of what was there; each is tried.
    ///
    /// # Errors
    ///
    /// Those of the files that could not be written.
    pub(super) fn write(self, report: &Report) -> Vec<Failure> {
        let written = self.0.into_iter().map(|file| file.write(report));
        written.filter_map(Result::err).collect()
    }
}

/// An open file for a report.
struct ReportFile {
    form: Form,
    path: PathBuf,
    file: File,
}

impl ReportFile {
    fn open(form: Form, path: &Path) -> Result<Self, Failure> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(|error| {
                let (what, path) = (form.name(), path.display());
                Failure::new(
                    Exit::Usage,
                    format!("{what} can't be written to {path}: {error}; nothing was moved"),
                )
            })?;
        Ok(Self {
            form,
            path: path.to_owned(),
            file,
        })
    }

    fn write(mut self, report: &Report) -> Result<(), Failure> {
        let text = self.form.of(report)?;
        self.empty()
            .and_then(|()| self.file.write_all(&text))
            .map_err(|error| {
                let what = format!("{} {}", self.form.name(), self.path.display());
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
    use crate::render::example;

    #[test]
    fn a_report_replaces_a_longer_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.json");
        std::fs::write(&path, "x".repeat(1 << 20)).unwrap();
        let page = directory.path().join("report.html");
        let trace = directory.path().join("trace.json");
        let wanted = [
            (Form::Json, Some(&*path)),
            (Form::Html, Some(&*page)),
            (Form::Trace, Some(&*trace)),
        ];
        let files = ReportFiles::open(&wanted).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
        let report = example::moved();
        assert!(files.write(&report).is_empty());
        let read: Report = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(read, report);
        let page = std::fs::read_to_string(&page).unwrap();
        assert!(page.starts_with("<!DOCTYPE html>"), "{page}");
        let trace: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&trace).unwrap()).unwrap();
        assert!(trace["traceEvents"].is_array(), "{trace}");
    }

    #[test]
    fn a_path_that_can_not_be_written_is_known_at_once() {
        let path = Path::new("/nowhere/page.html");
        let failure = ReportFiles::open(&[(Form::Html, Some(path))])
            .err()
            .unwrap();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.message.contains("the page"), "{}", failure.message);
    }
}
