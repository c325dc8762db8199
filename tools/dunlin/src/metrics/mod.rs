//! Metrics for Prometheus, where `--metrics` or `--metrics-file` asks for them: what a process knows
//! of its guests and their moves, live; and what the last move measured of itself.
//!
//! | room | what is in it |
//! |---|---|
//! | here | who is asked for metrics |
//! | [`http`] | the little of HTTP that a scrape needs, within bounds |
//! | [`told`] | the metrics that this program tells beside those that a move measures |
//! | [`exposition`] | writing them |
//! | [`mod@file`] | a file of them, once a move is over |
//! | [`watched`] | a move that is watched from outside, by `send` |
//!
//! The names of what a move measures are declared in the engine (docs/metrics.md).

pub(crate) mod exposition;
pub(crate) mod file;
mod http;
pub(crate) mod told;
pub(crate) mod watched;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;

use crate::console;
use crate::exit::Exit;
use crate::failure::Failure;

/// Who knows what is asked for.
pub(crate) trait Source: Send + Sync + 'static {
    /// All of it, as it is now, in Prometheus' text format.
    fn text(&self) -> String;
}

/// An open port, to which nobody listens yet: opened before anything is begun, so that one that
/// can't be had stops the command while nothing has happened.
pub(crate) struct Port(TcpListener);

impl Port {
    /// Opens the port, where one is asked for.
    ///
    /// # Errors
    ///
    /// [`Exit::Usage`] when it can't be had.
    pub(crate) fn open(address: Option<SocketAddr>) -> Result<Option<Self>, Failure> {
        let Some(address) = address else {
            return Ok(None);
        };
        let listener = TcpListener::bind(address).map_err(|error| {
            let message = format!("can't listen for metrics at {address}: {error}");
            Failure::new(Exit::Usage, message)
        })?;
        Ok(Some(Self(listener)))
    }

    /// Answers from now on, on a thread of its own, for as long as the process lives; and says
    /// where.
    ///
    /// # Errors
    ///
    /// When there can be no thread.
    pub(crate) fn answer(self, source: Arc<dyn Source>) -> Result<(), Failure> {
        let failed = |error| Failure::system("the thread for metrics", error);
        let address = self.0.local_addr().map_err(failed)?;
        thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || http::serve(&self.0, &source))
            .map_err(failed)?;
        // Not on standard output, which is a receipt's or a program's.
        console::warn(format_args!("metrics at http://{address}/metrics"));
        Ok(())
    }
}
