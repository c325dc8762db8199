//! The first contents of a fresh guest's memory.
//!
//! Hot pages get generation 1, control pages their settings, fixed pages random bytes that nobody
//! writes again; some fixed pages are zero. The system area's other pages belong to whoever runs
//! the guest.

use dunlin_engine::layout::{Backing, GuestMemory};
use dunlin_transports::memory::{MemoryError, MemoryMap, PAGE_BYTES, PageNumber, Run};
use rayon::prelude::*;

use super::Workload;
use super::control_page::{ControlPage, ControlSettings, GuestClock};
use super::page::{self, FIRST_GENERATION};
use super::plan::{PageClass, Plan};
use super::pool::all_processors;
use super::words::PageWords;

/// How many pages one task fills: 8 MiB, enough for its start to cost nothing.
const TASK_PAGES: u64 = 2048;

/// What is unused begins at such a border: a huge page is used as a whole or not at all.
const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// Fills fresh memory, on all processors, through the guest's mapping.
///
/// `seed` decides the fixed pages' bytes. Of the zero pages every other one is written with zeros,
/// the others are never touched; nor are the unused ones.
///
/// # Errors
///
/// When the plan is not one for this memory.
pub fn fill(
    memory: &GuestMemory,
    plan: &Plan,
    workload: &Workload,
    clock: GuestClock,
    seed: u64,
) -> Result<(), MemoryError> {
    let map = memory.guest_map();
    for vcpu in 0..plan.vcpus() {
        let page = plan
            .control_page(vcpu)
            .and_then(|address| plan.layout().page_of(address));
        let settings = ControlSettings::new(plan, vcpu, workload, clock);
        if let (Some(page), Some(settings)) = (page, settings) {
            ControlPage::new(map, page)?.initialise(&settings);
        }
    }
    let span = plan.layout().page_span();
    let tasks = 0..span.div_ceil(TASK_PAGES);
    let fill_task = |task: u64| {
        let first = task * TASK_PAGES;
        (first..span.min(first + TASK_PAGES))
            .try_for_each(|number| fill_page(map, plan, workload, seed, PageNumber(number)))
    };
    match all_processors() {
        Some(pool) => pool.install(|| tasks.into_par_iter().try_for_each(fill_task)),
        None => tasks.into_iter().try_for_each(fill_task),
    }
}

/// How many bytes of memory a guest of `memory_bytes` takes from its host at once, as far as that
/// is known before it is made: all but its unused pages and the half of its zero pages that
/// [`fill`] leaves alone. The system area counts in full, though little of it may be used.
///
/// Only memfd leaves single pages out. Huge pages are reserved together, and anonymous memory is
/// backed by transparent huge pages, each of which has a page that is written.
pub fn bytes_taken(workload: &Workload, memory_bytes: u64, backing: Backing) -> u64 {
    let cold = memory_bytes.saturating_sub(workload.hot_bytes);
    // What rounding and an unused hot set's end add.
    let unused = memory_bytes / 100 * u64::from(workload.unused_percent.min(100));
    let unused = unused.saturating_sub(HUGE_PAGE_BYTES).min(cold);
    match backing {
        Backing::Hugetlb => memory_bytes,
        Backing::Anonymous => memory_bytes - unused,
        Backing::Memfd => {
            let untouched = (cold - unused) / 200 * u64::from(workload.zero_percent.min(100));
            memory_bytes - unused - untouched
        }
    }
}

fn fill_page(
    map: &MemoryMap,
    plan: &Plan,
    workload: &Workload,
    seed: u64,
    number: PageNumber,
) -> Result<(), MemoryError> {
    let run = Run {
        first: number,
        pages: 1,
    };
    let Some(address) = plan.address_of(number) else {
        return Ok(());
    };
    match plan.class_at(address) {
        PageClass::System | PageClass::Control(_) => Ok(()),
        PageClass::Hot(_) => {
            page::write(PageWords::new(map, number)?, address, FIRST_GENERATION);
            Ok(())
        }
        PageClass::Fixed if number >= first_unused(plan, workload) => Ok(()),
        PageClass::Fixed if is_zero(number, workload) => {
            if number.0.is_multiple_of(2) {
                map.fill_zero(run)
            } else {
                Ok(())
            }
        }
        PageClass::Fixed => map.copy_in(run, &random_page(seed, number)),
    }
}

/// The first page of what is unused, as far as it is a fixed one.
fn first_unused(plan: &Plan, workload: &Workload) -> PageNumber {
    let span = plan.layout().page_span();
    let unused = span * u64::from(workload.unused_percent.min(100)) / 100;
    PageNumber((span - unused).next_multiple_of(HUGE_PAGE_BYTES / PAGE_BYTES))
}

/// Whether a fixed page is zero: `zero_percent` in a hundred blocks are, evenly spread.
fn is_zero(number: PageNumber, workload: &Workload) -> bool {
    let percent = u64::from(workload.zero_percent);
    let block = number.0 / u64::from(workload.block_pages.max(1)) % 100;
    (block + 1) * percent / 100 > block * percent / 100
}

/// The bytes of a fixed page: a stream of a multiply-and-fold generator, seeded for each page, that
/// no compressor gets smaller.
fn random_page(seed: u64, number: PageNumber) -> [u8; PAGE_BYTES as usize] {
    const STEP: u64 = 0xA076_1D64_78BD_642F;
    const MIX: u64 = 0xE703_7ED1_A0B4_28DB;
    let mut state = fold(seed ^ MIX, number.0 ^ STEP);
    let mut bytes = [0; PAGE_BYTES as usize];
    for word in bytes.chunks_exact_mut(8) {
        state = state.wrapping_add(STEP);
        word.copy_from_slice(&fold(state, state ^ MIX).to_le_bytes());
    }
    bytes
}

fn fold(left: u64, right: u64) -> u64 {
    let product = u128::from(left) * u128::from(right);
    (product >> 64) as u64 ^ product as u64
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::memory::{allocate, pc_layout};

    const CLOCK: GuestClock = GuestClock {
        ticks_per_second: 1_000_000_000,
        heartbeat_ticks: 0,
    };

    #[test]
    fn pages_are_what_the_plan_says() {
        let memory = allocate(pc_layout(40 << 20, Backing::Memfd).unwrap()).unwrap();
        let workload: Workload = "hot=1MiB,zero=25".parse().unwrap();
        let plan = Plan::new(memory.layout(), 2, &workload).unwrap();
        fill(&memory, &plan, &workload, CLOCK, 7).unwrap();
        let (mut fixed, mut zero) = (0, 0);
        let mut contents = HashSet::new();
        for number in 0..plan.layout().page_span() {
            let number = PageNumber(number);
            let mut bytes = [0; PAGE_BYTES as usize];
            let run = Run {
                first: number,
                pages: 1,
            };
            memory.lane_map().copy_out(run, &mut bytes).unwrap();
            let is_zero = bytes.iter().all(|byte| *byte == 0);
            match plan.class_of(number).unwrap() {
                PageClass::Fixed => {
                    fixed += 1;
                    zero += u32::from(is_zero);
                    assert!(
                        is_zero || contents.insert(bytes),
                        "{number} is another's copy"
                    );
                }
                PageClass::System => assert!(is_zero),
                PageClass::Control(_) => assert_eq!(bytes[..8], *b"DUNLINCP"),
                PageClass::Hot(_) => assert_eq!(
                    bytes[..16],
                    [2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
                ),
            }
        }
        assert_eq!((fixed, zero), (7936, 1984));
    }

    #[test]
    fn half_of_the_zero_pages_are_never_touched() {
        let memory = allocate(pc_layout(16 << 20, Backing::Memfd).unwrap()).unwrap();
        let workload: Workload = "hot=0,zero=100%".parse().unwrap();
        let plan = Plan::new(memory.layout(), 1, &workload).unwrap();
        fill(&memory, &plan, &workload, CLOCK, 7).unwrap();
        let file = memory.regions()[0].file.as_ref().unwrap();
        let blocks = rustix::fs::fstat(file).unwrap().st_blocks;
        // The control page, and every other one of 2048 fixed pages; in units of 512 bytes.
        assert_eq!(blocks, 8 * (1 + 1024));
        // Half of the 16 MiB, and never less than what is used.
        let taken = bytes_taken(&workload, 16 << 20, Backing::Memfd);
        assert!((8 << 20..9 << 20).contains(&taken), "{taken}");
        assert!(taken >= u64::try_from(blocks).unwrap() * 512);
    }

    #[test]
    fn unused_memory_is_never_touched() {
        for backing in [Backing::Memfd, Backing::Anonymous] {
            let memory = allocate(pc_layout(40 << 20, backing).unwrap()).unwrap();
            let workload: Workload = "hot=0,zero=0,unused=75%".parse().unwrap();
            let plan = Plan::new(memory.layout(), 1, &workload).unwrap();
            fill(&memory, &plan, &workload, CLOCK, 7).unwrap();
            let mut page = [0; PAGE_BYTES as usize];
            for (number, used) in [(2047, false), (2048, true), (2559, true), (2560, false)] {
                let run = Run {
                    first: PageNumber(number),
                    pages: 1,
                };
                memory.lane_map().copy_out(run, &mut page).unwrap();
                assert_eq!(page != [0; PAGE_BYTES as usize], used, "page {number}");
            }
            // A quarter of 40 MiB, and what a border of 2 MiB adds.
            let taken = bytes_taken(&workload, 40 << 20, backing);
            assert!((10 << 20..13 << 20).contains(&taken), "{taken}");
        }
    }

    #[test]
    fn only_zero_pages_of_a_memfd_cost_nothing() {
        let workload: Workload = "hot=64MiB,zero=50".parse().unwrap();
        let taken = |memory, backing| bytes_taken(&workload, memory, backing);
        assert_eq!(taken(64 << 20, Backing::Memfd), 64 << 20);
        assert_eq!(taken(4096, Backing::Memfd), 4096);
        assert!(taken(u64::MAX, Backing::Memfd) > u64::MAX / 4 * 2);
        for backing in [Backing::Anonymous, Backing::Hugetlb] {
            assert_eq!(taken(1 << 30, backing), 1 << 30);
        }
    }

    #[test]
    fn percentages_are_exact() {
        for zero_percent in [0, 1, 25, 50, 99, 100] {
            for block_pages in [1, 16] {
                let workload = Workload {
                    zero_percent,
                    block_pages,
                    ..Workload::default()
                };
                let zero = (0..100 * u64::from(block_pages))
                    .filter(|page| is_zero(PageNumber(*page), &workload))
                    .count();
                let expected = u64::from(zero_percent) * u64::from(block_pages);
                assert_eq!(zero as u64, expected);
            }
        }
    }

    #[test]
    fn blocks_of_one_page_make_every_other_page_zero() {
        let workload: Workload = "zero=50,block=1".parse().unwrap();
        for page in 0..1000 {
            assert_eq!(is_zero(PageNumber(page), &workload), page % 2 == 1);
        }
    }
}
