//! The ledger: what guests themselves printed about when they ran, and what it proves.
//!
//! A guest prints a beat every few milliseconds, at each place where it runs (`--workload beat=…`):
//!
//! ```text
//! vcpu 0 beat 0000001a loops 00000000000f3a21 tick 00001234567890ab
//! ```
//!
//! Beat and loops are counted in guest memory, the tick is what the guest's clock said. One owner
//! at a time means: all beats of all places, in the order of ticks, count up by one, and a place
//! that the guest left never prints again. A guest that ran twice from one state prints the same
//! beat twice, whoever owned it and however the clocks stand. Ticks are compared as they are, so
//! all places must be on one host, where guests share its clock.

use std::fmt;

/// One beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Its number, counted in guest memory.
    pub number: u64,
    /// How many times the guest's program had gone round.
    pub loops: u64,
    /// The guest's clock.
    pub tick: u64,
}

/// The shortest rest of a line that tells which line it is: eight digits of the clock, which tell
/// times within a second apart.
const REST_BYTES_MIN: usize = 8;

impl Beat {
    /// The line that tells of it.
    fn line(self) -> String {
        let Self {
            number,
            loops,
            tick,
        } = self;
        format!("vcpu 0 beat {number:08x} loops {loops:016x} tick {tick:016x}")
    }

    /// The beat that a line tells of; `None` when it is no such line.
    fn parse(line: &str) -> Option<Self> {
        let (number, rest) = line.strip_prefix("vcpu 0 beat ")?.split_once(" loops ")?;
        let (loops, tick) = rest.split_once(" tick ")?;
        let digits = |text: &str, count: usize| {
            let is_number =
                text.len() == count && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_number
                .then(|| u64::from_str_radix(text, 16).ok())
                .flatten()
        };
        Some(Self {
            number: digits(number, 8)?,
            loops: digits(loops, 16)?,
            tick: digits(tick, 16)?,
        })
    }
}

/// What one place's serial port says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Its beats, in the order in which they were printed.
    pub beats: Vec<Beat>,
    /// What stands before the first whole line: a guest that was paused in the middle of a line
    /// prints the rest of it where it goes on.
    head: Option<String>,
    /// What stands behind the last whole line.
    tail: Option<String>,
    /// Lines that are none of a guest's.
    strange: Vec<String>,
}

impl Account {
    /// Reads what a guest printed at one place.
    pub fn read(text: &str) -> Self {
        let mut account = Self::default();
        let mut pieces: Vec<&str> = text.split('\n').collect();
        account.tail = pieces
            .pop()
            .filter(|tail| !tail.is_empty())
            .map(str::to_owned);
        for (index, line) in pieces.into_iter().enumerate() {
            match Beat::parse(line) {
                Some(beat) => account.beats.push(beat),
                None if index == 0 => account.head = Some(line.to_owned()),
                None => account.strange.push(line.to_owned()),
            }
        }
        account
    }

    /// Whether the guest ever ran here.
    pub fn has_run(&self) -> bool {
        !self.beats.is_empty() || self.head.is_some() || self.tail.is_some()
    }
}

/// What is wrong in a ledger. Places are named by their index in the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Two places ran the guest from one state, or at one time.
    TwoOwners {
        /// The beat that came first.
        first: (usize, Beat),
        /// The one that must not have been.
        second: (usize, Beat),
    },
    /// Two places ended the same line.
    TornLine {
        /// Where the rest is.
        place: usize,
        /// The rest.
        rest: String,
    },
    /// One place ran the guest from an older state.
    StaleCopy {
        /// Which place.
        place: usize,
        /// The last beat before.
        before: Beat,
        /// The beat that does not follow it.
        after: Beat,
    },
    /// Beats are missing.
    Missing {
        /// The last beat before.
        before: Beat,
        /// The first one behind.
        after: Beat,
    },
    /// A line is none of a guest's.
    Strange(String),
}

impl Finding {
    /// Whether it proves that a guest ran twice from one state, or in two places at one time.
    pub fn is_two_owners(&self) -> bool {
        matches!(
            self,
            Self::TwoOwners { .. } | Self::TornLine { .. } | Self::StaleCopy { .. }
        )
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TwoOwners { first, second } => write!(
                formatter,
                "two owners: beat {} at place {} (tick {}), then beat {} at place {} (tick {})",
                first.1.number, first.0, first.1.tick, second.1.number, second.0, second.1.tick
            ),
            Self::TornLine { place, rest } => write!(
                formatter,
                "two owners: place {place} ended the line '…{rest}', and so did another one"
            ),
            Self::StaleCopy {
                place,
                before,
                after,
            } => write!(
                formatter,
                "a stale copy: at place {place} beat {} follows beat {}",
                after.number, before.number
            ),
            Self::Missing { before, after } => write!(
                formatter,
                "beats are missing: {} follows {}",
                after.number, before.number
            ),
            Self::Strange(line) => write!(formatter, "a line of no guest: '{line}'"),
        }
    }
}

/// Judges what the places of one guest say. Nothing found: the guest ran in one place at a time,
/// and nowhere from an old state.
///
/// A beat that was on its way out when its process was killed may be missing at a change of
/// places, no more.
pub fn judge(places: &[Account]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut beats: Vec<(usize, Beat)> = Vec::new();
    for (place, account) in places.iter().enumerate() {
        findings.extend(account.strange.iter().cloned().map(Finding::Strange));
        beats.extend(account.beats.iter().map(|beat| (place, *beat)));
    }
    for (place, account) in places.iter().enumerate() {
        let Some(rest) = &account.head else { continue };
        // The place that left the line unfinished printed the beat.
        let begun = places.iter().enumerate().find_map(|(begun_at, other)| {
            let line = format!("{}{rest}", other.tail.as_deref()?);
            Beat::parse(&line)
                .filter(|_| begun_at != place)
                .map(|beat| (begun_at, beat))
        });
        // The clock's last digits don't come twice; a shorter rest says nothing of its own.
        let ended_twice = rest.len() >= REST_BYTES_MIN
            && places.iter().enumerate().any(|(other_at, other)| {
                let mut beats = other.beats.iter();
                other_at != place && beats.any(|beat| beat.line().ends_with(rest))
            });
        match begun {
            Some(beat) => beats.push(beat),
            None if ended_twice => findings.push(Finding::TornLine {
                place,
                rest: rest.clone(),
            }),
            // What was printed of it may have been lost with a VMM that was killed.
            None => {}
        }
    }
    beats.sort_by_key(|(_, beat)| beat.tick);
    let mut left = Vec::new();
    for pair in beats.windows(2) {
        let [first, second] = pair else { continue };
        let goes_on = second.1.number > first.1.number && second.1.loops > first.1.loops;
        let moves = first.0 != second.0;
        if moves {
            left.push(first.0);
        }
        if left.contains(&second.0) || (!goes_on && moves) {
            findings.push(Finding::TwoOwners {
                first: *first,
                second: *second,
            });
        } else if !goes_on {
            findings.push(Finding::StaleCopy {
                place: first.0,
                before: first.1,
                after: second.1,
            });
        } else if second.1.number > first.1.number + 1 + u64::from(moves) {
            findings.push(Finding::Missing {
                before: first.1,
                after: second.1,
            });
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Beats `numbers`, each a millisecond behind the one before, the first at `tick`.
    fn lines(numbers: std::ops::Range<u64>, tick: u64) -> String {
        numbers
            .enumerate()
            .map(|(index, number)| line(number, number * 100, tick + index as u64 * 1000))
            .collect()
    }

    fn line(number: u64, loops: u64, tick: u64) -> String {
        let beat = Beat {
            number,
            loops,
            tick,
        };
        format!("{}\n", beat.line())
    }

    fn judged(places: &[&str]) -> Vec<Finding> {
        let accounts: Vec<_> = places.iter().map(|text| Account::read(text)).collect();
        judge(&accounts)
    }

    #[test]
    fn a_guest_that_moves_or_stays_is_fine() {
        let here = lines(1..10, 1000);
        assert_eq!(judged(&[&here, ""]), vec![]);
        assert_eq!(judged(&[&here, &lines(10..20, 50_000)]), vec![]);
        // Moved on, to a third place.
        let on = [here, lines(10..20, 50_000), lines(20..30, 90_000)];
        assert_eq!(judged(&[&on[0], &on[1], &on[2]]), vec![]);
    }

    #[test]
    fn a_line_may_begin_here_and_end_there() {
        let split = line(10, 1000, 10_500);
        for at in 1..split.len() {
            let here = lines(1..10, 1000) + &split[..at];
            let there = split[at..].to_owned() + &lines(11..20, 50_000);
            assert_eq!(judged(&[&here, &there]), vec![], "split at {at}");
        }
        // The line was whole but for its end.
        let here = lines(1..11, 1000);
        let there = String::from("\n") + &lines(11..20, 50_000);
        assert_eq!(judged(&[here.trim_end(), &there]), vec![]);
    }

    #[test]
    fn a_guest_killed_in_the_middle_of_a_line_is_fine() {
        let here = lines(1..10, 1000) + "vcpu 0 beat 0000";
        assert_eq!(judged(&[&here, ""]), vec![]);
        // What it had printed of a line was lost with it.
        let there = "0003e8 tick 0000000000002904\n".to_owned() + &lines(11..20, 50_000);
        assert_eq!(judged(&[&lines(1..10, 1000), &there]), vec![]);
        // A beat that did not get out before the pause.
        assert_eq!(
            judged(&[&lines(1..10, 1000), &lines(11..20, 50_000)]),
            vec![]
        );
    }

    fn is_two_owners(places: &[&str]) -> bool {
        let findings = judged(places);
        findings.iter().any(Finding::is_two_owners)
    }

    #[test]
    fn a_source_that_resumes_what_the_destination_runs_is_found() {
        let before = lines(1..10, 1000);
        let there = lines(10..20, 50_000);
        // At the same time, later, and for one beat only.
        for tick in [50_500, 90_000, 49_000] {
            let here = before.clone() + &lines(10..20, tick);
            assert!(is_two_owners(&[&here, &there]), "resumed at {tick}");
            let here = before.clone() + &lines(10..11, tick);
            assert!(is_two_owners(&[&here, &there]), "one beat at {tick}");
        }
    }

    #[test]
    fn a_source_that_goes_on_in_mid_line_is_found() {
        let split = line(10, 1000, 10_500);
        // The source ended the line by itself, so did the destination, which then was killed.
        let here = lines(1..10, 1000) + &split;
        assert!(is_two_owners(&[&here, &split[20..]]));
    }

    #[test]
    fn a_destination_that_runs_an_old_state_is_found() {
        let here = lines(1..10, 1000);
        assert!(is_two_owners(&[&here, &lines(8..20, 50_000)]));
        // The beat is new, but the loops were counted before.
        let there = line(10, 500, 50_000);
        assert!(is_two_owners(&[&here, &there]));
    }

    #[test]
    fn a_stale_copy_in_one_place_is_found() {
        let here = lines(1..10, 1000) + &lines(7..12, 50_000);
        let findings = judged(&[&here]);
        assert!(
            matches!(findings[..], [Finding::StaleCopy { place: 0, .. }]),
            "{findings:?}"
        );
    }

    #[test]
    fn lost_beats_and_foreign_lines_are_told_but_are_no_two_owners() {
        let here =
            lines(1..10, 1000) + "[12 bytes of output were dropped]\n" + &lines(14..20, 50_000);
        let findings = judged(&[&here]);
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(!findings.iter().any(Finding::is_two_owners));
    }
}
