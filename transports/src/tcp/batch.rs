//! What a lane sends in one piece: gathered from several puts, described by one frame.

use super::stream::Segments;
use super::wire::{Entry, HEAD_BYTES_MAX, HEADER_BYTES, Header, RUNS_MAX};
use crate::memory::{MemoryError, MemoryMap, PAGE_BYTES, PageNumber, Run};

/// One frame of runs, and perhaps a fence behind it, on their way out.
pub(super) struct Batch {
    /// Room for the header, the table, and the fence's header; leaves with the segments.
    head: Vec<u8>,
    entries: Vec<Entry>,
    data_pages: u64,
    /// The highest page behind an entry: a run from there on overlaps none.
    end: PageNumber,
    /// The data.
    segments: Segments,
}

impl Batch {
    pub(super) fn new(memory: MemoryMap) -> Self {
        Self {
            head: Vec::with_capacity(HEAD_BYTES_MAX + HEADER_BYTES),
            entries: Vec::with_capacity(RUNS_MAX),
            data_pages: 0,
            end: PageNumber(0),
            segments: Segments::new(memory),
        }
    }

    /// Pages of data in it.
    pub(super) fn data_pages(&self) -> u64 {
        self.data_pages
    }

    /// Takes segments that are used up, for their memory.
    pub(super) fn reuse(&mut self, mut segments: Segments) {
        self.head = segments.take_buffer();
        self.head.clear();
        self.segments = segments;
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

    /// Adds a run: of zeros, or of the bytes that memory has when they leave.
    pub(super) fn add(&mut self, run: Run, is_zero: bool) -> Result<(), MemoryError> {
        if !is_zero {
            self.segments.push_run(run)?;
            self.data_pages += u64::from(run.pages);
        }
        self.entries.push(Entry { run, is_zero });
        self.end = self.end.max(run.end());
        Ok(())
    }

    /// Writes the headers and gives the segments to send; `fence` goes behind the data.
    pub(super) fn close(&mut self, fence: Option<u64>) -> Segments {
        let mut head = std::mem::take(&mut self.head);
        if !self.entries.is_empty() {
            let header = Header::Runs {
                count: self.entries.len() as u16,
                data_bytes: self.data_pages * PAGE_BYTES,
            };
            head.extend(header.encode());
            for entry in &self.entries {
                entry.encode_into(&mut head);
            }
        }
        let front = head.len();
        if let Some(number) = fence {
            head.extend(Header::Fence { number }.encode());
        }
        let empty = self.segments.empty();
        let mut segments = std::mem::replace(&mut self.segments, empty);
        segments.wrap(head, front);
        segments
    }
}
