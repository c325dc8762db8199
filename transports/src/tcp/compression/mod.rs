//! Compression of a lane's batches: what an operator may ask for, and what two sides agree on.
//!
//! | room | what is in it |
//! |---|---|
//! | `codec` | the codecs, their numbers on the wire, and sets of them |
//! | `packing` | the source's side: a private copy of a batch, and the same compressed |
//! | `unpacking` | the destination's side: what came, and the same decompressed |
//! | [`rehearsal`] | both sides without a lane, for benchmarks |
//! | `worth` | whether compressing pays, for a lane that is to find out by itself |
//!
//! What it costs, in milliseconds of one core for each MiB (`make bench ARGS=compression`, two noisy
//! runs on a virtual machine with 2 cores; one copy takes 0.05 to 0.06, once 0.14):
//!
//! | pages | | lz4 | zstd:1 | zstd:3 | zstd:6 |
//! |---|---|---|---|---|---|
//! | sparse | source | 0.86 to 1.04 | 0.84 to 1.4 | 0.93 to 1.2 | 5.9 to 6.1 |
//! | | destination | 0.69 to 0.86 | 0.38 to 0.62 | 0.39 to 0.42 | 0.29 to 0.30 |
//! | | on the wire | 6.9 % | 5.0 % | 4.9 % | 4.7 % |
//! | text | source | 2.9 to 3.4 | 3.5 to 4.2 | 5.4 to 6.0 | 12.6 to 14.0 |
//! | | destination | 0.37 to 0.47 | 0.80 to 0.87 | 0.88 to 1.05 | 0.90 to 0.98 |
//! | | on the wire | 57.9 % | 36.2 % | 33.5 % | 33.0 % |
//! | random | source | 0.12 to 0.14 | 0.23 to 0.28 | 0.26 to 0.31 | 0.44 to 0.57 |
//! | | on the wire | as they are | as they are | as they are | as they are |
//!
//! Without the cargo feature `compression` only `codec` is there: nothing can be asked for, and a
//! destination says that it takes nothing compressed.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

mod codec;

#[cfg(not(feature = "compression"))]
mod absent;
#[cfg(feature = "compression")]
mod packing;
#[cfg(all(feature = "compression", feature = "testing"))]
pub mod rehearsal;
#[cfg(feature = "compression")]
mod unpacking;
#[cfg(feature = "compression")]
mod worth;

#[cfg(not(feature = "compression"))]
pub(super) use absent::{Packing, Unpacking};
pub(super) use codec::{Codec, CodecSet};
#[cfg(feature = "compression")]
pub(super) use packing::Packing;
#[cfg(feature = "compression")]
pub(super) use unpacking::Unpacking;

/// The most bytes of guest memory that one compressed frame stands for: the batch that lanes send
/// anyway. It bounds what a lane keeps for compression. The source: one copy of a batch and two
/// compressed ones (3.2 MiB), and 0.6 MiB (zstd 1) to 10.5 MiB (zstd 12) of the codec's own; the
/// destination: 2 MiB, and 0.1 MiB. Memory that is not used is not touched.
pub(super) const PACKED_DATA_BYTES_MAX: u32 = 1 << 20;

/// Whether and how a source compresses what it sends. The destination needs no word of it: it says
/// itself, when it lets a lane in, what it can take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// Everything goes out as it is, from guest memory.
    #[default]
    Off,
    /// Batches that LZ4 makes smaller than nine tenths go out compressed.
    #[cfg(feature = "compression")]
    Lz4,
    /// As `Lz4`, with zstd: smaller, and slower.
    #[cfg(feature = "compression")]
    Zstd {
        /// How hard it tries.
        level: ZstdLevel,
    },
    /// LZ4 while it makes a lane faster, by the lane's own measure.
    #[cfg(feature = "compression")]
    Auto,
}

impl Compression {
    /// What a lane may send, so what its destination has to take.
    pub(super) fn codec(self) -> Option<Codec> {
        match self {
            Self::Off => None,
            #[cfg(feature = "compression")]
            Self::Lz4 | Self::Auto => Some(Codec::Lz4),
            #[cfg(feature = "compression")]
            Self::Zstd { .. } => Some(Codec::Zstd),
        }
    }

    /// How lanes work, as reports name it: `stream` is the byte stream's part.
    pub(super) fn mechanism(self, stream: &str, is_declined: bool) -> String {
        match self.codec() {
            None => stream.to_owned(),
            Some(codec) if is_declined => {
                format!("{stream} ({codec}: the destination does not take it)")
            }
            #[cfg(feature = "compression")]
            Some(codec) if self == Self::Auto => format!("{stream}, {codec} where it pays"),
            Some(_) => format!("{stream}, {self}"),
        }
    }
}

/// As it is written on a command line; [`Compression::from_str`] reads it back.
impl fmt::Display for Compression {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => formatter.write_str("off"),
            #[cfg(feature = "compression")]
            Self::Lz4 => formatter.write_str("lz4"),
            #[cfg(feature = "compression")]
            Self::Zstd { level } => write!(formatter, "zstd:{level}"),
            #[cfg(feature = "compression")]
            Self::Auto => formatter.write_str("auto"),
        }
    }
}

/// How hard zstd tries: 1 to 12, 1 unless said otherwise.
///
/// Not all that zstd has. Below 1 LZ4 is the better choice. Level 12 compressed 27 MB/s of made-up
/// text on one core, 19 compressed 4 MB/s, a quarter of a second for each batch: slower than any
/// link over which a guest is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ZstdLevel(u8);

impl ZstdLevel {
    /// The lowest, and the fastest.
    pub const MIN: Self = Self(1);
    /// The highest.
    pub const MAX: Self = Self(12);

    /// The level of this number.
    ///
    /// # Errors
    ///
    /// When it is not from 1 to 12.
    pub fn new(level: u8) -> Result<Self, CompressionError> {
        if (Self::MIN.0..=Self::MAX.0).contains(&level) {
            Ok(Self(level))
        } else {
            Err(CompressionError::Level(level.to_string()))
        }
    }

    /// Its number.
    pub fn get(self) -> u8 {
        self.0
    }
}

impl Default for ZstdLevel {
    fn default() -> Self {
        Self::MIN
    }
}

impl fmt::Display for ZstdLevel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// Why words are no [`Compression`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CompressionError {
    /// Nothing is called so.
    #[error("'{0}' is no compression: off, lz4, zstd, zstd:LEVEL and auto are")]
    Unknown(String),
    /// A level of zstd's that is not offered.
    #[error("'{0}' is no level of zstd's: {min} to {max} are", min = ZstdLevel::MIN, max = ZstdLevel::MAX)]
    Level(String),
    /// The cargo feature is off.
    #[error("'{0}': built without the cargo feature 'compression', so only off is to be had")]
    NotBuiltIn(String),
}

impl FromStr for Compression {
    type Err = CompressionError;

    fn from_str(words: &str) -> Result<Self, Self::Err> {
        let (name, level) = match words.split_once(':') {
            Some((name, level)) => (name, Some(level)),
            None => (words, None),
        };
        match (name, level) {
            ("off", None) => Ok(Self::Off),
            #[cfg(feature = "compression")]
            ("lz4", None) => Ok(Self::Lz4),
            #[cfg(feature = "compression")]
            ("auto", None) => Ok(Self::Auto),
            #[cfg(feature = "compression")]
            ("zstd", None) => Ok(Self::Zstd {
                level: ZstdLevel::default(),
            }),
            #[cfg(feature = "compression")]
            ("zstd", Some(level)) => {
                let number = level
                    .parse()
                    .map_err(|_| CompressionError::Level(level.to_owned()))?;
                let level = ZstdLevel::new(number)?;
                Ok(Self::Zstd { level })
            }
            #[cfg(not(feature = "compression"))]
            ("lz4" | "auto" | "zstd", _) => Err(CompressionError::NotBuiltIn(words.to_owned())),
            _ => Err(CompressionError::Unknown(words.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_name_nothing_are_refused() {
        for words in ["", "on", "Lz4", "off:1", "lzma", "gzip:9"] {
            let error = words.parse::<Compression>().unwrap_err();
            assert_eq!(error, CompressionError::Unknown(words.to_owned()));
        }
        assert_eq!("off".parse(), Ok(Compression::Off));
        assert_eq!(Compression::Off.mechanism("io_uring", false), "io_uring");
    }

    #[cfg(not(feature = "compression"))]
    #[test]
    fn what_is_not_built_in_says_so() {
        for words in ["lz4", "auto", "zstd", "zstd:3"] {
            let error = words.parse::<Compression>().unwrap_err();
            assert_eq!(error, CompressionError::NotBuiltIn(words.to_owned()));
        }
    }

    #[cfg(feature = "compression")]
    mod built_in {
        use super::*;

        fn zstd(level: u8) -> Compression {
            let level = ZstdLevel::new(level).unwrap();
            Compression::Zstd { level }
        }

        #[test]
        fn words_and_values_map_to_each_other() {
            for (words, value) in [
                ("off", Compression::Off),
                ("lz4", Compression::Lz4),
                ("auto", Compression::Auto),
                ("zstd:1", zstd(1)),
                ("zstd:12", zstd(12)),
            ] {
                assert_eq!(words.parse(), Ok(value));
                assert_eq!(value.to_string(), words);
            }
            assert_eq!("zstd".parse(), Ok(zstd(1)));
        }

        #[test]
        fn levels_out_of_bounds_are_refused() {
            for level in ["0", "13", "256", "-1", "", "x", "1:2"] {
                let error = format!("zstd:{level}").parse::<Compression>().unwrap_err();
                assert_eq!(error, CompressionError::Level(level.to_owned()));
            }
        }

        #[test]
        fn reports_name_it() {
            let named = |value: Compression, is_declined| value.mechanism("io_uring", is_declined);
            assert_eq!(named(Compression::Lz4, false), "io_uring, lz4");
            assert_eq!(named(zstd(3), false), "io_uring, zstd:3");
            assert_eq!(
                named(Compression::Auto, false),
                "io_uring, lz4 where it pays"
            );
            assert_eq!(
                named(zstd(3), true),
                "io_uring (zstd: the destination does not take it)"
            );
            assert_eq!(
                named(Compression::Auto, true),
                "io_uring (lz4: the destination does not take it)"
            );
        }
    }
}
