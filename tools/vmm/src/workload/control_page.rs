//! The control page: how the VMM tells one vCPU what to do, and what the vCPU tells of itself.
//!
//! All that a vCPU knows is in here or in its registers, so a moved guest goes on counting where
//! it stopped. One vCPU writes the second part; the VMM writes it only before the guest runs and
//! while it is paused.
//!
//! The program of a vCPU, again and again:
//!
//! ```text
//! t = now
//! if last_tick != 0: gap_max_ticks = max(gap_max_ticks, t - last_tick)
//! last_tick = t
//! loops += 1
//! if hot_pages != 0 and t >= next_write_tick:
//!     choose a page: sequential: next_index, which then grows by one and wraps at hot_pages;
//!                    random: rng = xorshift64(rng), page = (rng * hot_pages) >> 64
//!     rewrite it (see `page`)
//!     pages_written += 1
//!     next_write_tick += ticks_per_page
//!     if t - next_write_tick > ticks_per_second / 100: next_write_tick = t
//! if heartbeat_ticks != 0 and t >= next_beat_tick and (vcpu != 0 or the last line is out):
//!     beats += 1
//!     next_beat_tick = t + heartbeat_ticks
//!     if vcpu == 0: print a line (see `beat`)
//! ```
//!
//! `xorshift64`: `x ^= x << 13; x ^= x >> 7; x ^= x << 17`.

use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use dunlin_transports::memory::{MemoryError, MemoryMap, PAGE_BYTES, PageNumber};
use xxhash_rust::xxh3::xxh3_64;

use super::plan::{HotRange, Plan};
use super::words::{PAGE_WORDS, PageWords};
use super::{Pattern, Workload, beat};

/// The first word of a control page.
pub const MAGIC: u64 = u64::from_le_bytes(*b"DUNLINCP");

/// The words of a control page, by their index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Word {
    /// [`MAGIC`].
    Magic = 0,
    /// Guest-physical address of the first hot page.
    HotBase = 1,
    /// How many hot pages.
    HotPages = 2,
    /// The order: 0 sequential, 1 random.
    Pattern = 3,
    /// Ticks from one write to the next; 0: as fast as possible.
    TicksPerPage = 4,
    /// Ticks from one heartbeat to the next; 0: none.
    HeartbeatTicks = 5,
    /// What a tick is.
    TicksPerSecond = 6,
    /// Which vCPU this is.
    Vcpu = 7,
    /// How many pages were written. The first word that the guest writes.
    PagesWritten = 16,
    /// When the guest last looked at its clock; 0: not yet.
    LastTick = 17,
    /// The longest time between two looks at the clock; the VMM sets it to 0 in a pause.
    GapMaxTicks = 18,
    /// State of the generator, never 0.
    Rng = 19,
    /// The next page of the sequential order.
    NextIndex = 20,
    /// When the next page is due.
    NextWriteTick = 21,
    /// When the next heartbeat is due; the VMM sets it to 0 in a pause.
    NextBeatTick = 22,
    /// How many heartbeats there were.
    Beats = 23,
    /// How many times the program went round.
    Loops = 24,
    /// The first word of the line that a KVM guest prints (see `beat`).
    Line = 25,
    /// The last word of that line, and the last that the guest writes.
    LineEnd = 33,
}

/// The words that the guest writes; all others stay as the VMM wrote them.
const GUEST_WORDS: std::ops::RangeInclusive<usize> =
    Word::PagesWritten as usize..=Word::LineEnd as usize;

// The line has its place.
const _: () = assert!((GUEST_WORDS_END - Word::Line as usize) * 8 >= beat::LINE_BYTES);

const GUEST_WORDS_END: usize = Word::LineEnd as usize + 1;

/// The clock that a guest's ticks count, and how often it gives a sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestClock {
    /// Ticks in a second.
    pub ticks_per_second: u64,
    /// Ticks from one heartbeat to the next; 0: none.
    pub heartbeat_ticks: u64,
}

/// What one vCPU has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Pages that it rewrote.
    pub pages_written: u64,
    /// Heartbeats that it gave.
    pub beats: u64,
    /// How many times its program went round.
    pub loops: u64,
    /// The longest time between two looks at its clock, since the guest was last paused.
    pub longest_gap: Duration,
}

/// The control page of one vCPU.
#[derive(Clone, Copy, Debug)]
pub struct ControlPage<'map> {
    words: PageWords<'map>,
}

impl<'map> ControlPage<'map> {
    /// The control page at `page`.
    ///
    /// # Errors
    ///
    /// When there is no such page.
    pub fn new(map: &'map MemoryMap, page: PageNumber) -> Result<Self, MemoryError> {
        Ok(Self {
            words: PageWords::new(map, page)?,
        })
    }

    /// Reads a word.
    pub fn load(self, word: Word) -> u64 {
        self.words.load(word as usize)
    }

    /// Writes a word. Outside of the guest's own program: only before it runs or while it is
    /// paused.
    pub fn store(self, word: Word, value: u64) {
        self.words.store(word as usize, value);
    }

    /// Writes the whole page as it is before the vCPU first runs.
    pub fn initialise(self, settings: &ControlSettings) {
        (0..PAGE_WORDS).for_each(|index| self.words.store(index, 0));
        for (word, value) in settings.words() {
            self.store(word, value);
        }
        // A generator of its own for each vCPU; odd, so never 0, at which xorshift stands still.
        self.store(
            Word::Rng,
            (u64::from(settings.vcpu) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
        );
    }

    /// Whether the page's settings are these: a guest that was sent here may bring anything.
    pub fn has_settings(self, settings: &ControlSettings) -> bool {
        settings
            .words()
            .iter()
            .all(|(word, value)| self.load(*word) == *value)
    }

    /// XXH3-64 of the words that the guest does not write.
    pub fn settings_digest(self) -> u64 {
        let mut bytes = [0; PAGE_BYTES as usize];
        for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
            if !GUEST_WORDS.contains(&index) {
                word.copy_from_slice(&self.words.load(index).to_le_bytes());
            }
        }
        xxh3_64(&bytes)
    }

    /// What the vCPU has done.
    pub fn statistics(self) -> Statistics {
        let loops = self.load(Word::Loops);
        // The guest stores its gap before it counts the loop that measured it.
        fence(Ordering::Acquire);
        Statistics {
            pages_written: self.load(Word::PagesWritten),
            beats: self.load(Word::Beats),
            loops,
            longest_gap: duration(
                self.load(Word::GapMaxTicks),
                self.load(Word::TicksPerSecond),
            ),
        }
    }
}

/// What the VMM tells one vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlSettings {
    /// The pages that it rewrites.
    pub hot: HotRange,
    /// In which order.
    pub pattern: Pattern,
    /// Ticks from one write to the next; 0: as fast as possible.
    pub ticks_per_page: u64,
    /// What a tick is.
    pub clock: GuestClock,
    /// Which vCPU it is.
    pub vcpu: u32,
}

impl ControlSettings {
    /// What vCPU `vcpu` of a plan is told; `None` when there is no such vCPU.
    pub fn new(plan: &Plan, vcpu: u32, workload: &Workload, clock: GuestClock) -> Option<Self> {
        Some(Self {
            hot: plan.hot_range(vcpu)?,
            pattern: workload.pattern,
            ticks_per_page: workload.rate.map_or(0, |rate| {
                ticks_per_page(rate, plan.vcpus(), clock.ticks_per_second)
            }),
            clock,
            vcpu,
        })
    }

    fn words(&self) -> [(Word, u64); 8] {
        [
            (Word::Magic, MAGIC),
            (Word::HotBase, self.hot.base.0),
            (Word::HotPages, self.hot.pages),
            (Word::Pattern, self.pattern.number()),
            (Word::TicksPerPage, self.ticks_per_page),
            (Word::HeartbeatTicks, self.clock.heartbeat_ticks),
            (Word::TicksPerSecond, self.clock.ticks_per_second),
            (Word::Vcpu, u64::from(self.vcpu)),
        ]
    }
}

/// Ticks from one page to the next for each of `vcpus` that together write `rate` bytes a second;
/// at least 1, as 0 means no limit.
fn ticks_per_page(rate: u64, vcpus: u32, ticks_per_second: u64) -> u64 {
    let ticks = u128::from(ticks_per_second) * u128::from(vcpus) * u128::from(PAGE_BYTES)
        / u128::from(rate.max(1));
    // Half the range of a tick, so that the guest's sums never wrap.
    u64::try_from(ticks.max(1)).unwrap_or(u64::MAX).min(1 << 62)
}

/// Ticks as time; any numbers, as the guest may have written them.
fn duration(ticks: u64, ticks_per_second: u64) -> Duration {
    let nanoseconds = u128::from(ticks) * 1_000_000_000 / u128::from(ticks_per_second.max(1));
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use dunlin_engine::layout::Backing;

    use super::*;
    use crate::memory::{allocate, pc_layout};

    const CLOCK: GuestClock = GuestClock {
        ticks_per_second: 2_000_000_000,
        heartbeat_ticks: 7,
    };

    /// The guest's program in machine code relies on each of these.
    #[test]
    fn words_are_where_the_guest_expects_them() {
        let memory = allocate(pc_layout(16 << 20, Backing::Anonymous).unwrap()).unwrap();
        let workload: Workload = "pattern=random,hot=12KiB,rate=16KiB/s".parse().unwrap();
        let plan = Plan::new(memory.layout(), 2, &workload).unwrap();
        let map = memory.guest_map();
        let page = PageNumber(0x11);
        let settings = ControlSettings::new(&plan, 1, &workload, CLOCK).unwrap();
        let control = ControlPage::new(map, page).unwrap();
        control.initialise(&settings);
        let words = PageWords::new(map, page).unwrap();
        let expected = [
            u64::from_le_bytes(*b"DUNLINCP"),
            0x80_2000,
            1,
            1,
            1_000_000_000,
            7,
            2_000_000_000,
            1,
        ];
        for (index, value) in expected.into_iter().enumerate() {
            assert_eq!(words.load(index), value, "word {index}");
        }
        assert!((8..19).all(|index| words.load(index) == 0));
        assert_ne!(words.load(19), 0);
        assert!((20..512).all(|index| words.load(index) == 0));

        let digest = control.settings_digest();
        for (index, value) in [(16, 11), (18, 1_000_000), (23, 4), (24, 99)] {
            words.store(index, value);
        }
        assert_eq!(
            control.statistics(),
            Statistics {
                pages_written: 11,
                beats: 4,
                loops: 99,
                longest_gap: Duration::from_micros(500),
            }
        );
        assert!(control.has_settings(&settings));
        assert_eq!(control.settings_digest(), digest);
        words.store(2, 2);
        assert!(!control.has_settings(&settings));
        assert_ne!(control.settings_digest(), digest);
    }

    #[test]
    fn rates_become_ticks() {
        assert_eq!(ticks_per_page(4096, 1, 1_000), 1_000);
        assert_eq!(ticks_per_page(4096, 4, 1_000), 4_000);
        assert_eq!(ticks_per_page(u64::MAX, 1, 1_000), 1);
        assert_eq!(ticks_per_page(1, 64, u64::MAX), 1 << 62);
        assert_eq!(duration(u64::MAX, 0), Duration::from_nanos(u64::MAX));
    }
}
