//! The files of a guest that did not come: its log and its serial port's. What a guest of the same
//! name has left there before is kept.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// How much of a log's end is looked through for its last line.
const LAST_LINE_BYTES_MAX: u64 = 1024;

/// Files that were not there before a guest's process was made.
#[derive(Debug)]
pub(super) struct Leftovers(Vec<PathBuf>);

impl Leftovers {
    /// Those of the files that are not there yet.
    pub(super) fn of<const N: usize>(files: [&Path; N]) -> Self {
        let absent = |file: &&Path| fs::symlink_metadata(file).is_err();
        Self(
            files
                .into_iter()
                .filter(absent)
                .map(Path::to_owned)
                .collect(),
        )
    }

    /// Removes them. The process must be gone.
    pub(super) fn remove(&self) {
        for file in &self.0 {
            // It may never have been made. One that can't be removed harms nobody.
            let _ = fs::remove_file(file);
        }
    }
}

/// A log's last line, for a person; in place of one that can't be read, why.
pub(super) fn last_line(log: &Path) -> String {
    let end = || {
        let mut file = File::open(log)?;
        let bytes = file.metadata()?.len();
        file.seek(SeekFrom::Start(bytes.saturating_sub(LAST_LINE_BYTES_MAX)))?;
        let mut end = Vec::new();
        file.take(LAST_LINE_BYTES_MAX).read_to_end(&mut end)?;
        Ok::<_, std::io::Error>(end)
    };
    match end() {
        Ok(end) => String::from_utf8_lossy(&end)
            .lines()
            .rfind(|line| !line.trim().is_empty())
            .unwrap_or("(it is empty)")
            .to_owned(),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_not_there_before_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let (old, new) = (directory.path().join("old"), directory.path().join("new"));
        fs::write(&old, "from another stay").unwrap();
        let leftovers = Leftovers::of([old.as_path(), new.as_path()]);
        fs::write(&new, "").unwrap();
        leftovers.remove();
        leftovers.remove();
        assert!(old.exists() && !new.exists());
    }

    #[test]
    fn the_last_line_of_a_log() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("vm1.log");
        assert!(last_line(&log).contains("No such file"));
        fs::write(&log, "").unwrap();
        assert_eq!(last_line(&log), "(it is empty)");
        fs::write(&log, "x".repeat(5000) + "\nkilled\n\n").unwrap();
        assert_eq!(last_line(&log), "killed");
    }
}
