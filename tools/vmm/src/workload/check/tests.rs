//! Every way in which a page can be wrong, and the ways in which it may change.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dunlin_engine::layout::Backing;
use dunlin_transports::memory::Run;

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
