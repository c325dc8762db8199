//! Whether a moved guest's memory is as it should be, page by page, while the guest runs.
//!
//! The frozen source describes each page (a claim); the destination compares. What is demanded of a
//! page depends on what the plan has it for:
//!
//! | class | claim | on the running destination |
//! |---|---|---|
//! | fixed, system | digest | the same digest |
//! | hot | digest, generation, whether whole | the same digest; or whole in itself and of a later generation; or whole and of the same generation, where the source had it half written |
//! | control | digest of the settings, loops | the same settings, and no fewer loops |
//!
//! Reading does not allocate: of a memfd, holes are recognised by `SEEK_DATA` and `SEEK_HOLE`
//! (lseek(2)) and count as zero pages without being touched.

use std::os::fd::AsFd;
use std::sync::LazyLock;

use dunlin_engine::guest::{PageCheck, PageClaim, SelfCheck};
use dunlin_engine::layout::{Backing, GuestAddress, GuestMemory};
use dunlin_transports::deadline::Deadline;
use dunlin_transports::memory::{MemoryError, PAGE_BYTES, PageNumber, Run};
use rayon::prelude::*;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use xxhash_rust::xxh3::xxh3_64;

use super::control_page::{ControlPage, Word};
use super::page::{self, PageCopy, Reading};
use super::plan::{PageClass, Plan};
use super::words::{PAGE_WORDS, PageWords};

/// How many pages one task looks at: 1 MiB, some hundred microseconds.
const TASK_PAGES: usize = 256;

/// How many wrong pages are described. One wrong page is a bug; a handful shows its pattern.
const EXAMPLES_MAX: usize = 8;

/// What is said of pages that are in no region.
const NO_PAGE: PageClaim = PageClaim {
    digest: 0,
    generation: None,
    settled: true,
};

type PageBytes = [u8; PAGE_BYTES as usize];

/// XXH3-64 of a page of zeros.
static ZERO_DIGEST: LazyLock<u64> = LazyLock::new(|| xxh3_64(&[0; PAGE_BYTES as usize]));

/// The workload's own check, for either kind of guest.
#[derive(Clone, Debug)]
pub struct WorkloadCheck {
    memory: GuestMemory,
    plan: Plan,
}

impl WorkloadCheck {
    /// A check of `memory`, which was laid out by `plan`.
    pub fn new(memory: GuestMemory, plan: Plan) -> Self {
        Self { memory, plan }
    }

    fn claim(
        &self,
        reader: &mut FixedPages<'_>,
        number: PageNumber,
    ) -> Result<PageClaim, MemoryError> {
        let Some(address) = self.plan.address_of(number) else {
            return Ok(NO_PAGE);
        };
        Ok(match self.plan.class_at(address) {
            PageClass::System | PageClass::Fixed => PageClaim {
                digest: reader.digest(number)?,
                generation: None,
                settled: true,
            },
            PageClass::Hot(_) => {
                let mut copy = [0; PAGE_WORDS];
                page::copy_words(PageWords::new(self.memory.lane_map(), number)?, &mut copy);
                PageClaim {
                    digest: digest_of_copy(&copy),
                    generation: Some(copy[page::GENERATION]),
                    settled: copy[page::SEQUENCE].is_multiple_of(2),
                }
            }
            PageClass::Control(_) => {
                let control = ControlPage::new(self.memory.lane_map(), number)?;
                PageClaim {
                    digest: control.settings_digest(),
                    generation: Some(control.load(Word::Loops)),
                    settled: true,
                }
            }
        })
    }

    /// Compares one page; the error says what is wrong with it.
    fn compare(
        &self,
        reader: &mut FixedPages<'_>,
        number: PageNumber,
        claim: &PageClaim,
        deadline: Deadline,
    ) -> Result<Verdict, String> {
        let Some(address) = self.plan.address_of(number) else {
            return if *claim == NO_PAGE {
                Ok(Verdict::NoPage)
            } else {
                Err("the source has a page here, this side has none".to_owned())
            };
        };
        let told = |error: MemoryError| error.to_string();
        match (self.plan.class_at(address), claim.generation) {
            (PageClass::System | PageClass::Fixed, None) => {
                if reader.digest(number).map_err(told)? == claim.digest {
                    Ok(Verdict::Same)
                } else {
                    Err(format!(
                        "the page at {address} never changes, but has other bytes"
                    ))
                }
            }
            (PageClass::Hot(_), Some(generation)) => {
                let words = PageWords::new(self.memory.lane_map(), number).map_err(told)?;
                compare_hot(words, address, claim, generation, deadline)
                    .map_err(|what| format!("hot page at {address}: {what}"))
            }
            (PageClass::Control(vcpu), Some(loops)) => {
                let control = ControlPage::new(self.memory.lane_map(), number).map_err(told)?;
                compare_control(control, claim.digest, loops)
                    .map_err(|what| format!("control page of vCPU {vcpu}: {what}"))
            }
            (class, _) => Err(format!(
                "the source does not take the page at {address} for {class:?}, as this side does"
            )),
        }
    }
}

impl SelfCheck for WorkloadCheck {
    fn claims(&self, first: PageNumber, pages: u32) -> Vec<PageClaim> {
        let mut claims = vec![NO_PAGE; pages as usize];
        claims
            .par_chunks_mut(TASK_PAGES)
            .enumerate()
            .for_each(|(task, claims)| {
                let mut reader = FixedPages::new(&self.memory);
                for (number, claim) in numbers(first, task).zip(claims) {
                    // A page that can't be read is described as none, which the other side, that
                    // has it, takes for wrong.
                    *claim = self.claim(&mut reader, number).unwrap_or(NO_PAGE);
                }
            });
        claims
    }

    fn check(&self, first: PageNumber, claims: &[PageClaim], deadline: Deadline) -> PageCheck {
        claims
            .par_chunks(TASK_PAGES)
            .enumerate()
            .map(|(task, claims)| {
                let mut reader = FixedPages::new(&self.memory);
                let mut outcome = PageCheck::default();
                for (number, claim) in numbers(first, task).zip(claims) {
                    let verdict = self.compare(&mut reader, number, claim, deadline);
                    count(&mut outcome, number, verdict);
                }
                outcome
            })
            // In order of pages, so that the examples are the first ones.
            .reduce(PageCheck::default, join)
    }
}

/// The page numbers of a task.
fn numbers(first: PageNumber, task: usize) -> impl Iterator<Item = PageNumber> {
    let first = first.0.saturating_add((task * TASK_PAGES) as u64);
    (0..).map(move |offset| PageNumber(first.saturating_add(offset)))
}

/// What is said of a page that is not wrong.
enum Verdict {
    /// In no region, on both sides.
    NoPage,
    /// The same bytes (of a control page: the same settings and loops).
    Same,
    /// Rewritten since.
    Later,
}

fn compare_hot(
    words: PageWords<'_>,
    address: GuestAddress,
    claim: &PageClaim,
    claimed: u64,
    deadline: Deadline,
) -> Result<Verdict, String> {
    let mut copy = [0; PAGE_WORDS];
    let generation = match page::read(words, &mut copy, deadline) {
        Reading::Stable if digest_of_copy(&copy) == claim.digest => return Ok(Verdict::Same),
        Reading::Stable => page::check(&copy, address).map_err(|fault| fault.to_string())?,
        Reading::Moving {
            first_generation,
            last_generation,
        } => {
            page::check_moving(&copy, address, first_generation, last_generation)
                .map_err(|fault| fault.to_string())?;
            // It was seen to move on from the first: the page is at least one further.
            first_generation.saturating_add(1)
        }
        Reading::Stuck => return Err("half written, and nobody writes on".to_owned()),
    };
    // A page that the source had half written becomes whole here in the generation it was given.
    if generation > claimed || generation == claimed && !claim.settled {
        Ok(Verdict::Later)
    } else if generation == claimed {
        Err(format!(
            "generation {generation} as claimed, but other bytes"
        ))
    } else {
        Err(format!(
            "generation {generation}, older than the {claimed} that was sent"
        ))
    }
}

fn compare_control(control: ControlPage<'_>, digest: u64, claimed: u64) -> Result<Verdict, String> {
    if control.settings_digest() != digest {
        return Err("other settings".to_owned());
    }
    let loops = control.load(Word::Loops);
    match loops.cmp(&claimed) {
        std::cmp::Ordering::Less => Err(format!("{loops} loops after {claimed} on the source")),
        std::cmp::Ordering::Equal => Ok(Verdict::Same),
        std::cmp::Ordering::Greater => Ok(Verdict::Later),
    }
}

fn count(outcome: &mut PageCheck, number: PageNumber, verdict: Result<Verdict, String>) {
    match verdict {
        Ok(Verdict::NoPage) => return,
        Ok(Verdict::Same) => outcome.same += 1,
        Ok(Verdict::Later) => outcome.later += 1,
        Err(what) => {
            outcome.different += 1;
            if outcome.examples.len() < EXAMPLES_MAX {
                outcome.examples.push((number, what));
            }
        }
    }
    outcome.checked += 1;
}

fn join(mut left: PageCheck, right: PageCheck) -> PageCheck {
    left.checked += right.checked;
    left.same += right.same;
    left.later += right.later;
    left.different += right.different;
    let room = EXAMPLES_MAX.saturating_sub(left.examples.len());
    left.examples.extend(right.examples.into_iter().take(room));
    left
}

fn digest_of_copy(copy: &PageCopy) -> u64 {
    let mut bytes: PageBytes = [0; PAGE_BYTES as usize];
    for (bytes, word) in bytes.chunks_exact_mut(8).zip(copy) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    xxh3_64(&bytes)
}

/// Reads pages that do not change, in ascending order, without touching what is a hole.
struct FixedPages<'memory> {
    memory: &'memory GuestMemory,
    /// What is known of the file around the last page: its region, and up to which offset it is a
    /// hole or data.
    extent: Option<Extent>,
    bytes: PageBytes,
}

#[derive(Clone, Copy)]
struct Extent {
    region: usize,
    start: u64,
    end: u64,
    hole: bool,
}

impl<'memory> FixedPages<'memory> {
    fn new(memory: &'memory GuestMemory) -> Self {
        Self {
            memory,
            extent: None,
            bytes: [0; PAGE_BYTES as usize],
        }
    }

    fn digest(&mut self, number: PageNumber) -> Result<u64, MemoryError> {
        if self.is_hole(number) {
            return Ok(*ZERO_DIGEST);
        }
        let run = Run {
            first: number,
            pages: 1,
        };
        self.memory.lane_map().copy_out(run, &mut self.bytes)?;
        // Nearly always decided by the first bytes.
        if self.bytes.iter().all(|byte| *byte == 0) {
            return Ok(*ZERO_DIGEST);
        }
        Ok(xxh3_64(&self.bytes))
    }

    fn is_hole(&mut self, number: PageNumber) -> bool {
        let Some((region, in_region)) = self.memory.layout().region_of(number) else {
            return false;
        };
        let offset = in_region * PAGE_BYTES;
        let known = self.extent.filter(|extent| {
            extent.region == region && (extent.start..extent.end).contains(&offset)
        });
        let extent = known.or_else(|| self.extent_at(region, offset));
        self.extent = extent;
        extent.is_some_and(|extent| extent.hole)
    }

    /// What the file has at an offset of the region; `None` where it can't be told, which is so
    /// for anonymous memory (whose untouched pages read as the kernel's one zero page) and for huge
    /// pages (hugetlbfs knows no holes).
    fn extent_at(&self, region: usize, offset: u64) -> Option<Extent> {
        let shape = self.memory.layout().regions().get(region)?;
        let behind = self.memory.regions().get(region)?;
        let file = behind.file.as_ref()?;
        if shape.backing != Backing::Memfd {
            return None;
        }
        let file = file.as_fd();
        let at = behind.file_offset + offset;
        let extent = |end: u64, hole| {
            Some(Extent {
                region,
                start: offset,
                end: end - behind.file_offset,
                hole,
            })
        };
        match seek(file, SeekFrom::Data(at)) {
            Ok(data) if data > at => extent(data, true),
            // No data up to the file's end.
            Err(Errno::NXIO) => extent(behind.file_offset + shape.bytes, true),
            Ok(_) => match seek(file, SeekFrom::Hole(at)) {
                Ok(hole) if hole > at => extent(hole, false),
                _ => None,
            },
            Err(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::memory::{allocate, pc_layout};
    use crate::workload::Workload;
    use crate::workload::control_page::GuestClock;
    use crate::workload::fill::fill;

    const CLOCK: GuestClock = GuestClock {
        ticks_per_second: 1_000_000_000,
        heartbeat_ticks: 0,
    };
    const HOT: u64 = 2048;
    /// Neither hot nor in a block of zeros.
    const FIXED: u64 = 2990;

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(20))
    }

    fn run(first: u64) -> Run {
        Run {
            first: PageNumber(first),
            pages: 1,
        }
    }

    fn guest(backing: Backing) -> WorkloadCheck {
        let memory = allocate(pc_layout(16 << 20, backing).unwrap()).unwrap();
        let workload: Workload = "hot=1MiB,zero=25".parse().unwrap();
        let plan = Plan::new(memory.layout(), 2, &workload).unwrap();
        fill(&memory, &plan, &workload, CLOCK, 3).unwrap();
        WorkloadCheck::new(memory, plan)
    }

    /// Claims of the guest as it is, after some of its pages were rewritten.
    fn claims(check: &WorkloadCheck) -> Vec<PageClaim> {
        for number in HOT..HOT + 5 {
            rewrite(check, number);
        }
        check.claims(PageNumber(0), 4096)
    }

    fn rewrite(check: &WorkloadCheck, number: u64) {
        let words = words(check, number);
        page::rewrite(words, GuestAddress(number * PAGE_BYTES));
    }

    fn words(check: &WorkloadCheck, number: u64) -> PageWords<'_> {
        PageWords::new(check.memory.guest_map(), PageNumber(number)).unwrap()
    }

    /// Checks all, and demands that exactly one page is wrong, with `what` in its description.
    fn one_wrong(check: &WorkloadCheck, claims: &[PageClaim], number: u64, what: &str) {
        let deadline = Deadline::after(Duration::ZERO);
        let outcome = check.check(PageNumber(0), claims, deadline);
        assert_eq!(outcome.different, 1, "{outcome:?}");
        assert_eq!(outcome.examples[0].0, PageNumber(number));
        assert!(outcome.examples[0].1.contains(what), "{outcome:?}");
        assert_eq!(outcome.checked, 4096);
    }

    #[test]
    fn an_unchanged_guest_is_the_same() {
        for backing in [Backing::Memfd, Backing::Anonymous] {
            let check = guest(backing);
            let claims = claims(&check);
            let outcome = check.check(PageNumber(0), &claims, soon());
            assert_eq!((outcome.checked, outcome.same), (4096, 4096));
            assert_eq!(outcome.examples, vec![]);
        }
    }

    #[test]
    fn both_backings_make_the_same_claims() {
        assert_eq!(
            claims(&guest(Backing::Memfd)),
            claims(&guest(Backing::Anonymous))
        );
    }

    #[test]
    fn checking_a_memfd_does_not_allocate() {
        let check = guest(Backing::Memfd);
        let blocks = || {
            let file = check.memory.regions()[0].file.as_ref().unwrap();
            rustix::fs::fstat(file).unwrap().st_blocks
        };
        let before = blocks();
        let claims = claims(&check);
        check.check(PageNumber(0), &claims, soon());
        assert_eq!(blocks(), before);
    }

    #[test]
    fn rewritten_pages_are_later() {
        let check = guest(Backing::Memfd);
        let claims = claims(&check);
        rewrite(&check, HOT);
        rewrite(&check, HOT + 9);
        words(&check, 16).store(Word::Loops as usize, 5);
        let outcome = check.check(PageNumber(0), &claims, soon());
        assert_eq!((outcome.later, outcome.different), (3, 0), "{outcome:?}");
    }

    #[test]
    fn a_torn_page_is_found() {
        let check = guest(Backing::Memfd);
        let claims = claims(&check);
        rewrite(&check, HOT + 1);
        // The second half is of the generation before, as if a page had been sent while written.
        for index in 256..PAGE_WORDS {
            let old = page::expected_word(GuestAddress((HOT + 1) * PAGE_BYTES), 2, index);
            words(&check, HOT + 1).store(index, old);
        }
        one_wrong(&check, &claims, HOT + 1, "word 256 is");
    }

    #[test]
    fn an_old_generation_is_found() {
        let check = guest(Backing::Memfd);
        let claims = claims(&check);
        page::write(words(&check, HOT), GuestAddress(HOT * PAGE_BYTES), 1);
        one_wrong(&check, &claims, HOT, "generation 1, older than the 2");
    }

    #[test]
    fn a_page_that_nobody_finishes_is_found() {
        let check = guest(Backing::Memfd);
        let claims = claims(&check);
        words(&check, HOT + 3).store(page::SEQUENCE, 5);
        one_wrong(&check, &claims, HOT + 3, "half written");
    }

    #[test]
    fn a_flipped_byte_in_a_fixed_page_is_found() {
        let check = guest(Backing::Memfd);
        let claims = claims(&check);
        let value = words(&check, FIXED).load(300);
        words(&check, FIXED).store(300, value ^ 1 << 17);
        one_wrong(&check, &claims, FIXED, "other bytes");
    }

    #[test]
    fn a_fixed_page_that_was_lost_is_found() {
        let check = guest(Backing::Memfd);
        let claims = claims(&check);
        check.memory.guest_map().fill_zero(run(FIXED)).unwrap();
        one_wrong(&check, &claims, FIXED, "other bytes");
    }

    #[test]
    fn a_page_in_another_pages_place_is_found() {
        let check = guest(Backing::Memfd);
        rewrite(&check, HOT + 7);
        let claims = claims(&check);
        let mut bytes = [0; PAGE_BYTES as usize];
        check
            .memory
            .guest_map()
            .copy_out(run(HOT + 7), &mut bytes)
            .unwrap();
        check
            .memory
            .guest_map()
            .copy_in(run(HOT + 8), &bytes)
            .unwrap();
        one_wrong(&check, &claims, HOT + 8, "word 2 is");
    }

    #[test]
    fn fewer_loops_or_other_settings_are_found() {
        let check = guest(Backing::Memfd);
        words(&check, 17).store(Word::Loops as usize, 10);
        let claims = claims(&check);
        words(&check, 17).store(Word::Loops as usize, 9);
        one_wrong(&check, &claims, 17, "vCPU 1: 9 loops after 10");
        words(&check, 17).store(Word::Loops as usize, 11);
        words(&check, 17).store(Word::HotPages as usize, 11);
        one_wrong(&check, &claims, 17, "other settings");
    }

    #[test]
    fn a_page_that_the_source_had_half_written_may_end_in_the_same_generation() {
        let check = guest(Backing::Memfd);
        rewrite(&check, HOT + 2);
        words(&check, HOT + 2).store(page::SEQUENCE, 3);
        let claims = check.claims(PageNumber(0), 4096);
        assert!(!claims[HOT as usize + 2].settled);
        words(&check, HOT + 2).store(page::SEQUENCE, 4);
        let outcome = check.check(PageNumber(0), &claims, soon());
        assert_eq!((outcome.later, outcome.different), (1, 0), "{outcome:?}");
        // A page that was whole may not.
        let mut settled = claims.clone();
        settled[HOT as usize + 2].settled = true;
        one_wrong(&check, &settled, HOT + 2, "generation 2 as claimed");
    }

    #[test]
    fn claims_of_another_kind_of_page_are_wrong() {
        let check = guest(Backing::Memfd);
        let mut claims = claims(&check);
        claims[HOT as usize].generation = None;
        one_wrong(&check, &claims, HOT, "does not take the page");
        claims = check.claims(PageNumber(0), 4096);
        claims.push(PageClaim {
            digest: 1,
            ..NO_PAGE
        });
        let outcome = check.check(PageNumber(0), &claims, soon());
        assert_eq!((outcome.different, outcome.checked), (1, 4097));
        // Page numbers that wrap and pages that do not exist are no trouble.
        let none = check.check(PageNumber(u64::MAX - 1), &[NO_PAGE; 600], soon());
        assert_eq!(none, PageCheck::default());
        assert_eq!(check.claims(PageNumber(4096), 2), vec![NO_PAGE; 2]);
    }

    #[test]
    fn a_guest_that_writes_without_a_break_raises_no_alarm() {
        let check = guest(Backing::Memfd);
        let claims = claims(&check);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // One of them rewrites a single page, so that it never rests.
            for pages in [1, 64] {
                let (check, stop) = (&check, &stop);
                scope.spawn(move || {
                    for turn in (0..pages).cycle() {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        rewrite(check, HOT + pages + turn);
                    }
                });
            }
            let outcomes: Vec<_> = (0..20)
                .map(|_| check.check(PageNumber(0), &claims, soon()))
                .collect();
            stop.store(true, Ordering::Relaxed);
            for outcome in outcomes {
                assert_eq!(outcome.examples, vec![]);
                assert_eq!(outcome.checked, 4096);
            }
        });
    }
}
