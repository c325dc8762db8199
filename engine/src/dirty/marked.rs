//! Pages that the VMM itself wrote, marked by the code that writes them.

use std::sync::atomic::{AtomicU64, Ordering};

use dunlin_transports::memory::{PageNumber, Run};

use super::{DirtyBitmap, DirtySource};
use crate::guest::GuestError;
use crate::runs::words_of;

/// The VMM's own writes to guest memory: device emulation marks each page *after* writing it.
///
/// Marking is always on (one atomic OR), so nothing is lost between a write and `start`.
#[derive(Debug)]
pub struct MarkedPages {
    words: Vec<AtomicU64>,
    /// A bit for each of the words. Where it is clear, no mark in its word is older than the last
    /// collection: a few marks in a large guest are collected in the time of those few.
    marked: Vec<AtomicU64>,
}

impl MarkedPages {
    /// No pages marked, for `page_span` pages.
    pub fn new(page_span: u64) -> Self {
        let words = usize::try_from(page_span.div_ceil(64)).unwrap_or(usize::MAX);
        let clear = |words| {
            let words = std::iter::repeat_with(|| AtomicU64::new(0)).take(words);
            words.collect()
        };
        Self {
            words: clear(words),
            marked: clear(words.div_ceil(64)),
        }
    }

    /// Marks a page as written. The write must be done before.
    pub fn mark(&self, page: PageNumber) {
        let index = (page.0 / 64) as usize;
        let words = (self.words.get(index), self.marked.get(index / 64));
        if let (Some(word), Some(marked)) = words {
            // Release: whoever takes the bit sees the bytes that were written before it was set;
            // and whoever takes the bit above it, which is set last, sees the bit.
            word.fetch_or(1 << (page.0 % 64), Ordering::Release);
            marked.fetch_or(1 << (index % 64), Ordering::Release);
        }
    }

    /// Marks each page of a run.
    pub fn mark_run(&self, run: Run) {
        for (index, bits) in words_of(run) {
            if let Some(word) = self.words.get(index) {
                // As in `mark`.
                word.fetch_or(bits, Ordering::Release);
            }
        }
    }
}

impl DirtySource for MarkedPages {
    fn name(&self) -> &'static str {
        "vmm"
    }

    fn start(&self) -> Result<(), GuestError> {
        Ok(())
    }

    fn collect(&self, into: &mut DirtyBitmap) -> Result<(), GuestError> {
        for (upper, marked) in self.marked.iter().enumerate() {
            if marked.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut left = marked.swap(0, Ordering::Acquire);
            while left != 0 {
                let index = upper * 64 + left.trailing_zeros() as usize;
                left &= left - 1;
                if let Some(word) = self.words.get(index) {
                    into.add_words(index, &[word.swap(0, Ordering::Acquire)]);
                }
            }
        }
        Ok(())
    }

    fn rearms_on_collect(&self) -> bool {
        true
    }

    fn rearm(&self, _first: PageNumber, _words: &[u64]) -> Result<(), GuestError> {
        Ok(())
    }

    fn stop(&self) -> Result<(), GuestError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_collected_once() {
        let marked = MarkedPages::new(130);
        marked.mark(PageNumber(129));
        marked.mark(PageNumber(5_000));
        let mut bitmap = DirtyBitmap::new(130);
        marked.collect(&mut bitmap).unwrap();
        assert_eq!(bitmap.pages().collect::<Vec<_>>(), vec![PageNumber(129)]);
        bitmap.clear();
        marked.collect(&mut bitmap).unwrap();
        assert_eq!(bitmap.count(), 0);
    }
}
