//! What a lane's frames look like.
//!
//! From the source:
//! ```text
//! header   16 bytes   magic "DNLF" · kind u16 · run count u16 · value u64
//!   kind 1, runs:     value = bytes of data behind the table
//!     table  16 bytes a run   first page u64 · pages u32 · flags u32 (bit 0: zero, no data)
//!     data                    the bytes of the runs that are not zero, in the table's order
//!   kind 2, fence:    value = its number; the run count is 0
//!   kind 4, runs, LZ4, and kind 5, runs, zstd:
//!                     value = bytes behind the table u32 · bytes that they make u32
//!     table           as of kind 1
//!     packed data     the data of kind 1, compressed as one piece
//! ```
//! A frame of kind 4 or 5 goes only where the destination said that it takes it
//! ([`Answer`](super::preamble)), stands for 1 MiB at most, and is smaller than what it makes.
//!
//! From the destination, for each fence that it saw, a header of kind 3 with the fence's number.
//! All numbers are little-endian.
//!
//! The runs of one frame do not overlap, so a destination may write them in any order. The source
//! sees to it for the sake of its own guest; a source that does not harms nobody else's.

use super::compression::{Codec, PACKED_DATA_BYTES_MAX};
use super::preamble::take;
use crate::memory::{PAGE_BYTES, PageNumber, Run};

/// Bytes in a header.
pub(super) const HEADER_BYTES: usize = 16;

/// Bytes of a run in the table.
pub(super) const RUN_BYTES: usize = 16;

/// The most runs in one frame. Each is one element of a `sendmsg`, which takes 1,024 (`UIO_MAXIOV`)
/// with the head and a fence among them. A batch of single pages has 256; the rest is room for runs
/// of zeros between them.
pub(super) const RUNS_MAX: usize = 512;

/// The most bytes of data in one frame.
pub(super) const FRAME_BYTES_MAX: u64 = 4 << 20;

/// About how many bytes of data a source puts into one frame.
///
/// Measured with `lane_throughput` (1 GiB of touched memory, loopback, 2 cores, GB/s, noisy series
/// of five passes, io_uring): one lane 3.8 to 4.0 with 256 KiB, 4.8 to 5.8 with 1 MiB, 3.7 to 4.0
/// with 2 MiB, 3.4 to 3.6 with 4 MiB; two lanes, which fill the machine, 3.9 to 4.1, 4.0 to 4.9, 4.2
/// to 4.6, 4.7 to 4.9. So 1 MiB: still in the cache when the receiver copies it, and few entries
/// into the kernel for each (one to send it, two to receive it). Plain calls are as fast here within
/// the noise (4.8 to 4.9, and 4.4 to 4.7 with two lanes), with up to twelve entries to receive it.
pub(super) const BATCH_BYTES: u32 = 1 << 20;

/// The most bytes before a frame's data.
pub(super) const HEAD_BYTES_MAX: usize = HEADER_BYTES + RUNS_MAX * RUN_BYTES;

const MAGIC: [u8; 4] = *b"DNLF";
const KIND_RUNS: u16 = 1;
const KIND_FENCE: u16 = 2;
const KIND_FENCE_SEEN: u16 = 3;
const KIND_RUNS_LZ4: u16 = 4;
const KIND_RUNS_ZSTD: u16 = 5;
const FLAG_ZERO: u32 = 1;

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// A table of `count` runs, and `data_bytes` bytes.
    Runs { count: u16, data_bytes: u64 },
    /// A table of `count` runs, and `packed_bytes` bytes that make `data_bytes` bytes.
    PackedRuns {
        codec: Codec,
        count: u16,
        packed_bytes: u32,
        data_bytes: u32,
    },
    /// A fence.
    Fence { number: u64 },
    /// The destination's word that it saw a fence.
    FenceSeen { number: u64 },
}

impl Header {
    pub(super) fn encode(self) -> [u8; HEADER_BYTES] {
        let (kind, count, value) = match self {
            Self::Runs { count, data_bytes } => (KIND_RUNS, count, data_bytes),
            Self::PackedRuns {
                codec,
                count,
                packed_bytes,
                data_bytes,
            } => {
                let kind = match codec {
                    Codec::Lz4 => KIND_RUNS_LZ4,
                    Codec::Zstd => KIND_RUNS_ZSTD,
                };
                let value = u64::from(data_bytes) << 32 | u64::from(packed_bytes);
                (kind, count, value)
            }
            Self::Fence { number } => (KIND_FENCE, 0, number),
            Self::FenceSeen { number } => (KIND_FENCE_SEEN, 0, number),
        };
        let mut bytes = [0; HEADER_BYTES];
        let fields = MAGIC
            .into_iter()
            .chain(kind.to_le_bytes())
            .chain(count.to_le_bytes())
            .chain(value.to_le_bytes());
        bytes
            .iter_mut()
            .zip(fields)
            .for_each(|(to, from)| *to = from);
        bytes
    }

    /// Reads a header. The error says what is wrong with it.
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, String> {
        let mut rest = bytes.as_slice();
        let magic: [u8; 4] = take(&mut rest);
        if magic != MAGIC {
            return Err(format!("a frame begins with {magic:02x?}"));
        }
        let kind = u16::from_le_bytes(take(&mut rest));
        let count = u16::from_le_bytes(take(&mut rest));
        let value = u64::from_le_bytes(take(&mut rest));
        match kind {
            KIND_RUNS | KIND_RUNS_LZ4 | KIND_RUNS_ZSTD
                if count == 0 || usize::from(count) > RUNS_MAX =>
            {
                Err(format!(
                    "a frame of {count} runs, 1 to {RUNS_MAX} are allowed"
                ))
            }
            KIND_RUNS if value > FRAME_BYTES_MAX => Err(format!(
                "a frame of {value} bytes, at most {FRAME_BYTES_MAX} are allowed"
            )),
            KIND_RUNS => Ok(Self::Runs {
                count,
                data_bytes: value,
            }),
            KIND_RUNS_LZ4 => packed_runs(Codec::Lz4, count, value),
            KIND_RUNS_ZSTD => packed_runs(Codec::Zstd, count, value),
            KIND_FENCE | KIND_FENCE_SEEN if count != 0 => Err(format!("a fence with {count} runs")),
            KIND_FENCE => Ok(Self::Fence { number: value }),
            KIND_FENCE_SEEN => Ok(Self::FenceSeen { number: value }),
            unknown => Err(format!("a frame of unknown kind {unknown}")),
        }
    }
}

fn packed_runs(codec: Codec, count: u16, value: u64) -> Result<Header, String> {
    let (packed_bytes, data_bytes) = (value as u32, (value >> 32) as u32);
    if data_bytes > PACKED_DATA_BYTES_MAX {
        return Err(format!(
            "a frame of {codec} data that makes {data_bytes} bytes, at most \
             {PACKED_DATA_BYTES_MAX} are allowed"
        ));
    }
    if packed_bytes == 0 || packed_bytes >= data_bytes {
        return Err(format!(
            "a frame of {packed_bytes} bytes of {codec} data that makes {data_bytes} bytes; it has \
             to be smaller, and not empty"
        ));
    }
    Ok(Header::PackedRuns {
        codec,
        count,
        packed_bytes,
        data_bytes,
    })
}

/// A run in a frame's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) run: Run,
    /// Reads as zero; no data follows for it.
    pub(super) is_zero: bool,
}

impl Entry {
    pub(super) fn encode_into(self, bytes: &mut Vec<u8>) {
        let flags = if self.is_zero { FLAG_ZERO } else { 0 };
        bytes.extend(self.run.first.0.to_le_bytes());
        bytes.extend(self.run.pages.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
    }
}

/// Reads a frame's table into `entries` (emptied first), and checks it against the data that the
/// header announced. Whether the runs are inside of memory is for the caller to check.
pub(super) fn decode_table(
    table: &[u8],
    data_bytes: u64,
    entries: &mut Vec<Entry>,
) -> Result<(), String> {
    entries.clear();
    let mut sum = 0_u64;
    for mut entry in table.chunks_exact(RUN_BYTES) {
        let first = PageNumber(u64::from_le_bytes(take(&mut entry)));
        let pages = u32::from_le_bytes(take(&mut entry));
        let flags = u32::from_le_bytes(take(&mut entry));
        if pages == 0 {
            return Err(format!("an empty run at {first}"));
        }
        if flags & !FLAG_ZERO != 0 {
            return Err(format!("a run with unknown flags {flags:#x}"));
        }
        let is_zero = flags & FLAG_ZERO != 0;
        if !is_zero {
            // At most 512 times 2^32 pages of 2^12 bytes: far from 2^64.
            sum += u64::from(pages) * PAGE_BYTES;
        }
        entries.push(Entry {
            run: Run { first, pages },
            is_zero,
        });
    }
    if sum != data_bytes {
        return Err(format!(
            "runs of {sum} bytes in a frame of {data_bytes} bytes"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn headers_map_to_their_bytes() {
        for header in [
            Header::Runs {
                count: 3,
                data_bytes: 8192,
            },
            Header::Fence { number: 7 },
            Header::FenceSeen { number: u64::MAX },
            packed(Codec::Lz4, 512, 1, PACKED_DATA_BYTES_MAX),
        ] {
            assert_eq!(Header::decode(&header.encode()), Ok(header));
        }
    }

    fn packed(codec: Codec, count: u16, packed_bytes: u32, data_bytes: u32) -> Header {
        Header::PackedRuns {
            codec,
            count,
            packed_bytes,
            data_bytes,
        }
    }

    #[test]
    fn golden_headers_stay_readable() {
        let runs = Header::Runs {
            count: 3,
            data_bytes: 8192,
        };
        for (bytes, header) in [
            (b"DNLF\x01\0\x03\0\0\x20\0\0\0\0\0\0", runs),
            (
                b"DNLF\x02\0\0\0\x02\x01\0\0\0\0\0\0",
                Header::Fence { number: 258 },
            ),
            (
                b"DNLF\x03\0\0\0\x07\0\0\0\0\0\0\0",
                Header::FenceSeen { number: 7 },
            ),
            (
                b"DNLF\x04\0\x02\0\x0b\x01\0\0\0\x20\0\0",
                packed(Codec::Lz4, 2, 267, 8192),
            ),
            (
                b"DNLF\x05\0\x01\0\x0b\0\0\0\0\0\x10\0",
                packed(Codec::Zstd, 1, 11, 1 << 20),
            ),
        ] {
            assert_eq!(&header.encode(), bytes);
            assert_eq!(Header::decode(bytes), Ok(header));
        }
    }

    #[test]
    fn headers_beyond_the_caps_are_refused() {
        for (count, data_bytes) in [
            (0, 0),
            (RUNS_MAX as u16 + 1, 0),
            (1, FRAME_BYTES_MAX + 1),
            (1, u64::MAX),
        ] {
            let header = Header::Runs { count, data_bytes };
            assert!(Header::decode(&header.encode()).is_err(), "{header:?}");
        }
        for (count, packed_bytes, data_bytes) in [
            (0, 1, 4096),
            (RUNS_MAX as u16 + 1, 1, 4096),
            (1, 0, 4096),
            (1, 4096, 4096),
            (1, u32::MAX, 4096),
            (1, 1, PACKED_DATA_BYTES_MAX + 1),
            (1, 1, u32::MAX),
            (1, 0, 0),
        ] {
            for codec in Codec::ALL {
                let header = packed(codec, count, packed_bytes, data_bytes);
                assert!(Header::decode(&header.encode()).is_err(), "{header:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_header_decodes_to_itself_or_is_refused(bytes in proptest::array::uniform16(any::<u8>())) {
            let mut bytes = bytes;
            bytes[..4].copy_from_slice(&MAGIC);
            bytes[5] = 0;
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }

        #[test]
        fn any_table_decodes_to_itself_or_is_refused(
            runs in proptest::collection::vec((any::<u64>(), 0_u32..5, 0_u32..3), 1..20),
            lie in 0_u64..2,
        ) {
            let mut table = Vec::new();
            for (first, pages, flags) in &runs {
                table.extend(first.to_le_bytes());
                table.extend(pages.to_le_bytes());
                table.extend(flags.to_le_bytes());
            }
            let honest: u64 = runs
                .iter()
                .filter(|(_, _, flags)| *flags == 0)
                .map(|(_, pages, _)| u64::from(*pages) * PAGE_BYTES)
                .sum();
            let mut entries = Vec::new();
            let decoded = decode_table(&table, honest + lie, &mut entries);
            let valid = lie == 0 && runs.iter().all(|(_, pages, flags)| *pages > 0 && *flags < 2);
            prop_assert_eq!(decoded.is_ok(), valid);
            if valid {
                let mut again = Vec::new();
                entries.iter().for_each(|entry| entry.encode_into(&mut again));
                prop_assert_eq!(again, table);
            }
        }
    }
}
