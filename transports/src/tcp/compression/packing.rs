//! The source's side of compression: a private copy of a batch, and the same compressed.
//!
//! The guest writes its memory while a lane works, and a compressor that reads a byte twice may
//! read two values: its output would be garbage. So it never sees guest memory. A batch is copied
//! once into a buffer of the lane's own, which may hold a mix of old and new bytes as a page on the
//! wire may, and the copy is compressed. What the guest wrote meanwhile is sent in the next round.
//!
//! All buffers are made when the lane opens. A batch that a codec can't make small, or fails at,
//! goes out as if there were none.

use std::io;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use rustix::time::{ClockId, clock_gettime};
use zstd_safe::{CCtx, CParameter};

use super::worth::{Meter, Trial, Worth};
use super::{Codec, Compression, ZstdLevel};
use crate::memory::{MemoryError, MemoryMap, Run};
use crate::tcp::socket;

/// What a batch has to shrink below, in tenths. For less than a tenth saved, a link that is slow
/// enough to want it gains less than the destination spends.
const WORTHWHILE_TENTHS: u32 = 9;

/// A lane's compression.
pub(in crate::tcp) struct Packing {
    memory: MemoryMap,
    copy: Vec<u8>,
    coder: Coder,
    room_bytes: usize,
    /// Whether to; `None`: always.
    judge: Option<Judge>,
    spent: Duration,
}

enum Coder {
    Lz4(CompressTable),
    Zstd(CCtx<'static>),
}

/// The logic of `Auto`, and what it is told.
#[derive(Default)]
struct Judge {
    worth: Worth,
    meter: Meter,
}

impl Packing {
    /// For a lane whose batches have at most `batch_bytes` bytes of data; `None` where nothing is to
    /// be compressed.
    ///
    /// # Errors
    ///
    /// When the codec gets no memory.
    pub(in crate::tcp) fn new(
        compression: Compression,
        memory: MemoryMap,
        batch_bytes: u32,
    ) -> io::Result<Option<Self>> {
        let batch_bytes = batch_bytes as usize;
        let coder = match compression {
            Compression::Off => return Ok(None),
            Compression::Lz4 | Compression::Auto => Coder::Lz4(CompressTable::large()),
            Compression::Zstd { level } => Coder::Zstd(zstd(level)?),
        };
        let mut packing = Self {
            memory,
            copy: vec![0; batch_bytes],
            // LZ4 wants room for the worst case; zstd is content with less, and fails there.
            room_bytes: get_maximum_output_size(batch_bytes),
            coder,
            judge: (compression == Compression::Auto).then(Judge::default),
            spent: Duration::ZERO,
        };
        packing.warm_up()?;
        Ok(Some(packing))
    }

    /// Compresses a whole batch once, so that the codec has all its memory from then on.
    fn warm_up(&mut self) -> io::Result<()> {
        let Coder::Zstd(context) = &mut self.coder else {
            return Ok(());
        };
        let mut room = vec![0; self.room_bytes];
        match context.compress2(room.as_mut_slice(), &self.copy) {
            Ok(_) => Ok(()),
            Err(code) => Err(zstd_error(code)),
        }
    }

    /// How many bytes [`Packing::pack`] wants for its output.
    pub(in crate::tcp) fn room_bytes(&self) -> usize {
        self.room_bytes
    }

    /// What it sends.
    pub(in crate::tcp) fn codec(&self) -> Codec {
        match self.coder {
            Coder::Lz4(_) => Codec::Lz4,
            Coder::Zstd(_) => Codec::Zstd,
        }
    }

    /// Copies the runs, `data_bytes` in all, and compresses them into `room`. Returns how many bytes
    /// they take there; `None` where the batch should go out as it is.
    ///
    /// # Errors
    ///
    /// When a run is outside of memory.
    pub(in crate::tcp) fn pack(
        &mut self,
        runs: impl Iterator<Item = Run>,
        data_bytes: u32,
        room: &mut [u8],
    ) -> Result<Option<u32>, MemoryError> {
        let begun = Instant::now();
        if let Some(judge) = &self.judge
            && !judge.worth.wants_next(begun)
        {
            return Ok(None);
        }
        let processor_begun = processor_time();
        let Some(copy) = self.copy.get_mut(..data_bytes as usize) else {
            return Ok(None);
        };
        let mut rest = &mut *copy;
        for run in runs {
            let Some((piece, others)) = rest.split_at_mut_checked(run.bytes() as usize) else {
                return Ok(None);
            };
            self.memory.copy_out(run, piece)?;
            rest = others;
        }
        if !rest.is_empty() {
            return Ok(None);
        }
        let limit = data_bytes / 10 * WORTHWHILE_TENTHS;
        let packed_bytes = self
            .coder
            .compress(copy, room, limit as usize)
            .and_then(|bytes| u32::try_from(bytes).ok())
            .filter(|bytes| *bytes < limit);
        let wall = begun.elapsed();
        self.spent += wall;
        if let Some(judge) = &mut self.judge {
            let trial = Trial {
                data_bytes,
                packed_bytes: packed_bytes.unwrap_or(data_bytes),
                wall,
                processor: processor_time().saturating_sub(processor_begun),
            };
            judge.worth.tried(begun + wall, trial);
        }
        Ok(packed_bytes)
    }

    /// Looks how the batch before this one fares, all of which is the system's by now.
    pub(in crate::tcp) fn look(&mut self, connection: &TcpStream, now: Instant) {
        if let Some(judge) = &mut self.judge {
            let unsent = socket::unsent_bytes(connection).unwrap_or(0);
            if let Some(interval) = judge.meter.look(now, unsent) {
                judge.worth.sent(now, interval);
            }
        }
    }

    /// Takes note of a batch that was handed to the system since.
    pub(in crate::tcp) fn handed(&mut self, guest_bytes: u64, wire_bytes: u64, is_packed: bool) {
        if let Some(judge) = &mut self.judge {
            judge.meter.handed(guest_bytes, wire_bytes, is_packed);
        }
    }

    /// Takes note that the lane has nothing to send for now.
    pub(in crate::tcp) fn paused(&mut self) {
        if let Some(judge) = &mut self.judge {
            judge.meter = Meter::default();
        }
    }

    /// Time spent so far, on what was sent compressed and on what was not.
    pub(in crate::tcp) fn spent(&self) -> Duration {
        self.spent
    }
}

impl Coder {
    /// Compresses `data` into `room`, of which zstd takes no more than `limit`. `None` where there
    /// was not enough of it, or the codec failed.
    fn compress(&mut self, data: &[u8], room: &mut [u8], limit: usize) -> Option<usize> {
        match self {
            Self::Lz4(table) => compress_into_with_table(data, room, table).ok(),
            Self::Zstd(context) => {
                let room = room.get_mut(..limit)?;
                context.compress2(room, data).ok()
            }
        }
    }
}

/// A context whose frames carry no checksum: TCP's guards the wire, and nothing else could damage
/// them.
fn zstd(level: ZstdLevel) -> io::Result<CCtx<'static>> {
    let mut context = CCtx::try_create().ok_or(io::ErrorKind::OutOfMemory)?;
    for parameter in [
        CParameter::CompressionLevel(level.get().into()),
        CParameter::ChecksumFlag(false),
    ] {
        context.set_parameter(parameter).map_err(zstd_error)?;
    }
    Ok(context)
}

fn zstd_error(code: usize) -> io::Error {
    io::Error::other(format!("zstd: {}", zstd_safe::get_error_name(code)))
}

/// The processor time of this thread.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        time.tv_sec.try_into().unwrap_or_default(),
        time.tv_nsec.try_into().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests;
