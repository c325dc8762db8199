//! What it costs to make a batch's frame and to read it, without a lane: for benchmarks.

use super::batch::Batch;
use super::wire::{Entry, Header, RUN_BYTES, decode_table};
use crate::memory::{MemoryError, MemoryMap, Run};

/// A source's batch and a destination's table, with nothing between them.
pub struct Framing {
    batch: Batch,
    head: Vec<u8>,
    entries: Vec<Entry>,
}

impl Framing {
    /// Over this memory.
    pub fn new(memory: MemoryMap) -> Self {
        Self {
            batch: Batch::new(memory, None),
            head: Vec::new(),
            entries: Vec::new(),
        }
    }

    /// Gathers runs, at most 512 of them, into a batch and makes its frame, as a lane that sends
    /// them does. `is_zero`: they read as zero. Returns how many bytes go out.
    ///
    /// # Errors
    ///
    /// When a run is outside of memory.
    pub fn encode(&mut self, runs: &[Run], is_zero: bool) -> Result<usize, MemoryError> {
        self.batch.clear();
        for run in runs {
            self.batch.add(*run, is_zero)?;
        }
        let segments = self.batch.close(None);
        let bytes = segments.bytes();
        self.batch.reuse(segments);
        Ok(bytes)
    }

    /// The same, and puts the frame's head where [`decode`](Self::decode) finds it.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode).
    pub fn deliver(&mut self, runs: &[Run], is_zero: bool) -> Result<(), MemoryError> {
        self.encode(runs, is_zero)?;
        self.head = self.batch.close(None).take_buffer();
        Ok(())
    }

    /// Reads the head of the frame that was delivered and checks it, as a lane that receives it
    /// does. Returns how many runs it has.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it.
    pub fn decode(&mut self) -> Result<usize, String> {
        let nothing = || "there is no frame".to_owned();
        let (header, table) = self.head.split_first_chunk().ok_or_else(nothing)?;
        let Header::Runs { count, data_bytes } = Header::decode(header)? else {
            return Err("it has no runs".to_owned());
        };
        let table = table.get(..usize::from(count) * RUN_BYTES);
        decode_table(table.ok_or_else(nothing)?, data_bytes, &mut self.entries)?;
        Ok(self.entries.len())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::wire::HEADER_BYTES;
    use super::*;
    use crate::memory::{HostMapping, OwnedMapping, PAGE_BYTES, PageNumber};

    #[test]
    fn what_was_delivered_is_read() {
        let mapping: Arc<dyn HostMapping> = Arc::new(OwnedMapping::new(64 * PAGE_BYTES).unwrap());
        let mut framing = Framing::new(MemoryMap::new(vec![mapping]).unwrap());
        assert!(framing.decode().is_err());
        let runs = [3, 9, 40].map(|first| Run {
            first: PageNumber(first),
            pages: 2,
        });
        for (is_zero, data_pages) in [(false, 6), (true, 0)] {
            let head_bytes = HEADER_BYTES + 3 * RUN_BYTES;
            let bytes = head_bytes + data_pages * PAGE_BYTES as usize;
            assert_eq!(framing.encode(&runs, is_zero), Ok(bytes));
            framing.deliver(&runs, is_zero).unwrap();
            assert_eq!(framing.decode(), Ok(3));
        }
    }
}
