//! What the built-in guest does, whatever runs it: KVM's vCPUs or threads of this process.
//!
//! | room | what is in it |
//! |---|---|
//! | here | [`Workload`]: what an operator asks for, as text and as a section of state |
//! | [`plan`] | where in guest memory everything lies |
//! | [`words`] | access to one page of guest memory, word by word |
//! | [`control_page`] | the page through which the VMM and one vCPU speak |
//! | [`page`] | the format of a page that is rewritten |
//! | [`fill`] | the first contents of memory |
//! | [`check`] | whether a moved guest's memory is as it should be |
//! | [`beat`] | the lines that a guest prints while it runs, and how often |

pub mod beat;
pub mod check;
pub mod control_page;
pub mod fill;
pub mod page;
pub mod plan;
mod pool;
pub mod words;

use std::fmt;
use std::str::FromStr;

use dunlin_engine::state::{Section, StateError};
use dunlin_transports::memory::PAGE_BYTES;
use thiserror::Error;

pub use self::beat::BeatInterval;
use crate::size::{SizeError, format_rate, format_size, parse_rate, parse_size};

/// What the built-in guest does, for the whole guest: vCPUs share it out evenly.
///
/// As text: `pattern=sequential|random|replay,hot=SIZE,rate=SIZE/s|max,zero=PERCENT,block=PAGES,unused=PERCENT,beat=TIME`,
/// each at most once, in any order; what is left out has its [`Default`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// In which order the hot set's pages are rewritten.
    pub pattern: Pattern,
    /// How much memory is rewritten, in bytes, a multiple of [`PAGE_BYTES`].
    pub hot_bytes: u64,
    /// How fast, in bytes a second, all vCPUs together; `None`: as fast as they can.
    pub rate: Option<u64>,
    /// How many in a hundred of the other pages are zero.
    pub zero_percent: u8,
    /// How many pages in a row are zero, and how many in a row are not, at least.
    pub block_pages: u16,
    /// How much of the guest's memory, in a hundred parts, nobody ever touches: what lies at its
    /// end, without the hot set.
    pub unused_percent: u8,
    /// How often the guest prints a line on its serial port.
    pub beat: BeatInterval,
}

/// In which order a hot set's pages are rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// One after the other, over and over.
    Sequential,
    /// At random.
    Random,
    /// As a trace says ([`crate::dirty_trace`]), where there is one: any page, and none without it.
    /// There is no hot set then.
    Replay,
}

/// What is wrong with a workload.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WorkloadError {
    /// A part is not `key=value`.
    #[error(
        "workload: '{0}' is not KEY=VALUE; the keys are pattern, hot, rate, zero, block, unused \
         and beat"
    )]
    NotAPair(String),
    /// A key is not known.
    #[error(
        "workload: '{0}' is not a key; the keys are pattern, hot, rate, zero, block, unused and \
         beat"
    )]
    UnknownKey(String),
    /// A key is there twice.
    #[error("workload: '{0}' is there twice")]
    Duplicate(String),
    /// The pattern is not known.
    #[error("workload: pattern={0}: allowed are sequential, random and replay")]
    Pattern(String),
    /// A size or a rate can't be read.
    #[error("workload: {key}: {source}")]
    Size {
        /// Which one.
        key: &'static str,
        /// What is wrong with it.
        source: SizeError,
    },
    /// The hot set is not made of whole pages.
    #[error("workload: hot={}: allowed are multiples of {PAGE_BYTES} bytes", format_size(*.0))]
    HotNotWholePages(u64),
    /// A replay with a hot set.
    #[error("workload: pattern=replay has no hot set: leave hot out")]
    ReplayWithHotSet,
    /// A rate of nothing.
    #[error(
        "workload: rate=0/s: allowed are 1/s and more, or max; hot=0 makes a guest that writes nothing"
    )]
    RateZero,
    /// The percentage is none.
    #[error("workload: {key}={value}: allowed are 0 to 100, with or without a percent sign")]
    Percent {
        /// Which one.
        key: &'static str,
        /// What was given.
        value: String,
    },
    /// The length of blocks is none.
    #[error("workload: block={0}: allowed are 1 to 65535 pages")]
    Block(String),
    /// The time between beats is none, or not allowed.
    #[error("workload: beat={0}: allowed are 1ms to 3600s, in whole ms or s")]
    Beat(String),
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            pattern: Pattern::Sequential,
            hot_bytes: 64 << 20,
            rate: Some(100 << 20),
            zero_percent: 25,
            // As memory of real guests has them: an extent at a time, not page by page.
            block_pages: 16,
            unused_percent: 0,
            beat: BeatInterval::default(),
        }
    }
}

impl Workload {
    /// The name of its section in a guest's configuration.
    pub const SECTION: &str = "workload";

    /// The newest version of the section that this build reads, and the one that it writes.
    pub const SECTION_VERSION: u16 = 1;

    // The section's fields.
    const FIELD_PATTERN: u16 = 1;
    const FIELD_HOT_BYTES: u16 = 2;
    /// Missing: as fast as they can.
    const FIELD_RATE: u16 = 3;
    const FIELD_ZERO_PERCENT: u16 = 4;
    /// Missing: a second.
    const FIELD_BEAT_MS: u16 = 5;
    /// Missing: the default.
    const FIELD_BLOCK_PAGES: u16 = 6;
    /// Missing: none.
    const FIELD_UNUSED_PERCENT: u16 = 7;

    /// Checks the values against each other and their limits.
    ///
    /// # Errors
    ///
    /// When the hot set is not made of whole pages, the rate or the blocks' length is 0, or a
    /// percentage is above 100.
    pub fn validate(&self) -> Result<(), WorkloadError> {
        if !self.hot_bytes.is_multiple_of(PAGE_BYTES) {
            return Err(WorkloadError::HotNotWholePages(self.hot_bytes));
        }
        if self.pattern == Pattern::Replay && self.hot_bytes > 0 {
            return Err(WorkloadError::ReplayWithHotSet);
        }
        if self.rate == Some(0) {
            return Err(WorkloadError::RateZero);
        }
        for (key, percent) in [("zero", self.zero_percent), ("unused", self.unused_percent)] {
            if percent > 100 {
                let value = percent.to_string();
                return Err(WorkloadError::Percent { key, value });
            }
        }
        if self.block_pages == 0 {
            return Err(WorkloadError::Block(self.block_pages.to_string()));
        }
        Ok(())
    }

    /// The section that tells a destination of it. Fields: 1 pattern (0 sequential, 1 random, 2 replay),
    /// 2 hot bytes, 3 rate in bytes a second (missing: no limit), 4 percentage of zero pages,
    /// 5 milliseconds from one beat to the next, 6 pages of a block (missing: the default),
    /// 7 percentage of memory that is never touched (missing: none).
    pub fn to_section(&self) -> Section {
        let mut section = Section::new(Self::SECTION, Self::SECTION_VERSION);
        section
            .put_u64(Self::FIELD_PATTERN, self.pattern.number())
            .put_u64(Self::FIELD_HOT_BYTES, self.hot_bytes)
            .put_u64(Self::FIELD_ZERO_PERCENT, u64::from(self.zero_percent));
        if let Some(rate) = self.rate {
            section.put_u64(Self::FIELD_RATE, rate);
        }
        // Only where it says something: builds that don't know the field read all other guests.
        if self.beat != BeatInterval::default() {
            section.put_u64(Self::FIELD_BEAT_MS, self.beat.milliseconds());
        }
        if self.block_pages != Self::default().block_pages {
            section.put_u64(Self::FIELD_BLOCK_PAGES, self.block_pages.into());
        }
        if self.unused_percent != 0 {
            section.put_u64(Self::FIELD_UNUSED_PERCENT, self.unused_percent.into());
        }
        section
    }

    /// Reads what [`Workload::to_section`] wrote.
    ///
    /// # Errors
    ///
    /// When a field is missing, unknown, or has a value that is not allowed.
    pub fn from_section(mut section: Section) -> Result<Self, StateError> {
        let number = section.require_u64(Self::FIELD_PATTERN)?;
        let pattern = Pattern::from_number(number)
            .ok_or_else(|| section.bad(Self::FIELD_PATTERN, format!("no pattern {number}")))?;
        let hot_bytes = section.require_u64(Self::FIELD_HOT_BYTES)?;
        let rate = optional_u64(&mut section, Self::FIELD_RATE)?;
        let beat = match optional_u64(&mut section, Self::FIELD_BEAT_MS)? {
            None => BeatInterval::default(),
            Some(ms) => BeatInterval::from_milliseconds(ms)
                .map_err(|error| section.bad(Self::FIELD_BEAT_MS, error.to_string()))?,
        };
        let block_pages = match optional_u64(&mut section, Self::FIELD_BLOCK_PAGES)? {
            None => Self::default().block_pages,
            Some(pages) => u16::try_from(pages).unwrap_or(0),
        };
        let unused = optional_u64(&mut section, Self::FIELD_UNUSED_PERCENT)?.unwrap_or(0);
        let percent = section.require_u64(Self::FIELD_ZERO_PERCENT)?;
        let workload = Self {
            pattern,
            hot_bytes,
            rate,
            zero_percent: u8::try_from(percent).unwrap_or(u8::MAX),
            block_pages,
            unused_percent: u8::try_from(unused).unwrap_or(u8::MAX),
            beat,
        };
        workload.validate().map_err(|error| {
            let field = match error {
                WorkloadError::HotNotWholePages(_) | WorkloadError::ReplayWithHotSet => {
                    Self::FIELD_HOT_BYTES
                }
                WorkloadError::RateZero => Self::FIELD_RATE,
                WorkloadError::Block(_) => Self::FIELD_BLOCK_PAGES,
                WorkloadError::Percent { key: "unused", .. } => Self::FIELD_UNUSED_PERCENT,
                _ => Self::FIELD_ZERO_PERCENT,
            };
            section.bad(field, error.to_string())
        })?;
        section.finish()?;
        Ok(workload)
    }
}

fn parse_percent(key: &'static str, value: &str) -> Result<u8, WorkloadError> {
    let digits = value.strip_suffix('%').unwrap_or(value);
    Some(digits)
        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|digits| digits.parse().ok())
        .filter(|percent| *percent <= 100)
        .ok_or_else(|| WorkloadError::Percent {
            key,
            value: value.to_owned(),
        })
}

fn optional_u64(section: &mut Section, field: u16) -> Result<Option<u64>, StateError> {
    let Some(bytes) = section.take(field) else {
        return Ok(None);
    };
    section.put(field, bytes).require_u64(field).map(Some)
}

impl Pattern {
    /// Its number in the control page and in the section.
    pub fn number(self) -> u64 {
        match self {
            Self::Sequential => 0,
            Self::Random => 1,
            Self::Replay => 2,
        }
    }

    /// The pattern with a number.
    pub fn from_number(number: u64) -> Option<Self> {
        match number {
            0 => Some(Self::Sequential),
            1 => Some(Self::Random),
            2 => Some(Self::Replay),
            _ => None,
        }
    }

    /// Its name in text.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sequential => "sequential",
            Self::Random => "random",
            Self::Replay => "replay",
        }
    }
}

impl FromStr for Workload {
    type Err = WorkloadError;

    fn from_str(text: &str) -> Result<Self, WorkloadError> {
        let mut workload = Self::default();
        let mut seen = Vec::new();
        for part in text.split(',').filter(|_| !text.is_empty()) {
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| WorkloadError::NotAPair(part.to_owned()))?;
            if seen.contains(&key) {
                return Err(WorkloadError::Duplicate(key.to_owned()));
            }
            seen.push(key);
            match key {
                "pattern" => {
                    workload.pattern = match value {
                        "sequential" => Pattern::Sequential,
                        "random" => Pattern::Random,
                        "replay" => Pattern::Replay,
                        _ => return Err(WorkloadError::Pattern(value.to_owned())),
                    };
                }
                "hot" => {
                    workload.hot_bytes = parse_size(value)
                        .map_err(|source| WorkloadError::Size { key: "hot", source })?;
                }
                "rate" => {
                    workload.rate = match value {
                        "max" => None,
                        _ => Some(parse_rate(value).map_err(|source| WorkloadError::Size {
                            key: "rate",
                            source,
                        })?),
                    };
                }
                "zero" => workload.zero_percent = parse_percent("zero", value)?,
                "unused" => workload.unused_percent = parse_percent("unused", value)?,
                "block" => {
                    workload.block_pages = Some(value)
                        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
                        .and_then(|digits| digits.parse().ok())
                        .filter(|pages| *pages > 0)
                        .ok_or_else(|| WorkloadError::Block(value.to_owned()))?;
                }
                "beat" => workload.beat = value.parse()?,
                _ => return Err(WorkloadError::UnknownKey(key.to_owned())),
            }
        }
        if workload.pattern == Pattern::Replay && !seen.contains(&"hot") {
            workload.hot_bytes = 0;
        }
        workload.validate()?;
        Ok(workload)
    }
}

impl fmt::Display for Workload {
    /// The canonical text, which reads back as the same workload.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.rate.map_or_else(|| "max".to_owned(), format_rate);
        write!(
            formatter,
            "pattern={},hot={},rate={rate},zero={}",
            self.pattern.name(),
            format_size(self.hot_bytes),
            self.zero_percent
        )?;
        if self.block_pages != Self::default().block_pages {
            write!(formatter, ",block={}", self.block_pages)?;
        }
        if self.unused_percent != 0 {
            write!(formatter, ",unused={}", self.unused_percent)?;
        }
        if self.beat != BeatInterval::default() {
            write!(formatter, ",beat={}", self.beat)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Workload, WorkloadError> {
        text.parse()
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        assert_eq!(parse(""), Ok(Workload::default()));
        assert_eq!(
            Workload::default().to_string(),
            "pattern=sequential,hot=64MiB,rate=100MiB/s,zero=25"
        );
        let workload = parse("zero=30%,rate=max,hot=1GiB,pattern=random").unwrap();
        assert_eq!(
            workload,
            Workload {
                pattern: Pattern::Random,
                hot_bytes: 1 << 30,
                rate: None,
                zero_percent: 30,
                block_pages: 16,
                unused_percent: 0,
                beat: BeatInterval::default(),
            }
        );
        assert_eq!(parse("hot=0").unwrap().hot_bytes, 0);
        let replay = parse("zero=0,pattern=replay").unwrap();
        assert_eq!(replay.hot_bytes, 0);
        assert_eq!(parse(&replay.to_string()), Ok(replay.clone()));
        assert_eq!(Workload::from_section(replay.to_section()).unwrap(), replay);
    }

    #[test]
    fn errors_name_the_key_the_value_and_what_is_allowed() {
        for (text, message) in [
            ("hot", "'hot' is not KEY=VALUE; the keys are"),
            (",", "'' is not KEY=VALUE"),
            ("hot=1MiB,", "'' is not KEY=VALUE"),
            ("cold=1", "'cold' is not a key; the keys are pattern, hot"),
            ("hot=4096,hot=4096", "'hot' is there twice"),
            (
                "pattern=up",
                "pattern=up: allowed are sequential, random and replay",
            ),
            ("pattern=replay,hot=4096", "pattern=replay has no hot set"),
            ("hot=5000", "hot=5000: allowed are multiples of 4096"),
            ("hot=64MB", "hot: '64MB' has the unit 'MB'; the units are"),
            ("hot=17179869184TiB", "hot: '17179869184TiB' is too large"),
            ("rate=64MiB", "rate: '64MiB' is not a rate"),
            ("rate=0/s", "rate=0/s: allowed are"),
            ("zero=101", "zero=101: allowed are 0 to 100"),
            ("zero=+1", "zero=+1: allowed are 0 to 100"),
            ("zero=", "zero=: allowed are 0 to 100"),
            ("zero=300", "zero=300: allowed are 0 to 100"),
            ("unused=101", "unused=101: allowed are 0 to 100"),
            ("block=0", "block=0: allowed are 1 to 65535"),
            ("block=+1", "block=+1: allowed are 1 to 65535"),
            ("block=65536", "block=65536: allowed are 1 to 65535"),
            ("beat=0ms", "beat=0ms: allowed are 1ms to 3600s"),
            ("beat=5", "beat=5: allowed are 1ms to 3600s"),
            ("beat=3601s", "beat=3601s: allowed are 1ms to 3600s"),
            (
                "beat=99999999999999999999s",
                "beat=99999999999999999999s: allowed are",
            ),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn a_section_with_a_forbidden_value_is_refused() {
        for (field, value) in [
            (1, 2),
            (1, 3),
            (2, 5000),
            (3, 0),
            (4, 101),
            (4, 1 << 40),
            (5, 0),
            (6, 0),
            (6, 1 << 16),
            (7, 101),
            (9, 0),
        ] {
            let mut section = Workload::default().to_section();
            section.put_u64(field, value);
            assert!(Workload::from_section(section).is_err(), "{field}={value}");
        }
    }

    /// The fields of version 1 keep their numbers for ever.
    #[test]
    fn golden_section() {
        let mut golden = Section::new("workload", 1);
        golden
            .put_u64(1, 1)
            .put_u64(2, 8192)
            .put_u64(3, 77)
            .put_u64(4, 50);
        let workload = parse("pattern=random,hot=8KiB,rate=77/s,zero=50").unwrap();
        assert_eq!(workload.to_section(), golden);
        golden.put_u64(5, 20);
        let workload = parse("pattern=random,hot=8KiB,rate=77/s,zero=50,beat=20ms").unwrap();
        assert_eq!(workload.to_section(), golden);
        golden.put_u64(6, 1);
        let text = "pattern=random,hot=8KiB,rate=77/s,zero=50,block=1,beat=20ms";
        assert_eq!(parse(text).unwrap().to_section(), golden);
        golden.put_u64(7, 95);
        let text = format!("{text},unused=95%");
        assert_eq!(parse(&text).unwrap().to_section(), golden);
    }

    proptest! {
        #[test]
        fn text_and_section_read_back(
            random in any::<bool>(),
            hot_pages in 0_u64..=u64::MAX / PAGE_BYTES,
            rate in proptest::option::of(1_u64..),
            zero_percent in 0_u8..=100,
            block_pages in 1_u16..,
            unused_percent in 0_u8..=100,
            beat_ms in 1_u64..=3_600_000,
        ) {
            let workload = Workload {
                pattern: if random { Pattern::Random } else { Pattern::Sequential },
                hot_bytes: hot_pages * PAGE_BYTES,
                rate,
                zero_percent,
                block_pages,
                unused_percent,
                beat: BeatInterval::from_milliseconds(beat_ms).unwrap(),
            };
            prop_assert_eq!(parse(&workload.to_string()), Ok(workload.clone()));
            prop_assert_eq!(Workload::from_section(workload.to_section()), Ok(workload));
        }

        #[test]
        fn no_text_panics(text in "[a-z=,%/0-9KMGTiBs]{0,40}") {
            let _ = parse(&text);
        }
    }
}
