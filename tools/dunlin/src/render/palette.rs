//! Colour: on a terminal that has it, unless `NO_COLOR` (no-color.org) asks for none.

use std::io::IsTerminal;

/// Whether and how text is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Palette {
    coloured: bool,
}

impl Palette {
    /// No colour.
    pub(crate) const PLAIN: Self = Self { coloured: false };

    /// What suits a stream.
    pub(crate) fn of(stream: &impl IsTerminal) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self {
            coloured: stream.is_terminal() && !refused && !dumb,
        }
    }

    /// The headline.
    pub(crate) fn strong(self, text: &str) -> String {
        self.wrapped("1", text)
    }

    /// What can be left unread.
    pub(crate) fn faint(self, text: &str) -> String {
        self.wrapped("2", text)
    }

    /// All is well.
    pub(crate) fn good(self, text: &str) -> String {
        self.wrapped("32", text)
    }

    /// Worth a look.
    pub(crate) fn careful(self, text: &str) -> String {
        self.wrapped("33", text)
    }

    /// Not well.
    pub(crate) fn bad(self, text: &str) -> String {
        self.wrapped("31", text)
    }

    /// The source's parts of a bar.
    pub(crate) fn source(self, text: &str) -> String {
        self.wrapped("36", text)
    }

    /// The destination's parts of a bar.
    pub(crate) fn destination(self, text: &str) -> String {
        self.wrapped("35", text)
    }

    fn wrapped(self, code: &str, text: &str) -> String {
        if self.coloured {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}
