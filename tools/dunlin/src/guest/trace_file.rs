//! The file that a guest's dirty pages go to. It is opened before the move, so that a path that can't
//! be written stops a move that has not begun.

use std::path::Path;

use crate::output_file::OutputFile;
use crate::render::amounts::bytes;

/// An open file.
pub(super) struct TraceFile(OutputFile);

impl TraceFile {
    /// Opens the file. What is in it stays until there is a trace.
    ///
    /// # Errors
    ///
    /// In a sentence, why not.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        // The guest's own process opens it, and must not wait for who reads a pipe.
        if path.metadata().is_ok_and(|known| !known.is_file()) {
            let path = path.display();
            return Err(format!(
                "the dirty trace can't be written to {path}: it is no file"
            ));
        }
        OutputFile::open("the dirty trace", path)
            .map(Self)
            .map_err(|failure| failure.message)
    }

    /// Writes the trace, if there is one, in place of what was there; says what came of it.
    pub(super) fn write(self, trace: Option<Vec<u8>>) -> String {
        let path = self.0.path().display().to_string();
        let Some(trace) = trace else {
            return format!("no dirty trace in {path}: nothing was tracked");
        };
        let length = bytes(trace.len() as u64);
        match self.0.write(&trace) {
            Ok(()) => format!("dirty trace in {path} ({length})"),
            Err(failure) => failure.message,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_replaces_what_was_there_and_nothing_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace");
        std::fs::write(&path, "longer than what comes").unwrap();
        let words = TraceFile::open(&path).unwrap().write(None);
        assert!(words.contains("nothing was tracked"), "{words}");
        assert_eq!(std::fs::read(&path).unwrap(), b"longer than what comes");
        let words = TraceFile::open(&path).unwrap().write(Some(vec![1, 2]));
        assert!(words.contains("(2 B)"), "{words}");
        assert_eq!(std::fs::read(&path).unwrap(), [1, 2]);
        for other in ["/nowhere/x", "/dev/null"] {
            assert!(TraceFile::open(Path::new(other)).is_err(), "{other}");
        }
    }
}
