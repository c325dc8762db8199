//! When to pause: what the blackout would cost now, and whether another round would make it
//! shorter. Arithmetic only: no clock, no guest.

use std::time::Duration;

use dunlin_transports::memory::PAGE_BYTES;

use super::window::Unopened;
use crate::guest::HandoverCosts;
use crate::report::PredictedPart;
use crate::settings::OnStall;

/// A round that sent less than this says nothing about goodput: its time is round trips and
/// wake-ups.
const GOODPUT_SAMPLE_BYTES_MIN: u64 = 1 << 20;

/// A round of fewer pages says nothing about the time that scanning one takes.
const SCAN_SAMPLE_PAGES_MIN: u64 = 256;

/// The weight of a new goodput sample: the last three rounds decide.
const GOODPUT_SAMPLE_WEIGHT: f64 = 0.5;

/// Goodput before anything was measured, in bytes a second: a 10 Gb/s link.
const GOODPUT_ASSUMED: f64 = 1.25e9;

/// How many rounds in a row may fail to bring the prediction down before the move has stalled.
const STALLED_ROUNDS: u32 = 3;

/// By how much a round has to bring the best prediction down to count as progress: less than a
/// twentieth is noise.
const PROGRESS_FACTOR: f64 = 0.95;

/// How many more rounds a pause within the budget may be made shorter by. Each at least halves it,
/// and takes no longer than the pause that it saves: three of them cost next to nothing.
const ROUNDS_WITHIN_BUDGET_MAX: u32 = 3;

/// From the first vCPU parked to the last, and devices quiet: all are kicked at once, and each is a
/// signal and an exit. Where the guest was never paused before.
const PARK_ASSUMED: Duration = Duration::from_micros(40);

/// Saving or loading one vCPU, where the guest's side measures neither: some twenty ioctls of 2 to
/// 10 µs.
const VCPU_STATE_ASSUMED: Duration = Duration::from_micros(100);

/// One entry of a record, where the journal can't be rehearsed: there and back between two threads,
/// and a write into the page cache.
const RECORD_ASSUMED: Duration = Duration::from_micros(50);

/// Entering the vCPUs, where that was not measured.
const RESUME_ASSUMED: Duration = Duration::from_micros(30);

/// Sharing the last pages out among the lanes: a pass over the bitmap, and a word to each.
const SHARE_OUT_ASSUMED: Duration = Duration::from_micros(20);

/// Acquiring what the guest holds outside, where that is nothing: a question to another thread.
const ACQUIRE_ASSUMED: Duration = Duration::from_micros(25);

/// Ending the lanes' access to memory: a call or two for each.
const REVOKE_ASSUMED: Duration = Duration::from_micros(25);

/// A round trip before one was measured.
const ROUND_TRIP_ASSUMED: Duration = Duration::from_millis(1);

/// What PREPARE, READY and COMMIT take beside what PINGs tell of their ways: each is handed on between
/// the link's thread and the session's, and PREPARE carries the guest's state. In twenty moves of an
/// idle guest over loopback all of it took 248 to 495 µs, the median 355; PINGs told of 60 at least.
const HANDING_ON_ASSUMED: Duration = Duration::from_micros(250);

/// A round of more pages says nothing of what a round costs beside its pages.
const ROUND_SAMPLE_PAGES_MAX: u64 = 4096;

/// Registering memory on both sides before it was measured, in seconds a byte: 2 GB/s.
const OPENING_SECONDS_PER_BYTE_ASSUMED: f64 = 5e-10;

/// What was opened in less than this says nothing about the cost of a byte.
const OPENING_SAMPLE_BYTES_MIN: u64 = 1 << 20;

/// Digesting memory, in bytes a second and thread. Assumed.
const DIGEST_BYTES_PER_S_ASSUMED: f64 = 4e9;

/// What the prediction is made from.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Circumstances {
    /// Pages that would go into the final round.
    pub(super) dirty_pages: u64,
    /// How long collecting took last time.
    pub(super) collect: Duration,
    /// The round trip on control.
    pub(super) round_trip: Option<Duration>,
    /// What the guest's sides of the handover take, as far as they were measured: the source's
    /// parking and saving, the destination's loading and entering.
    pub(super) costs: HandoverCosts,
    /// What an entry in the source's record takes, and one in the destination's.
    pub(super) records: [Option<Duration>; 2],
    /// How many lanes there are.
    pub(super) lanes: u32,
    /// The guest's vCPUs.
    pub(super) vcpus: u32,
    /// Memory to digest inside the handover; 0 without.
    pub(super) digest_bytes: u64,
    /// Threads that digest.
    pub(super) digest_threads: u32,
    /// What the final round would have to register; `None` for a transport that registers nothing.
    pub(super) unopened: Option<Unopened>,
}

/// What the blackout would cost.
#[derive(Clone, Debug, Default)]
pub(super) struct Prediction {
    /// Term by term.
    pub(super) parts: Vec<PredictedPart>,
}

impl Prediction {
    /// The sum of all terms.
    pub(super) fn total(&self) -> Duration {
        Duration::from_nanos(self.parts.iter().map(|part| part.duration_ns).sum())
    }

    /// The longest term.
    pub(super) fn longest(&self) -> Option<&PredictedPart> {
        self.parts.iter().max_by_key(|part| part.duration_ns)
    }
}

/// What to do after a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Another round.
    Continue,
    /// Pause now.
    Switch,
    /// Rounds don't help, and pausing is not allowed.
    GiveIn,
}

/// The operator's limits as they are now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The budget.
    pub(super) max_blackout: Duration,
    /// The cap.
    pub(super) blackout_cap: Duration,
    /// The most rounds.
    pub(super) max_rounds: u32,
    /// What happens when rounds don't help.
    pub(super) on_stall: OnStall,
}

/// What a round tells of the speed of things. Times are the slowest lane's.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RoundSample {
    /// Guest bytes that all lanes sent.
    pub(super) bytes: u64,
    /// The time in the lane's own verbs: putting, and waiting for the fence.
    pub(super) sending: Duration,
    /// Dirty pages that all lanes dealt with.
    pub(super) pages: u64,
    /// The other time: re-arming, probing and scanning, but not what was held back on purpose.
    pub(super) scanning: Duration,
    /// From the order to all lanes' word that it is done, without their waits for fences: those a
    /// final round has not.
    pub(super) unfenced: Duration,
}

/// Judges a move by its rounds.
#[derive(Clone, Debug, Default)]
pub(super) struct Convergence {
    goodput: Option<f64>,
    /// How long all lanes together take to re-arm and scan a page.
    scan_seconds_per_page: Option<f64>,
    /// What a round takes beside its pages: waking the lanes, their calls, and hearing of them.
    round_seconds: Option<f64>,
    /// What registering a byte takes, many being registered at once.
    opening_seconds_per_byte: Option<f64>,
    /// How long a lane waits when it goes on from one portion of the window to the next.
    crossing_seconds: Option<f64>,
    best: Option<Duration>,
    rounds_without_progress: u32,
    rounds_within_budget: u32,
}

impl Convergence {
    /// Takes in a round.
    pub(super) fn sample(&mut self, round: RoundSample) {
        let RoundSample {
            bytes,
            sending,
            pages,
            scanning,
            unfenced,
        } = round;
        if !sending.is_zero() {
            let sample = bytes as f64 / sending.as_secs_f64();
            let is_large = bytes >= GOODPUT_SAMPLE_BYTES_MIN;
            self.goodput = match self.goodput {
                None => is_large.then_some(sample),
                // A small round is slowed by round trips: it may only show that more is possible.
                Some(old) if is_large || sample > old => {
                    Some(old + (sample - old) * GOODPUT_SAMPLE_WEIGHT)
                }
                Some(old) => Some(old),
            };
        }
        if pages >= SCAN_SAMPLE_PAGES_MIN {
            let sample = scanning.as_secs_f64() / pages as f64;
            let old = self.scan_seconds_per_page;
            self.scan_seconds_per_page =
                Some(old.map_or(sample, |old| old + (sample - old) * GOODPUT_SAMPLE_WEIGHT));
        }
        if pages <= ROUND_SAMPLE_PAGES_MAX && !unfenced.is_zero() {
            let of_pages = bytes as f64 / self.goodput()
                + pages as f64 * self.scan_seconds_per_page.unwrap_or(0.0);
            // The least that was seen: in the pause the guest is in no lane's way.
            let beside = (unfenced.as_secs_f64() - of_pages).max(0.0);
            self.round_seconds = Some(self.round_seconds.map_or(beside, |old| old.min(beside)));
        }
    }

    /// Takes in what a round registered, and the time in which it did.
    pub(super) fn sample_opening(&mut self, bytes: u64, took: Duration) {
        if bytes >= OPENING_SAMPLE_BYTES_MIN {
            smooth(
                &mut self.opening_seconds_per_byte,
                took.as_secs_f64() / bytes as f64,
            );
        }
    }

    /// Takes in how long the slowest lane of a round waited in so many crossings, beyond the opening.
    pub(super) fn sample_crossings(&mut self, crossings: u32, waited: Duration) {
        if crossings > 0 {
            let each = waited.as_secs_f64() / f64::from(crossings);
            smooth(&mut self.crossing_seconds, each);
        }
    }

    /// Guest bytes a second that all lanes together move, smoothed.
    pub(super) fn goodput(&self) -> f64 {
        self.goodput.unwrap_or(GOODPUT_ASSUMED).max(1.0)
    }

    /// What the blackout would cost now.
    pub(super) fn predict(&self, now: Circumstances) -> Prediction {
        let vcpus = now.vcpus.max(1);
        let round_trip = now.round_trip.unwrap_or(ROUND_TRIP_ASSUMED);
        let bytes = now.dirty_pages.saturating_mul(PAGE_BYTES) as f64;
        let mut parts = Vec::new();
        let mut term = |name: &str, duration: Duration, is_assumed: bool| {
            let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
            parts.push(PredictedPart {
                name: name.to_owned(),
                // The peer's figures are in it: no sum of some terms passes the largest number.
                duration_ns: nanoseconds.min(u64::MAX / 64),
                is_assumed,
            });
        };
        let HandoverCosts {
            park,
            save,
            load,
            resume,
        } = now.costs;
        let state_assumed = VCPU_STATE_ASSUMED * vcpus;
        let save_takes = save.unwrap_or(state_assumed);
        term("park", park.unwrap_or(PARK_ASSUMED), park.is_none());
        term("collect", now.collect, false);
        term("share-out", SHARE_OUT_ASSUMED, true);
        term("save-state", save_takes, save.is_none());
        // The lanes are at work while state is saved.
        let scan = now.dirty_pages as f64 * self.scan_seconds_per_page.unwrap_or(0.0);
        let round = self.round_seconds.unwrap_or(round_trip.as_secs_f64() / 2.0);
        let round = seconds(bytes / self.goodput() + scan + round);
        term(
            "final-round",
            round.saturating_sub(save_takes),
            self.goodput.is_none(),
        );
        term("collect-again", now.collect, false);
        if let Some(unopened) = now.unopened {
            let each = self.opening_seconds_per_byte;
            let opening =
                unopened.in_pause_bytes as f64 * each.unwrap_or(OPENING_SECONDS_PER_BYTE_ASSUMED);
            // A fence, and words on control there and back.
            let crossing = self
                .crossing_seconds
                .unwrap_or(2.0 * round_trip.as_secs_f64());
            term(
                "registration",
                seconds(opening + f64::from(unopened.crossings) * crossing),
                each.is_none() && unopened.in_pause_bytes > 0,
            );
        }
        if now.digest_bytes > 0 {
            let rate = DIGEST_BYTES_PER_S_ASSUMED * f64::from(now.digest_threads.max(1));
            // Once on each side, one after the other.
            let both = 2.0 * now.digest_bytes as f64 / rate;
            term("digests", seconds(both), true);
        }
        term("load-state", load.unwrap_or(state_assumed), load.is_none());
        term("acquire", ACQUIRE_ASSUMED, true);
        term("revoke-access", REVOKE_ASSUMED * now.lanes, true);
        // PREPARE there, READY back, COMMIT there.
        let is_assumed = now.round_trip.is_none();
        let ways = round_trip.saturating_mul(3) / 2;
        term(
            "round-trips",
            ways.saturating_add(HANDING_ON_ASSUMED),
            is_assumed,
        );
        let [give_up, ownership] = now.records;
        let entry = |measured: Option<Duration>| measured.unwrap_or(RECORD_ASSUMED);
        term("record-give-up", entry(give_up), give_up.is_none());
        term("record-ownership", entry(ownership), ownership.is_none());
        term("resume", resume.unwrap_or(RESUME_ASSUMED), resume.is_none());
        Prediction { parts }
    }

    /// By how much another round would make the final one shorter, when the guest goes on dirtying
    /// `dirtied_per_second` pages.
    pub(super) fn saved_by_a_round(&self, dirty_pages: u64, dirtied_per_second: f64) -> Duration {
        let seconds_per_page =
            PAGE_BYTES as f64 / self.goodput() + self.scan_seconds_per_page.unwrap_or(0.0);
        let now = dirty_pages as f64 * seconds_per_page;
        let left = (now * dirtied_per_second).min(dirty_pages as f64);
        seconds(now - left * seconds_per_page)
    }

    /// Decides after round `round` (from 1), with `predicted` as the blackout's length if the guest
    /// were paused now, and `saved` as what another round would take off it.
    pub(super) fn judge(
        &mut self,
        round: u32,
        predicted: Duration,
        saved: Duration,
        limits: Limits,
    ) -> Verdict {
        let progressed = self
            .best
            .is_none_or(|best| predicted < best.mul_f64(PROGRESS_FACTOR));
        self.best = Some(self.best.map_or(predicted, |best| best.min(predicted)));
        self.rounds_without_progress = if progressed {
            0
        } else {
            self.rounds_without_progress + 1
        };

        if predicted <= limits.max_blackout {
            // The budget is a limit, not an aim: a pause that another round would halve is not yet
            // as short as it can be.
            let pays = saved * 2 >= predicted && round < limits.max_rounds;
            if pays && self.rounds_within_budget < ROUNDS_WITHIN_BUDGET_MAX {
                self.rounds_within_budget += 1;
                return Verdict::Continue;
            }
            return Verdict::Switch;
        }
        let stalled = round >= limits.max_rounds || self.rounds_without_progress >= STALLED_ROUNDS;
        match (stalled, limits.on_stall) {
            (false, _) => Verdict::Continue,
            (true, OnStall::Switchover) if predicted <= limits.blackout_cap => Verdict::Switch,
            (true, OnStall::Switchover | OnStall::Abort) => Verdict::GiveIn,
        }
    }
}

/// Takes a sample in.
fn smooth(value: &mut Option<f64>, sample: f64) {
    let old = value.unwrap_or(sample);
    *value = Some(old + (sample - old) * GOODPUT_SAMPLE_WEIGHT);
}

/// A duration of so many seconds; what no clock can represent counts as a year.
fn seconds(seconds: f64) -> Duration {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    Duration::try_from_secs_f64(seconds)
        .unwrap_or(YEAR)
        .min(YEAR)
}

#[cfg(test)]
mod tests;
