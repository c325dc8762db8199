//! Where a value lies on an axis, and the axis's ticks. Places are percentages of the axis's width,
//! so that a picture stretches with the page while its text keeps its size.

use maud::{Markup, html};

use crate::render::amounts;

/// The most ticks with a label: what fits on a telephone.
const LABELS_MAX: usize = 6;

/// How values lie on an axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Axis {
    /// Evenly, from 0.
    Linear {
        /// The value at its end; more than 0.
        end: u64,
        /// What values are told in.
        unit: AxisUnit,
    },
    /// By their logarithm.
    Logarithmic {
        /// The value at its begin; more than 0.
        begin: u64,
        /// The value at its end; more than the begin.
        end: u64,
        /// What values are told in.
        unit: AxisUnit,
    },
}

/// What an axis's values are told in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AxisUnit {
    /// Durations.
    Nanoseconds,
    /// Sizes.
    Bytes,
    /// Rates.
    BytesPerSecond,
}

/// A value with a mark on the axis.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tick {
    /// Where, in percent.
    pub(crate) place: f64,
    /// What stands there.
    pub(crate) label: String,
}

impl Axis {
    /// An axis from 0 to `end`.
    pub(crate) fn linear(end: u64, unit: AxisUnit) -> Self {
        Self::Linear {
            end: end.max(1),
            unit,
        }
    }

    /// An axis whose ends are powers of ten (of 16 for bytes), around `least` and `most`.
    pub(crate) fn logarithmic(least: u64, most: u64, unit: AxisUnit) -> Self {
        let base = unit.base();
        let least = least.max(1);
        let begin = base.saturating_pow(least.ilog(base));
        let mut end = begin.saturating_mul(base);
        while end < most && end < u64::MAX / base {
            end = end.saturating_mul(base);
        }
        Self::Logarithmic { begin, end, unit }
    }

    /// Where a value lies, in percent of the axis; what is outside of it lies at its end.
    pub(crate) fn place(self, value: u64) -> f64 {
        let place = match self {
            Self::Linear { end, .. } => value as f64 / end as f64,
            Self::Logarithmic { begin, end, .. } => {
                let begin = (begin as f64).ln();
                ((value.max(1) as f64).ln() - begin) / ((end as f64).ln() - begin)
            }
        };
        (place * 100.0).clamp(0.0, 100.0)
    }

    /// Where something from one value to another begins, and how wide it is, in percent. What took
    /// any time at all can be seen.
    pub(crate) fn stretch(self, from: u64, to: u64) -> (f64, f64) {
        let begin = self.place(from).min(99.6);
        (begin, (self.place(to) - begin).max(0.4))
    }

    /// Its ticks.
    pub(crate) fn ticks(self) -> Vec<Tick> {
        let tick = |value: u64, unit: AxisUnit| Tick {
            place: self.place(value),
            label: unit.label(value),
        };
        match self {
            Self::Linear { end, unit } => {
                let step = step(end, unit);
                let last = end / step;
                (0..=last).map(|place| tick(place * step, unit)).collect()
            }
            Self::Logarithmic { begin, end, unit } => {
                let mut values = vec![begin];
                while let Some(last) = values.last().copied().filter(|last| *last < end) {
                    values.push(last.saturating_mul(unit.base()));
                }
                let every = values.len().div_ceil(LABELS_MAX).max(1);
                let values = values.into_iter().step_by(every);
                values.map(|value| tick(value, unit)).collect()
            }
        }
    }

    /// The axis itself, for the head of a column of pictures.
    pub(crate) fn drawn(self) -> Markup {
        html! {
            svg.axis aria-hidden="true" focusable="false" {
                @for tick in self.ticks() {
                    text x={ (percent(tick.place)) } y="12" text-anchor=(anchor(tick.place)) {
                        (tick.label)
                    }
                }
            }
        }
    }

    /// A row's picture on this axis: what `shapes` has, above lines at the ticks.
    pub(crate) fn row(self, shapes: &Markup) -> Markup {
        html! {
            svg.strip aria-hidden="true" focusable="false" {
                @for tick in self.ticks() {
                    @let place = percent(tick.place.clamp(0.1, 99.9));
                    line.grid x1=(place) x2=(place) y1="0" y2="100%" {}
                }
                (shapes)
            }
        }
    }
}

impl AxisUnit {
    /// From one tick of a logarithmic axis to the next.
    fn base(self) -> u64 {
        match self {
            Self::Nanoseconds => 10,
            Self::Bytes | Self::BytesPerSecond => 16,
        }
    }

    fn label(self, value: u64) -> String {
        match self {
            Self::Nanoseconds => amounts::nanoseconds(value),
            Self::Bytes => amounts::bytes(value),
            Self::BytesPerSecond => amounts::rate(value),
        }
    }
}

/// The distance between ticks: 1, 2 or 5 of a power of ten for times, a power of two for bytes.
fn step(end: u64, unit: AxisUnit) -> u64 {
    let most = LABELS_MAX as u64 - 1;
    let least = end.div_ceil(most).max(1);
    match unit {
        AxisUnit::Bytes | AxisUnit::BytesPerSecond => {
            least.checked_next_power_of_two().unwrap_or(least)
        }
        AxisUnit::Nanoseconds => {
            let power = 10_u64.saturating_pow(least.ilog10());
            let steps = [1, 2, 5].map(|times| power.saturating_mul(times));
            let fitting = steps.into_iter().find(|step| *step >= least);
            fitting.unwrap_or_else(|| power.saturating_mul(10))
        }
    }
}

/// Labels at the ends stay inside.
fn anchor(place: f64) -> &'static str {
    if place < 6.0 {
        "start"
    } else if place > 94.0 {
        "end"
    } else {
        "middle"
    }
}

/// A percentage, as SVG has them.
pub(crate) fn percent(place: f64) -> String {
    format!("{place:.2}%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logarithmic_axis_holds_its_values_and_has_few_ticks() {
        for (least, most) in [
            (1, 1),
            (90, 2_500_000),
            (250, 3_600_000_000_000),
            (0, u64::MAX),
        ] {
            let axis = Axis::logarithmic(least, most, AxisUnit::Nanoseconds);
            let ticks = axis.ticks();
            assert!((1..=LABELS_MAX).contains(&ticks.len()), "{ticks:?}");
            assert!(axis.place(least) <= axis.place(most));
            assert!(axis.place(least) < 100.0);
        }
        let axis = Axis::logarithmic(100, 1_000_000, AxisUnit::Nanoseconds);
        assert_eq!(axis.place(100), 0.0);
        assert!((axis.place(10_000) - 50.0).abs() < 1e-9);
        assert_eq!(axis.place(u64::MAX), 100.0);
    }

    #[test]
    fn a_linear_axis_has_round_ticks() {
        let axis = Axis::linear(1_100_000, AxisUnit::Nanoseconds);
        let labels: Vec<_> = axis.ticks().into_iter().map(|tick| tick.label).collect();
        assert_eq!(labels, ["0", "500 µs", "1 ms"]);
        for end in [1, 7, 999, 123_456_789, u64::MAX] {
            let ticks = Axis::linear(end, AxisUnit::Nanoseconds).ticks().len();
            assert!(ticks <= LABELS_MAX, "{end}: {ticks}");
            let ticks = Axis::linear(end, AxisUnit::BytesPerSecond).ticks().len();
            assert!(ticks <= LABELS_MAX, "{end}: {ticks}");
        }
    }

    #[test]
    fn what_took_any_time_can_be_seen() {
        let axis = Axis::linear(1_000_000_000, AxisUnit::Nanoseconds);
        assert_eq!(axis.stretch(0, 1), (0.0, 0.4));
        let (begin, width) = axis.stretch(1_000_000_000, 1_000_000_000);
        assert!(begin + width <= 100.01, "{begin} {width}");
    }
}
