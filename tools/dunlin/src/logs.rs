//! Logs, for those who ask for them: `RUST_LOG` says what of, in the words of `tracing`'s filters.
//! Without it there are none. They go to standard error, and name the session, so that the lines of
//! both ends of a move can be put together.
//!
//! Nothing is logged while a guest is paused: a line that the system does not take would lengthen
//! the pause.

use std::ffi::OsStr;
use std::io;

use tracing_subscriber::EnvFilter;

use crate::console;

/// The variable that says what is logged.
const VARIABLE: &str = "RUST_LOG";

/// Begins to log, where that is asked for.
pub(crate) fn begin() {
    let Some(wanted) = std::env::var_os(VARIABLE).filter(|wanted| !wanted.is_empty()) else {
        return;
    };
    match filter(&wanted) {
        Ok(filter) => tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(io::stderr)
            .with_ansi(false)
            .with_target(true)
            // Complaints about a stream that is gone would go to the same stream, and end the
            // process.
            .log_internal_errors(false)
            .init(),
        Err(reason) => console::warn(reason),
    }
}

fn filter(wanted: &OsStr) -> Result<EnvFilter, String> {
    let text = wanted.to_string_lossy();
    EnvFilter::try_new(&text)
        .map_err(|error| format!("{VARIABLE}='{text}' is no filter, so nothing is logged: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_read_or_gets_a_sentence() {
        for wanted in ["info", "dunlin=debug", "warn,dunlin::supervisor=trace"] {
            assert!(filter(OsStr::new(wanted)).is_ok(), "{wanted}");
        }
        let reason = filter(OsStr::new("dunlin=loud")).unwrap_err();
        assert!(reason.contains("RUST_LOG='dunlin=loud'"), "{reason}");
    }
}
