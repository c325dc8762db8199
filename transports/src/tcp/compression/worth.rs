//! Whether compressing pays, for a lane that is to find out by itself. Pure: it is told what was
//! measured and when, and reads no clock.
//!
//! ```text
//!           the link is the limit, and three trials in a row save more than they take
//!     off ────────────────────────────────────────────────────────────────────────────▶ on
//!      ▲ ◀── it is less than a tenth faster, or processors are short: off for a while ──┘
//!      └──── after 256 batches: what the link gives without it is measured anew ────────┘
//! ```
//! **Off**, a lane measures how fast the link takes plain batches, as far as it is the link that
//! they wait for; while it is not, nothing could be gained and nothing is tried. Else now and then
//! one batch is compressed, and the time that its smaller size saves at that rate is set against the
//! time that compressing took. Trials take a 64th of the lane's time at most.
//!
//! **On**, what counts is no longer a promise but what comes of it: guest bytes a second, over 16
//! batches. So a destination that is no faster for smaller batches, because its memory is the limit
//! and not the link, ends it too.
//!
//! **Processors** are short where the lane's thread, which never waits while it compresses, got less
//! processor time than passed on the clock. That costs two clock readings a batch, is about this
//! thread, and at once, and knows of other guests, pinning and quotas alike; the load average is of
//! the whole host, a minute late, and counts what waits for disks. Guests come first: compressing
//! then ends even where it would pay.

use std::time::{Duration, Instant};

/// How much of the link's time trials have to save, for each unit of time that they take, before
/// compressing begins. A lane compresses while the link takes what went before, so it is then faster
/// by as much at least: by 1.2 times where batches all but vanish, by 2 where they halve.
const PROMISED_SAVING: f64 = 1.2;

/// How much faster than without it a lane has to be for compressing to go on. That is less than what
/// the above comes to, so that a lane on the border does not switch all the time.
const MEASURED_GAIN: f64 = 1.1;

/// Trials in a row that have to promise that: one page cache among random bytes is not enough.
const TRIALS: u32 = 3;

/// Trials take at most one part in so many of a lane's time.
const TRIAL_TIME_PARTS: u32 = 64;

/// Batches over which a lane's speed is measured while compressing: 16 MiB, beyond what a socket's
/// buffer (4 MiB at most, see `tcp_wmem` in tcp(7)) makes look faster than it is.
const WINDOW_BATCHES: u32 = 16;

/// Batches after which what the link gives without compressing is measured again.
const RENEWAL_BATCHES: u32 = 256;

/// How long compressing stays off when it did not hold what it promised: at first, and at most, as
/// it doubles from time to time.
const HOLD_MIN: Duration = Duration::from_millis(250);
const HOLD_MAX: Duration = Duration::from_secs(4);

/// The share of its time for which the thread has to get a processor: to begin, and to go on. With
/// less than half, whoever else wants it wants more than there is.
const PROCESSOR_SHARE_TO_BEGIN: f64 = 0.75;
const PROCESSOR_SHARE_TO_GO_ON: f64 = 0.5;

/// The weight of what is new in a smoothed figure: eight batches count, so that being held up once,
/// or a burst, decides nothing.
const SMOOTHING: f64 = 0.125;

/// A batch that was compressed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trial {
    pub(super) data_bytes: u32,
    /// As it goes out: `data_bytes` where it did not shrink enough.
    pub(super) packed_bytes: u32,
    /// How long it took, copying included.
    pub(super) wall: Duration,
    /// The processor time that the thread had in it.
    pub(super) processor: Duration,
}

/// The time from handing over one batch to handing over the next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Interval {
    /// Guest bytes that went on their way.
    guest_bytes: u64,
    elapsed: Duration,
    is_packed: bool,
    /// Whether bytes waited for the link all the time.
    is_link_busy: bool,
}

/// Makes intervals of looks at the connection.
#[derive(Debug, Default)]
pub(super) struct Meter {
    last: Option<Look>,
    handed: Option<Handed>,
}

#[derive(Debug)]
struct Look {
    at: Instant,
    unsent_bytes: u64,
}

#[derive(Debug)]
struct Handed {
    guest_bytes: u64,
    wire_bytes: u64,
    is_packed: bool,
}

impl Meter {
    /// Takes note of a batch that was handed over right behind the last look.
    pub(super) fn handed(&mut self, guest_bytes: u64, wire_bytes: u64, is_packed: bool) {
        self.handed = Some(Handed {
            guest_bytes,
            wire_bytes,
            is_packed,
        });
    }

    /// A look right before a batch is handed over, when `unsent_bytes` of those before still wait.
    /// What passed since the last one, if there was one, and a batch behind it.
    pub(super) fn look(&mut self, at: Instant, unsent_bytes: u64) -> Option<Interval> {
        let last = self.last.replace(Look { at, unsent_bytes })?;
        let handed = self.handed.take()?;
        let left = (last.unsent_bytes + handed.wire_bytes).saturating_sub(unsent_bytes);
        Some(Interval {
            guest_bytes: if handed.is_packed {
                handed.guest_bytes
            } else {
                left
            },
            elapsed: at.saturating_duration_since(last.at),
            is_packed: handed.is_packed,
            // Nothing was added meanwhile, so some waited all the time.
            is_link_busy: unsent_bytes > 0,
        })
    }
}

/// Decides whether the next batch is to be compressed.
#[derive(Debug)]
pub(super) struct Worth {
    state: State,
    /// What the link takes of plain batches; unknown while they never wait for it.
    plain: Option<Rate>,
    /// Of the time spent compressing, the share with a processor; smoothed. Unknown at first.
    processor_share: Option<f64>,
    /// How long it stays off the next time that it does not pay.
    hold: Duration,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Off {
        /// When to try; `None`: with the next batch.
        next_trial: Option<Instant>,
        promising: u32,
    },
    On {
        batches: u32,
        window: Window,
    },
}

/// A smoothed rate: bytes and seconds each for themselves, as bytes leave in bursts, and a mean of
/// the bursts' rates would be too high.
#[derive(Clone, Copy, Debug)]
struct Rate {
    bytes: f64,
    seconds: f64,
}

impl Rate {
    fn bytes_per_second(self) -> f64 {
        self.bytes / self.seconds
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Window {
    batches: u32,
    guest_bytes: u64,
    elapsed: Duration,
}

impl Default for Worth {
    fn default() -> Self {
        Self {
            state: State::Off {
                next_trial: None,
                promising: 0,
            },
            plain: None,
            processor_share: None,
            hold: HOLD_MIN,
        }
    }
}

impl Worth {
    /// Whether to compress the batch that comes next.
    pub(super) fn wants_next(&self, now: Instant) -> bool {
        match self.state {
            State::On { .. } => true,
            State::Off { next_trial, .. } => {
                self.plain.is_some() && next_trial.is_none_or(|at| now >= at)
            }
        }
    }

    /// Takes what compressing a batch showed.
    pub(super) fn tried(&mut self, now: Instant, trial: Trial) {
        let wall = trial.wall.as_secs_f64();
        let share = (trial.processor.as_secs_f64() / wall.max(1e-9)).min(1.0);
        let processor_share = self.processor_share.get_or_insert(share);
        smooth(processor_share, share);
        let processor_share = *processor_share;
        match &mut self.state {
            State::On { .. } if processor_share < PROCESSOR_SHARE_TO_GO_ON => {
                self.hold_off(now);
            }
            State::On { .. } => {}
            State::Off {
                next_trial,
                promising,
            } => {
                let saving = self.plain.map_or(0.0, |rate| promised_saving(&trial, rate));
                let is_promising =
                    saving >= PROMISED_SAVING && processor_share >= PROCESSOR_SHARE_TO_BEGIN;
                if !is_promising {
                    *promising = 0;
                    *next_trial = Some(now + trial.wall * TRIAL_TIME_PARTS);
                    return;
                }
                *promising += 1;
                *next_trial = None;
                if *promising >= TRIALS {
                    self.state = State::On {
                        batches: 0,
                        window: Window::default(),
                    };
                }
            }
        }
    }

    /// Takes what sending a batch showed.
    pub(super) fn sent(&mut self, now: Instant, interval: Interval) {
        if interval.elapsed.is_zero() {
            return;
        }
        match &mut self.state {
            State::Off { .. } => {
                if interval.is_link_busy && !interval.is_packed {
                    let bytes = interval.guest_bytes as f64;
                    let seconds = interval.elapsed.as_secs_f64();
                    let rate = self.plain.get_or_insert(Rate { bytes, seconds });
                    smooth(&mut rate.bytes, bytes);
                    smooth(&mut rate.seconds, seconds);
                }
            }
            State::On { batches, window } => {
                *batches += 1;
                window.batches += 1;
                window.guest_bytes += interval.guest_bytes;
                window.elapsed += interval.elapsed;
                if window.batches < WINDOW_BATCHES {
                    return;
                }
                let rate = window.guest_bytes as f64 / window.elapsed.as_secs_f64();
                *window = Window::default();
                let is_renewed = *batches >= RENEWAL_BATCHES;
                let plain_rate = self.plain.map_or(0.0, Rate::bytes_per_second);
                if rate < plain_rate * MEASURED_GAIN {
                    self.hold_off(now);
                } else if is_renewed {
                    self.hold = HOLD_MIN;
                    self.turn_off(None);
                }
            }
        }
    }

    fn hold_off(&mut self, now: Instant) {
        self.turn_off(Some(now + self.hold));
        self.hold = (self.hold * 2).min(HOLD_MAX);
    }

    fn turn_off(&mut self, next_trial: Option<Instant>) {
        self.state = State::Off {
            next_trial,
            promising: 0,
        };
        // What the link gave before is old news.
        self.plain = None;
    }
}

/// The time that a link of this rate saves with a batch like this one, over the time that compressing
/// it takes.
fn promised_saving(trial: &Trial, link: Rate) -> f64 {
    let saved_bytes = trial.data_bytes.saturating_sub(trial.packed_bytes);
    f64::from(saved_bytes) / link.bytes_per_second() / trial.wall.as_secs_f64()
}

fn smooth(figure: &mut f64, new: f64) {
    *figure += (new - *figure) * SMOOTHING;
}

#[cfg(test)]
mod tests;
