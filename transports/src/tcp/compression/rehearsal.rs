//! What packing and unpacking a batch costs, without a lane: for benchmarks.

use std::io;

use super::{Compression, PACKED_DATA_BYTES_MAX, Packing, Unpacking};
use crate::memory::{MemoryError, MemoryMap, Run};

/// A source's buffers and a destination's, with nothing between them.
pub struct Rehearsal {
    memory: MemoryMap,
    packing: Option<Packing>,
    unpacking: Unpacking,
    packed: Vec<u8>,
}

impl Rehearsal {
    /// Over this memory. `Compression::Auto` packs nothing here, as there is no link.
    ///
    /// # Errors
    ///
    /// When a codec gets no memory.
    pub fn new(compression: Compression, memory: MemoryMap) -> io::Result<Self> {
        let packing = Packing::new(compression, memory.clone(), PACKED_DATA_BYTES_MAX)?;
        Ok(Self {
            memory,
            packed: vec![0; packing.as_ref().map_or(0, Packing::room_bytes)],
            packing,
            unpacking: Unpacking::new()?,
        })
    }

    /// Packs a run, as a lane that sends it does. Returns how many bytes go out; `None` where it
    /// would go out as it is.
    ///
    /// # Errors
    ///
    /// When it is outside of memory.
    pub fn pack(&mut self, run: Run) -> Result<Option<u32>, MemoryError> {
        let Some(packing) = &mut self.packing else {
            return Ok(None);
        };
        let data_bytes = u32::try_from(run.bytes()).unwrap_or(u32::MAX);
        packing.pack(std::iter::once(run), data_bytes, &mut self.packed)
    }

    /// Puts what was packed where unpacking finds it, as a lane receives it.
    pub fn deliver(&mut self, packed_bytes: u32) {
        let mut buffer = self.unpacking.take_buffer();
        let packed = self.packed.iter().take(packed_bytes as usize);
        buffer
            .iter_mut()
            .zip(packed)
            .for_each(|(to, from)| *to = *from);
        self.unpacking.give_buffer(buffer);
    }

    /// Unpacks what was delivered, and copies it into the run, as a lane that receives it does.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it.
    pub fn unpack(&mut self, packed_bytes: u32, run: Run) -> Result<(), String> {
        let Some(packing) = &self.packing else {
            return Ok(());
        };
        self.unpacking
            .unpack(packing.codec(), packed_bytes, run.bytes())?;
        self.memory
            .copy_in(run, self.unpacking.data())
            .map_err(|error| error.to_string())
    }
}
