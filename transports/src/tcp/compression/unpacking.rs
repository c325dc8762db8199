//! The destination's side of compression: what came, and the same decompressed.
//!
//! Both are buffers of the lane's own, made when the lane opens and no larger than what a frame may
//! announce. A decoder sees nothing else: what it makes is copied into guest memory only when it is
//! whole, by runs that were checked before.

use std::io;
use std::time::{Duration, Instant};

use lz4_flex::block::decompress_into;
use zstd_safe::DCtx;

use super::{Codec, PACKED_DATA_BYTES_MAX};

/// What a receiving lane keeps for compressed frames.
pub(in crate::tcp) struct Unpacking {
    packed: Vec<u8>,
    data: Vec<u8>,
    /// How much of `data` is of the frame that was unpacked last.
    data_bytes: usize,
    zstd: DCtx<'static>,
    spent: Duration,
}

impl Unpacking {
    /// # Errors
    ///
    /// When a codec gets no memory.
    pub(in crate::tcp) fn new() -> io::Result<Self> {
        let bytes = PACKED_DATA_BYTES_MAX as usize;
        Ok(Self {
            // Zeroed pages of the kernel's: they take memory once a frame fills them.
            packed: vec![0; bytes],
            data: vec![0; bytes],
            data_bytes: 0,
            zstd: DCtx::try_create().ok_or(io::ErrorKind::OutOfMemory)?,
            spent: Duration::ZERO,
        })
    }

    /// Lends the buffer that a frame's compressed data goes into.
    pub(in crate::tcp) fn take_buffer(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.packed)
    }

    /// Takes it back.
    pub(in crate::tcp) fn give_buffer(&mut self, packed: Vec<u8>) {
        self.packed = packed;
    }

    /// Decompresses the first `packed_bytes` of the buffer into exactly `data_bytes`, which
    /// [`Unpacking::data`] then shows.
    ///
    /// # Errors
    ///
    /// Says what is wrong with them.
    pub(in crate::tcp) fn unpack(
        &mut self,
        codec: Codec,
        packed_bytes: u32,
        data_bytes: u64,
    ) -> Result<(), String> {
        let begun = Instant::now();
        self.data_bytes = 0;
        let (Some(packed), Some(data)) = (
            self.packed.get(..packed_bytes as usize),
            self.data.get_mut(..data_bytes as usize),
        ) else {
            return Err(format!(
                "{codec} data of {packed_bytes} bytes for {data_bytes} bytes, more than is allowed"
            ));
        };
        let bytes = match codec {
            Codec::Lz4 => decompress_into(packed, data).map_err(|error| error.to_string()),
            Codec::Zstd => self
                .zstd
                .decompress(&mut *data, packed)
                .map_err(|code| zstd_safe::get_error_name(code).to_owned()),
        };
        self.spent += begun.elapsed();
        match bytes {
            Ok(bytes) if bytes == data.len() => {
                self.data_bytes = bytes;
                Ok(())
            }
            Ok(bytes) => Err(format!(
                "{codec} data that makes {bytes} bytes where {data_bytes} were announced"
            )),
            Err(error) => Err(format!(
                "{codec} data of {packed_bytes} bytes that does not make {data_bytes} bytes: {error}"
            )),
        }
    }

    /// What the frame that was unpacked last stands for; empty where that failed.
    pub(in crate::tcp) fn data(&self) -> &[u8] {
        self.data.get(..self.data_bytes).unwrap_or_default()
    }

    /// Time spent so far.
    pub(in crate::tcp) fn spent(&self) -> Duration {
        self.spent
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unpacked(codec: Codec, packed: &[u8], data_bytes: u32) -> Result<Vec<u8>, String> {
        let mut unpacking = Unpacking::new().unwrap();
        let mut buffer = unpacking.take_buffer();
        buffer[..packed.len()].copy_from_slice(packed);
        // What a frame before has left behind.
        unpacking.data.fill(0xee);
        unpacking.give_buffer(buffer);
        let result = unpacking.unpack(codec, packed.len() as u32, data_bytes.into());
        result.map(|()| unpacking.data().to_vec())
    }

    fn packed(codec: Codec, data: &[u8]) -> Vec<u8> {
        match codec {
            Codec::Lz4 => lz4_flex::block::compress(data),
            Codec::Zstd => {
                let mut room = vec![0; zstd_safe::compress_bound(data.len())];
                let bytes = zstd_safe::compress(room.as_mut_slice(), data, 3).unwrap();
                room.truncate(bytes);
                room
            }
        }
    }

    /// Bytes by hand, of the formats and not of our encoders: these stay readable.
    #[test]
    fn golden_bytes_of_both_formats_are_read() {
        // A token of no literals is not possible first: one literal 7, a match of 4 + 15 + 255 + …
        // at offset 1, and five literals at the end, as the format demands.
        let mut lz4 = vec![0x1f, 7, 1, 0];
        let matched = 4096 - 1 - 5;
        lz4.extend(std::iter::repeat_n(255, (matched - 19) / 255));
        lz4.push(((matched - 19) % 255) as u8);
        lz4.extend([0x50, 7, 7, 7, 7, 7]);
        assert_eq!(unpacked(Codec::Lz4, &lz4, 4096), Ok(vec![7; 4096]));
        // Magic; single segment with a content size of two bytes (less 256); one last block of
        // one byte, repeated 4096 times.
        let zstd = [0x28, 0xb5, 0x2f, 0xfd, 0x60, 0x00, 0x0f, 0x03, 0x80, 0, 7];
        assert_eq!(unpacked(Codec::Zstd, &zstd, 4096), Ok(vec![7; 4096]));
    }

    #[test]
    fn data_that_makes_another_length_is_refused() {
        for codec in Codec::ALL {
            for made in [4096, 3 * 4096, PACKED_DATA_BYTES_MAX] {
                let bytes = packed(codec, &vec![5; made as usize]);
                let announced = 2 * 4096;
                let error = unpacked(codec, &bytes, announced).unwrap_err();
                assert!(error.contains(&codec.to_string()), "{error}");
                assert!(error.contains("8192"), "{error}");
                assert!(unpacked(codec, &bytes, made).is_ok());
            }
        }
    }

    #[test]
    fn a_bomb_ends_where_its_room_does() {
        // Each claims far more than a frame may stand for.
        let data = vec![0; 64 << 20];
        for codec in Codec::ALL {
            let bomb = packed(codec, &data);
            assert!(bomb.len() < PACKED_DATA_BYTES_MAX as usize);
            let error = unpacked(codec, &bomb, PACKED_DATA_BYTES_MAX).unwrap_err();
            assert!(error.contains("does not make 1048576 bytes"), "{error}");
        }
    }

    #[test]
    fn lengths_beyond_the_buffers_are_refused() {
        for codec in Codec::ALL {
            let mut unpacking = Unpacking::new().unwrap();
            let beyond = PACKED_DATA_BYTES_MAX + 1;
            assert!(unpacking.unpack(codec, beyond, 4096).is_err());
            assert!(unpacking.unpack(codec, 10, beyond.into()).is_err());
        }
    }

    proptest! {
        #[test]
        fn garbage_makes_an_error_or_the_length_that_was_asked_for(
            bytes in proptest::collection::vec(any::<u8>(), 1..300),
            pages in 1_u32..4,
        ) {
            for codec in Codec::ALL {
                if let Ok(data) = unpacked(codec, &bytes, pages * 4096) {
                    prop_assert_eq!(data.len() as u32, pages * 4096);
                }
            }
        }

        #[test]
        fn damage_makes_an_error_or_the_length_that_was_asked_for(
            at in any::<proptest::sample::Index>(),
            value in any::<u8>(),
            cut in any::<proptest::sample::Index>(),
        ) {
            let data: Vec<u8> = (0..8192_u32).map(|at| (at / 7) as u8).collect();
            for codec in Codec::ALL {
                let mut bytes = packed(codec, &data);
                let at = at.index(bytes.len());
                bytes[at] = value;
                if let Ok(made) = unpacked(codec, &bytes, 8192) {
                    prop_assert_eq!(made.len(), 8192);
                }
                let bytes = packed(codec, &data);
                let short = &bytes[..cut.index(bytes.len())];
                prop_assert!(unpacked(codec, short, 8192).is_err());
            }
        }
    }
}
