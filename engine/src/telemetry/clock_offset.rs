//! How far the clocks of two hosts are apart, and how well that is known: an estimate from round
//! trips, pure.
//!
//! A round trip is sent at t0 and received at t3 on this clock, received at t1 and answered at t2
//! on the other. No message arrives before it is sent, so the offset (the other clock minus this
//! one) was at most t1 − t0 when it arrived there, and at least t2 − t3 when the answer left. These
//! two are as far apart as the round trip took on the link, however unequal its two ways were. The
//! best few round trips are kept, and what all of them allow is narrower than any one of them.
//!
//! What is known of the past holds less and less: the two clocks run at different rates, so each
//! bound is widened by [`DRIFT_PPM`] of its age.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

/// How much the rates of two clocks may differ, in parts in a million: each host's oscillator by
/// 100, the tolerance of those on server boards. `CLOCK_MONOTONIC` of a host that keeps time by NTP
/// is far better once it has settled, and may be worse (up to 500 ppm, `MAXFREQ` in the kernel's
/// include/linux/timex.h) in the minutes in which it is being slewed.
pub const DRIFT_PPM: u32 = 200;

/// How many round trips are kept. More than a few add little: the best ones decide.
pub const KEPT: usize = 8;

/// How long a round trip is kept. Past this, drift alone is 2 ms: longer than any link's way.
pub const WINDOW_NS: u64 = 10_000_000_000;

/// One round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundTrip {
    /// When it was sent, on this clock (t0).
    pub sent: Timestamp,
    /// When it was received there, on the other clock (t1). Where the peer tells one time only, it
    /// is this and the next.
    pub received_there: Timestamp,
    /// When it was answered there, on the other clock (t2).
    pub answered_there: Timestamp,
    /// When the answer was received, on this clock (t3).
    pub received: Timestamp,
}

/// How the other end's clock stands to this one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockRelation {
    /// The other clock minus this one.
    pub offset_ns: i64,
    /// By how much `offset_ns` may be wrong, either way.
    pub error_ns: u64,
    /// Whether the two are one clock: both ends run in the same boot of one host.
    pub is_same_clock: bool,
}

impl ClockRelation {
    /// Both ends run in the same boot of one host, which has one `CLOCK_MONOTONIC`.
    pub const SAME: Self = Self {
        offset_ns: 0,
        error_ns: 0,
        is_same_clock: true,
    };

    /// That of two ends, by their boot ids ([`boot_id`](crate::clock::boot_id)) and, where these
    /// differ or are not known, by what the round trips say of the moment `at`.
    pub fn of(ours: &str, theirs: &str, offset: &ClockOffset, at: Timestamp) -> Option<Self> {
        match !ours.is_empty() && ours == theirs {
            true => Some(Self::SAME),
            false => offset.at(at),
        }
    }

    /// A moment of the other clock on this one.
    pub fn here(self, there: Timestamp) -> Timestamp {
        there.shifted(self.offset_ns.saturating_neg())
    }
}

/// Estimates the offset from the best round trips of the last [`WINDOW_NS`].
#[derive(Clone, Debug, Default)]
pub struct ClockOffset {
    kept: [Option<RoundTrip>; KEPT],
}

impl ClockOffset {
    /// Nothing is known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a round trip into account. Returns false for one that can't have been: it ended before
    /// it began, or took longer there than in all. (A peer that makes times up spoils its own
    /// figures only.)
    pub fn add(&mut self, round_trip: RoundTrip) -> bool {
        if round_trip.received < round_trip.sent
            || round_trip.answered_there < round_trip.received_there
            || bounds(&round_trip, round_trip.received).is_none()
        {
            return false;
        }
        let now = round_trip.received;
        let width = |kept: &Option<RoundTrip>| {
            let kept = kept.as_ref()?;
            let is_fresh = now.since(kept.received).as_nanos() <= u128::from(WINDOW_NS);
            let (low, high) = bounds(kept, now).filter(|_| is_fresh)?;
            Some(high - low)
        };
        // A free place, or one whose time is over, or the one that tells least by now.
        let worst = self
            .kept
            .iter_mut()
            .max_by_key(|kept| width(kept).unwrap_or(i128::MAX));
        if let Some(place) = worst {
            let is_better = match (width(place), width(&Some(round_trip))) {
                (Some(old), Some(new)) => new <= old,
                _ => true,
            };
            if is_better {
                *place = Some(round_trip);
            }
        }
        true
    }

    /// The offset at the moment `at` of this clock; `None` while nothing is known.
    pub fn at(&self, at: Timestamp) -> Option<ClockRelation> {
        let mut all: Vec<_> = self
            .kept
            .iter()
            .flatten()
            .filter_map(|kept| bounds(kept, at))
            .collect();
        all.sort_unstable_by_key(|(low, high)| high - low);
        // From the best one on, what all agree on. One that contradicts the better ones says that a
        // clock is not as good as was assumed: the better ones stand.
        let (low, high) = all.into_iter().reduce(|best, other| {
            let both = (best.0.max(other.0), best.1.min(other.1));
            if both.0 <= both.1 { both } else { best }
        })?;
        let offset = (low + high).div_euclid(2);
        let error = (high - offset).max(offset - low);
        Some(ClockRelation {
            offset_ns: i64::try_from(offset).ok()?,
            error_ns: u64::try_from(error).ok()?,
            is_same_clock: false,
        })
    }
}

/// Between what the offset lies at the moment `at`, after one round trip; `None` where nothing can
/// be true. Wider numbers than the times have, so that no difference overflows.
fn bounds(round_trip: &RoundTrip, at: Timestamp) -> Option<(i128, i128)> {
    let number = |time: Timestamp| i128::from(time.0);
    let age = at.0.abs_diff(round_trip.sent.0);
    let age = age.max(at.0.abs_diff(round_trip.received.0));
    let drift = (i128::from(age) * i128::from(DRIFT_PPM) + 999_999) / 1_000_000;
    let low = number(round_trip.answered_there) - number(round_trip.received) - drift;
    let high = number(round_trip.received_there) - number(round_trip.sent) + drift;
    (low <= high).then_some((low, high))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trip(times: [u64; 4]) -> RoundTrip {
        RoundTrip {
            sent: Timestamp(times[0]),
            received_there: Timestamp(times[1]),
            answered_there: Timestamp(times[2]),
            received: Timestamp(times[3]),
        }
    }

    #[test]
    fn the_error_is_half_of_what_the_round_trip_took_on_the_link() {
        let mut offset = ClockOffset::new();
        assert_eq!(offset.at(Timestamp(0)), None);
        // Sent at 1000, 400 on the link in all, 300 there; the other clock is 50,000 ahead.
        assert!(offset.add(round_trip([1000, 51_100, 51_400, 1700])));
        let relation = offset.at(Timestamp(1700)).unwrap();
        assert_eq!(relation.offset_ns, 49_900);
        // And one for the drift of the 700 ns since.
        assert_eq!(relation.error_ns, 201);
        assert!(!relation.is_same_clock);
        assert_eq!(relation.here(Timestamp(51_100)), Timestamp(1200));
    }

    #[test]
    fn one_boot_has_one_clock() {
        let mut offset = ClockOffset::new();
        let at = Timestamp(1700);
        assert_eq!(ClockRelation::of("a", "b", &offset, at), None);
        offset.add(round_trip([1000, 51_100, 51_400, 1700]));
        let told = |ours, theirs| ClockRelation::of(ours, theirs, &offset, at).unwrap();
        assert_eq!(told("a", "a"), ClockRelation::SAME);
        assert_eq!((told("a", "a").offset_ns, told("a", "a").error_ns), (0, 0));
        for (ours, theirs) in [("a", "b"), ("", ""), ("a", "")] {
            assert_eq!(told(ours, theirs).offset_ns, 49_900);
        }
    }

    #[test]
    fn what_several_allow_is_narrower_than_what_the_best_allows() {
        let mut offset = ClockOffset::new();
        // Slow there, fast back; then the other way round. The offset is 0.
        offset.add(round_trip([1000, 1200, 1200, 1210]));
        offset.add(round_trip([2000, 2010, 2010, 2210]));
        let relation = offset.at(Timestamp(2210)).unwrap();
        assert_eq!(relation.offset_ns, 0);
        assert!(relation.error_ns <= 12, "{} ns", relation.error_ns);
    }

    #[test]
    fn round_trips_give_way_to_better_ones_and_past_the_window_to_any() {
        let mut offset = ClockOffset::new();
        for sample in 0..KEPT as u64 {
            offset.add(round_trip([1000 + sample, 2000, 2000, 1020 + sample]));
        }
        // 20 ms on the link, far more than what drift makes of the others in that time.
        let slow = |sent| round_trip([sent, sent + 9_000_000, sent + 9_000_000, sent + 20_000_000]);
        let kept = |offset: &ClockOffset, one: RoundTrip| offset.kept.contains(&Some(one));
        let within = slow(WINDOW_NS / 2);
        assert!(offset.add(within) && !kept(&offset, within));
        let quick = round_trip([7000, 7950, 7950, 7002]);
        assert!(offset.add(quick) && kept(&offset, quick));
        let behind = slow(2 * WINDOW_NS);
        assert!(offset.add(behind) && kept(&offset, behind));
        assert_eq!(offset.kept.iter().flatten().count(), KEPT);
    }

    /// Clocks that run as they should do not contradict each other; of two that do, the better
    /// known one stands.
    #[test]
    fn a_round_trip_that_contradicts_better_ones_changes_nothing() {
        let mut offset = ClockOffset::new();
        offset.add(round_trip([1000, 1010, 1010, 1020]));
        let before = offset.at(Timestamp(2000));
        offset.add(round_trip([1100, 91_000, 91_000, 1200]));
        assert_eq!(offset.at(Timestamp(2000)), before);
    }

    #[test]
    fn impossible_round_trips_are_turned_away() {
        let mut offset = ClockOffset::new();
        assert!(
            !offset.add(round_trip([1000, 5, 5, 999])),
            "ends before it begins"
        );
        assert!(
            !offset.add(round_trip([1000, 6, 5, 1001])),
            "answered before it came"
        );
        assert!(
            !offset.add(round_trip([1000, 0, 5000, 1001])),
            "longer there than in all"
        );
        assert_eq!(offset.at(Timestamp(1000)), None);
        // A peer may say anything.
        assert!(offset.add(round_trip([0, u64::MAX, u64::MAX, 0])));
        assert_eq!(offset.at(Timestamp(0)), None, "no clock is that far apart");
    }

    /// The other clock: its rate differs, and changes, within the allowance.
    struct Other {
        /// From when (on this clock), and how many parts in a million faster.
        rates: Vec<(u64, i32)>,
        offset_ns: i64,
    }

    impl Other {
        /// In thousandths of a nanosecond, so that rounding adds next to nothing.
        fn offset_at(&self, at: u64) -> i128 {
            let drift: i128 = self
                .rates
                .iter()
                .enumerate()
                .map(|(place, (begin, ppm))| {
                    let end = self.rates.get(place + 1).map_or(u64::MAX, |next| next.0);
                    let took = at.min(end).saturating_sub(*begin);
                    i128::from(took) * i128::from(*ppm)
                })
                .sum();
            i128::from(self.offset_ns) * 1000 + drift / 1000
        }

        fn read(&self, at: u64) -> Timestamp {
            let reading = i128::from(at) + self.offset_at(at).div_euclid(1000);
            Timestamp(u64::try_from(reading).unwrap())
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        /// Whatever the delays, the rates and the times at which it is asked.
        #[test]
        fn the_true_offset_is_always_within_the_bound(
            offset_ns in -1_000_000_000_i64..1_000_000_000,
            rates in prop::collection::vec(-(DRIFT_PPM as i32)..=DRIFT_PPM as i32, 1..6),
            trips in prop::collection::vec(
                (0_u64..3_000_000_000, 0_u64..20_000_000, 0_u64..5_000_000, 0_u64..20_000_000),
                1..40,
            ),
            asked_later in 0_u64..5_000_000_000,
        ) {
            let begin = 100_000_000_000;
            let other = Other {
                rates: rates
                    .iter()
                    .enumerate()
                    .map(|(place, ppm)| (begin + place as u64 * 7_000_000_000, *ppm))
                    .collect(),
                offset_ns,
            };
            let mut estimate = ClockOffset::new();
            let mut now = begin;
            for (pause, forth, there, back) in trips {
                let sent = now + pause;
                let (arrived, answered) = (sent + forth, sent + forth + there);
                now = answered + back;
                let added = estimate.add(RoundTrip {
                    sent: Timestamp(sent),
                    received_there: other.read(arrived),
                    answered_there: other.read(answered),
                    received: Timestamp(now),
                });
                prop_assert!(added);
                for at in [now, now + asked_later, now - forth - there - back] {
                    let relation = estimate.at(Timestamp(at)).unwrap();
                    let truth = other.offset_at(at).div_euclid(1000);
                    let wrong_by = truth.abs_diff(i128::from(relation.offset_ns));
                    // One for the clock's own rounding.
                    prop_assert!(
                        wrong_by <= u128::from(relation.error_ns) + 1,
                        "{wrong_by} ns off, {} ns claimed", relation.error_ns
                    );
                }
            }
        }
    }
}
