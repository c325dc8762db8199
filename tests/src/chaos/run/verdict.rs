//! Waiting until a move has come to its end, and judging it.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{LOOK_INTERVAL, REST, Run};
use crate::chaos::arena::{Arena, There};
use crate::chaos::fault::Victim;
use crate::chaos::ledger::{Finding, judge};
use crate::chaos::rules::{Ending, expected};

/// How long a move may take to settle once nothing is in its way any more. A source in doubt asks
/// every two seconds at least.
/// The kernel may take its time too: ending a VM waits for a grace period of SRCU (synchronize_srcu),
/// which was seen to take longer than 15 s on a busy virtual machine.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(60);

/// How long a guest may take to print a few more beats.
const BEATS_TIME_MAX: Duration = Duration::from_secs(10);

impl Run<'_> {
    /// Waits until nothing changes any more, and says how it is then.
    pub(super) fn await_ending(&mut self) -> Result<Ending> {
        let end = Instant::now() + SETTLE_TIME_MAX;
        let may_be_held = expected(self.order.fault).endings.contains(&Ending::Held);
        let mut since: Option<(Ending, Instant)> = None;
        loop {
            let (ending, rest) = match (self.arena.look_here(), self.arena.look_there()) {
                (There::Nothing, There::Nothing) => (Some(Ending::Gone), Duration::ZERO),
                (There::Nothing, there) if there.runs_alone() => {
                    (Some(Ending::Moved), Duration::ZERO)
                }
                // Where 'send' was hit, it may not have asked for the move yet.
                (here, There::Nothing) if here.runs_alone() && here.has_moved_on() => {
                    (Some(Ending::Stayed), Duration::ZERO)
                }
                (here, There::Nothing)
                    if here.runs_alone() && !self.arena.is_alive(Victim::Send) =>
                {
                    (Some(Ending::Stayed), REST)
                }
                (here, There::Nothing) if here.state() == "unknown-owner" => {
                    // Where it is to be settled, it has time.
                    let rest = if may_be_held { REST } else { SETTLE_TIME_MAX };
                    (Some(Ending::Held), rest)
                }
                // The ledger will tell.
                (here, there) if here.runs_alone() && there.runs_alone() => {
                    (Some(Ending::TwoOwners), REST)
                }
                _ => (None, Duration::ZERO),
            };
            let now = Instant::now();
            since = match (ending, since) {
                (None, _) => None,
                (Some(ending), Some((same, at))) if same == ending => Some((ending, at)),
                (Some(ending), _) => Some((ending, now)),
            };
            if let Some((ending, at)) = since
                && now.duration_since(at) >= rest
            {
                let here = self.arena.look_here();
                self.arena
                    .tell(&format!("the end: {}{}", ending.name(), here.last_move()));
                return Ok(ending);
            }
            if let Some((Ending::Held, _)) = since
                && now >= end
            {
                return Ok(Ending::Held);
            }
            if now >= end {
                let (here, there) = (self.arena.look_here(), self.arena.look_there());
                self.complain(format!(
                    "it does not settle: source {here:?}, destination {there:?}"
                ));
                self.arena.tell_waits();
                return Ok(Ending::Unsettled);
            }
            self.pass(LOOK_INTERVAL)?;
        }
    }

    /// Sees that the guest goes on, ends everything, and judges.
    pub(super) fn judge(&mut self, ending: Ending) -> Ending {
        match ending {
            Ending::Stayed => self.expect_beats(0),
            Ending::Moved => self.expect_beats(1),
            Ending::Held => self.expect_reason(),
            _ => {}
        }
        if let Err(error) = self.arena.expect_nothing_held() {
            self.complain(format!("{error:#}"));
        }
        // As a person would who sees a record without a process.
        match self.arena.settle() {
            Ok(told) => told.iter().for_each(|what| self.arena.tell(what)),
            Err(error) => self.complain(format!("settling: {error:#}")),
        }
        match self.arena.tear_down() {
            Ok(left) => left.into_iter().for_each(|left| self.complain(left)),
            Err(error) => self.complain(format!("ending it all: {error:#}")),
        }
        let killed = self.order.fault.deed.killed();
        for left in self.arena.sockets_left(killed) {
            self.complain(left);
        }
        self.expect_records(ending);
        let findings = judge(&self.arena.accounts());
        let two_owners = findings.iter().any(Finding::is_two_owners);
        // Two owners for a second are hundreds of findings.
        if let Some((first, others)) = findings.split_first() {
            let more = match others.len() {
                0 => String::new(),
                count => format!(" (and {count} more like it)"),
            };
            self.complain(format!("{first}{more}"));
        }
        let ending = if two_owners {
            Ending::TwoOwners
        } else {
            ending
        };
        let expectation = expected(self.order.fault);
        if !expectation.endings.contains(&ending) {
            let allowed: Vec<&str> = expectation
                .endings
                .iter()
                .map(|ending| ending.name())
                .collect();
            self.complain(format!(
                "it ended as '{}', expected was '{}': {}",
                ending.name(),
                allowed.join("' or '"),
                expectation.because
            ));
        }
        ending
    }

    fn expect_beats(&mut self, place: usize) {
        let beats = |arena: &Arena| arena.accounts()[place].beats.len();
        let before = beats(&self.arena);
        let end = Instant::now() + BEATS_TIME_MAX;
        while beats(&self.arena) < before + 3 {
            if Instant::now() >= end {
                return self.complain(format!("the guest does not go on at place {place}"));
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// A source that holds a guest says why.
    fn expect_reason(&mut self) {
        let There::Says(guest) = self.arena.look_here() else {
            return self.complain("the source that holds the guest says nothing".to_owned());
        };
        match guest["in_doubt"].as_str() {
            Some(reason) if !reason.is_empty() => self.arena.tell(&format!("held: {reason}")),
            _ => self.complain(format!("the guest is held without a reason: {guest}")),
        }
    }

    /// Records of a move whose outcome is known are at their end; all others say what they mean.
    fn expect_records(&mut self, ending: Ending) {
        let is_known = matches!(ending, Ending::Stayed | Ending::Moved);
        match self.arena.records_in_doubt() {
            Err(error) => self.complain(format!("reading the records: {error:#}")),
            Ok(records) => {
                for (place, record) in records {
                    let what = record["what"].as_str().unwrap_or_default();
                    if is_known || what.is_empty() {
                        self.complain(format!("a record at place {place} has no end: {record}"));
                    } else {
                        self.arena.tell(&format!("record at place {place}: {what}"));
                    }
                }
            }
        }
    }
}
