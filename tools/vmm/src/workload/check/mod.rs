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
//! How fixed pages are read: `fixed_pages`.

mod fixed_pages;
#[cfg(test)]
mod tests;

use dunlin_engine::guest::{PageCheck, PageClaim, SelfCheck};
use dunlin_engine::layout::{GuestAddress, GuestMemory};
use dunlin_engine::untouched::Untouched;
use dunlin_transports::deadline::Deadline;
use dunlin_transports::memory::{MemoryError, PAGE_BYTES, PageNumber, Run};
use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use self::fixed_pages::FixedPages;
use super::control_page::{ControlPage, Word};
use super::page::{self, PageCopy, Reading};
use super::plan::{PageClass, Plan};
use super::pool::all_processors;
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

/// The workload's own check, for either kind of guest.
pub struct WorkloadCheck {
    memory: GuestMemory,
    plan: Plan,
    untouched: Untouched,
}

impl WorkloadCheck {
    /// A check of `memory`, which was laid out by `plan`.
    pub fn new(memory: GuestMemory, plan: Plan) -> Self {
        Self {
            untouched: Untouched::new(&memory),
            memory,
            plan,
        }
    }

    /// A reader of the fixed pages among those of a task.
    fn fixed_pages(&self, first: PageNumber, pages: usize) -> FixedPages<'_> {
        // A task has at most `TASK_PAGES`.
        let pages = pages as u32;
        FixedPages::new(&self.memory, &self.untouched, Run { first, pages })
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
        let describe = |(task, claims): (usize, &mut [PageClaim])| {
            let first = first_of(first, task);
            let mut reader = self.fixed_pages(first, claims.len());
            for (number, claim) in numbers(first).zip(claims) {
                // A page that can't be read is described as none, which the other side, that
                // has it, takes for wrong.
                *claim = self.claim(&mut reader, number).unwrap_or(NO_PAGE);
            }
        };
        match all_processors() {
            Some(pool) => pool.install(|| {
                let tasks = claims.par_chunks_mut(TASK_PAGES).enumerate();
                tasks.for_each(describe);
            }),
            None => claims.chunks_mut(TASK_PAGES).enumerate().for_each(describe),
        }
        claims
    }

    fn check(&self, first: PageNumber, claims: &[PageClaim], deadline: Deadline) -> PageCheck {
        let compare = |(task, claims): (usize, &[PageClaim])| {
            let first = first_of(first, task);
            let mut reader = self.fixed_pages(first, claims.len());
            let mut outcome = PageCheck::default();
            for (number, claim) in numbers(first).zip(claims) {
                let verdict = self.compare(&mut reader, number, claim, deadline);
                count(&mut outcome, number, verdict);
            }
            outcome
        };
        // In order of pages, so that the examples are the first ones.
        match all_processors() {
            Some(pool) => pool.install(|| {
                let compared = claims.par_chunks(TASK_PAGES).enumerate().map(compare);
                compared.reduce(PageCheck::default, join)
            }),
            None => {
                let compared = claims.chunks(TASK_PAGES).enumerate().map(compare);
                compared.fold(PageCheck::default(), join)
            }
        }
    }
}

/// The first page of a task.
fn first_of(first: PageNumber, task: usize) -> PageNumber {
    PageNumber(first.0.saturating_add((task * TASK_PAGES) as u64))
}

/// The page numbers from a first one on.
fn numbers(first: PageNumber) -> impl Iterator<Item = PageNumber> {
    (0..).map(move |offset| PageNumber(first.0.saturating_add(offset)))
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
    let mut bytes = [0; PAGE_BYTES as usize];
    for (bytes, word) in bytes.chunks_exact_mut(8).zip(copy) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    xxh3_64(&bytes)
}
