//! Whether the three accounts of a pause agree: its parts on the source's clock, what was predicted
//! of it, and what the guest measured itself; and what explains by how much they differ.

use super::{BlackoutReport, REMAINDER};

/// How much a remainder may be in any case: some tens of calls that belong to no part. Where the
/// guest was moved without a hitch there are none.
pub const REMAINDER_NS_MAX: u64 = 50_000;

/// Or what share of the pause, in parts of a hundred.
pub const REMAINDER_PERCENT_MAX: u64 = 2;

/// The term of the prediction that is about several parts: the ways of PREPARE, READY and COMMIT.
const ROUND_TRIPS: &str = "round-trips";

/// Its parts.
const OF_ROUND_TRIPS: [&str; 5] = [
    "send-prepare",
    "prepare-on-link",
    "ready-on-link",
    "commit",
    "commit-on-link",
];

/// The accounts, side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reckoning {
    /// The whole, as the engine measured it.
    pub total_ns: u64,
    /// All its parts, the remainder among them.
    pub parts_ns: u64,
    /// The remainder alone.
    pub remainder_ns: u64,
    /// Whether parts are in order, and none begins before the one before it ends.
    pub is_in_order: bool,
    /// Each term of the prediction beside what it was about, and behind them what nothing was
    /// predicted of, each part once.
    pub terms: Vec<Term>,
    /// What the guest says, where it does.
    pub guest: Option<GuestAccount>,
}

/// A term of the prediction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// Its name, or that of a part.
    pub name: String,
    /// What was predicted; `None` for a part of which nothing was.
    pub predicted_ns: Option<u64>,
    /// What it took.
    pub took_ns: u64,
}

/// The pause as the guest saw it, beside the longest pause of one of its vCPUs as the engine did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestAccount {
    /// The guest's.
    pub visible_ns: u64,
    /// The engine's, of that vCPU: from parked to entered.
    pub paused_ns: u64,
    /// By how much the two clocks that the latter rests on may be apart; `None` where nobody knows.
    pub clock_error_ns: Option<u64>,
    /// From the order to pause until that pause began: the vCPU left the guest at some moment in
    /// it.
    pub leaving_ns: u64,
}

impl GuestAccount {
    /// What the guest saw beyond what its clock's error and its way out explain: its way in, and
    /// its own step from one reading of its clock to the next. Negative where the guest saw less
    /// than its vCPU was away, which nothing explains.
    pub fn unexplained_ns(&self) -> i64 {
        let (visible, paused) = (i128::from(self.visible_ns), i128::from(self.paused_ns));
        let error = i128::from(self.clock_error_ns.unwrap_or(u64::MAX));
        let above = visible - (paused + error + i128::from(self.leaving_ns));
        let below = visible - (paused - error);
        let unexplained = if above > 0 { above } else { below.min(0) };
        i64::try_from(unexplained).unwrap_or(i64::MIN)
    }
}

impl Reckoning {
    /// Of a pause.
    pub fn of(blackout: &BlackoutReport) -> Self {
        let parts = || blackout.parts.iter();
        let took = |name: &str| -> u64 {
            let is_meant = |part: &str| match name {
                ROUND_TRIPS => OF_ROUND_TRIPS.contains(&part),
                _ => part == name,
            };
            let meant = parts().filter(|part| is_meant(&part.name));
            meant.fold(0, |sum, part| sum.saturating_add(part.duration_ns))
        };
        let mut terms: Vec<Term> = Vec::new();
        for term in &blackout.predicted_parts {
            terms.push(Term {
                name: term.name.clone(),
                predicted_ns: Some(term.duration_ns),
                took_ns: took(&term.name),
            });
        }
        let has_round_trips = terms.iter().any(|term| term.name == ROUND_TRIPS);
        for part in parts() {
            let is_covered = has_round_trips && OF_ROUND_TRIPS.contains(&&*part.name);
            if !is_covered && !terms.iter().any(|term| term.name == part.name) {
                terms.push(Term {
                    name: part.name.clone(),
                    predicted_ns: None,
                    took_ns: took(&part.name),
                });
            }
        }
        let placed = parts().filter_map(|part| Some((part.begin_ns?, part.duration_ns)));
        let mut end_ns = 0;
        let is_in_order = placed.into_iter().all(|(begin_ns, duration_ns)| {
            let follows = begin_ns >= end_ns;
            end_ns = begin_ns.saturating_add(duration_ns);
            follows && end_ns <= blackout.total_ns
        });
        let longest = blackout.vcpus_ns.iter().max();
        let guest = blackout
            .guest_visible_ns
            .zip(longest)
            .map(|(visible_ns, paused_ns)| GuestAccount {
                visible_ns,
                paused_ns: *paused_ns,
                clock_error_ns: blackout.clock_error_ns,
                leaving_ns: blackout.leaving_ns,
            });
        Self {
            total_ns: blackout.total_ns,
            parts_ns: parts().fold(0, |sum, part| sum.saturating_add(part.duration_ns)),
            remainder_ns: took(REMAINDER),
            is_in_order,
            terms,
            guest,
        }
    }

    /// How much the remainder may be.
    pub fn remainder_ns_max(&self) -> u64 {
        let share = u128::from(self.total_ns) * u128::from(REMAINDER_PERCENT_MAX) / 100;
        REMAINDER_NS_MAX.max(u64::try_from(share).unwrap_or(u64::MAX))
    }

    /// What does not agree, in words. `guest_step_ns_max` is how long this guest may take from being
    /// entered until it has looked at its clock.
    pub fn disagreements(&self, guest_step_ns_max: u64) -> Vec<String> {
        let mut words = Vec::new();
        if self.parts_ns != self.total_ns {
            let (parts, total) = (self.parts_ns, self.total_ns);
            words.push(format!("its parts are {parts} ns, the whole is {total} ns"));
        }
        if !self.is_in_order {
            words.push("its parts overlap, or are out of order".to_owned());
        }
        if self.remainder_ns > self.remainder_ns_max() {
            let (remainder, most) = (self.remainder_ns, self.remainder_ns_max());
            words.push(format!(
                "the remainder is {remainder} ns, {most} ns would do"
            ));
        }
        if let Some(guest) = &self.guest {
            let unexplained = guest.unexplained_ns();
            if unexplained < 0 || unexplained.unsigned_abs() > guest_step_ns_max {
                let (visible, paused) = (guest.visible_ns, guest.paused_ns);
                words.push(format!(
                    "the guest saw {visible} ns, its vCPU was away for {paused} ns: {unexplained} \
                     ns are not explained"
                ));
            }
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{BlackoutPart, PredictedPart, Side};

    fn blackout() -> BlackoutReport {
        let part = |name: &str, begin_ns, duration_ns| BlackoutPart {
            name: name.to_owned(),
            side: Side::Source,
            begin_ns,
            duration_ns,
        };
        let term = |name: &str, duration_ns| PredictedPart {
            name: name.to_owned(),
            duration_ns,
            is_assumed: false,
        };
        BlackoutReport {
            total_ns: 1_000_000,
            predicted_ns: 900_000,
            predicted_parts: vec![term("save-state", 600_000), term("round-trips", 300_000)],
            guest_visible_ns: Some(1_020_000),
            parts: vec![
                part("save-state", Some(0), 500_000),
                part("send-prepare", Some(510_000), 90_000),
                part("prepare-on-link", Some(600_000), 100_000),
                part("load-state", Some(700_000), 300_000),
                part("remainder", None, 10_000),
            ],
            vcpus_ns: vec![990_000, 980_000],
            budget_ns: 50_000_000,
            cap_ns: 500_000_000,
            clock_error_ns: Some(5_000),
            leaving_ns: 20_000,
        }
    }

    #[test]
    fn accounts_that_agree_do_so_term_by_term() {
        let reckoning = Reckoning::of(&blackout());
        assert_eq!(reckoning.disagreements(5_000), Vec::<String>::new());
        let terms: Vec<_> = reckoning
            .terms
            .iter()
            .map(|term| (&*term.name, term.predicted_ns, term.took_ns))
            .collect();
        let expected = [
            ("save-state", Some(600_000), 500_000),
            ("round-trips", Some(300_000), 190_000),
            ("load-state", None, 300_000),
            ("remainder", None, 10_000),
        ];
        assert_eq!(terms, expected);
        // Nothing is left over between the prediction and the outcome.
        let took: u64 = terms.iter().map(|term| term.2).sum();
        assert_eq!(took, reckoning.total_ns);
        assert_eq!(reckoning.guest.unwrap().unexplained_ns(), 5_000);
    }

    #[test]
    fn each_disagreement_is_told() {
        let told = |change: fn(&mut BlackoutReport)| {
            let mut blackout = blackout();
            change(&mut blackout);
            Reckoning::of(&blackout).disagreements(5_000).join("; ")
        };
        for (change, expected) in [
            (
                (|blackout| blackout.parts[0].duration_ns = 400_000) as fn(&mut BlackoutReport),
                "its parts are 900000 ns",
            ),
            (
                |blackout| blackout.parts[1].begin_ns = Some(499_999),
                "overlap",
            ),
            (
                |blackout| blackout.parts[3].begin_ns = Some(700_001),
                "out of order",
            ),
            (
                |blackout| blackout.parts[4].duration_ns = 50_001,
                "the remainder is 50001 ns, 50000 ns would do",
            ),
            (
                |blackout| blackout.guest_visible_ns = Some(1_020_001),
                "5001 ns are not explained",
            ),
            (
                |blackout| blackout.guest_visible_ns = Some(984_999),
                "-1 ns are not explained",
            ),
        ] {
            let told = told(change);
            assert!(told.contains(expected), "{told}");
        }
        // Where nobody knows how the clocks stand, nothing contradicts.
        let told = told(|blackout| {
            blackout.clock_error_ns = None;
            blackout.guest_visible_ns = Some(1);
        });
        assert_eq!(told, "");
    }
}
