//! A file with the metrics of a move that is over, for the textfile collector of a node exporter:
//! `send` ends with its move, and nobody could scrape it then.
//!
//! That collector reads all files of its folder at any moment and puts them together. So the file is
//! replaced as a whole, and every sample has the guest's name on it: files of different guests do
//! not contradict each other.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use dunlin_engine::report::Report;
use tempfile::NamedTempFile;

use super::exposition::{Exposition, word};
use super::told;
use crate::exit::Exit;
use crate::failure::Failure;

/// Readable for all: exporters run as somebody else. There is nothing in it that `--metrics` does not
/// tell everyone.
const MODE: u32 = 0o644;

/// The longest file whose counts go on. One of a move has some 100 KiB.
const KNOWN_BYTES_MAX: u64 = 4 << 20;

/// A file that metrics go to.
pub(crate) struct MetricsFile {
    path: PathBuf,
    folder: PathBuf,
}

impl MetricsFile {
    /// Sees that the file can be written, where one is asked for. What is in it stays until there
    /// is something else.
    ///
    /// # Errors
    ///
    /// [`Exit::Usage`] when it can't be.
    pub(crate) fn open(path: Option<&Path>) -> Result<Option<Self>, Failure> {
        let Some(path) = path else {
            return Ok(None);
        };
        let unwritable = |reason: String| {
            let path = path.display();
            let words = format!("metrics can't be written to {path}: {reason}; nothing was done");
            Failure::new(Exit::Usage, words)
        };
        // Another name's file is replaced, not the name.
        let path_behind = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if fs::metadata(&path_behind).is_ok_and(|found| !found.is_file()) {
            return Err(unwritable("it is no regular file".to_owned()));
        }
        let folder = match path_behind.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        let file = Self {
            path: path_behind,
            folder,
        };
        // Gone at once: a move takes long, and this process may be killed in it.
        file.fresh()
            .map_err(|error| unwritable(error.to_string()))?;
        Ok(Some(file))
    }

    /// Writes what is known of a move that is over, in place of what was there. How many moves there
    /// were goes on from what the file has.
    ///
    /// # Errors
    ///
    /// When the system does not take it; then the file is as it was.
    pub(crate) fn write(&self, report: &Report) -> Result<(), Failure> {
        self.replace(&self.text(report)).map_err(|error| {
            let what = format!("the metrics in {}", self.path.display());
            Failure::system(what, error)
        })
    }

    fn text(&self, report: &Report) -> String {
        let mut exposition = Exposition::default();
        exposition.last_move(report);
        let mut over = self.moves_so_far();
        let this = (report.guest.name.clone(), word(&report.outcome));
        let count = over.entry(this).or_default();
        *count = count.saturating_add(1);
        for ((guest, outcome), count) in over {
            let labels = [("guest", guest.as_str()), ("outcome", &outcome)];
            exposition.sample(told::MOVES, &labels, count);
        }
        exposition.text()
    }

    /// How many moves the file has counted, by guest and outcome; a file that can't be read has
    /// counted none.
    fn moves_so_far(&self) -> BTreeMap<(String, String), u64> {
        let mut text = String::new();
        if let Ok(file) = File::open(&self.path) {
            // What is not text has no counts.
            let _ = file.take(KNOWN_BYTES_MAX).read_to_string(&mut text);
        }
        text.lines().filter_map(counted).collect()
    }

    fn replace(&self, text: &str) -> io::Result<()> {
        let mut file = self.fresh()?;
        file.write_all(text.as_bytes())?;
        file.as_file()
            .set_permissions(Permissions::from_mode(MODE))?;
        file.persist(&self.path)?;
        Ok(())
    }

    /// A file beside it, which is gone when it is dropped. No collector reads one of that name.
    fn fresh(&self) -> io::Result<NamedTempFile> {
        tempfile::Builder::new()
            .prefix(".dunlin-")
            .suffix(".tmp")
            .tempfile_in(&self.folder)
    }
}

/// The count of a line that has one: the guest, the outcome, how many moves. The names of guests and
/// outcomes need no escapes, so that a line with one is none of ours.
fn counted(line: &str) -> Option<((String, String), u64)> {
    let labels = line.strip_prefix(told::MOVES.name)?;
    let (guest, rest) = labels.strip_prefix("{guest=\"")?.split_once('"')?;
    let (outcome, count) = rest.strip_prefix(",outcome=\"")?.split_once("\"} ")?;
    let is_plain = !guest.contains('\\') && !outcome.contains(['\\', '"']);
    let key = (guest.to_owned(), outcome.to_owned());
    is_plain.then_some((key, count.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use dunlin_engine::report::Outcome;
    use dunlin_engine::telemetry;

    use super::*;
    use crate::render::example;

    fn moved(name: &str) -> Report {
        let mut report = example::moved();
        report.guest.name = name.to_owned();
        report.telemetry = Some(telemetry::example::whole_move());
        report
    }

    #[test]
    fn a_move_replaces_the_last_one_and_counts_go_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dunlin.prom");
        let file = MetricsFile::open(Some(&path)).unwrap().unwrap();
        assert!(!path.exists(), "nothing was measured yet");
        file.write(&moved("vm1")).unwrap();
        file.write(&example::failed(Outcome::Cancelled, "so be it"))
            .unwrap();
        file.write(&moved("vm1")).unwrap();
        file.write(&moved("vm2")).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        for line in [
            "dunlin_moves_total{guest=\"vm1\",outcome=\"cancelled\"} 1\n",
            "dunlin_moves_total{guest=\"vm1\",outcome=\"moved\"} 2\n",
            "dunlin_moves_total{guest=\"vm2\",outcome=\"moved\"} 1\n",
            "dunlin_last_move_blackout_seconds{guest=\"vm2\"} 0.003100000\n",
            "dunlin_blackout_part_seconds{guest=\"vm2\",side=\"source\",part=\"park\"} ",
            "dunlin_fence_seconds_count{guest=\"vm2\",side=\"source\"} 6\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(!text.contains("dunlin_last_move_seconds{guest=\"vm1\"}"));
        // Several files are put together: none has a sample without a guest.
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        for line in samples {
            assert!(line.contains("{guest=\"vm"), "{line}");
        }
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        // Nothing is left beside it.
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_can_not_be_replaced_is_refused_before_anything_is_done() {
        let folder = tempfile::tempdir().unwrap();
        for path in [
            Path::new("/nowhere/dunlin.prom"),
            Path::new("/dev/null"),
            folder.path(),
        ] {
            let failure = MetricsFile::open(Some(path)).err().unwrap();
            assert_eq!(failure.exit, Exit::Usage, "{}", failure.message);
        }
        assert!(MetricsFile::open(None).unwrap().is_none());
    }

    #[test]
    fn only_lines_of_ours_are_counts() {
        for line in [
            "",
            "dunlin_moves_total",
            "dunlin_moves_total 5",
            "dunlin_moves_total{guest=\"vm1\",outcome=\"moved\"} -1",
            "dunlin_moves_total{guest=\"vm1\",outcome=\"moved\"} many",
            "dunlin_moves_total{guest=\"a\\\"b\",outcome=\"moved\"} 1",
            "dunlin_moves_total{outcome=\"moved\"} 1",
            "dunlin_moves_totals{guest=\"vm1\",outcome=\"moved\"} 1",
        ] {
            assert_eq!(counted(line), None, "{line}");
        }
    }
}
