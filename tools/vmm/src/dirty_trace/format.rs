//! The file of a dirty trace, version 1.
//!
//! ```text
//! "DUNDIRTY"                      eight bytes
//! then numbers, each in LEB128 (seven bits a byte, lowest first, the top bit says that more follow):
//!   version                       1
//!   flags                         bit 0: the recording ended before the move did
//!   regions                       1 to 1024; for each: guest-physical address and length, in pages
//!   intervals                     for each, in order:
//!     length                      in nanoseconds
//!     runs                        for each, ascending:
//!       gap                       clean pages since the last run's end (from page 0)
//!       pages                     1 and more
//! ```
//!
//! Pages are numbered through all regions, end to end, each region starting at a multiple of 64. A
//! page that is dirty alone takes two bytes as a rule. A file has at most [`FILE_BYTES_MAX`].

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use dunlin_engine::layout::REGIONS_MAX;
use thiserror::Error;

use super::{DirtyTrace, Interval};

const MAGIC: &[u8; 8] = b"DUNDIRTY";

/// The version that this build writes, and the only one that it reads.
const VERSION: u64 = 1;

const FLAG_CUT: u64 = 1;

/// The longest file: five minutes of a guest that makes 25,000 scattered pages dirty a second
/// (100 MiB/s) take some 15 MB. In memory a run takes eight times what it takes here, so that a
/// file can't take more than 128 MiB.
pub const FILE_BYTES_MAX: u64 = 16 << 20;

/// What is wrong with a trace.
#[derive(Debug, Error)]
pub enum TraceError {
    /// It can't be read.
    #[error("{0}")]
    Unreadable(#[from] std::io::Error),
    /// It is none.
    #[error("not a dirty trace; 'dunlin send --dirty-trace FILE' writes one")]
    NoTrace,
    /// It is of another version.
    #[error("a dirty trace of version {0}; this build reads version {VERSION}")]
    Version(u64),
    /// It is longer than any that was recorded.
    #[error("longer than {} MiB, which no dirty trace is", FILE_BYTES_MAX >> 20)]
    TooLong,
    /// It ends early or says what can't be.
    #[error("a broken dirty trace: {0}")]
    Broken(&'static str),
}

impl DirtyTrace {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// When it can't be read or is no trace.
    pub fn read(path: &Path) -> Result<Self, TraceError> {
        let mut bytes = Vec::new();
        let file = File::open(path)?;
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(TraceError::TooLong);
        }
        Self::decode(&bytes)
    }

    /// Reads the bytes of a file.
    ///
    /// # Errors
    ///
    /// When they are no trace.
    pub fn decode(bytes: &[u8]) -> Result<Self, TraceError> {
        let mut rest = Numbers(bytes.strip_prefix(MAGIC).ok_or(TraceError::NoTrace)?);
        let version = rest.next()?;
        if version != VERSION {
            return Err(TraceError::Version(version));
        }
        let flags = rest.next()?;
        if flags & !FLAG_CUT != 0 {
            return Err(TraceError::Broken("flags that have no meaning"));
        }
        let (regions, span) = rest.regions()?;
        let count = rest.next()?;
        let mut intervals = Vec::new();
        for _ in 0..count {
            intervals.push(rest.interval(span)?);
        }
        if !rest.0.is_empty() {
            return Err(TraceError::Broken("bytes behind the last interval"));
        }
        Ok(Self {
            regions,
            is_cut: flags & FLAG_CUT != 0,
            intervals,
        })
    }

    /// The bytes of its file.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for interval in &self.intervals {
            put_interval(&mut bytes, interval);
        }
        whole(
            &self.regions,
            self.is_cut,
            self.intervals.len() as u64,
            &bytes,
        )
    }
}

/// A file around intervals that are encoded already.
pub(super) fn whole(regions: &[(u64, u64)], is_cut: bool, count: u64, intervals: &[u8]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    put(&mut bytes, VERSION);
    put(&mut bytes, if is_cut { FLAG_CUT } else { 0 });
    put(&mut bytes, regions.len() as u64);
    for (address, pages) in regions {
        put(&mut bytes, *address);
        put(&mut bytes, *pages);
    }
    put(&mut bytes, count);
    bytes.extend_from_slice(intervals);
    bytes
}

/// Appends an interval.
pub(super) fn put_interval(bytes: &mut Vec<u8>, interval: &Interval) {
    let nanoseconds = u64::try_from(interval.length.as_nanos()).unwrap_or(u64::MAX);
    put(bytes, nanoseconds);
    put(bytes, interval.runs.len() as u64);
    let mut end = 0;
    for (first, pages) in &interval.runs {
        put(bytes, first.saturating_sub(end));
        put(bytes, *pages);
        end = first + pages;
    }
}

fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// What is left of a file.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn next(&mut self) -> Result<u64, TraceError> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self
                .0
                .split_first()
                .ok_or(TraceError::Broken("it ends early"))?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(TraceError::Broken("a number beyond 64 bits"))
    }

    /// The regions, and the span of the pages' numbers.
    fn regions(&mut self) -> Result<(Vec<(u64, u64)>, u64), TraceError> {
        let count = self.next()?;
        if count == 0 || count > REGIONS_MAX as u64 {
            return Err(TraceError::Broken("a number of regions that no guest has"));
        }
        let mut regions = Vec::new();
        let mut span = 0_u64;
        for _ in 0..count {
            let (address, pages) = (self.next()?, self.next()?);
            span = pages
                .checked_next_multiple_of(64)
                .and_then(|pages| span.checked_add(pages))
                .filter(|span| *span <= u64::MAX >> 13 && pages > 0)
                .ok_or(TraceError::Broken("a region that no guest has"))?;
            regions.push((address, pages));
        }
        Ok((regions, span))
    }

    fn interval(&mut self, span: u64) -> Result<Interval, TraceError> {
        let length = Duration::from_nanos(self.next()?);
        let count = self.next()?;
        let mut runs = Vec::new();
        let mut end = 0_u64;
        for _ in 0..count {
            let (gap, pages) = (self.next()?, self.next()?);
            let first = end.checked_add(gap);
            let run_end = first.and_then(|first| first.checked_add(pages));
            let (Some(first), Some(run_end)) = (first, run_end) else {
                return Err(TraceError::Broken("a page beyond the guest's memory"));
            };
            if run_end > span {
                return Err(TraceError::Broken("a page beyond the guest's memory"));
            }
            if pages == 0 {
                return Err(TraceError::Broken("a run of no pages"));
            }
            runs.push((first, pages));
            end = run_end;
        }
        Ok(Interval { length, runs })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Version 1 keeps its bytes for ever.
    #[test]
    fn golden_bytes() {
        let trace = DirtyTrace {
            regions: vec![(0, 4096), (1 << 20, 64)],
            is_cut: true,
            intervals: vec![
                Interval {
                    length: Duration::from_nanos(300),
                    runs: vec![(2, 1), (200, 3)],
                },
                Interval {
                    length: Duration::ZERO,
                    runs: vec![],
                },
            ],
        };
        let golden = b"DUNDIRTY\x01\x01\x02\x00\x80\x20\x80\x80\x40\x40\x02\
            \xac\x02\x02\x02\x01\xc5\x01\x03\x00\x00";
        assert_eq!(trace.encode(), golden);
        assert_eq!(DirtyTrace::decode(golden).unwrap(), trace);
    }

    #[test]
    fn what_is_no_trace_gets_a_sentence() {
        let region = b"\x01\x00\x80\x01";
        let of = |rest: &[u8]| [MAGIC, &b"\x01\x00"[..], region, rest].concat();
        for (bytes, named) in [
            (b"".to_vec(), "not a dirty trace"),
            (b"{\"schema\":".to_vec(), "not a dirty trace"),
            (b"DUNDIRTY".to_vec(), "it ends early"),
            (b"DUNDIRTY\x02".to_vec(), "version 2"),
            (b"DUNDIRTY\x01\x02".to_vec(), "flags"),
            (b"DUNDIRTY\x01\x00\x00".to_vec(), "a number of regions"),
            (of(b"\x01\x05"), "it ends early"),
            (of(b"\x01\x05\x01\x00\x00"), "a run of no pages"),
            (of(b"\x01\x05\x01\x7f\x02"), "beyond the guest's memory"),
            (of(b"\x00\x00"), "bytes behind"),
            (
                of(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"),
                "beyond 64 bits",
            ),
        ] {
            let error = DirtyTrace::decode(&bytes).unwrap_err().to_string();
            assert!(error.contains(named), "{named}: {error}");
        }
        let missing = DirtyTrace::read(Path::new("/nonexistent/trace")).unwrap_err();
        assert!(matches!(missing, TraceError::Unreadable(_)), "{missing}");
    }

    proptest! {
        #[test]
        fn traces_read_back(
            lengths in proptest::collection::vec(
                (0_u64.., proptest::collection::vec((0_u64..300, 1_u64..300), 0..20)), 0..10),
            is_cut in any::<bool>(),
        ) {
            let intervals = lengths.into_iter().map(|(length, gaps)| {
                let mut end = 0;
                let runs = gaps.into_iter().map(|(gap, pages)| {
                    let first = end + gap;
                    end = first + pages;
                    (first, pages)
                });
                Interval { length: Duration::from_nanos(length), runs: runs.collect() }
            });
            let trace = DirtyTrace {
                regions: vec![(0, 1 << 20)],
                is_cut,
                intervals: intervals.collect(),
            };
            prop_assert_eq!(DirtyTrace::decode(&trace.encode()).unwrap(), trace);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = DirtyTrace::decode(&bytes);
            let with_head = [MAGIC, &b"\x01\x00"[..], &bytes].concat();
            let _ = DirtyTrace::decode(&with_head);
        }
    }
}
