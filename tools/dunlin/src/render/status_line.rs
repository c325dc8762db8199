//! A line on standard error that is drawn over itself on a terminal, so that standard output stays
//! free for results.

use std::io::{IsTerminal, Write};

use super::text::printable;

/// The width of a terminal that does not tell.
const COLUMNS_DEFAULT: usize = 80;

/// The line.
pub(crate) struct StatusLine {
    is_quiet: bool,
    is_terminal: bool,
    is_drawn: bool,
}

impl StatusLine {
    /// A line that suits standard error; nothing at all when `is_quiet`.
    pub(crate) fn new(is_quiet: bool) -> Self {
        Self {
            is_quiet,
            is_terminal: std::io::stderr().is_terminal(),
            is_drawn: false,
        }
    }

    /// Whether nothing is shown.
    pub(crate) fn is_quiet(&self) -> bool {
        self.is_quiet
    }

    /// How many columns the line may have; `None` where it is no terminal, and each line stays.
    pub(crate) fn columns(&self) -> Option<usize> {
        let told = || {
            let size = rustix::termios::tcgetwinsize(std::io::stderr()).ok()?;
            Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
        };
        // The last column would make some terminals wrap.
        let columns = || told().unwrap_or(COLUMNS_DEFAULT).saturating_sub(1);
        self.is_terminal.then(columns)
    }

    /// Draws the line anew, on a terminal; elsewhere it is one more line.
    pub(crate) fn draw(&mut self, line: &str) {
        if self.is_quiet {
            return;
        }
        if self.is_terminal {
            // Back to the line's begin, the new text, the rest cleared.
            write(&format!("\r{line}\u{1b}[K"));
            self.is_drawn = true;
        } else {
            write(&format!("{line}\n"));
        }
    }

    /// Writes a sentence on a line of its own.
    pub(crate) fn note(&mut self, text: &str) {
        if !self.is_quiet {
            self.clear();
            write(&format!("{}\n", printable(text)));
        }
    }

    /// Takes the line away.
    pub(crate) fn clear(&mut self) {
        if std::mem::take(&mut self.is_drawn) {
            write("\r\u{1b}[K");
        }
    }
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        self.clear();
    }
}

fn write(text: &str) {
    let mut stream = std::io::stderr().lock();
    // Nobody is harmed by a progress line that can't be written.
    let _ = stream.write_all(text.as_bytes());
    let _ = stream.flush();
}
