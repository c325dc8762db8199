//! The codecs, as both sides name them to each other. What they do is in other rooms.

use std::fmt;

/// How the data of a frame is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::tcp) enum Codec {
    /// One LZ4 block, without a length or a frame of its own (see LZ4's block format).
    Lz4,
    /// One zstd frame (RFC 8878), without a dictionary.
    Zstd,
}

impl Codec {
    /// Every codec that this version knows.
    pub(in crate::tcp) const ALL: [Self; 2] = [Self::Lz4, Self::Zstd];

    /// Its place in a [`CodecSet`].
    fn bit(self) -> u8 {
        match self {
            Self::Lz4 => 1,
            Self::Zstd => 2,
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

/// The codecs whose frames a destination takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::tcp) struct CodecSet(u8);

impl CodecSet {
    /// What this build can take.
    pub(in crate::tcp) fn built_in() -> Self {
        if cfg!(feature = "compression") {
            Codec::ALL.into_iter().collect()
        } else {
            Self::default()
        }
    }

    /// The byte on the wire.
    pub(in crate::tcp) fn encode(self) -> u8 {
        self.0
    }

    /// What a byte on the wire names. Codecs of later versions are left out: they are not used.
    pub(in crate::tcp) fn decode(byte: u8) -> Self {
        Codec::ALL
            .into_iter()
            .filter(|codec| byte & codec.bit() != 0)
            .collect()
    }

    pub(in crate::tcp) fn contains(self, codec: Codec) -> bool {
        self.0 & codec.bit() != 0
    }
}

impl FromIterator<Codec> for CodecSet {
    fn from_iter<I: IntoIterator<Item = Codec>>(codecs: I) -> Self {
        Self(codecs.into_iter().fold(0, |set, codec| set | codec.bit()))
    }
}
