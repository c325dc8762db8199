//! What survives a crash of the handover: one record for each session on each side, which says
//! whose the guest may be.
//!
//! | room | what is in it |
//! |---|---|
//! | here | what is recorded, and the trait of whoever keeps it |
//! | [`verdict`] | what a destination's record tells a source that is in doubt |
//! | [`format`](self) | a record as bytes |
//! | [`mod@file`] | a record as a file |
//! | [`directory`] | the state directory: one folder a guest, one record a session and side |
//!
//! An entry is *plain* when it outlives the process that wrote it (kill -9), and *durable* when it
//! outlives the host too. The first entry of a record is durable and is written while the guest
//! still runs; room for all later ones is made with it, so that nothing inside the pause can run
//! out of disk. The entries of the pause are plain: no fsync stands in the guest's way.

pub mod directory;
pub mod file;
mod format;
pub mod verdict;

use std::path::PathBuf;
use std::time::Duration;

use dunlin_transports::deadline::Deadline;
use dunlin_transports::lane::SessionId;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use self::verdict::Answer;

/// The longest words in an entry, in bytes; longer ones are cut.
pub const WORDS_BYTES_MAX: usize = 240;

/// The longest endpoint in a record, in bytes: a host name has 253 at most (RFC 1035), a scheme and
/// a port come with it.
pub const PEER_BYTES_MAX: usize = 280;

/// Whose record it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The side that the guest leaves.
    Source,
    /// The side that it goes to.
    Destination,
}

impl Role {
    /// Its name, as in file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }

    /// The first entry of a record of this side.
    pub fn first_entry(self) -> Entry {
        match self {
            Self::Source => Entry::Offered,
            Self::Destination => Entry::Expected,
        }
    }
}

/// What is recorded. A record is a sequence of these; the last one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entry {
    /// Source: this session may change the owner of this epoch.
    Offered,
    /// Source: from here on the guest may be the destination's.
    GivenUp,
    /// Source: the guest goes on here.
    Stayed,
    /// Source: the destination runs the guest; it is freed here.
    Released,
    /// Destination: this session may make the guest this side's.
    Expected,
    /// Destination: what the guest holds outside of this host is being acquired.
    Acquiring,
    /// Destination: COMMIT came; a vCPU may be entered from here on.
    Owned,
    /// Destination: every vCPU was entered.
    Running,
    /// Destination: this session never ran the guest here, and never will.
    Aborted,
    /// Destination: the session ended before READY, so the source can't have given the guest up.
    NotCome,
    /// Destination: the guest could not be run, and may have run for a moment.
    Broken,
    /// Destination: the guest ran here, and went on or ended in order.
    Ended,
    /// Either: a person decided, with the other side fenced off, that the guest goes on here.
    ResumedByHand,
    /// Either: a person decided, with the other side fenced off, that the guest is not kept here.
    DiscardedByHand,
}

impl Entry {
    /// Whether nobody can ask for the record any more once this is in it.
    pub fn ends_record(self) -> bool {
        matches!(
            self,
            Self::Stayed
                | Self::Released
                | Self::NotCome
                | Self::ResumedByHand
                | Self::DiscardedByHand
        )
    }

    /// Whether a destination's record needs no reader any more once this is in it and the source
    /// says that the session is settled. What is not decided yet is kept, whoever says so.
    pub fn is_forgettable(self) -> bool {
        matches!(self, Self::Running | Self::Aborted | Self::Ended)
    }

    /// Its name, as in files and on terminals.
    pub fn name(self) -> &'static str {
        match self {
            Self::Offered => "offered",
            Self::GivenUp => "given-up",
            Self::Stayed => "stayed",
            Self::Released => "released",
            Self::Expected => "expected",
            Self::Acquiring => "acquiring",
            Self::Owned => "owned",
            Self::Running => "running",
            Self::Aborted => "aborted",
            Self::NotCome => "not-come",
            Self::Broken => "broken",
            Self::Ended => "ended",
            Self::ResumedByHand => "resumed-by-hand",
            Self::DiscardedByHand => "discarded-by-hand",
        }
    }
}

/// What an entry has to outlive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Durability {
    /// The process that writes it.
    Plain,
    /// The host too.
    Durable,
}

/// What a record is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The guest.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
    /// Its epoch before the move.
    pub epoch: u64,
    /// The session, as 32 hexadecimal digits in files.
    #[serde(with = "session_digits")]
    pub session: SessionId,
    /// Whose record it is.
    pub role: Role,
    /// Where the other side is: an endpoint in a source's record, an address in a destination's.
    pub peer: String,
}

/// An entry that takes longer waited for something else: there and back between two threads takes
/// some 50 µs.
const REHEARSAL_HELD_UP: Duration = Duration::from_millis(1);

/// How often an entry is rehearsed at most.
const REHEARSALS_MAX: u32 = 4;

/// Keeps one record. The engine calls it from one thread.
pub trait Journal: Send {
    /// Adds `entry`, with a few words for whoever reads the record. When this returns, the entry is
    /// in place as far as `durability` says.
    ///
    /// # Errors
    ///
    /// When it could not be written by `deadline`. It may be written all the same, later on; an
    /// entry that is added afterwards comes behind it.
    fn add(
        &mut self,
        entry: Entry,
        words: &str,
        durability: Durability,
        deadline: Deadline,
    ) -> Result<(), JournalError>;

    /// How long an entry's way to whoever writes it and the answer's way back take; `None` where
    /// that can't be measured without writing.
    fn rehearse(&mut self, deadline: Deadline) -> Option<Duration> {
        let _ = deadline;
        None
    }

    /// What an entry takes in the pause, as [`Journal::rehearse`] tells it: once, as an entry in the
    /// pause is no habit either; and where that was held up, by a disk that was still at work on
    /// what was recorded before, the least of a few.
    fn expected_duration(&mut self, deadline: Deadline) -> Option<Duration> {
        let first = self.rehearse(deadline)?;
        if first <= REHEARSAL_HELD_UP {
            return Some(first);
        }
        let again = (1..REHEARSALS_MAX).map_while(|_| self.rehearse(deadline));
        again.chain([first]).min()
    }

    /// Makes durable what is recorded already.
    ///
    /// # Errors
    ///
    /// When that was not done by `deadline`.
    fn sync(&mut self, deadline: Deadline) -> Result<(), JournalError>;
}

/// The records of one host, for those who answer sources in doubt.
pub trait Archive: Sync {
    /// What became of a guest by a session that began at its epoch `epoch`, and why. Where the
    /// session's process died without having entered the guest, that it never will is recorded
    /// first.
    fn answer(&self, uuid: Uuid, session: SessionId, epoch: u64) -> (Answer, String);

    /// The source says that the session is settled: its record here has no reader any more.
    fn forget(&self, uuid: Uuid, session: SessionId);
}

/// Why an entry is not in a record, or a record not in the state directory.
#[derive(Debug, Error)]
pub enum JournalError {
    /// The system failed.
    #[error("{doing} {}: {source}", path.display())]
    System {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The disk takes its time.
    #[error("writing {} is not done within {} ms", path.display(), waited.as_millis())]
    TimedOut {
        /// What is being written.
        path: PathBuf,
        /// How long it was waited for.
        waited: Duration,
    },
    /// What is there is no record.
    #[error("{} is no record: {reason}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The record takes no more.
    #[error("{} has no room for one more entry", path.display())]
    Full {
        /// Which file.
        path: PathBuf,
    },
    /// Somebody else holds it.
    #[error("{} is held by another process", path.display())]
    Held {
        /// Which file.
        path: PathBuf,
    },
    /// Something that can't be told by a path.
    #[error("{0}")]
    Other(String),
}

/// Text, cut to at most `limit` bytes, at a character's border.
pub(crate) fn cut(text: &str, limit: usize) -> &str {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// A session's id from its 32 hexadecimal digits; `None` when they are not.
pub fn session_from_digits(digits: &str) -> Option<SessionId> {
    let number = (digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .then(|| u128::from_str_radix(digits, 16).ok())
        .flatten()?;
    Some(SessionId(number.to_be_bytes()))
}

mod session_digits {
    use dunlin_transports::lane::SessionId;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(id: &SessionId, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(id)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SessionId, D::Error> {
        let digits = String::deserialize(from)?;
        super::session_from_digits(&digits)
            .ok_or_else(|| serde::de::Error::custom(format!("'{digits}' is no session's id")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tells these durations, in milliseconds, one after the other.
    struct Told(Vec<u64>);

    impl Journal for Told {
        fn add(
            &mut self,
            _: Entry,
            _: &str,
            _: Durability,
            _: Deadline,
        ) -> Result<(), JournalError> {
            Ok(())
        }

        fn rehearse(&mut self, _: Deadline) -> Option<Duration> {
            self.0.pop().map(Duration::from_millis)
        }

        fn sync(&mut self, _: Deadline) -> Result<(), JournalError> {
            Ok(())
        }
    }

    #[test]
    fn a_rehearsal_that_was_held_up_is_made_again() {
        let soon = Deadline::after(Duration::from_secs(1));
        for (told, expected, left) in [
            (vec![0, 1], Some(1), 1),
            (vec![9, 7, 5, 6, 50], Some(5), 1),
            (vec![50], Some(50), 0),
            (vec![], None, 0),
        ] {
            let mut journal = Told(told);
            let expected = expected.map(Duration::from_millis);
            assert_eq!(journal.expected_duration(soon), expected);
            assert_eq!(journal.0.len(), left);
        }
    }
}
