//! Who measures: the session's thread, lanes, vCPUs, threads that register memory, and the link.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Who measured: one row of the trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Track {
    /// The session's thread.
    Control,
    /// A lane's thread.
    Lane(u16),
    /// A vCPU; the session's thread tells of it.
    Vcpu(u16),
    /// A thread that registers or backs memory, ahead of the lanes or beside them.
    Registrar(u16),
    /// The way between the two ends; the source's session tells of it.
    Link,
}

impl Track {
    /// What kind of track it is.
    pub fn kind(self) -> TrackKind {
        match self {
            Self::Control => TrackKind::Control,
            Self::Lane(_) => TrackKind::Lane,
            Self::Vcpu(_) => TrackKind::Vcpu,
            Self::Registrar(_) => TrackKind::Registrar,
            Self::Link => TrackKind::Link,
        }
    }

    /// Its place among its kind; 0 where there is only one.
    pub fn index(self) -> u16 {
        match self {
            Self::Lane(index) | Self::Vcpu(index) | Self::Registrar(index) => index,
            Self::Control | Self::Link => 0,
        }
    }

    /// The track of that kind and place.
    pub fn new(kind: TrackKind, index: u16) -> Self {
        match kind {
            TrackKind::Control => Self::Control,
            TrackKind::Lane => Self::Lane(index),
            TrackKind::Vcpu => Self::Vcpu(index),
            TrackKind::Registrar => Self::Registrar(index),
            TrackKind::Link => Self::Link,
        }
    }
}

impl fmt::Display for Track {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control | Self::Link => formatter.write_str(self.kind().name()),
            _ => write!(formatter, "{} {}", self.kind().name(), self.index()),
        }
    }
}

/// A text that names no track.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no track: 'control', 'link', or 'lane', 'vcpu' or 'registrar' with a number")]
pub struct NoTrack(String);

impl FromStr for Track {
    type Err = NoTrack;

    fn from_str(text: &str) -> Result<Self, NoTrack> {
        let no_track = || NoTrack(text.chars().take(40).collect());
        let (kind, index) = match text.split_once(' ') {
            Some((kind, index)) => (kind, Some(index.parse().map_err(|_| no_track())?)),
            None => (text, None),
        };
        let kinds = TrackKind::ALL.iter();
        let kind = kinds.copied().find(|known| known.name() == kind);
        let track = kind.map(|kind| Self::new(kind, index.unwrap_or(0)));
        track
            .filter(|track| track.to_string() == text)
            .ok_or_else(no_track)
    }
}

impl Serialize for Track {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Track {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// What kind of track. Its number is its place on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum TrackKind {
    /// [`Track::Control`].
    Control = 0,
    /// [`Track::Lane`].
    Lane = 1,
    /// [`Track::Vcpu`].
    Vcpu = 2,
    /// [`Track::Registrar`].
    Registrar = 3,
    /// [`Track::Link`].
    Link = 4,
}

impl TrackKind {
    /// All of them, by number.
    pub const ALL: &[Self] = &[
        Self::Control,
        Self::Lane,
        Self::Vcpu,
        Self::Registrar,
        Self::Link,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Lane => "lane",
            Self::Vcpu => "vcpu",
            Self::Registrar => "registrar",
            Self::Link => "link",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tracks_are_told_and_understood() {
        let tracks = TrackKind::ALL.iter().map(|kind| Track::new(*kind, 7));
        for track in tracks {
            assert_eq!(track.to_string().parse(), Ok(track));
        }
        for text in [
            "",
            "lane",
            "lane x",
            "lane 70000",
            "lane +1",
            "control 0",
            "link 1",
            "vcpu  1",
        ] {
            assert!(text.parse::<Track>().is_err(), "'{text}' is no track");
        }
    }
}
