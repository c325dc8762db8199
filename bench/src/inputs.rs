//! What the benchmarks are given: guests' layouts, bitmaps with a known pattern, contents of pages.
//! All of it is made from a fixed seed, so that two builds are given the same work.

use std::io;
use std::sync::Arc;

use dunlin_engine::dirty::DirtyBitmap;
use dunlin_engine::layout::{Backing, GuestAddress, Layout, LayoutError, RegionShape};
use dunlin_transports::memory::{HostMapping, MemoryMap, OwnedMapping, PAGE_BYTES};

/// The layout of a guest with one region of `bytes` bytes.
///
/// # Errors
///
/// When `bytes` is no layout's size.
pub fn one_region(bytes: u64) -> Result<Layout, LayoutError> {
    let region = RegionShape {
        address: GuestAddress(0),
        bytes,
        backing: Backing::Memfd,
        backing_page_bytes: PAGE_BYTES,
    };
    Layout::new(1, vec![region])
}

/// Fresh memory of so many pages, in one region.
///
/// # Errors
///
/// When the system has none.
pub fn fresh_memory(pages: u32) -> io::Result<MemoryMap> {
    let mapping = OwnedMapping::new(u64::from(pages) * PAGE_BYTES)?;
    let mapping: Arc<dyn HostMapping> = Arc::new(mapping);
    MemoryMap::new(vec![mapping]).map_err(io::Error::other)
}

/// How the dirty pages of a bitmap lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// None is dirty.
    Clean,
    /// All are.
    Full,
    /// One in a hundred, anywhere: the pages of a guest that writes at random.
    OnePercent,
}

impl Pattern {
    /// Every pattern.
    pub const ALL: [Self; 3] = [Self::Clean, Self::Full, Self::OnePercent];

    /// Its name in the results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Full => "full",
            Self::OnePercent => "1%",
        }
    }

    /// A bitmap of `layout` with this pattern.
    pub fn bitmap(self, layout: &Layout) -> DirtyBitmap {
        let mut bitmap = DirtyBitmap::new(layout.page_span());
        let mut random = SplitMix(1);
        for word in bitmap.words_mut() {
            *word = match self {
                Self::Clean => 0,
                Self::Full => u64::MAX,
                Self::OnePercent => (0..64)
                    .filter(|_| random.next_u64().is_multiple_of(100))
                    .fold(0, |word, bit| word | 1 << bit),
            };
        }
        bitmap
    }
}

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
pub struct SplitMix(pub u64);

impl SplitMix {
    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// What is on pages, for what is to be compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Mostly zero, with 32 small numbers on each page: what sparse tables look like. (Pages that
    /// are all zero are not sent.)
    Sparse,
    /// Words of a vocabulary of 2,000, the common ones more often.
    Text,
    /// Random bytes.
    Random,
}

impl Contents {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Sparse, Self::Text, Self::Random];

    /// Its name in the results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sparse => "sparse",
            Self::Text => "text",
            Self::Random => "random",
        }
    }

    /// So many bytes of it; other ones for another seed.
    pub fn bytes(self, bytes: usize, seed: u64) -> Vec<u8> {
        let mut random = SplitMix(seed);
        let mut made = Vec::with_capacity(bytes + 16);
        while made.len() < bytes {
            match self {
                Self::Sparse => {
                    let mut words = [0; 512];
                    for _ in 0..32 {
                        let at = random.next_u64() as usize % words.len();
                        words[at] = random.next_u64() >> 32;
                    }
                    made.extend(words.into_iter().flat_map(u64::to_le_bytes));
                }
                Self::Text => {
                    // The product of two is small more often than large.
                    let drawn = random.next_u64();
                    let number = (drawn >> 32) % 2000 * (drawn % 2000) / 2000;
                    let mut word = SplitMix(number);
                    let letters = 2 + word.next_u64() % 9;
                    let letter = |_| b'a' + (word.next_u64() % 26) as u8;
                    made.extend((0..letters).map(letter));
                    made.push(b' ');
                }
                Self::Random => made.extend(random.next_u64().to_le_bytes()),
            }
        }
        made.truncate(bytes);
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_as_long_as_asked_for_and_differ_by_seed() {
        for contents in Contents::ALL {
            let bytes = contents.bytes(10_000, 1);
            assert_eq!(bytes.len(), 10_000);
            assert_eq!(bytes, contents.bytes(10_000, 1));
            assert_ne!(bytes, contents.bytes(10_000, 2));
        }
    }

    #[test]
    fn patterns_are_what_their_names_say() {
        let layout = one_region(64 << 20).unwrap();
        let share =
            |pattern: Pattern| pattern.bitmap(&layout).count() as f64 / layout.pages() as f64;
        assert_eq!(share(Pattern::Clean), 0.0);
        assert_eq!(share(Pattern::Full), 1.0);
        assert!((0.008..0.012).contains(&share(Pattern::OnePercent)));
    }
}
