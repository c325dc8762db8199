//! What one thread does: the program that `workload::control_page` writes down.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use dunlin_engine::clock::Timestamp;
use dunlin_engine::layout::GuestAddress;
use dunlin_transports::memory::{MemoryError, MemoryMap, PAGE_BYTES, PageNumber, Run};

use super::replay::{Cursor, Replay};
use crate::serial_queue::SerialInput;
use crate::workload::Pattern;
use crate::workload::beat;
use crate::workload::control_page::{ControlPage, ControlSettings, Word};
use crate::workload::page;
use crate::workload::plan::{PageClass, Plan};
use crate::workload::words::PageWords;

/// The program of one vCPU, with where its pages are.
///
/// Where it writes is decided by the plan, never by what guest memory says.
pub(super) struct Program {
    map: MemoryMap,
    control_page: PageNumber,
    hot_first: PageNumber,
    settings: ControlSettings,
    plan: Plan,
    /// What is replayed, instead of what the settings say.
    replay: Option<Arc<Replay>>,
    /// Where the one vCPU that prints does so.
    serial: Option<SerialInput>,
}

impl Program {
    /// The program of the vCPU with these settings. The first vCPU prints its beats to `serial`.
    ///
    /// # Errors
    ///
    /// When one of its pages is not in memory.
    pub(super) fn new(
        map: &MemoryMap,
        control_page: PageNumber,
        plan: &Plan,
        settings: ControlSettings,
        serial: &SerialInput,
    ) -> Result<Self, MemoryError> {
        ControlPage::new(map, control_page)?;
        let mut hot_first = PageNumber(0);
        if settings.hot.pages > 0 {
            let outside = MemoryError::OutsideMemory {
                first: PageNumber(settings.hot.base.0 / PAGE_BYTES),
                pages: settings.hot.pages,
            };
            hot_first = plan.layout().page_of(settings.hot.base).ok_or(outside)?;
            // A range lies in one region, so its last page tells of all.
            map.check(Run {
                first: PageNumber(hot_first.0 + settings.hot.pages - 1),
                pages: 1,
            })?;
        }
        Ok(Self {
            map: map.clone(),
            control_page,
            hot_first,
            settings,
            plan: plan.clone(),
            replay: None,
            serial: (settings.vcpu == 0).then(|| serial.clone()),
        })
    }

    /// Rewrites memory as a trace says.
    pub(super) fn replays(&mut self, replay: &Arc<Replay>) {
        self.replay = Some(Arc::clone(replay));
    }

    /// Which vCPU's it is.
    pub(super) fn vcpu(&self) -> u32 {
        self.settings.vcpu
    }

    /// Goes round until `go_on` is false; leaves every page whole.
    ///
    /// # Errors
    ///
    /// When a page is not in memory, which `new` has ruled out.
    pub(super) fn run(&self, go_on: &AtomicBool) -> Result<(), MemoryError> {
        let control = ControlPage::new(&self.map, self.control_page)?;
        let replay = self.replay.as_deref();
        let mut cursor =
            replay.map(|replay| Cursor::new(replay, self.settings.vcpu, self.plan.vcpus()));
        while go_on.load(Ordering::Relaxed) {
            let now = Timestamp::now().0;
            let wrote = match &mut cursor {
                Some(cursor) => self.rewrite_due(control, cursor, now)?,
                None => false,
            };
            if !self.go_round(control, now)? && !wrote {
                // A vCPU that waits for its next write would be halted: others may have the
                // processor.
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    /// Rewrites the page that is due, if one is; returns whether a page was written.
    fn rewrite_due(
        &self,
        control: ControlPage<'_>,
        cursor: &mut Cursor<'_>,
        now: u64,
    ) -> Result<bool, MemoryError> {
        let Some(page) = cursor.due(now) else {
            return Ok(false);
        };
        // Where this guest itself lies, it writes other things than the one that was recorded.
        let Some(PageClass::Hot(_)) = self.plan.class_of(page) else {
            return Ok(false);
        };
        if let Some(address) = self.plan.address_of(page) {
            page::rewrite(PageWords::new(&self.map, page)?, address);
            increment(control, Word::PagesWritten);
        }
        Ok(true)
    }

    /// Goes round once; returns whether a page was written.
    fn go_round(&self, control: ControlPage<'_>, now: u64) -> Result<bool, MemoryError> {
        let last = control.load(Word::LastTick);
        let gap = now.saturating_sub(last);
        if last != 0 && gap > control.load(Word::GapMaxTicks) {
            control.store(Word::GapMaxTicks, gap);
        }
        control.store(Word::LastTick, now);
        // Whoever sees this loop counted sees the gap that it measured.
        fence(Ordering::Release);
        increment(control, Word::Loops);

        let next_write = control.load(Word::NextWriteTick);
        let writes = self.settings.hot.pages != 0 && now >= next_write;
        if writes {
            let index = self.next_page(control);
            let page = PageWords::new(&self.map, PageNumber(self.hot_first.0 + index))?;
            let address = GuestAddress(self.settings.hot.base.0 + index * PAGE_BYTES);
            page::rewrite(page, address);
            increment(control, Word::PagesWritten);
            // A guest that fell behind by more than 10 ms does not make up for it.
            let next = next_write.saturating_add(self.settings.ticks_per_page);
            let lag_max = self.settings.clock.ticks_per_second / 100;
            let next = if now.saturating_sub(next) > lag_max {
                now
            } else {
                next
            };
            control.store(Word::NextWriteTick, next);
        }
        let heartbeat_ticks = self.settings.clock.heartbeat_ticks;
        let due = heartbeat_ticks != 0 && now >= control.load(Word::NextBeatTick);
        if due && self.serial.as_ref().is_none_or(SerialInput::is_written_out) {
            increment(control, Word::Beats);
            control.store(Word::NextBeatTick, now.saturating_add(heartbeat_ticks));
            if let Some(serial) = &self.serial {
                let line = beat::line(control.load(Word::Beats), control.load(Word::Loops), now);
                serial.print(line.as_bytes());
            }
        }
        Ok(writes)
    }

    /// Chooses a page of the hot range, which is not empty.
    fn next_page(&self, control: ControlPage<'_>) -> u64 {
        let pages = self.settings.hot.pages;
        match self.settings.pattern {
            // A replay has no hot range, so it does not come here.
            Pattern::Sequential | Pattern::Replay => {
                let index = control.load(Word::NextIndex);
                // What a peer sent may be past the end.
                let index = if index < pages { index } else { 0 };
                let next = if index + 1 < pages { index + 1 } else { 0 };
                control.store(Word::NextIndex, next);
                index
            }
            Pattern::Random => {
                let mut random = control.load(Word::Rng);
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                control.store(Word::Rng, random);
                // The upper half of the product is below `pages`.
                ((u128::from(random) * u128::from(pages)) >> 64) as u64
            }
        }
    }
}

fn increment(control: ControlPage<'_>, word: Word) {
    control.store(word, control.load(word).wrapping_add(1));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dunlin_engine::layout::{Backing, GuestMemory};

    use super::*;
    use crate::memory::{allocate, pc_layout};
    use crate::serial_queue::SerialQueue;
    use crate::workload::control_page::GuestClock;
    use crate::workload::fill::fill;

    fn program(text: &str) -> (GuestMemory, Program) {
        const CLOCK: GuestClock = GuestClock {
            ticks_per_second: 1_000_000_000,
            heartbeat_ticks: 1000,
        };
        let memory = allocate(pc_layout(16 << 20, Backing::Anonymous).unwrap()).unwrap();
        let workload = text.parse().unwrap();
        let plan = Plan::new(memory.layout(), 1, &workload).unwrap();
        fill(&memory, &plan, &workload, CLOCK, 0).unwrap();
        let settings = ControlSettings::new(&plan, 0, &workload, CLOCK).unwrap();
        let queue = SerialQueue::start(Box::new(std::io::sink())).unwrap();
        let (map, page) = (memory.guest_map(), PageNumber(16));
        let mut program = Program::new(map, page, &plan, settings, &queue.input()).unwrap();
        // Nobody reads, so nothing is printed.
        program.serial = None;
        (memory, program)
    }

    fn generations(memory: &GuestMemory, pages: u64) -> Vec<u64> {
        (2048..2048 + pages)
            .map(|page| {
                let words = PageWords::new(memory.guest_map(), PageNumber(page)).unwrap();
                words.load(page::GENERATION)
            })
            .collect()
    }

    #[test]
    fn the_sequential_order_goes_round() {
        let (memory, program) = program("hot=12KiB,rate=max");
        let control = ControlPage::new(memory.guest_map(), PageNumber(16)).unwrap();
        for now in 1..=4 {
            assert!(program.go_round(control, now).unwrap());
        }
        assert_eq!(generations(&memory, 3), vec![3, 2, 2]);
        assert_eq!(control.load(Word::NextIndex), 1);
        control.store(Word::NextIndex, u64::MAX);
        program.go_round(control, 5).unwrap();
        assert_eq!(generations(&memory, 3), vec![4, 2, 2]);
    }

    #[test]
    fn the_random_order_stays_inside_and_reaches_all() {
        let (memory, program) = program("hot=12KiB,rate=max,pattern=random");
        let control = ControlPage::new(memory.guest_map(), PageNumber(16)).unwrap();
        (0..200).for_each(|now| assert!(program.go_round(control, now).unwrap()));
        let generations = generations(&memory, 4);
        assert_eq!(generations[..3].iter().sum::<u64>(), 203);
        assert!(generations[..3].iter().all(|generation| *generation > 20));
    }

    #[test]
    fn writes_keep_their_rate_and_a_long_lag_is_forgotten() {
        // A page each 4096 ns.
        let (memory, program) = program("hot=1MiB,rate=1000000000/s");
        let control = ControlPage::new(memory.guest_map(), PageNumber(16)).unwrap();
        let start = 1_000_000_000_000;
        assert!(program.go_round(control, start).unwrap());
        let written = |from: u64, to: u64| {
            (from..to)
                .step_by(8)
                .filter(|now| program.go_round(control, *now).unwrap())
                .count()
        };
        // The clock of the first write was far ahead of 0: the next one is due at once.
        assert_eq!(written(start + 8, start + 8 + 10 * 4096), 11);
        // 1 ms late: made up for. 20 ms late: not.
        let at = start + 1_000_000;
        let made_up = written(at, at + 4096);
        assert!(made_up > 200, "{made_up}");
        let at = at + 20_000_000;
        assert_eq!(written(at, at + 4096), 2);
        assert_eq!(
            control.load(Word::PagesWritten),
            1 + 11 + made_up as u64 + 2
        );
    }

    #[test]
    fn gaps_and_beats_are_measured_from_the_first_look_at_the_clock() {
        let (memory, program) = program("hot=0");
        let control = ControlPage::new(memory.guest_map(), PageNumber(16)).unwrap();
        for now in [5_000_000, 5_000_100, 5_000_900, 5_001_000, 5_001_050] {
            assert!(!program.go_round(control, now).unwrap());
        }
        let statistics = control.statistics();
        assert_eq!(statistics.loops, 5);
        assert_eq!(statistics.beats, 2);
        assert_eq!(statistics.pages_written, 0);
        assert_eq!(statistics.longest_gap, Duration::from_nanos(800));
    }
}
