//! What a lane sends in one piece: gathered from several puts, described by one frame.
//!
//! Its data leaves from guest memory, or compressed from a buffer of the batch's own.

use std::ops::Range;

use super::compression::{Codec, Packing};
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
    /// Where compressed data is made and sent from, with room for a head before it and a fence's
    /// header behind; empty in a lane that compresses nothing. Leaves with the segments too.
    frame: Vec<u8>,
    /// How it goes out; `None`: from guest memory.
    packed: Option<Packed>,
}

#[derive(Clone, Copy)]
struct Packed {
    codec: Codec,
    bytes: u32,
}

impl Batch {
    /// A batch of a lane that compresses so.
    pub(super) fn new(memory: MemoryMap, packing: Option<&Packing>) -> Self {
        let frame_bytes = |packing: &Packing| HEAD_BYTES_MAX + packing.room_bytes() + HEADER_BYTES;
        Self {
            head: Vec::with_capacity(HEAD_BYTES_MAX + HEADER_BYTES),
            entries: Vec::with_capacity(RUNS_MAX),
            data_pages: 0,
            end: PageNumber(0),
            segments: Segments::new(memory),
            frame: vec![0; packing.map_or(0, frame_bytes)],
            packed: None,
        }
    }

    /// Pages of data in it.
    pub(super) fn data_pages(&self) -> u64 {
        self.data_pages
    }

    /// Bytes of data in it, uncompressed.
    pub(super) fn data_bytes(&self) -> u64 {
        self.data_pages * PAGE_BYTES
    }

    /// Takes segments that are used up, for their memory.
    pub(super) fn reuse(&mut self, mut segments: Segments) {
        let buffer = segments.take_buffer();
        if self.is_packed() {
            self.frame = buffer;
        } else {
            self.head = buffer;
        }
        self.segments = segments;
    }

    pub(super) fn clear(&mut self) {
        self.head.clear();
        self.entries.clear();
        self.data_pages = 0;
        self.end = PageNumber(0);
        self.segments.clear();
        self.packed = None;
    }

    /// Whether it goes out compressed.
    pub(super) fn is_packed(&self) -> bool {
        self.packed.is_some()
    }

    /// Compresses the data as memory holds it now, where that is worth it.
    pub(super) fn pack(&mut self, packing: &mut Packing) -> Result<(), MemoryError> {
        let data_bytes = u32::try_from(self.data_bytes());
        let bytes = match data_bytes {
            Ok(data_bytes) if data_bytes > 0 => {
                let room = self.frame.get_mut(HEAD_BYTES_MAX..).unwrap_or_default();
                let data = self.entries.iter().filter(|entry| !entry.is_zero);
                packing.pack(data.map(|entry| entry.run), data_bytes, room)?
            }
            _ => None,
        };
        self.packed = bytes.map(|bytes| Packed {
            codec: packing.codec(),
            bytes,
        });
        Ok(())
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
        self.write_head();
        let fence = fence.map(|number| Header::Fence { number }.encode());
        let empty = self.segments.empty();
        let mut segments = std::mem::replace(&mut self.segments, empty);
        if let Some(packed) = self.packed {
            let part = self.write_around(packed, fence);
            segments.set_part(std::mem::take(&mut self.frame), part);
            return segments;
        }
        let mut head = std::mem::take(&mut self.head);
        let front = head.len();
        head.extend(fence.iter().flatten());
        segments.wrap(head, front);
        segments
    }

    /// Makes the header and the table.
    fn write_head(&mut self) {
        self.head.clear();
        if self.entries.is_empty() {
            return;
        }
        let count = self.entries.len() as u16;
        let data_bytes = self.data_bytes();
        let header = match self.packed {
            None => Header::Runs { count, data_bytes },
            Some(packed) => Header::PackedRuns {
                codec: packed.codec,
                count,
                packed_bytes: packed.bytes,
                data_bytes: data_bytes as u32,
            },
        };
        self.head.extend(header.encode());
        for entry in &self.entries {
            entry.encode_into(&mut self.head);
        }
    }

    /// Puts the head right before the compressed data, and the fence right behind it. Returns where
    /// all of it is.
    fn write_around(&mut self, packed: Packed, fence: Option<[u8; HEADER_BYTES]>) -> Range<usize> {
        let mut write = |at: usize, bytes: &[u8]| {
            let room = self.frame.get_mut(at..).unwrap_or_default();
            room.iter_mut()
                .zip(bytes)
                .for_each(|(to, from)| *to = *from);
            at + bytes.len()
        };
        let start = HEAD_BYTES_MAX.saturating_sub(self.head.len());
        write(start, &self.head);
        let end = HEAD_BYTES_MAX + packed.bytes as usize;
        start..fence.map_or(end, |fence| write(end, &fence))
    }
}
