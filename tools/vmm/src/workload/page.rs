//! The format of a hot page, with which the page tells on its own whether it is whole.
//!
//! | word | what |
//! |---|---|
//! | 0 | sequence: `2 * generation` when the page is whole, one less while it is being written |
//! | 1 | generation: how often it was written, 1 at first |
//! | 2 | guest-physical address of the page |
//! | 3 … 511 | `v`, `v + K2`, `v + 2 * K2` … with `v = address ^ (generation * K1)`, wrapping |
//!
//! The writer stores the odd sequence, generation, address, body, and then the even sequence, in
//! this order; a reader that finds the same even sequence before and after has a whole page (a
//! seqlock). On x86-64, plain stores in that order are enough.

use std::sync::atomic::{Ordering, fence};

use dunlin_engine::layout::GuestAddress;
use dunlin_transports::deadline::Deadline;
use thiserror::Error;

use super::words::{PAGE_WORDS, PageWords};

/// Makes bodies of different generations differ in every word: 2^64 divided by the golden ratio.
pub const K1: u64 = 0x9E37_79B9_7F4A_7C15;

/// The step from one word of the body to the next: odd, so that no two words are equal.
pub const K2: u64 = 0xD134_2543_DE82_EF95;

/// Index of the sequence word.
pub const SEQUENCE: usize = 0;

/// Index of the generation word.
pub const GENERATION: usize = 1;

/// Index of the address word.
pub const ADDRESS: usize = 2;

/// Index of the body's first word.
pub const BODY: usize = 3;

/// The generation that a fresh guest's hot pages have.
pub const FIRST_GENERATION: u64 = 1;

/// A copy of a page.
pub type PageCopy = [u64; PAGE_WORDS];

/// What is wrong with a copy of a hot page.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("word {word} is {found:#x} instead of {expected:#x}")]
pub struct PageFault {
    /// Index of the first wrong word.
    pub word: usize,
    /// What it holds.
    pub found: u64,
    /// What it should hold, by the page's own generation.
    pub expected: u64,
}

/// How a read of a page that may be written meanwhile ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The copy is of one moment, and whole.
    Stable,
    /// The page was being rewritten all the time; each word of the copy is of one of these
    /// generations, if the page is good.
    Moving {
        /// The oldest.
        first_generation: u64,
        /// The newest.
        last_generation: u64,
    },
    /// The page was being written, and nobody went on writing it until the deadline.
    Stuck,
}

/// Writes the next generation of the page, as the guest does. Returns that generation.
///
/// One thread at a time may write a page.
#[inline]
pub fn rewrite(page: PageWords<'_>, address: GuestAddress) -> u64 {
    let generation = page.load(GENERATION).wrapping_add(1);
    write(page, address, generation);
    generation
}

/// Writes a generation of the page.
#[inline]
pub fn write(page: PageWords<'_>, address: GuestAddress, generation: u64) {
    let whole = generation.wrapping_mul(2);
    page.store(SEQUENCE, whole.wrapping_sub(1));
    // Whoever sees a word of the new body sees the odd sequence too.
    fence(Ordering::Release);
    page.store(GENERATION, generation);
    page.store(ADDRESS, address.0);
    let mut value = body_start(address, generation);
    for index in BODY..PAGE_WORDS {
        page.store(index, value);
        value = value.wrapping_add(K2);
    }
    // Whoever sees the even sequence sees the whole body.
    fence(Ordering::Release);
    page.store(SEQUENCE, whole);
}

/// What a word of a generation holds when the page is whole.
pub fn expected_word(address: GuestAddress, generation: u64, index: usize) -> u64 {
    match index {
        SEQUENCE => generation.wrapping_mul(2),
        GENERATION => generation,
        ADDRESS => address.0,
        _ => body_start(address, generation).wrapping_add(K2.wrapping_mul((index - BODY) as u64)),
    }
}

/// Checks a stable copy of the page at `address` and returns its generation.
///
/// # Errors
///
/// Names the first word that does not fit the page's generation and address.
pub fn check(copy: &PageCopy, address: GuestAddress) -> Result<u64, PageFault> {
    let generation = copy[GENERATION];
    let fault = |word, expected| {
        Err(PageFault {
            word,
            found: copy[word],
            expected,
        })
    };
    for index in [SEQUENCE, ADDRESS] {
        let expected = expected_word(address, generation, index);
        if copy[index] != expected {
            return fault(index, expected);
        }
    }
    let mut expected = body_start(address, generation);
    for (index, found) in copy.iter().enumerate().skip(BODY) {
        if *found != expected {
            return fault(index, expected);
        }
        expected = expected.wrapping_add(K2);
    }
    Ok(generation)
}

/// Checks a copy that was taken while the page was rewritten from one generation to another: each
/// word must be one of theirs.
///
/// # Errors
///
/// Names the first word that is of none of them, with what the newest would have there.
pub fn check_moving(
    copy: &PageCopy,
    address: GuestAddress,
    first_generation: u64,
    last_generation: u64,
) -> Result<(), PageFault> {
    for (index, found) in copy.iter().enumerate().skip(GENERATION) {
        let fits = |generation| *found == expected_word(address, generation, index);
        // The newest first: most words are of it.
        if !(first_generation..=last_generation).rev().any(fits) {
            return Err(PageFault {
                word: index,
                found: *found,
                expected: expected_word(address, last_generation, index),
            });
        }
    }
    Ok(())
}

/// Copies a page word by word: a mix of generations where the guest is rewriting it.
pub fn copy_words(page: PageWords<'_>, copy: &mut PageCopy) {
    for (index, word) in copy.iter_mut().enumerate() {
        *word = page.load(index);
    }
}

/// Copies a page that the guest may be rewriting. Tries again while it is being written, up to the
/// deadline; at least once.
///
/// A page that is rewritten without a break can't be caught at rest. After some tries that saw it
/// move, a copy across a few generations is taken instead.
pub fn read(page: PageWords<'_>, copy: &mut PageCopy, deadline: Deadline) -> Reading {
    /// So many tries make it unlikely that a page which rests at all was missed.
    const TRIES_MOVING: u32 = 100;
    /// A copy across more generations than this says too little, and another one is taken.
    const GENERATIONS_MAX: u64 = 16;

    let mut moved = 0_u32;
    loop {
        let before = page.load(SEQUENCE);
        fence(Ordering::Acquire);
        copy_words(page, copy);
        fence(Ordering::Acquire);
        let after = page.load(SEQUENCE);
        if before == after && before.is_multiple_of(2) {
            copy[SEQUENCE] = before;
            return Reading::Stable;
        }
        // Nothing older than what was whole before the copy began, nothing newer than what was
        // being written when it had ended.
        let (first_generation, last_generation) = (before / 2, after.div_ceil(2));
        let few = last_generation
            .checked_sub(first_generation)
            .is_some_and(|generations| generations < GENERATIONS_MAX);
        if before != after {
            moved = moved.saturating_add(1);
            if moved >= TRIES_MOVING && few {
                return Reading::Moving {
                    first_generation,
                    last_generation,
                };
            }
        }
        if deadline.passed() {
            return Reading::Stuck;
        }
        if !after.is_multiple_of(2) {
            std::thread::yield_now();
        }
    }
}

fn body_start(address: GuestAddress, generation: u64) -> u64 {
    address.0 ^ generation.wrapping_mul(K1)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use dunlin_transports::memory::{MemoryMap, OwnedMapping, PAGE_BYTES, PageNumber};

    use super::*;

    const ADDRESS_OF_PAGE: GuestAddress = GuestAddress(0x80_3000);

    fn one_page() -> MemoryMap {
        MemoryMap::new(vec![Arc::new(OwnedMapping::new(PAGE_BYTES).unwrap())]).unwrap()
    }

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(20))
    }

    #[test]
    fn the_format_is_as_written_down() {
        let map = one_page();
        let page = PageWords::new(&map, PageNumber(0)).unwrap();
        write(page, ADDRESS_OF_PAGE, FIRST_GENERATION);
        assert_eq!(rewrite(page, ADDRESS_OF_PAGE), 2);
        let mut copy = [0; PAGE_WORDS];
        assert_eq!(read(page, &mut copy, soon()), Reading::Stable);
        let v = 0x80_3000 ^ 0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(2);
        let k2 = 0xD134_2543_DE82_EF95_u64;
        assert_eq!(copy[..5], [4, 2, 0x80_3000, v, v.wrapping_add(k2)]);
        assert_eq!(copy[511], v.wrapping_add(k2.wrapping_mul(508)));
        assert_eq!(check(&copy, ADDRESS_OF_PAGE), Ok(2));
        assert!((0..PAGE_WORDS).all(|i| copy[i] == expected_word(ADDRESS_OF_PAGE, 2, i)));
    }

    #[test]
    fn every_wrong_word_is_found() {
        let map = one_page();
        let page = PageWords::new(&map, PageNumber(0)).unwrap();
        write(page, ADDRESS_OF_PAGE, 9);
        let mut whole = [0; PAGE_WORDS];
        read(page, &mut whole, soon());
        for word in 0..PAGE_WORDS {
            let mut copy = whole;
            copy[word] ^= 1 << (word % 64);
            assert!(check(&copy, ADDRESS_OF_PAGE).is_err(), "word {word}");
            assert_eq!(
                check_moving(&copy, ADDRESS_OF_PAGE, 8, 10).is_err(),
                word != SEQUENCE,
                "word {word}"
            );
        }
        let other_page = check(&whole, GuestAddress(0x80_4000)).unwrap_err();
        assert_eq!(other_page.word, ADDRESS);
    }

    #[test]
    fn a_page_left_half_written_is_stuck() {
        let map = one_page();
        let page = PageWords::new(&map, PageNumber(0)).unwrap();
        write(page, ADDRESS_OF_PAGE, 4);
        page.store(SEQUENCE, 9);
        let mut copy = [0; PAGE_WORDS];
        let reading = read(page, &mut copy, Deadline::after(Duration::ZERO));
        assert_eq!(reading, Reading::Stuck);
    }

    /// A writer without a break, the worst case: the reader always gets something it can check.
    #[test]
    fn a_reader_beside_a_writer_never_sees_a_fault() {
        let map = one_page();
        let stop = AtomicBool::new(false);
        write(
            PageWords::new(&map, PageNumber(0)).unwrap(),
            ADDRESS_OF_PAGE,
            FIRST_GENERATION,
        );
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let page = PageWords::new(&map, PageNumber(0)).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    rewrite(page, ADDRESS_OF_PAGE);
                }
            });
            let page = PageWords::new(&map, PageNumber(0)).unwrap();
            let mut copy = [0; PAGE_WORDS];
            let mut outcome = Ok(());
            for _ in 0..500 {
                outcome = match read(page, &mut copy, soon()) {
                    Reading::Stable => check(&copy, ADDRESS_OF_PAGE).map(|_| ()),
                    Reading::Moving {
                        first_generation,
                        last_generation,
                    } => check_moving(&copy, ADDRESS_OF_PAGE, first_generation, last_generation),
                    Reading::Stuck => panic!("no copy in 20 s"),
                };
                if outcome.is_err() {
                    break;
                }
            }
            stop.store(true, Ordering::Relaxed);
            outcome.unwrap();
        });
    }
}
