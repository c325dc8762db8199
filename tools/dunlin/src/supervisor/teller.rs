//! Tells the operator what happens: a line each, as text or as JSON.

use std::io::Write;
use std::net::SocketAddr;

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

/// Tells the operator.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Teller {
    /// As JSON.
    pub(crate) json: bool,
}

impl Teller {
    /// Tells what happened, on one line.
    pub(crate) fn tell(self, happening: &Happening) {
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
