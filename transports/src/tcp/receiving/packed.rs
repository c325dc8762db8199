//! Compressed frames: received whole, decompressed whole, and only then written.

use std::time::Instant;

use super::ReceivingLane;
use crate::deadline::Deadline;
use crate::lane::LaneError;
use crate::tcp::compression::Codec;
use crate::tcp::stream::Want;
use crate::tcp::wire::Entry;

impl ReceivingLane {
    /// Takes what is behind a compressed frame's table: so many bytes, by this codec, that make
    /// `data_bytes`. Both lengths were checked with the header, and the table against the second.
    pub(super) fn receive_packed(
        &mut self,
        entries: &[Entry],
        data_bytes: u64,
        (codec, packed_bytes): (Codec, u32),
        deadline: Deadline,
    ) -> Result<(), LaneError> {
        self.check_all(entries)?;
        self.receive_into_buffer(packed_bytes, deadline)?;
        self.unpacking
            .unpack(codec, packed_bytes, data_bytes)
            .map_err(|violation| self.protocol(violation))?;
        self.write_zeros(entries, deadline)?;
        self.write_unpacked(entries)
    }

    /// Checks all runs of a frame before anything is done for them.
    fn check_all(&self, entries: &[Entry]) -> Result<(), LaneError> {
        let lane = self.number;
        let runs = entries.iter().map(|entry| entry.run);
        for run in runs.clone() {
            self.memory
                .check(run)
                .map_err(|source| LaneError::Memory { lane, source })?;
        }
        self.gate
            .enter(&self.place, runs)
            .map(|_| ())
            .map_err(|run| LaneError::NotPrepared { lane, run })
    }

    /// Receives compressed data into the lane's own buffer. Its length was checked.
    fn receive_into_buffer(
        &mut self,
        packed_bytes: u32,
        deadline: Deadline,
    ) -> Result<(), LaneError> {
        let begun = Instant::now();
        let buffer = self.unpacking.take_buffer();
        self.segments.set_part(buffer, 0..packed_bytes as usize);
        let copied = self.segments.fill_front(self.staging.ready());
        self.staging.consume(copied);
        let received = if self.segments.bytes() > 0 {
            self.stream.receive(&mut self.segments, Want::All, deadline)
        } else {
            Ok(0)
        };
        self.unpacking.give_buffer(self.segments.take_buffer());
        received
            .map(|_| ())
            .map_err(|error| self.error(error, "receiving compressed pages", begun))
    }

    /// Copies what was decompressed where it belongs.
    fn write_unpacked(&mut self, entries: &[Entry]) -> Result<(), LaneError> {
        let lane = self.number;
        let mut data = self.unpacking.data();
        let runs = entries
            .iter()
            .filter(|entry| !entry.is_zero)
            .map(|entry| entry.run);
        let _permit = self
            .gate
            .enter(&self.place, runs.clone())
            .map_err(|run| LaneError::NotPrepared { lane, run })?;
        for run in runs {
            // All runs together are as long: the table was checked against the header.
            let (piece, rest) = data
                .split_at_checked(run.bytes() as usize)
                .unwrap_or_default();
            self.memory
                .copy_in(run, piece)
                .map_err(|source| LaneError::Memory { lane, source })?;
            data = rest;
            self.counters.runs += 1;
        }
        Ok(())
    }
}
