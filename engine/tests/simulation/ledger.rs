//! Who ran the guest when, and what its memory is, seen from outside of both sides: the truth that
//! a schedule is judged by.
//!
//! The ledger is told of every vCPU that is entered or parked and of every page that the guest
//! writes, so it notices two owners, a run on a stale copy and a lost write at the moment in which
//! they happen.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dunlin_transports::memory::PAGE_BYTES;
use dunlin_transports::runtime::simulation::World;

/// By how much a pause may miss its cap, or what is told of it: the source looks at the cap every
/// 5 ms, and a thread may lose its processor for 8 ms at a time.
const PAUSE_SLACK: Duration = Duration::from_millis(100);

/// What follows from the first few violations would only hide them.
const VIOLATIONS_MAX: usize = 5;

/// One of the two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    /// The guest's home.
    Source,
    /// Where it goes.
    Destination,
}

impl Side {
    /// The other one.
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }

    /// Its name in traces.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// A page's bytes: another pattern for each generation, and zeros for some.
pub(crate) fn page_content(page: u64, generation: u64) -> Vec<u8> {
    let is_zero = generation == 0 || (page + generation).is_multiple_of(4);
    let mixed = (page << 32 ^ generation).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let word = if is_zero { 0 } else { mixed };
    word.to_le_bytes().repeat(PAGE_BYTES as usize / 8)
}

/// What the guest's memory and state are to be: the generation of each page.
pub(crate) type Generations = Vec<u64>;

#[derive(Default)]
struct Record {
    truth: Generations,
    runs: [bool; 2],
    entered: [bool; 2],
    decided: bool,
    /// When the source paused the guest.
    paused_at: Option<Duration>,
    /// When it was last parked on the source, and when its last vCPU was entered on the destination.
    left_at: Option<Duration>,
    arrived_at: Option<Duration>,
    /// How long it may be paused there, up to the give-up.
    pause_max: Option<Duration>,
    /// Which side holds what the guest holds outside of its host.
    holds: [bool; 2],
    violations: Vec<String>,
}

/// The ledger of one guest. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Ledger {
    world: World,
    record: Arc<Mutex<Record>>,
}

impl Ledger {
    /// The ledger of a guest with so many pages, which was never run.
    pub(crate) fn new(world: &World, pages: usize) -> Self {
        let record = Record {
            truth: vec![0; pages],
            holds: [true, false],
            ..Record::default()
        };
        Self {
            world: world.clone(),
            record: Arc::new(Mutex::new(record)),
        }
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something happened that must not.
    pub(crate) fn violation(&self, words: impl Into<String>) {
        let words = words.into();
        let mut record = self.record();
        if record.violations.len() < VIOLATIONS_MAX {
            record.violations.push(words.clone());
            drop(record);
            self.world.note(|| format!("VIOLATION: {words}"));
        }
    }

    /// What happened that must not, in order.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.record().violations.clone()
    }

    /// A vCPU is about to be entered on a side, whose memory holds these generations.
    pub(crate) fn enter(&self, side: Side, found: &[u64]) {
        let mut record = self.record();
        let is_first = !std::mem::replace(&mut record.runs[side as usize], true);
        let holds = record.holds[side as usize];
        let other = side.other();
        let both = record.runs[other as usize];
        let after_other = record.entered[other as usize] && !record.decided;
        record.entered[side as usize] = true;
        if side == Side::Destination {
            record.arrived_at = Some(self.world.elapsed());
        }
        let paused_at = record.paused_at.take().filter(|_| side == Side::Source);
        let pause_max = record.pause_max;
        let stale = (0..).zip(&record.truth).zip(found);
        let stale: Vec<_> = stale
            .filter(|((_, truth), found)| truth != found)
            .map(|((page, truth), found): ((u64, _), _)| {
                format!("page {page}: {found}, not {truth}")
            })
            .take(4)
            .collect();
        drop(record);
        if is_first {
            self.world
                .note(|| format!("guest runs on the {}", side.name()));
        }
        if let (Some(paused_at), Some(pause_max)) = (paused_at, pause_max) {
            let paused = self.world.elapsed().saturating_sub(paused_at);
            if paused > pause_max + PAUSE_SLACK {
                self.violation(format!(
                    "the source paused for {paused:?}, over {pause_max:?}"
                ));
            }
        }
        if !holds {
            let side = side.name();
            self.violation(format!(
                "the guest is entered on the {side} without what it holds"
            ));
        }
        if both {
            self.violation(format!(
                "two owners: the guest is entered on the {} and runs on the {}",
                side.name(),
                other.name()
            ));
        }
        if side == Side::Source && after_other {
            self.violation("the source runs on, although the destination has entered the guest");
        }
        if is_first && !stale.is_empty() {
            let stale = stale.join(", ");
            self.violation(format!("the {} runs a stale copy: {stale}", side.name()));
        }
    }

    /// Every vCPU of a side stands still.
    pub(crate) fn park(&self, side: Side) {
        let now = self.world.elapsed();
        let mut record = self.record();
        let ran = std::mem::replace(&mut record.runs[side as usize], false);
        record.paused_at = Some(now).filter(|_| side == Side::Source);
        if side == Side::Source {
            record.left_at = Some(now);
        }
        drop(record);
        if ran {
            self.world
                .note(|| format!("guest is parked on the {}", side.name()));
        }
    }

    /// The guest writes a page on a side, where it had the generation `found`; answers with the new
    /// one.
    pub(crate) fn write(&self, side: Side, page: u64, found: u64) {
        let mut record = self.record();
        let runs = record.runs[side as usize];
        let truth = record.truth.get_mut(page as usize);
        let truth = truth.map_or(0, |truth| std::mem::replace(truth, found + 1));
        drop(record);
        if truth != found {
            self.violation(format!(
                "page {page} is written on the {} from generation {found}, it has {truth}",
                side.name()
            ));
        }
        if !runs {
            self.violation(format!(
                "page {page} is written on the {}, where the guest does not run",
                side.name()
            ));
        }
    }

    /// A device writes a page while the guest is paused on a side.
    pub(crate) fn write_paused(&self, page: u64, found: u64) {
        if let Some(truth) = self.record().truth.get_mut(page as usize) {
            *truth = found + 1;
        }
    }

    /// Another move of the guest begins, from where it runs.
    pub(crate) fn begin_another(&self, pause_max: Duration) {
        let mut record = self.record();
        record.entered = record.runs;
        record.decided = false;
        record.pause_max = Some(pause_max);
    }

    /// From now on the guest may be paused on the source for so long; `None`: for any time.
    pub(crate) fn limit_pause(&self, pause_max: Option<Duration>) {
        self.record().pause_max = pause_max;
    }

    /// The guest on a side is gone.
    pub(crate) fn gone(&self, side: Side) {
        self.record().runs[side as usize] = false;
    }

    /// The process that has the guest on a side died, and with it what it held.
    pub(crate) fn process_died(&self, side: Side) {
        self.gone(side);
        self.record().holds[side as usize] = false;
    }

    /// A person decided that the guest goes on on the source, from what is there.
    pub(crate) fn decide_for_source(&self, generations: &[u64]) {
        let mut record = self.record();
        record.decided = true;
        record.truth = generations.to_vec();
    }

    /// A side acquires what the guest holds outside of its host, or gives it back.
    pub(crate) fn hold(&self, side: Side, holds: bool) {
        let held = std::mem::replace(&mut self.record().holds[side as usize], holds);
        if !holds && self.runs(side) {
            let side = side.name();
            self.violation(format!(
                "the {side} gives back what the guest holds that runs there"
            ));
        }
        if held == holds && holds {
            let side = side.name();
            self.violation(format!("the {side} acquires what it holds"));
        }
    }

    /// Whether a side holds what the guest holds outside.
    pub(crate) fn holds(&self, side: Side) -> bool {
        self.record().holds[side as usize]
    }

    /// Whether a side runs the guest.
    pub(crate) fn runs(&self, side: Side) -> bool {
        self.record().runs[side as usize]
    }

    /// Whether a side ever ran it.
    pub(crate) fn was_entered(&self, side: Side) -> bool {
        self.record().entered[side as usize]
    }

    /// The source says how long the guest was paused on its way, and by how much that may be wrong.
    pub(crate) fn told_pause(&self, told: Duration, error: Duration) {
        let record = self.record();
        let ends = record.left_at.zip(record.arrived_at);
        let truth = ends.map(|(left, arrived)| arrived.saturating_sub(left));
        drop(record);
        let is_right = |truth: Duration| truth.abs_diff(told) <= error + PAUSE_SLACK;
        if !truth.is_some_and(is_right) {
            self.violation(format!(
                "the source tells of a pause of {told:?}, give or take {error:?}; it was {truth:?}"
            ));
        }
    }

    /// The generation that a page is to have.
    pub(crate) fn generation(&self, page: u64) -> u64 {
        self.record().truth.get(page as usize).copied().unwrap_or(0)
    }
}
