//! `dunlin report`: a move's report, looked at again.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use dunlin_engine::report::{REPORT_SCHEMA, Report};

use super::report_file::{Form, ReportFiles};
use crate::cli::looks::ShowReport;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::render::palette::Palette;
use crate::render::receipt::receipt;

/// The most that is read: a thousand times what a report has.
const REPORT_BYTES_MAX: u64 = 256 << 20;

/// Shows the report.
pub(super) fn run(arguments: &ShowReport) -> Result<Exit, Failure> {
    let report = read(&arguments.file)?;
    let files = ReportFiles::open(&[
        (Form::Html, arguments.html.as_deref()),
        (Form::Trace, arguments.trace.as_deref()),
    ])?;
    if let Some(failure) = files.write(&report).into_iter().next() {
        return Err(failure);
    }
    if !arguments.quiet {
        super::print(&receipt(&report, Palette::of(&io::stdout())))?;
    }
    Ok(Exit::Done)
}

fn read(path: &Path) -> Result<Report, Failure> {
    let unread = |error: &dyn std::fmt::Display| {
        let path = path.display();
        Failure::new(Exit::Usage, format!("{path} can't be read: {error}"))
    };
    let input: Box<dyn Read> = if path == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path).map_err(|error| unread(&error))?)
    };
    let mut bytes = Vec::new();
    // One more, so that what is too long shows.
    input
        .take(REPORT_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| unread(&error))?;
    if bytes.len() as u64 > REPORT_BYTES_MAX {
        return Err(unread(&"it is too long for a report"));
    }
    parse(&bytes).map_err(|reason| unread(&reason))
}

fn parse(bytes: &[u8]) -> Result<Report, String> {
    let report: Report = serde_json::from_slice(bytes)
        .map_err(|error| format!("it is no report of a move: {error}"))?;
    if report.schema == REPORT_SCHEMA {
        Ok(report)
    } else {
        Err(format!(
            "its schema is '{}', and '{REPORT_SCHEMA}' is known here",
            report.schema
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::example;

    #[test]
    fn a_report_comes_back_and_anything_else_gets_a_sentence() {
        let mut report = example::moved();
        let bytes = serde_json::to_vec(&report).unwrap();
        assert_eq!(parse(&bytes).unwrap(), report);
        report.schema = "dunlin.report/2".to_owned();
        let bytes = serde_json::to_vec(&report).unwrap();
        assert!(parse(&bytes).unwrap_err().contains("dunlin.report/2"));
        for other in [&b""[..], b"{}", b"[1]", b"\xff"] {
            assert!(parse(other).unwrap_err().contains("no report of a move"));
        }
    }
}
