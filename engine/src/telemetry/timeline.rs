//! Spans: what was done from when to when. A recorder keeps the last ones it can hold; a timeline
//! has those of both ends on the source's clock.

use serde::{Deserialize, Serialize};

use super::clock_offset::ClockRelation;
use super::declaration::{End, Sides};
use super::measurements::Recording;
use super::spans::SpanName;
use super::track::Track;
use crate::clock::Timestamp;
use crate::report::Side;

/// Something that was done from when to when, on the clock of the end that recorded it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// What.
    pub name: SpanName,
    /// By whom.
    pub track: Track,
    /// From when.
    pub begin: Timestamp,
    /// Until when; no earlier than `begin`.
    pub end: Timestamp,
}

/// A span's place in the timeline of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedSpan {
    /// What.
    pub name: SpanName,
    /// Where.
    pub side: Side,
    /// By whom.
    pub track: Track,
    /// From when, counted from the timeline's origin.
    pub begin_ns: u64,
    /// Until when; no earlier than `begin_ns`.
    pub end_ns: u64,
}

/// The spans of both ends. On each track of each side they nest or are disjoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// From where times count: the begin of the first span, on the source's `CLOCK_MONOTONIC`.
    pub origin_monotonic_ns: u64,
    /// The spans, side by side and track by track, by their begin, outer before inner.
    pub spans: Vec<PlacedSpan>,
    /// How many spans either end had no room for; the oldest go first.
    pub dropped_spans: u64,
    /// How many spans ended behind the one around them and were cut there.
    pub cut_spans: u64,
}

impl Timeline {
    /// Places the spans of both ends on the source's clock. The destination's are left out where
    /// its clock is not known.
    pub fn new(
        source: &Recording,
        destination: Option<&Recording>,
        clock: Option<ClockRelation>,
    ) -> Self {
        let mut dropped_spans = source.dropped_spans;
        let mut spans: Vec<_> = source
            .spans
            .iter()
            .map(|span| placed(span, End::Source, span.begin, span.end))
            .collect();
        // The move begins on the source, so what a destination says happened before that did not
        // happen then; and a peer that makes times up must not move everybody else's.
        let first = spans.iter().map(|span| span.begin_ns).min();
        let origin_monotonic_ns = first.unwrap_or(0);
        if let Some(destination) = destination {
            dropped_spans = dropped_spans.saturating_add(destination.dropped_spans);
            match clock {
                Some(clock) => spans.extend(destination.spans.iter().map(|span| {
                    let here = |time| clock.here(time).max(Timestamp(origin_monotonic_ns));
                    placed(span, End::Destination, here(span.begin), here(span.end))
                })),
                None => {
                    let unplaced = destination.spans.len() as u64;
                    dropped_spans = dropped_spans.saturating_add(unplaced);
                }
            }
        }
        for span in &mut spans {
            span.begin_ns -= origin_monotonic_ns;
            span.end_ns -= origin_monotonic_ns;
        }
        let cut_spans = nest(&mut spans);
        Self {
            origin_monotonic_ns,
            spans,
            dropped_spans,
            cut_spans,
        }
    }
}

fn placed(span: &Span, end: End, begin: Timestamp, until: Timestamp) -> PlacedSpan {
    let is_on_link = span.name.declaration().sides == Sides::Link;
    PlacedSpan {
        name: span.name,
        side: match end {
            _ if is_on_link => Side::Link,
            End::Source => Side::Source,
            End::Destination => Side::Destination,
        },
        track: span.track,
        begin_ns: begin.0,
        end_ns: until.0.max(begin.0),
    }
}

/// Sorts spans by side, track and begin, and cuts the ends of those that neither nest in the one
/// around them nor are behind it: a viewer of traces shows such ones wrongly or not at all. Returns
/// how many it cut.
fn nest(spans: &mut [PlacedSpan]) -> u64 {
    let row = |span: &PlacedSpan| (span.side as u8, span.track);
    spans.sort_by_key(|span| (row(span), span.begin_ns, std::cmp::Reverse(span.end_ns)));
    let mut cut = 0;
    for row in spans.chunk_by_mut(|one, next| row(one) == row(next)) {
        // The ends of the spans around the one at hand, the outermost first.
        let mut around: Vec<u64> = Vec::new();
        for span in row {
            while around.last().is_some_and(|end| *end <= span.begin_ns) {
                around.pop();
            }
            if let Some(end) = around.last().filter(|end| **end < span.end_ns) {
                span.end_ns = *end;
                cut += 1;
            }
            around.push(span.end_ns);
        }
    }
    cut
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn span(name: SpanName, track: Track, begin: u64, end: u64) -> Span {
        Span {
            name,
            track,
            begin: Timestamp(begin),
            end: Timestamp(end),
        }
    }

    fn recording(spans: Vec<Span>) -> Recording {
        Recording {
            spans,
            ..Recording::default()
        }
    }

    #[test]
    fn the_destination_is_placed_on_the_clock_of_the_source() {
        let source = recording(vec![
            span(SpanName::Commit, Track::Control, 1000, 1100),
            span(SpanName::CommitOnLink, Track::Link, 1100, 1150),
        ]);
        let destination = recording(vec![span(SpanName::Resume, Track::Control, 51_150, 51_400)]);
        let clock = ClockRelation {
            offset_ns: 50_000,
            error_ns: 10,
            is_same_clock: false,
        };
        let timeline = Timeline::new(&source, Some(&destination), Some(clock));
        let told: Vec<_> = timeline
            .spans
            .iter()
            .map(|span| (span.name, span.side, span.begin_ns, span.end_ns))
            .collect();
        assert_eq!(
            told,
            [
                (SpanName::Commit, Side::Source, 0, 100),
                (SpanName::Resume, Side::Destination, 150, 400),
                (SpanName::CommitOnLink, Side::Link, 100, 150),
            ]
        );
        assert_eq!(timeline.origin_monotonic_ns, 1000);
        let timeline = Timeline::new(&source, Some(&destination), None);
        assert_eq!((timeline.spans.len(), timeline.dropped_spans), (2, 1));
    }

    #[test]
    fn a_peer_that_makes_times_up_moves_nobody_elses() {
        let source = recording(vec![span(SpanName::Round, Track::Control, 1000, 1100)]);
        let destination = recording(vec![
            span(SpanName::MakeRoom, Track::Control, 0, 10),
            span(SpanName::Fences, Track::Control, 20, u64::MAX),
        ]);
        let timeline = Timeline::new(&source, Some(&destination), Some(ClockRelation::SAME));
        assert_eq!(timeline.origin_monotonic_ns, 1000);
        let begins: Vec<_> = timeline.spans.iter().map(|span| span.begin_ns).collect();
        assert_eq!(begins, [0, 0, 0]);
    }

    /// Whether spans of one row nest or are disjoint, each compared with each.
    fn nest_or_are_disjoint(spans: &[PlacedSpan]) -> bool {
        let pair = |one: &PlacedSpan, other: &PlacedSpan| {
            (one.side, one.track) != (other.side, other.track)
                || one.end_ns <= other.begin_ns
                || other.end_ns <= one.begin_ns
                || (one.begin_ns <= other.begin_ns && other.end_ns <= one.end_ns)
                || (other.begin_ns <= one.begin_ns && one.end_ns <= other.end_ns)
        };
        spans
            .iter()
            .enumerate()
            .all(|(place, one)| spans.iter().skip(place + 1).all(|other| pair(one, other)))
    }

    #[test]
    fn the_check_of_nesting_finds_what_does_not_nest() {
        let across = |begin, end| {
            let span = span(SpanName::Round, Track::Control, begin, end);
            placed(&span, End::Source, span.begin, span.end)
        };
        assert!(!nest_or_are_disjoint(&[across(0, 10), across(5, 15)]));
        assert!(nest_or_are_disjoint(&[across(0, 10), across(10, 15)]));
    }

    proptest! {
        #[test]
        fn spans_of_a_track_nest_or_are_disjoint(
            drawn in prop::collection::vec((0_u16..3, 0_u64..40, 0_u64..40), 0..40),
        ) {
            let spans = drawn.iter().map(|(lane, begin, took)| {
                span(SpanName::LaneRound, Track::Lane(*lane), 7 + begin, 7 + begin + took)
            });
            let timeline = Timeline::new(&recording(spans.collect()), None, None);
            prop_assert!(nest_or_are_disjoint(&timeline.spans));
            prop_assert_eq!(timeline.spans.len(), drawn.len());
            let is_whole = timeline.spans.iter().all(|span| span.begin_ns <= span.end_ns);
            prop_assert!(is_whole);
        }
    }
}
