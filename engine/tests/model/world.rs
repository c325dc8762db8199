//! What the model's world holds: two processes, their records, a supervisor, and the connections
//! between them. How they act is in the rooms `source`, `destination` and `settling`.

use dunlin_engine::records::verdict::Answer;
use dunlin_engine::records::{Durability, Entry};
use dunlin_engine::session::StayReason;
use dunlin_engine::session::destination::{
    Action as DestinationAction, DestinationSession, Event as DestinationEvent,
};
use dunlin_engine::session::source::{Action as SourceAction, SourceSession, State as SourceState};

/// A message on the control connection, without what it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Word {
    Hello,
    Welcome,
    Refused,
    Prepare,
    Ready,
    Commit,
    Running,
    VerifyEnd,
    Verified,
    Released,
    Abort,
    Aborted,
}

/// One direction of the control connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Wire {
    /// What is under way, the oldest first.
    pub(crate) words: Vec<Word>,
    /// The sender closed it: behind the words comes the end.
    pub(crate) is_closed: bool,
    /// What is sent from now on is lost, and no end is seen: only a silence.
    pub(crate) is_cut: bool,
    /// Nobody reads it any more.
    pub(crate) is_deaf: bool,
}

impl Wire {
    pub(crate) fn send(&mut self, word: Word) {
        if !self.is_broken() && !self.is_closed {
            self.words.push(word);
        }
    }

    /// The sender is told that it failed, and what it says afterwards is not understood.
    pub(crate) fn fail_to_send(&mut self, word: Word, is_sent: bool) {
        if is_sent {
            self.send(word);
        }
        self.is_cut = true;
    }

    /// Whether what is sent gets nowhere.
    pub(crate) fn is_broken(&self) -> bool {
        self.is_cut || self.is_deaf
    }

    /// Whether the reader finds out that nothing comes any more.
    pub(crate) fn is_over(&self) -> bool {
        self.words.is_empty() && (self.is_closed || self.is_cut)
    }

    pub(crate) fn deafen(&mut self) {
        self.words.clear();
        self.is_deaf = true;
    }

    pub(crate) fn cut(&mut self) {
        self.words.clear();
        self.is_cut = true;
    }
}

/// What a disk makes of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Disk {
    /// It is written, as far as was asked.
    Well,
    /// It is not written, and the writer is told so.
    Unwritten,
    /// It is written, though not durably, and the writer is told that it is not: the time was up.
    Late,
    /// The disk hangs: the writer is told that it is not written, and it may be later on. What is
    /// written meanwhile waits behind it.
    Hang,
}

/// One side's record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Record {
    /// Its entries, as whoever looks at it now finds them.
    pub(crate) entries: Vec<Entry>,
    /// How many of them a crash of the host leaves.
    pub(crate) durable: usize,
    pub(crate) is_there: bool,
    pub(crate) is_same_boot: bool,
    /// What a hanging disk still has to write. Until it has, the record's lock is held, even if its
    /// process is gone.
    pub(crate) pending: Vec<Entry>,
}

impl Record {
    pub(crate) fn begun(first: Entry) -> Self {
        Self {
            entries: vec![first],
            durable: 1,
            is_there: true,
            is_same_boot: true,
            pending: Vec::new(),
        }
    }

    pub(crate) fn missing() -> Self {
        Self {
            entries: Vec::new(),
            durable: 0,
            is_there: false,
            is_same_boot: true,
            pending: Vec::new(),
        }
    }

    pub(crate) fn last(&self) -> Option<Entry> {
        self.entries.last().copied().filter(|_| self.is_there)
    }

    /// Whether `entry` stands last and outlives the host.
    pub(crate) fn has_durably(&self, entry: Entry) -> bool {
        self.last() == Some(entry) && self.durable == self.entries.len()
    }

    /// Adds an entry as the engine's journal does; whether its writer is told that it is in place.
    pub(crate) fn add(&mut self, entry: Entry, durability: Durability, disk: Disk) -> bool {
        let is_well = disk == Disk::Well;
        // Somebody removed the file: its writer goes on writing, to nobody's use.
        if !self.is_there {
            return is_well;
        }
        if disk == Disk::Hang {
            self.pending.push(entry);
        } else if disk != Disk::Unwritten {
            self.entries.push(entry);
            if is_well && durability == Durability::Durable {
                self.durable = self.entries.len();
            }
            if is_well && entry.ends_record() {
                self.remove();
            }
        }
        is_well
    }

    /// What the disk may make of the next entry.
    pub(crate) fn disks(&self) -> &'static [Disk] {
        match self.pending.is_empty() {
            true => &[Disk::Well, Disk::Unwritten, Disk::Late, Disk::Hang],
            false => &[Disk::Hang],
        }
    }

    /// The disk goes on, with what it has to write or without it.
    pub(crate) fn go_on(&mut self, is_written: bool) {
        for entry in std::mem::take(&mut self.pending) {
            if is_written && self.is_there {
                self.add(entry, Durability::Plain, Disk::Well);
            }
        }
    }

    /// Its process is gone: what the disk had not begun is never written.
    pub(crate) fn lose_writer(&mut self) {
        self.pending.truncate(1);
    }

    pub(crate) fn sync(&mut self) {
        self.durable = self.entries.len();
    }

    pub(crate) fn remove(&mut self) {
        *self = Self {
            is_same_boot: self.is_same_boot,
            ..Self::missing()
        };
    }

    /// The host crashes: of what was not durable the first entries are left, up to `kept` in all.
    pub(crate) fn lose_behind(&mut self, kept: usize) {
        self.entries.truncate(kept.max(self.durable));
        self.durable = self.entries.len();
        self.pending.clear();
        self.is_same_boot = false;
    }
}

/// How a process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Life {
    /// It was not started.
    None,
    /// It lives, and its session is not over.
    InSession,
    /// It lives, and holds the guest; its session is over.
    Settled,
    /// It ended in order.
    Exited,
    /// It was killed, or its host crashed.
    Crashed,
}

impl Life {
    pub(crate) fn is_alive(self) -> bool {
        matches!(self, Self::InSession | Self::Settled)
    }
}

/// The source's process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Source {
    pub(crate) session: SourceSession,
    /// What is left to perform of the session's last answer.
    pub(crate) actions: Vec<SourceAction>,
    pub(crate) life: Life,
    pub(crate) runs: bool,
    pub(crate) has_memory: bool,
    /// Whether lanes work on a round.
    pub(crate) in_round: bool,
    pub(crate) record: Record,
    /// The disk did not take the record's end.
    pub(crate) is_end_unrecorded: bool,
    /// How often what the guest holds outside was given back.
    pub(crate) releases: u8,
}

/// The process on the destination that takes the guest in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Destination {
    pub(crate) session: DestinationSession,
    pub(crate) actions: Vec<DestinationAction>,
    /// What came of actions and was not taken by the session yet.
    pub(crate) events: Vec<DestinationEvent>,
    pub(crate) life: Life,
    pub(crate) runs: bool,
    pub(crate) has_memory: bool,
    /// Whether a vCPU may ever have been entered here.
    pub(crate) may_have_entered: bool,
    /// Whether all were.
    pub(crate) has_entered: bool,
    pub(crate) record: Record,
    /// Whether its host knows the guest by a later epoch too.
    pub(crate) has_later_epoch: bool,
    pub(crate) releases: u8,
    /// Whether READY was said, or may have been.
    pub(crate) has_said_ready: bool,
}

/// The source's last question on a connection of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Exchange {
    Quiet,
    /// The question is under way.
    Asked,
    /// The supervisor has looked whether the record's process lives, and not yet what it says.
    Looked {
        is_alive: bool,
    },
    /// The answer is under way.
    Answered {
        answer: Answer,
        /// Whether the supervisor recorded ABORTED for a dead process before it said so.
        is_aborted_first: bool,
    },
}

/// Connections for settling.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Settling {
    pub(crate) exchange: Exchange,
    /// Questions that the source no longer waits for, and that may yet arrive.
    pub(crate) stale_asks: u8,
    /// SETTLED is under way.
    pub(crate) is_settled_under_way: bool,
}

/// What must never happen, and can be seen only in the moment in which it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Slips {
    pub(crate) committed_before_give_up: bool,
    pub(crate) entered_before_owned: bool,
    pub(crate) aborted_before_recorded: bool,
    pub(crate) answered_aborted_without_record: bool,
    pub(crate) freed_unentered: bool,
    pub(crate) discarded_entered: bool,
    pub(crate) found_no_record: bool,
}

/// What keeps the world finite. Faults are not bounded: each may come at any step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Bounds {
    /// Rounds of pre-copy behind the first.
    pub(crate) rounds: u8,
    /// Questions that may be under way besides the one that the source waits for.
    pub(crate) stale_asks: u8,
    /// Whether actions that nobody outside of their process can see are steps of their own too.
    pub(crate) is_fine: bool,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) source: Source,
    pub(crate) destination: Destination,
    pub(crate) is_supervisor_up: bool,
    /// The destination's host was switched off for good.
    pub(crate) is_fenced: bool,
    /// The destination's record is gone, and nobody was allowed to remove it.
    pub(crate) is_record_lost: bool,
    pub(crate) to_destination: Wire,
    pub(crate) to_source: Wire,
    pub(crate) settling: Settling,
    pub(crate) bounds: Bounds,
    /// How many more rounds of pre-copy there may be.
    pub(crate) rounds_left: u8,
    pub(crate) slips: Slips,
}

impl World {
    /// The guest runs on the source, both records are still to be used, HELLO is next.
    pub(crate) fn new(bounds: Bounds) -> Self {
        let mut world = Self {
            source: Source {
                session: SourceSession::new(),
                actions: Vec::new(),
                life: Life::InSession,
                runs: true,
                has_memory: true,
                in_round: false,
                record: Record::begun(Entry::Offered),
                is_end_unrecorded: false,
                releases: 0,
            },
            destination: Destination {
                session: DestinationSession::new(),
                actions: Vec::new(),
                events: Vec::new(),
                life: Life::None,
                runs: false,
                has_memory: false,
                may_have_entered: false,
                has_entered: false,
                record: Record::missing(),
                has_later_epoch: false,
                releases: 0,
                has_said_ready: false,
            },
            is_supervisor_up: true,
            is_fenced: false,
            is_record_lost: false,
            to_destination: Wire::default(),
            to_source: Wire::default(),
            settling: Settling {
                exchange: Exchange::Quiet,
                stale_asks: 0,
                is_settled_under_way: false,
            },
            bounds,
            rounds_left: bounds.rounds,
            slips: Slips::default(),
        };
        world.begin();
        world
    }

    /// Whether the source holds the guest because nobody told it whose it is.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.source.life == Life::InSession && self.source.session.state() == SourceState::InDoubt
    }

    /// Whether a person said that the guest goes on at the source.
    pub(crate) fn is_resumed_by_hand(&self) -> bool {
        self.source.session.state() == SourceState::Stayed(StayReason::Decided)
    }
}
