//! The files that a move's report goes to. They are opened before the move is ordered, so that a
//! path that can't be written stops the command while nothing has happened yet.

use std::path::Path;

use dunlin_engine::report::{Host, Report};
use dunlin_engine::telemetry::trace::{self, TraceNames};
use dunlin_engine::telemetry::{MoveTelemetry, Recording};

use crate::failure::Failure;
use crate::output_file::OutputFile;
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
pub(super) struct ReportFiles(Vec<(Form, OutputFile)>);

impl ReportFiles {
    /// Opens the files that are asked for. What is in them stays until there is a report.
    ///
    /// # Errors
    ///
    /// [`Exit::Usage`] when one can't be written.
    ///
    /// [`Exit::Usage`]: crate::exit::Exit::Usage
    pub(super) fn open(wanted: &[(Form, Option<&Path>)]) -> Result<Self, Failure> {
        let wanted = wanted
            .iter()
            .filter_map(|(form, path)| Some((*form, (*path)?)));
        let files = wanted.map(|(form, path)| Ok((form, OutputFile::open(form.name(), path)?)));
        files.collect::<Result<_, _>>().map(Self)
    }

    /// Writes the report to all of them, in place of what was there; each is tried.
    ///
    /// # Errors
    ///
    /// Those of the files that could not be written.
    pub(super) fn write(self, report: &Report) -> Vec<Failure> {
        let files = self.0.into_iter();
        let written = files.map(|(form, file)| file.write(&form.of(report)?));
        written.filter_map(Result::err).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::example;

    #[test]
    fn a_report_goes_to_each_file_in_its_form() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.json");
        let page = directory.path().join("report.html");
        let trace = directory.path().join("trace.json");
        let wanted = [
            (Form::Json, Some(&*path)),
            (Form::Html, Some(&*page)),
            (Form::Trace, Some(&*trace)),
        ];
        let files = ReportFiles::open(&wanted).unwrap();
        let report = example::moved();
        assert!(files.write(&report).is_empty());
        let read: Report = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(read, report);
        let page = std::fs::read_to_string(&page).unwrap();
        assert!(page.starts_with("<!DOCTYPE html>"), "{page}");
        let trace: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&trace).unwrap()).unwrap();
        assert!(trace["traceEvents"].is_array(), "{trace}");
        let unwritable = [(Form::Html, Some(Path::new("/nowhere/page.html")))];
        assert!(ReportFiles::open(&unwritable).is_err());
    }
}
