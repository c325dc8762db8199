//! The files that a move's report goes to. They are opened before the move is ordered, so that a
//! path that can't be written stops the command while nothing has happened yet.

use std::path::Path;

use dunlin_engine::report::Report;

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
}

impl Form {
    fn of(self, report: &Report) -> Result<String, Failure> {
        match self {
            Self::Json => super::json(report),
            Self::Html => page::page(report),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Json => "the report",
            Self::Html => "the page",
        }
    }
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
        let written = files.map(|(form, file)| file.write(form.of(report)?.as_bytes()));
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
        let wanted = [(Form::Json, Some(&*path)), (Form::Html, Some(&*page))];
        let files = ReportFiles::open(&wanted).unwrap();
        let report = example::moved();
        assert!(files.write(&report).is_empty());
        let read: Report = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(read, report);
        let page = std::fs::read_to_string(&page).unwrap();
        assert!(page.starts_with("<!DOCTYPE html>"), "{page}");
        let unwritable = [(Form::Html, Some(Path::new("/nowhere/page.html")))];
        assert!(ReportFiles::open(&unwritable).is_err());
    }
}
