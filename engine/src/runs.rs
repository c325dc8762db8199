//! From dirty bits to runs: which consecutive pages are sent as one piece.

use dunlin_transports::memory::{PageNumber, Run};

/// Calls `found` for each run of set bits, in ascending order: bit `b` of word `w` stands for page
/// `first + 64 w + b`, as in [`crate::dirty::DirtySource::rearm`].
///
/// Runs join across words, and are cut at `run_pages_max` pages (of at least one). The caller
/// passes words of one region, so no run crosses from one region into the next.
pub fn for_each_run(
    first: PageNumber,
    words: &[u64],
    run_pages_max: u32,
    mut found: impl FnMut(Run),
) {
    let mut pending = Pending {
        first: first.0,
        pages: 0,
        run_pages_max: run_pages_max.max(1),
    };
    let mut base = first.0;
    for &word in words {
        match word {
            0 => pending.flush(&mut found),
            u64::MAX => pending.extend(base, 64),
            _ => {
                let mut left = word;
                let mut page = base;
                while left != 0 {
                    let clear = left.trailing_zeros();
                    if clear > 0 {
                        pending.flush(&mut found);
                    }
                    left >>= clear;
                    // Below 64, or the word would have been full.
                    let set = left.trailing_ones();
                    left >>= set;
                    pending.extend(page + u64::from(clear), u64::from(set));
                    page += u64::from(clear + set);
                }
                if page < base + 64 {
                    pending.flush(&mut found);
                }
            }
        }
        base += 64;
    }
    pending.flush(&mut found);
}

/// A run's bits in a bitmap of the whole layout: for each word that has some, its index and the bits.
pub fn words_of(run: Run) -> impl Iterator<Item = (usize, u64)> {
    let end = run.end().0;
    let mut page = run.first.0;
    std::iter::from_fn(move || {
        if page >= end {
            return None;
        }
        let in_word = page % 64;
        let count = (64 - in_word).min(end - page);
        let word = (page / 64) as usize;
        page += count;
        Some((word, (u64::MAX >> (64 - count)) << in_word))
    })
}

/// Sets the bits of `run` in words whose first bit is page `first`, a multiple of 64.
pub(crate) fn set_bits(words: &mut [u64], first: PageNumber, run: Run) {
    for_each_word(words, first, run, |word, bits| *word |= bits);
}

/// Clears the bits of `run` in such words.
pub(crate) fn clear_bits(words: &mut [u64], first: PageNumber, run: Run) {
    for_each_word(words, first, run, |word, bits| *word &= !bits);
}

fn for_each_word(
    words: &mut [u64],
    first: PageNumber,
    run: Run,
    mut change: impl FnMut(&mut u64, u64),
) {
    for (index, bits) in words_of(run) {
        let word = index
            .checked_sub((first.0 / 64) as usize)
            .and_then(|index| words.get_mut(index));
        if let Some(word) = word {
            change(word, bits);
        }
    }
}

/// The set bits just passed, which may go on in the next word.
struct Pending {
    first: u64,
    pages: u64,
    run_pages_max: u32,
}

impl Pending {
    #[inline]
    fn extend(&mut self, first: u64, pages: u64) {
        if self.pages == 0 {
            self.first = first;
        }
        self.pages += pages;
    }

    #[inline]
    fn flush(&mut self, found: &mut impl FnMut(Run)) {
        while self.pages > 0 {
            let pages = u32::try_from(self.pages)
                .unwrap_or(u32::MAX)
                .min(self.run_pages_max);
            found(Run {
                first: PageNumber(self.first),
                pages,
            });
            self.first += u64::from(pages);
            self.pages -= u64::from(pages);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn runs(first: u64, words: &[u64], run_pages_max: u32) -> Vec<(u64, u32)> {
        let mut runs = Vec::new();
        for_each_run(PageNumber(first), words, run_pages_max, |run| {
            runs.push((run.first.0, run.pages));
        });
        runs
    }

    /// Bit by bit.
    fn runs_naive(first: u64, words: &[u64], run_pages_max: u32) -> Vec<(u64, u32)> {
        let mut runs: Vec<(u64, u32)> = Vec::new();
        for bit in 0..words.len() * 64 {
            if words[bit / 64] >> (bit % 64) & 1 == 0 {
                continue;
            }
            let page = first + bit as u64;
            match runs.last_mut() {
                Some((start, pages))
                    if *start + u64::from(*pages) == page && *pages < run_pages_max =>
                {
                    *pages += 1;
                }
                _ => runs.push((page, 1)),
            }
        }
        runs
    }

    #[test]
    fn runs_join_across_words_and_are_cut_at_the_longest() {
        let words = [1 << 63, u64::MAX, 0b1011, 0, 1];
        assert_eq!(runs(128, &words, u32::MAX), [(191, 67), (259, 1), (384, 1)]);
        assert_eq!(
            runs(128, &words, 64),
            [(191, 64), (255, 3), (259, 1), (384, 1)]
        );
        assert_eq!(runs(0, &[0b11], 0), [(0, 1), (1, 1)]);
        assert_eq!(runs(0, &[], 8), []);
    }

    fn word() -> impl Strategy<Value = u64> {
        prop_oneof![
            2 => Just(0),
            2 => Just(u64::MAX),
            2 => any::<u64>(),
            1 => (0_u32..64).prop_map(|shift| u64::MAX << shift),
            1 => (0_u32..64).prop_map(|shift| u64::MAX >> shift),
        ]
    }

    proptest! {
        #[test]
        fn a_runs_words_hold_its_bits_and_no_others(first in 0_u64..300, pages in 1_u32..300) {
            let run = Run { first: PageNumber(first), pages };
            let mut words = [0_u64; 10];
            for (word, bits) in words_of(run) {
                prop_assert_eq!(words[word], 0);
                prop_assert_ne!(bits, 0);
                words[word] = bits;
            }
            for page in 0..words.len() as u64 * 64 {
                let is_set = words[(page / 64) as usize] >> (page % 64) & 1 == 1;
                prop_assert_eq!(is_set, (first..run.end().0).contains(&page), "page {}", page);
            }
        }

        #[test]
        fn as_bit_by_bit(
            block in 0_u64..1000,
            words in proptest::collection::vec(word(), 0..40),
            run_pages_max in prop_oneof![1_u32..200, Just(u32::MAX)],
        ) {
            let first = block * 64;
            prop_assert_eq!(
                runs(first, &words, run_pages_max),
                runs_naive(first, &words, run_pages_max)
            );
        }
    }
}
