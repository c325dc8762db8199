//! What tells how complete all the rest is. Nobody records it: recorders and the timeline count it
//! by themselves, for each move.

/// One thing that may be missing, counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Its name in the JSON report.
    pub json_name: &'static str,
    /// Where in the report's `telemetry` it stands, as in docs/metrics.md.
    pub place: &'static str,
    /// The name of its metric family for Prometheus, a counter.
    pub prometheus_name: &'static str,
    /// What it is, in one sentence.
    pub meaning: &'static str,
}

/// Spans that are not told.
pub const DROPPED_SPANS: Gap = Gap {
    json_name: "dropped_spans",
    place: "timeline",
    prometheus_name: "dunlin_dropped_spans_total",
    meaning: "Spans that there was no room for.",
};

/// Recordings that are not told.
pub const MISPLACED: Gap = Gap {
    json_name: "misplaced",
    place: "source, destination",
    prometheus_name: "dunlin_misplaced_recordings_total",
    meaning: "Recordings where none is declared: a mistake in dunlin, worth a report.",
};

/// All of them.
pub const GAPS: &[Gap] = &[DROPPED_SPANS, MISPLACED];
