//! A bit for each page of a layout.

use dunlin_transports::memory::PageNumber;

/// A bit for each page of a layout, in words of 64. Regions start at word borders.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirtyBitmap {
    words: Vec<u64>,
}

impl DirtyBitmap {
    /// An empty bitmap for `page_span` pages (see [`crate::layout::Layout::page_span`]).
    pub fn new(page_span: u64) -> Self {
        let words = usize::try_from(page_span.div_ceil(64)).unwrap_or(usize::MAX);
        Self {
            words: vec![0; words],
        }
    }

    /// The words; bit `b` of word `w` is page `64 w + b`.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// The words, to set bits in. Bits that are no page of the layout must stay clear.
    pub fn words_mut(&mut self) -> &mut [u64] {
        &mut self.words
    }

    /// Sets a page's bit; a page past the end is ignored.
    pub fn set(&mut self, page: PageNumber) {
        if let Some(word) = self.words.get_mut((page.0 / 64) as usize) {
            *word |= 1 << (page.0 % 64);
        }
    }

    /// Sets the bits of `pages` pages from `first` on; those past the end are ignored.
    pub fn set_range(&mut self, first: PageNumber, pages: u64) {
        let end = first
            .0
            .saturating_add(pages)
            .min(self.words.len() as u64 * 64);
        let mut page = first.0;
        while page < end {
            let in_word = page % 64;
            let count = (64 - in_word).min(end - page);
            let mask = (u64::MAX >> (64 - count)) << in_word;
            if let Some(word) = self.words.get_mut((page / 64) as usize) {
                *word |= mask;
            }
            page += count;
        }
    }

    /// Whether a page's bit is set.
    pub fn get(&self, page: PageNumber) -> bool {
        self.words
            .get((page.0 / 64) as usize)
            .is_some_and(|word| word >> (page.0 % 64) & 1 == 1)
    }

    /// How many bits are set.
    pub fn count(&self) -> u64 {
        self.words
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .sum()
    }

    /// Clears every bit.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Sets every bit that is set in `other`.
    pub fn union(&mut self, other: &Self) {
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
    }

    /// The set pages, in ascending order.
    pub fn pages(&self) -> impl Iterator<Item = PageNumber> + '_ {
        self.words.iter().enumerate().flat_map(|(index, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| u64::from(left.trailing_zeros()))?;
                left &= left - 1;
                Some(PageNumber(index as u64 * 64 + bit))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_range_sets_exactly_its_pages(first in 0_u64..400, pages in 0_u64..400) {
            let mut bitmap = DirtyBitmap::new(320);
            bitmap.set_range(PageNumber(first), pages);
            for page in 0..500 {
                let expected = page >= first && page < first + pages && page < 320;
                prop_assert_eq!(bitmap.get(PageNumber(page)), expected, "page {}", page);
            }
            let listed: Vec<u64> = bitmap.pages().map(|page| page.0).collect();
            prop_assert_eq!(listed.len() as u64, bitmap.count());
            prop_assert!(listed.is_sorted());
        }
    }
}
