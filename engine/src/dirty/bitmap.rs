//! A bit for each page of a layout, and a bit above each [`GROUP_WORDS`] words of them.
//!
//! The upper bits are why counting, clearing and sharing out a few pages of a large guest take the
//! time of those pages: at 512 GiB the lower bits are 16 MiB, the upper ones 32 KiB.

use dunlin_transports::memory::PageNumber;

/// How many words have one bit above them: a cache line of them, and a chunk's.
const GROUP_WORDS: usize = 8;

/// A bit for each page of a layout, in words of 64. Regions start at word borders.
#[derive(Clone, Debug, Default)]
pub struct DirtyBitmap {
    words: Vec<u64>,
    /// A bit for each group of words. Where it is clear, so are they.
    groups: Vec<u64>,
}

impl PartialEq for DirtyBitmap {
    fn eq(&self, other: &Self) -> bool {
        self.words == other.words
    }
}

impl Eq for DirtyBitmap {}

impl DirtyBitmap {
    /// An empty bitmap for `page_span` pages (see [`crate::layout::Layout::page_span`]).
    pub fn new(page_span: u64) -> Self {
        let words = usize::try_from(page_span.div_ceil(64)).unwrap_or(usize::MAX);
        Self {
            words: vec![0; words],
            groups: vec![0; words.div_ceil(GROUP_WORDS).div_ceil(64)],
        }
    }

    /// The words; bit `b` of word `w` is page `64 w + b`.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// The words, to set bits in. Bits that are no page of the layout must stay clear. Behind this
    /// every word counts as one that may have bits: [`DirtyBitmap::add_words`] is for large ones.
    pub fn words_mut(&mut self) -> &mut [u64] {
        self.groups.fill(u64::MAX);
        &mut self.words
    }

    /// Sets the bits that are set in `words`, of which the first stands for word `first`; those past
    /// the end are ignored.
    pub fn add_words(&mut self, first: usize, words: &[u64]) {
        let mut first = first;
        let mut rest = words;
        while !rest.is_empty() {
            // Up to a group's end, so that one test passes over a clean group.
            let (piece, behind) = rest.split_at(rest.len().min(GROUP_WORDS - first % GROUP_WORDS));
            if piece.iter().fold(0, |all, word| all | word) != 0 {
                let own = self.words.get_mut(first..).unwrap_or_default();
                own.iter_mut()
                    .zip(piece)
                    .for_each(|(own, word)| *own |= word);
                self.note(first);
            }
            first += piece.len();
            rest = behind;
        }
    }

    /// Sets a page's bit; a page past the end is ignored.
    pub fn set(&mut self, page: PageNumber) {
        let index = (page.0 / 64) as usize;
        if let Some(word) = self.words.get_mut(index) {
            *word |= 1 << (page.0 % 64);
            self.note(index);
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
            let index = (page / 64) as usize;
            if let Some(word) = self.words.get_mut(index) {
                *word |= mask;
                self.note(index);
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
        let words = self.set_groups().flat_map(|(_, words)| words);
        words.map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether no bit is set.
    pub fn is_empty(&self) -> bool {
        self.set_words().next().is_none()
    }

    /// Clears every bit.
    pub fn clear(&mut self) {
        for (index, bits) in self.groups.iter_mut().enumerate() {
            for group in bits_of(std::mem::take(bits)) {
                let first = (index * 64 + group) * GROUP_WORDS;
                let words = self.words.get_mut(first..).unwrap_or_default();
                words
                    .iter_mut()
                    .take(GROUP_WORDS)
                    .for_each(|word| *word = 0);
            }
        }
    }

    /// Sets every bit that is set in `other`.
    pub fn union(&mut self, other: &Self) {
        for (index, more) in other.set_words() {
            if let Some(word) = self.words.get_mut(index) {
                *word |= more;
                self.note(index);
            }
        }
    }

    /// The words that have bits set, each with its index, in ascending order.
    pub fn set_words(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.set_groups()
            .flat_map(|(first, words)| (first..).zip(words.iter().copied()))
            .filter(|(_, word)| *word != 0)
    }

    /// The groups that may have bits set: the index of the first word, and the words.
    fn set_groups(&self) -> impl Iterator<Item = (usize, &[u64])> + '_ {
        let groups = self.groups.iter().enumerate();
        let groups =
            groups.flat_map(|(index, bits)| bits_of(*bits).map(move |group| index * 64 + group));
        groups.map(|group| {
            let first = group * GROUP_WORDS;
            let words = self.words.get(first..).unwrap_or_default();
            (first, words.get(..GROUP_WORDS).unwrap_or(words))
        })
    }

    /// The set pages, in ascending order.
    pub fn pages(&self) -> impl Iterator<Item = PageNumber> + '_ {
        let pages = |(index, word): (usize, u64)| {
            bits_of(word).map(move |bit| PageNumber(index as u64 * 64 + bit as u64))
        };
        self.set_words().flat_map(pages)
    }

    /// Word `index` may have bits.
    fn note(&mut self, index: usize) {
        let group = index / GROUP_WORDS;
        if let Some(bits) = self.groups.get_mut(group / 64) {
            *bits |= 1 << (group % 64);
        }
    }
}

/// The set bits' numbers, in ascending order.
fn bits_of(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros() as usize)?;
        word &= word - 1;
        Some(bit)
    })
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

        #[test]
        fn what_is_passed_over_is_clean(
            lists in proptest::collection::vec(
                (0_usize..120, proptest::collection::vec(
                    prop_oneof![3 => Just(0_u64), 1 => proptest::num::u64::ANY], 0..60)),
                0..5),
        ) {
            let mut bitmap = DirtyBitmap::new(100 * 64);
            let mut expected = [0_u64; 100];
            for (first, words) in &lists {
                bitmap.add_words(*first, words);
                for (own, word) in expected.iter_mut().skip(*first).zip(words) {
                    *own |= word;
                }
            }
            prop_assert_eq!(bitmap.words(), expected);
            let ones: u64 = expected.iter().map(|word| u64::from(word.count_ones())).sum();
            prop_assert_eq!(bitmap.count(), ones);
            prop_assert_eq!(bitmap.is_empty(), ones == 0);
            let words = expected.iter().copied().enumerate();
            let set: Vec<_> = words.filter(|(_, word)| *word != 0).collect();
            prop_assert_eq!(bitmap.set_words().collect::<Vec<_>>(), set);
            let mut other = DirtyBitmap::new(100 * 64);
            other.words_mut().copy_from_slice(&expected);
            prop_assert_eq!(&other, &bitmap);
            prop_assert_eq!(other.count(), ones);
            let mut both = DirtyBitmap::new(100 * 64);
            both.union(&other);
            prop_assert_eq!(both.count(), ones);
            bitmap.clear();
            prop_assert_eq!(bitmap.words(), [0; 100]);
            prop_assert_eq!(bitmap.count(), 0);
        }
    }
}
