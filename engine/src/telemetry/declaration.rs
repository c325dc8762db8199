//! What can be measured: the form of a declaration, and the names that follow from it. The
//! declarations themselves are in `spans`, `operations` and `amounts`.

use serde::{Deserialize, Serialize};

use super::track::TrackKind;

/// Which end of a move measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// The end that the guest leaves.
    Source,
    /// The end that it goes to.
    Destination,
}

impl End {
    /// Its name, as in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// On which side something declared takes place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sides {
    /// On the source alone.
    Source,
    /// On the destination alone.
    Destination,
    /// On either, each measuring its own.
    Both,
    /// On the way between them: placed by whoever knows both clocks.
    Link,
}

impl Sides {
    /// Its name, as in docs/metrics.md.
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
            Self::Both => "both",
            Self::Link => "link",
        }
    }

    /// Whether `end` measures it. What is on the link is the source's to tell.
    pub fn holds(self, end: End) -> bool {
        match self {
            Self::Source | Self::Link => end == End::Source,
            Self::Destination => end == End::Destination,
            Self::Both => true,
        }
    }
}

/// What kind of thing is declared, and so what is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A span on the timeline that is a part of the blackout.
    BlackoutPart,
    /// Any other span on the timeline.
    Phase,
    /// Something done many times, with a histogram of how long it took.
    Operation,
    /// An amount that only grows.
    Counter,
    /// An amount that was last so.
    Gauge,
}

impl Kind {
    /// Its name, as in docs/metrics.md.
    pub fn name(self) -> &'static str {
        match self {
            Self::BlackoutPart => "part of the blackout",
            Self::Phase => "phase",
            Self::Operation => "operation",
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }
}

/// In what an amount is counted. Inside and in JSON durations are nanoseconds; Prometheus wants
/// base units, so they are seconds there
/// (<https://prometheus.io/docs/practices/naming/#base-units>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A duration.
    Nanoseconds,
    /// Bytes.
    Bytes,
    /// Bytes a second.
    BytesPerSecond,
    /// Pages of 4 KiB.
    Pages,
    /// Pages a second.
    PagesPerSecond,
    /// A plain number: the name says of what.
    Count,
}

impl Unit {
    /// Its name, as in docs/metrics.md.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nanoseconds => "ns",
            Self::Bytes => "bytes",
            Self::BytesPerSecond => "bytes/s",
            Self::Pages => "pages",
            Self::PagesPerSecond => "pages/s",
            Self::Count => "",
        }
    }

    /// What a name in JSON ends in.
    fn json_suffix(self) -> &'static str {
        match self {
            Self::Nanoseconds => "_ns",
            Self::Bytes => "_bytes",
            Self::BytesPerSecond => "_bytes_per_s",
            Self::Pages => "_pages",
            Self::PagesPerSecond => "_pages_per_s",
            Self::Count => "",
        }
    }

    /// What a name for Prometheus ends in.
    fn prometheus_suffix(self) -> &'static str {
        match self {
            Self::Nanoseconds => "_seconds",
            Self::Bytes => "_bytes",
            Self::BytesPerSecond => "_bytes_per_second",
            Self::Pages => "_pages",
            Self::PagesPerSecond => "_pages_per_second",
            Self::Count => "",
        }
    }
}

/// All that is fixed about one thing that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Declaration {
    /// What it is on the wire; never given to another of its table.
    pub number: u16,
    /// Its name, unique in its table. Amounts get their unit behind it, where they are told.
    pub name: &'static str,
    /// The name that it shares with others, and which of them it is.
    pub class: Option<Class>,
    /// What kind of thing it is.
    pub kind: Kind,
    /// In what it is counted.
    pub unit: Unit,
    /// Where it takes place.
    pub sides: Sides,
    /// Who measures it.
    pub tracks: &'static [TrackKind],
    /// What it is, in one sentence; where it is one of a class, what is true of all of them stands
    /// before a semicolon.
    pub meaning: &'static str,
}

/// Operations that differ in size only are one family for Prometheus, told apart by a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// What all of them are called.
    pub family: &'static str,
    /// The label's value: up to what size.
    pub size: &'static str,
}

impl Declaration {
    /// Its name in the JSON report: amounts carry their unit.
    pub fn json_name(&self) -> String {
        match self.kind {
            Kind::Counter | Kind::Gauge => snake(self.name) + self.unit.json_suffix(),
            Kind::BlackoutPart | Kind::Phase | Kind::Operation => self.name.to_owned(),
        }
    }

    /// The name of its metric family for Prometheus.
    pub fn prometheus_name(&self) -> String {
        let name = self.class.map_or(self.name, |class| class.family);
        let unit = self.unit.prometheus_suffix();
        match self.kind {
            Kind::BlackoutPart => format!("dunlin_blackout_part{unit}"),
            Kind::Phase => format!("dunlin_phase{unit}"),
            Kind::Operation | Kind::Gauge => format!("dunlin_{}{unit}", snake(name)),
            Kind::Counter => format!("dunlin_{}{unit}_total", snake(name)),
        }
    }

    /// What its family means: the help text for Prometheus.
    pub fn prometheus_help(&self) -> String {
        match (self.kind, self.class, self.meaning.split_once(';')) {
            (Kind::BlackoutPart, ..) => "How long each part of the blackout took.".to_owned(),
            (Kind::Phase, ..) => "How long each phase of the move took, all times together.".into(),
            (_, Some(_), Some((family, _))) => format!("{family}."),
            _ => self.meaning.to_owned(),
        }
    }

    /// Whether a recorder of that end and kind of track measures it.
    pub fn is_measured_by(&self, end: End, track: TrackKind) -> bool {
        self.sides.holds(end) && self.tracks.contains(&track)
    }
}

fn snake(name: &str) -> String {
    name.replace('-', "_")
}

/// Makes an enum of a table of declarations. A line's documentation is its meaning.
macro_rules! declare {
    (
        $(#[$outer:meta])*
        pub enum $table:ident;
        $(
            $(#[doc = $doc:literal])+
            $variant:ident = $number:literal, $name:literal $(($family:literal, $size:literal))?:
                $kind:ident, $unit:ident, $sides:ident, [$($track:ident),+];
        )+
    ) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $table {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl $table {
            /// All of them, in the order of their declarations.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// What is fixed about it.
            pub fn declaration(self) -> &'static $crate::telemetry::Declaration {
                use $crate::telemetry::{Declaration, Kind, Sides, TrackKind, Unit};
                match self {
                    $(Self::$variant => const { &Declaration {
                        number: $number,
                        name: $name,
                        class: declare!(@class $($family, $size)?),
                        kind: Kind::$kind,
                        unit: Unit::$unit,
                        sides: Sides::$sides,
                        tracks: &[$(TrackKind::$track),+],
                        meaning: concat!($($doc),+).trim_ascii(),
                    } },)+
                }
            }

            /// Its name, unique in this table.
            pub fn name(self) -> &'static str {
                self.declaration().name
            }

            /// The one with that number, as on the wire.
            pub fn from_number(number: u16) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }

        /// Its name in the JSON report.
        impl serde::Serialize for $table {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.declaration().json_name())
            }
        }

        impl<'de> serde::Deserialize<'de> for $table {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let name = String::deserialize(deserializer)?;
                let mut all = Self::ALL.iter().copied();
                all.find(|known| known.declaration().json_name() == name)
                    .ok_or_else(|| serde::de::Error::custom(format!(
                        concat!("'{}' is not declared as one of ", stringify!($table)),
                        name.chars().take(80).collect::<String>(),
                    )))
            }
        }
    };
    (@class) => { None };
    (@class $family:literal, $size:literal) => {
        Some($crate::telemetry::Class { family: $family, size: $size })
    };
}

pub(super) use declare;
