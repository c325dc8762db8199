//! What a lane sends in one piece: gathered from several puts, described by one frame.

use super::stream::Segments;
use super::wire::{Entry, HEAD_BYTES_MAX, HEADER_BYTES, Header, RUNS_MAX};
use crate::memory::{PAGE_BYTES, PageNumber, Run};

/// One frame of runs, and perhaps a fence behind it, on their way out.
pub(super) struct Batch {
    /// The header, the table, and behind them the fence's header: never more than its capacity, so
    /// that it stays where it is while the kernel reads it.
    head: Vec<u8>,
    entries: Vec<Entry>,
    data_pages: u64,
    /// The highest page behind an entry: a run from there on overlaps none.
    end: PageNumber,
    /// The head's place, then the data.
    segments: Segments,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            head: Vec::with_capacity(HEAD_BYTES_MAX + HEADER_BYTES),
            entries: Vec::with_capacity(RUNS_MAX),
            data_pages: 0,
            end: PageNumber(0),
            segments: Segments::default(),
        }
    }

    /// Pages of data in it.
    pub(super) fn data_pages(&self) -> u64 {
        self.data_pages
    }

    /// Takes segments that are used up, for their memory.
    pub(super) fn reuse(&mut self, segments: Segments) {
        self.segments = segments;
        self.segments.clear();
    }

    pub(super) fn clear(&mut self) {
        self.head.clear();
        self.entries.clear();
        self.data_pages = 0;
        self.end = PageNumber(0);
        self.segments.clear();
    }

    pub(super) fn is_full(&self, batch_pages: u64) -> bool {
        self.entries.len() == RUNS_MAX || self.data_pages >= batch_pages
    }

    pub(super) fn overlaps(&self, run: Run) -> bool {
        // Runs mostly come in ascending order, so the search is rare.
        run.first < self.end
            && self
                .entries
                .iter()
                .any(|entry| entry.run.first < run.end() && run.first < entry.run.end())
    }

    /// Adds a run; `data` is where its bytes are, or `None` for a run of zeros.
    pub(super) fn add(&mut self, run: Run, data: Option<*mut u8>) {
        if self.entries.is_empty() {
            self.segments.push(std::ptr::null_mut(), 0);
        }
        self.entries.push(Entry {
            run,
            is_zero: data.is_none(),
        });
        self.end = self.end.max(run.end());
        if let Some(base) = data {
            self.segments.push(base, run.bytes() as usize);
            self.data_pages += u64::from(run.pages);
        }
    }

    /// Writes the headers and gives the segments to send; `fence` goes behind the data.
    pub(super) fn close(&mut self, fence: Option<u64>) -> Segments {
        if !self.entries.is_empty() {
            let header = Header::Runs {
                count: self.entries.len() as u16,
                data_bytes: self.data_pages * PAGE_BYTES,
            };
            self.head.extend(header.encode());
            for entry in &self.entries {
                entry.encode_into(&mut self.head);
            }
            self.segments
                .set_first(self.head.as_mut_ptr(), self.head.len());
        }
        if let Some(number) = fence {
            let at = self.head.len();
            self.head.extend(Header::Fence { number }.encode());
            let base = self.head.as_mut_ptr().wrapping_add(at);
            self.segments.push(base, HEADER_BYTES);
        }
        std::mem::take(&mut self.segments)
    }
}
