//! Why a command did not do what it was asked: a sentence for a person, a code for a program.

use std::fmt;

use serde::Serialize;

use crate::exit::Exit;

/// Why a command did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) exit: Exit,
    /// What failed, with the value, and what to do.
    pub(crate) message: String,
}

#[derive(Serialize)]
struct ErrorDocument<'a> {
    error: ErrorBody<'a>,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    kind: &'static str,
    exit_code: u8,
    message: &'a str,
}

impl Failure {
    /// A failure with this exit code.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
        }
    }

    /// Something on this machine failed.
    pub(crate) fn local(message: impl Into<String>) -> Self {
        Self::new(Exit::Local, message)
    }

    /// `doing` failed on this machine because of `error`.
    pub(crate) fn system(doing: impl fmt::Display, error: impl fmt::Display) -> Self {
        Self::local(format!("{doing}: {error}"))
    }

    /// The failure as one line of JSON.
    pub(crate) fn json(&self) -> String {
        let document = ErrorDocument {
            error: ErrorBody {
                kind: self.exit.entry().name,
                exit_code: self.exit.code(),
                message: &self.message,
            },
        };
        // Strings and a number always have a JSON form.
        serde_json::to_string(&document).unwrap_or_default()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_form_names_kind_and_code() {
        let failure = Failure::new(Exit::NoGuest, "no guest 'a\"b'");
        assert_eq!(
            failure.json(),
            r#"{"error":{"kind":"no-guest","exit_code":3,"message":"no guest 'a\"b'"}}"#
        );
    }
}
