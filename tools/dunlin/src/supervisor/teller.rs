//! Tells the operator what happens: a line each, as text or as JSON.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::render::amounts::bytes;
use crate::render::text::printable;

/// What happened.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum Happening {
    /// Connections are accepted.
    Listening {
        /// Where.
        endpoint: String,
    },
    /// A connection showed nothing that is spoken here.
    TurnedAway {
        /// Whose.
        peer: SocketAddr,
        /// Why.
        reason: String,
    },
    /// A guest was refused.
    Refused {
        /// The guest.
        name: String,
        /// Where it runs.
        peer: SocketAddr,
        /// Why.
        reason: String,
    },
    /// A guest is let in.
    Incoming {
        /// The guest.
        name: String,
        /// Its UUID.
        uuid: String,
        /// Where it comes from.
        peer: SocketAddr,
        /// Its memory.
        memory_bytes: u64,
        /// Its process here.
        pid: u32,
    },
    /// A guest runs here.
    Arrived {
        /// The guest.
        name: String,
        /// Its epoch from now on.
        epoch: u64,
        /// Its process here.
        pid: u32,
    },
    /// A guest did not come.
    Failed {
        /// The guest.
        name: String,
        /// Why.
        reason: String,
    },
    /// A source that lost its connection in the handover asked what became of its guest.
    Asked {
        /// The session.
        session: String,
        /// Who asked.
        peer: SocketAddr,
        /// What it was told.
        answer: String,
        /// Whether that settles it for the source.
        is_settled: bool,
    },
    /// The process of a guest that had arrived is gone.
    Gone {
        /// The guest.
        name: String,
        /// How its process ended.
        status: String,
    },
}

impl Happening {
    fn text(&self) -> String {
        match self {
            Self::Listening { endpoint } => format!("listening at {endpoint}"),
            Self::TurnedAway { peer, reason } => format!("turned {peer} away: {reason}"),
            Self::Refused { name, peer, reason } => {
                format!("{name} from {peer} refused: {reason}")
            }
            Self::Incoming {
                name,
                peer,
                memory_bytes,
                pid,
                ..
            } => format!(
                "{name} is coming from {peer}: {} of memory, process {pid}",
                bytes(*memory_bytes)
            ),
            Self::Arrived { name, epoch, pid } => {
                format!("{name} runs here: epoch {epoch}, process {pid}")
            }
            Self::Failed { name, reason } => format!("{name} did not come: {reason}"),
            Self::Asked {
                session,
                peer,
                answer,
                is_settled,
            } => {
                let settled = if *is_settled { "; that settles it" } else { "" };
                format!("{peer} asked about session {session}: {answer}{settled}")
            }
            Self::Gone { name, status } => format!("{name} is gone: its process ended, {status}"),
        }
    }
}

/// Tells the operator, and keeps count.
#[derive(Debug)]
pub(crate) struct Teller {
    /// As JSON.
    pub(crate) json: bool,
    /// What was told of arrivals so far.
    pub(crate) arrivals: Arrivals,
}

/// How many guests came, and how many did not.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    arrived: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
}

impl Arrivals {
    /// Each outcome, and how often.
    pub(crate) fn counts(&self) -> [(&'static str, u64); 3] {
        [
            ("arrived", self.arrived.load(Ordering::Relaxed)),
            ("failed", self.failed.load(Ordering::Relaxed)),
            ("refused", self.refused.load(Ordering::Relaxed)),
        ]
    }

    fn count(&self, happening: &Happening) {
        let counter = match happening {
            Happening::Arrived { .. } => &self.arrived,
            Happening::Failed { .. } => &self.failed,
            Happening::Refused { .. } => &self.refused,
            _ => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl Teller {
    /// Tells what happened, on one line.
    pub(crate) fn tell(&self, happening: &Happening) {
        self.arrivals.count(happening);
        tracing::debug!(?happening, "told");
        let line = if self.json {
            serde_json::to_string(happening).unwrap_or_default()
        } else {
            printable(&happening.text())
        };
        let mut output = std::io::stdout().lock();
        // A reader that is gone does not end the guests.
        let _ = writeln!(output, "{line}");
        let _ = output.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn happenings_have_a_name_and_a_sentence() {
        let happening = Happening::Listening {
            endpoint: "tcp://[::1]:9".to_owned(),
        };
        assert_eq!(
            serde_json::to_string(&happening).unwrap(),
            r#"{"event":"listening","endpoint":"tcp://[::1]:9"}"#
        );
        assert_eq!(happening.text(), "listening at tcp://[::1]:9");
    }
}
