//! Ratios with their intervals, a line each on one axis around 1: what lies to one side of the
//! middle as a whole is a difference.

use maud::{Markup, html};

use crate::bench::statistics::Ratio;
use crate::bench::verdict::{Finding, Verdict};
use crate::page::axis::percent;
use crate::page::figure::said;
use crate::page::table::{Column, Form, table};

/// The axis's ends: ratios beyond lie there. A factor of four is seen without reading it off.
const LEAST: f64 = 0.25;
const MOST: f64 = 4.0;

/// What stands at the axis.
const TICKS: [(f64, &str); 5] = [(0.25, "¼"), (0.5, "½"), (1.0, "1"), (2.0, "2"), (4.0, "4")];

/// All verdicts.
pub(super) fn table_of(verdicts: &[Verdict]) -> Markup {
    let columns = [
        Column::new("Judged against", Form::Name),
        Column::new("figure", Form::Text),
        Column::new("ratio", Form::Number),
        Column::new("95 % from", Form::Number),
        Column::new("to", Form::Number),
        Column::new("finding", Form::Text),
        Column::new("ratio and interval", Form::Picture),
    ];
    let rows = verdicts.iter().enumerate();
    let rows: Vec<Vec<Markup>> = rows
        .filter_map(|(place, verdict)| row(place, verdict))
        .collect();
    let caption = html! {
        "Above 1 the judged one has more goodput, or the longer blackout."
    };
    table(&caption, &columns, Some(&axis()), &rows)
}

/// A verdict, which stands at that place of the results'.
fn row(place: usize, verdict: &Verdict) -> Option<Vec<Markup>> {
    let ratio = verdict.ratio.as_ref()?;
    let number = |which: &str, value: f64| {
        said(
            &format!("/verdicts/{place}/ratio/{which}"),
            value,
            &three_digits(value),
        )
    };
    Some(vec![
        html! { (verdict.subject) },
        html! { (verdict.figure.name()) },
        number("ratio", ratio.ratio),
        number("low", ratio.low),
        number("high", ratio.high),
        html! { (verdict.finding.words(verdict.figure)) },
        drawn(ratio, verdict.finding),
    ])
}

/// A ratio to three significant digits: all have as many, however far below 1 they are.
fn three_digits(ratio: f64) -> String {
    let before_the_point = ratio.abs().log10().floor();
    let behind = (2.0 - before_the_point).clamp(0.0, 9.0) as usize;
    format!("{ratio:.behind$}")
}

fn axis() -> Markup {
    html! {
        svg.axis aria-hidden="true" focusable="false" {
            @for (value, label) in TICKS {
                text x=(percent(place(value))) y="12" text-anchor="middle" { (label) }
            }
        }
    }
}

fn drawn(ratio: &Ratio, finding: Finding) -> Markup {
    let (low, high) = (place(ratio.low), place(ratio.high));
    let class = match finding {
        Finding::Better => "better",
        Finding::Worse => "worse",
        _ => "unsure",
    };
    html! {
        svg.strip aria-hidden="true" focusable="false" {
            @for (value, _) in TICKS {
                @let x = percent(place(value));
                line.grid x1=(x) x2=(x) y1="0" y2="100%" {}
            }
            rect.(class) x=(percent(low)) width=(percent((high - low).max(0.4))) y="7" height="8" {}
            @let x = percent(place(ratio.ratio));
            line.mark x1=(x) x2=(x) y1="3" y2="19" {}
        }
    }
}

/// Where a ratio lies, in percent; ends stay inside, with room for their labels.
fn place(ratio: f64) -> f64 {
    let share = (ratio.max(LEAST) / LEAST).ln() / (MOST / LEAST).ln();
    3.0 + share.clamp(0.0, 1.0) * 94.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_have_three_digits() {
        for (ratio, text) in [
            (1.0, "1.00"),
            (12.345, "12.3"),
            (1234.4, "1234"),
            (0.51234, "0.512"),
            (0.0123, "0.0123"),
        ] {
            assert_eq!(three_digits(ratio), text);
        }
    }

    #[test]
    fn equals_lie_in_the_middle_and_everything_inside() {
        assert!((place(1.0) - 50.0).abs() < 1e-9);
        assert!(place(0.9) < 50.0 && place(1.1) > 50.0);
        for ratio in [0.0, 1e-9, 1e9, f64::INFINITY] {
            assert!((0.0..=100.0).contains(&place(ratio)), "{ratio}");
        }
    }
}
