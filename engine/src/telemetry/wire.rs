//! One end's recording on the wire: how the destination's measurements reach the source at the end
//! of a move. CBOR, with numbers for names; what one version adds, an older one passes over.
//!
//! Nothing in it is trusted: lengths are held against caps, names against what is declared for the
//! end that sends, numbers against each other. What passes makes one side's report wrong at worst.

use std::collections::BTreeMap;

use dunlin_transports::lane::LANES_MAX;
use minicbor::decode::Error as DecodeError;
use minicbor::{Decode, Decoder, Encode};

use super::buckets::{BUCKETS, bucket_of};
use super::declaration::{Declaration, End};
use super::measurements::{LaneMeasurements, OperationMeasurement, Recording, Summary};
use super::{Counter, Gauge};

mod reader;

/// The version of the form. It grows by fields with new numbers; another version is another form.
pub const WIRE_VERSION: u16 = 1;

/// The most bytes that one recording has on the wire. Formula, for what a destination can measure:
/// 4,096 spans of at most 25 bytes (100 KiB); 12 operations of at most 80 bytes and 528 buckets of
/// at most 12 (75 KiB); 64 lanes with 4 operations of at most 80 bytes and 9 counters of at most 12
/// (27 KiB). Decoded, a byte becomes at most 8 (a number in a list of buckets): 2 MiB, twice that
/// while a list grows.
pub const WIRE_BYTES_MAX: usize = 256 << 10;

/// The most spans that are told; the oldest are left out.
pub const WIRE_SPANS_MAX: usize = 4096;

/// The most operations that are told, the most amounts of one kind, and the most operations of a
/// lane: several times what is declared, for newer peers.
const NAMES_MAX: usize = 128;

/// The most numbers in a list of buckets: two for each.
const BUCKET_NUMBERS_MAX: usize = 2 * BUCKETS as usize;

/// As many lanes as there may be.
const WIRE_LANES_MAX: usize = LANES_MAX as usize;

/// Why a recording can't be sent or understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// It is longer than agreed.
    #[error("a recording of {bytes} bytes, at most {WIRE_BYTES_MAX} are agreed")]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
    /// It is of another form.
    #[error(
        "a recording of version {version}, version {WIRE_VERSION} is understood here; the same \
         version of dunlin on both hosts will do"
    )]
    Version {
        /// Its version.
        version: u16,
    },
    /// It is no recording.
    #[error("not a recording: {0}")]
    Form(String),
    /// It says something that can't be.
    #[error("a recording that can't be: {what} ({value})")]
    Impossible {
        /// What can't be.
        what: &'static str,
        /// What it says.
        value: u64,
    },
}

/// A recording that came from the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// What was understood.
    pub recording: Recording,
    /// How many things in it are not declared here: a newer peer measures more.
    pub unknown: u64,
}

#[derive(Debug, Default, Encode, Decode)]
#[cbor(map)]
struct WireRecording {
    #[n(0)]
    version: u16,
    #[cbor(n(1), decode_with = "list::<_, _, NAMES_MAX>")]
    operations: Vec<WireOperation>,
    #[cbor(n(2), decode_with = "list::<_, _, NAMES_MAX>")]
    counters: Vec<WireAmount>,
    #[cbor(n(3), decode_with = "list::<_, _, NAMES_MAX>")]
    gauges: Vec<WireAmount>,
    #[cbor(n(4), decode_with = "list::<_, _, WIRE_LANES_MAX>")]
    lanes: Vec<WireLane>,
    #[cbor(n(5), decode_with = "list::<_, _, WIRE_SPANS_MAX>")]
    spans: Vec<WireSpan>,
    #[n(6)]
    dropped_spans: u64,
    #[n(7)]
    misplaced: u64,
}

#[derive(Debug, Encode, Decode)]
#[cbor(array)]
struct WireOperation {
    #[n(0)]
    number: u16,
    #[n(1)]
    summary: WireSummary,
    /// For each bucket that is not empty: how many places it is behind the one before it (the
    /// first: behind the place before the first), and how many durations are in it.
    #[cbor(n(2), decode_with = "list::<_, _, BUCKET_NUMBERS_MAX>")]
    buckets: Vec<u64>,
}

#[derive(Debug, Encode, Decode)]
#[cbor(array)]
struct WireSummary {
    #[n(0)]
    count: u64,
    #[n(1)]
    total_ns: u64,
    #[n(2)]
    min_ns: u64,
    #[n(3)]
    p50_ns: u64,
    #[n(4)]
    p90_ns: u64,
    #[n(5)]
    p99_ns: u64,
    #[n(6)]
    p999_ns: u64,
    #[n(7)]
    max_ns: u64,
}

#[derive(Debug, Encode, Decode)]
#[cbor(array)]
struct WireAmount {
    #[n(0)]
    number: u16,
    #[n(1)]
    value: u64,
}

#[derive(Debug, Encode, Decode)]
#[cbor(array)]
struct WireLane {
    #[n(0)]
    lane: u16,
    #[cbor(n(1), decode_with = "list::<_, _, NAMES_MAX>")]
    operations: Vec<WireLaneOperation>,
    #[cbor(n(2), decode_with = "list::<_, _, NAMES_MAX>")]
    counters: Vec<WireAmount>,
}

#[derive(Debug, Encode, Decode)]
#[cbor(array)]
struct WireLaneOperation {
    #[n(0)]
    number: u16,
    #[n(1)]
    summary: WireSummary,
}

#[derive(Debug, Encode, Decode)]
#[cbor(array)]
struct WireSpan {
    #[n(0)]
    number: u16,
    #[n(1)]
    track: u8,
    #[n(2)]
    index: u16,
    /// How long after the begin of the span before it; the first: after 0 of the sender's clock.
    #[n(3)]
    later_ns: u64,
    #[n(4)]
    duration_ns: u64,
}

/// A list of at most `MAX`, whose length is held against that before anything is made of it.
fn list<'b, C, T: Decode<'b, C>, const MAX: usize>(
    decoder: &mut Decoder<'b>,
    context: &mut C,
) -> Result<Vec<T>, DecodeError> {
    let length = decoder.array()?;
    let length = length.ok_or(DecodeError::message("a list that does not say its length"))?;
    if length > MAX as u64 {
        let words = format!("a list of {length}, at most {MAX} are agreed");
        return Err(DecodeError::message(words));
    }
    let mut list = Vec::new();
    for _ in 0..length {
        list.push(T::decode(decoder, context)?);
    }
    Ok(list)
}

/// A recording as it goes over the wire.
///
/// # Errors
///
/// [`WireError::TooLong`]; a destination's never is.
pub fn encode(recording: &Recording) -> Result<Vec<u8>, WireError> {
    let Recording {
        measurements,
        spans,
        dropped_spans,
    } = recording;
    let left_out = spans.len().saturating_sub(WIRE_SPANS_MAX);
    let mut before = 0;
    let spans = spans.iter().skip(left_out).map(|span| {
        let later_ns = span.begin.0.saturating_sub(before);
        before = before.max(span.begin.0);
        WireSpan {
            number: span.name.declaration().number,
            track: span.track.kind() as u8,
            index: span.track.index(),
            later_ns,
            duration_ns: span.end.0.saturating_sub(span.begin.0),
        }
    });
    let wire = WireRecording {
        version: WIRE_VERSION,
        operations: measurements.operations.iter().map(operation).collect(),
        counters: amounts(&measurements.counters, Counter::declaration),
        gauges: amounts(&measurements.gauges, Gauge::declaration),
        lanes: measurements.lanes.iter().map(lane).collect(),
        spans: spans.collect(),
        dropped_spans: dropped_spans.saturating_add(left_out as u64),
        misplaced: measurements.misplaced,
    };
    let bytes = minicbor::to_vec(&wire).map_err(|error| WireError::Form(error.to_string()))?;
    match bytes.len() {
        ..=WIRE_BYTES_MAX => Ok(bytes),
        bytes => Err(WireError::TooLong { bytes }),
    }
}

fn operation(measured: &OperationMeasurement) -> WireOperation {
    let mut next = 0;
    let mut buckets = Vec::with_capacity(2 * measured.buckets.len());
    for bucket in &measured.buckets {
        let place = u64::from(bucket_of(bucket.below_ns.saturating_sub(1))) + 1;
        buckets.extend([place.saturating_sub(next), bucket.count]);
        next = place;
    }
    WireOperation {
        number: measured.name.declaration().number,
        summary: summary(&measured.summary),
        buckets,
    }
}

fn lane(measured: &LaneMeasurements) -> WireLane {
    let operations = measured.operations.iter().map(|found| WireLaneOperation {
        number: found.name.declaration().number,
        summary: summary(&found.summary),
    });
    WireLane {
        lane: measured.lane,
        operations: operations.collect(),
        counters: amounts(&measured.counters, Counter::declaration),
    }
}

fn summary(told: &Summary) -> WireSummary {
    WireSummary {
        count: told.count,
        total_ns: told.total_ns,
        min_ns: told.min_ns,
        p50_ns: told.p50_ns,
        p90_ns: told.p90_ns,
        p99_ns: told.p99_ns,
        p999_ns: told.p999_ns,
        max_ns: told.max_ns,
    }
}

fn amounts<K: Copy>(
    told: &BTreeMap<K, u64>,
    declaration: fn(K) -> &'static Declaration,
) -> Vec<WireAmount> {
    let amount = |(key, value): (&K, &u64)| WireAmount {
        number: declaration(*key).number,
        value: *value,
    };
    told.iter().map(amount).collect()
}

/// What the end `from` sent.
///
/// # Errors
///
/// Any [`WireError`]: nothing of it is of use then.
pub fn decode(bytes: &[u8], from: End) -> Result<Received, WireError> {
    if bytes.len() > WIRE_BYTES_MAX {
        let bytes = bytes.len();
        return Err(WireError::TooLong { bytes });
    }
    let version = version(bytes)?;
    if version != WIRE_VERSION {
        return Err(WireError::Version { version });
    }
    let mut decoder = Decoder::new(bytes);
    let wire: WireRecording = decoder.decode().map_err(no_form)?;
    if decoder.position() != bytes.len() {
        return Err(impossible(
            "bytes behind its end",
            decoder.position() as u64,
        ));
    }
    let mut reader = reader::Reader::new(from);
    let recording = reader.recording(&wire)?;
    let unknown = reader.unknown();
    Ok(Received { recording, unknown })
}

/// The version alone, which every version has first.
fn version(bytes: &[u8]) -> Result<u16, WireError> {
    let mut decoder = Decoder::new(bytes);
    decoder.map().map_err(no_form)?;
    match decoder.u8().map_err(no_form)? {
        0 => decoder.u16().map_err(no_form),
        field => Err(impossible("it begins with another field", field.into())),
    }
}

fn no_form(error: DecodeError) -> WireError {
    WireError::Form(error.to_string())
}

fn impossible(what: &'static str, value: u64) -> WireError {
    WireError::Impossible { what, value }
}

#[cfg(test)]
mod tests;
