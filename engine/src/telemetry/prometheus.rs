//! Metrics in Prometheus' text format, version 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
//!
//! Durations are told in seconds. A histogram's buckets end a nanosecond below powers of four from
//! 256 ns to 2^42 ns: durations are whole nanoseconds, and these are borders of our own buckets, so
//! each count is exact.

use std::fmt::Display;
use std::io::{self, Write};

use super::buckets::RANGE_NS_MAX;
use super::completeness::{DROPPED_SPANS, MISPLACED};
use super::declaration::{Declaration, End, Kind, Unit};
use super::measurements::{Measurements, MoveTelemetry, OperationMeasurement};
use super::{Counter, Gauge, Operation, SpanName};
use crate::report::Side;

/// The content type to serve it as.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The first bucket's end, one more than what it holds.
const FIRST_BUCKET_NS: u64 = 256;

/// Writes everything that was measured. Every metric carries `labels` (names as Prometheus allows
/// them, `[a-zA-Z_][a-zA-Z0-9_]*`; any values), such as the guest's name, and its own: `side`,
/// `part`, `phase`, `size`, `lane`, `le`, which `labels` must not hold.
///
/// # Errors
///
/// Those of `out`.
pub fn write(
    told: &MoveTelemetry,
    labels: &[(&str, &str)],
    out: &mut impl Write,
) -> io::Result<()> {
    let mut exposition = Exposition { labels, out };
    exposition.spans(told)?;
    for operations in
        Operation::ALL.chunk_by(|one, next| family(one.declaration()) == family(next.declaration()))
    {
        exposition.operations(told, operations)?;
    }
    for counter in Counter::ALL {
        exposition.counter(told, *counter)?;
    }
    for gauge in Gauge::ALL {
        exposition.gauge(told, *gauge)?;
    }
    exposition.completeness(told)
}

fn family(declaration: &Declaration) -> &str {
    let class = declaration.class;
    class.map_or(declaration.name, |class| class.family)
}

struct Exposition<'a, W> {
    labels: &'a [(&'a str, &'a str)],
    out: &'a mut W,
}

impl<W: Write> Exposition<'_, W> {
    fn spans(&mut self, told: &MoveTelemetry) -> io::Result<()> {
        for kind in [Kind::BlackoutPart, Kind::Phase] {
            let names = SpanName::ALL.iter().copied();
            let names = names.filter(|name| name.declaration().kind == kind);
            let mut is_begun = false;
            for name in names {
                let declaration = name.declaration();
                for (side, text) in [
                    (Side::Source, "source"),
                    (Side::Destination, "destination"),
                    (Side::Link, "link"),
                ] {
                    let spans = told.timeline.spans.iter();
                    let mut spans = spans
                        .filter(|span| span.name == name && span.side == side)
                        .peekable();
                    if spans.peek().is_none() {
                        continue;
                    }
                    if !is_begun {
                        self.begin(declaration, "gauge")?;
                        is_begun = true;
                    }
                    let took: u64 = spans
                        .map(|span| span.end_ns.saturating_sub(span.begin_ns))
                        .fold(0, u64::saturating_add);
                    let what = match kind {
                        Kind::BlackoutPart => "part",
                        _ => "phase",
                    };
                    let labels = [("side", text), (what, name.name())];
                    let metric = declaration.prometheus_name();
                    self.sample(&metric, &labels, Seconds(took))?;
                }
            }
        }
        Ok(())
    }

    fn operations(&mut self, told: &MoveTelemetry, operations: &[Operation]) -> io::Result<()> {
        let mut is_begun = false;
        for operation in operations {
            for (end, measurements) in told.ends() {
                let Some(measured) = measurements.operation(*operation) else {
                    continue;
                };
                if !is_begun {
                    self.begin(operation.declaration(), "histogram")?;
                    is_begun = true;
                }
                self.histogram(end, measured)?;
            }
        }
        Ok(())
    }

    fn histogram(&mut self, end: End, measured: &OperationMeasurement) -> io::Result<()> {
        let declaration = measured.name.declaration();
        let name = declaration.prometheus_name();
        let mut labels = vec![("side", end.name())];
        labels.extend(declaration.class.map(|class| ("size", class.size)));
        let mut buckets = measured.buckets.iter().peekable();
        let mut passed = 0_u64;
        let mut below_ns = FIRST_BUCKET_NS;
        while below_ns <= RANGE_NS_MAX {
            while let Some(bucket) = buckets.next_if(|bucket| bucket.below_ns <= below_ns) {
                passed = passed.saturating_add(bucket.count);
            }
            let end = Seconds(below_ns - 1).to_string();
            let labels = [labels.as_slice(), &[("le", &end)]].concat();
            self.sample(&format!("{name}_bucket"), &labels, passed)?;
            below_ns *= 4;
        }
        let all = [labels.as_slice(), &[("le", "+Inf")]].concat();
        self.sample(&format!("{name}_bucket"), &all, measured.summary.count)?;
        let total = Seconds(measured.summary.total_ns);
        self.sample(&format!("{name}_sum"), &labels, total)?;
        self.sample(&format!("{name}_count"), &labels, measured.summary.count)
    }

    fn counter(&mut self, told: &MoveTelemetry, counter: Counter) -> io::Result<()> {
        let name = counter.declaration().prometheus_name();
        let mut is_begun = false;
        for (end, measurements) in told.ends() {
            for (lane, count) in shares(measurements, counter) {
                if !is_begun {
                    self.begin(counter.declaration(), "counter")?;
                    is_begun = true;
                }
                let lane = lane.map(|lane| lane.to_string());
                let mut labels = vec![("side", end.name())];
                labels.extend(lane.iter().map(|lane| ("lane", lane.as_str())));
                self.sample(&name, &labels, count)?;
            }
        }
        Ok(())
    }

    fn gauge(&mut self, told: &MoveTelemetry, gauge: Gauge) -> io::Result<()> {
        let declaration = gauge.declaration();
        let name = declaration.prometheus_name();
        let mut is_begun = false;
        for (end, measurements) in told.ends() {
            let Some(value) = measurements.gauges.get(&gauge) else {
                continue;
            };
            if !is_begun {
                self.begin(declaration, "gauge")?;
                is_begun = true;
            }
            let labels = [("side", end.name())];
            match declaration.unit {
                Unit::Nanoseconds => self.sample(&name, &labels, Seconds(*value))?,
                _ => self.sample(&name, &labels, *value)?,
            }
        }
        Ok(())
    }

    /// What is missing from the above.
    fn completeness(&mut self, told: &MoveTelemetry) -> io::Result<()> {
        let dropped = DROPPED_SPANS.prometheus_name;
        self.head(dropped, DROPPED_SPANS.meaning, "counter")?;
        self.sample(dropped, &[], told.timeline.dropped_spans)?;
        let misplaced = MISPLACED.prometheus_name;
        self.head(misplaced, MISPLACED.meaning, "counter")?;
        for (end, measurements) in told.ends() {
            self.sample(misplaced, &[("side", end.name())], measurements.misplaced)?;
        }
        Ok(())
    }

    fn begin(&mut self, declaration: &Declaration, kind: &str) -> io::Result<()> {
        let help = declaration.prometheus_help();
        self.head(&declaration.prometheus_name(), &help, kind)
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) -> io::Result<()> {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        writeln!(self.out, "# HELP {name} {help}")?;
        writeln!(self.out, "# TYPE {name} {kind}")
    }

    fn sample(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        value: impl Display,
    ) -> io::Result<()> {
        write!(self.out, "{name}")?;
        for (place, (label, text)) in self.labels.iter().chain(labels).enumerate() {
            let before = if place == 0 { '{' } else { ',' };
            let text = escaped(text);
            write!(self.out, "{before}{label}=\"{text}\"")?;
        }
        let behind = match self.labels.len() + labels.len() {
            0 => "",
            _ => "}",
        };
        writeln!(self.out, "{behind} {value}")
    }
}

/// A counter's shares: each lane's, and what other threads counted. They add up to all of it.
fn shares(measurements: &Measurements, counter: Counter) -> Vec<(Option<u16>, u64)> {
    let lanes = measurements.lanes.iter();
    let mut shares: Vec<_> = lanes
        .filter_map(|lane| Some((Some(lane.lane), *lane.counters.get(&counter)?)))
        .collect();
    let by_lanes = shares
        .iter()
        .fold(0_u64, |sum, (_, count)| sum.saturating_add(*count));
    let all = measurements.counters.get(&counter).copied().unwrap_or(0);
    if all > by_lanes {
        shares.push((None, all - by_lanes));
    }
    shares
}

/// Nanoseconds, told in seconds without rounding.
struct Seconds(u64);

impl Display for Seconds {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (seconds, rest) = (self.0 / 1_000_000_000, self.0 % 1_000_000_000);
        match rest {
            0 => write!(formatter, "{seconds}"),
            _ => {
                let rest = format!("{rest:09}");
                write!(formatter, "{seconds}.{}", rest.trim_end_matches('0'))
            }
        }
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests;
