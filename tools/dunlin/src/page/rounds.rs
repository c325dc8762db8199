//! Round by round: what was dirty, what was sent, how fast.

use dunlin_engine::report::RoundReport;
use maud::{Markup, html};

use super::axis::{Axis, AxisUnit, percent};
use super::document::Section;
use super::figure;
use super::table::{Column, Form, table};
use crate::render::amounts;

/// The most rounds that are shown: of more, the first and the last. All are in the data.
const ROUNDS_SHOWN: usize = 100;

/// A page of guest memory.
const PAGE_BYTES: u64 = 4096;

/// The section.
pub(super) fn section(rounds: &[RoundReport]) -> Section {
    Section {
        id: "rounds",
        heading: "Rounds",
        body: body(rounds),
    }
}

fn body(rounds: &[RoundReport]) -> Markup {
    let half = ROUNDS_SHOWN / 2;
    let is_shown =
        |place: usize| rounds.len() <= ROUNDS_SHOWN || place < half || place >= rounds.len() - half;
    let sizes = rounds.iter().flat_map(|round| {
        [
            round.dirty_pages.saturating_mul(PAGE_BYTES),
            round.sent_bytes,
        ]
    });
    let sizes: Vec<_> = sizes.filter(|size| *size > 0).collect();
    let least = sizes.iter().copied().min().unwrap_or(PAGE_BYTES);
    let most = sizes.iter().copied().max().unwrap_or(PAGE_BYTES);
    let axis = Axis::logarithmic(least, most, AxisUnit::Bytes);
    let rows: Vec<_> = rounds
        .iter()
        .enumerate()
        .filter(|(place, _)| is_shown(*place))
        .map(|(place, round)| row(place, round, axis))
        .collect();
    let columns = [
        Column::new("Round", Form::Name),
        Column::new("dirty", Form::Number),
        Column::new("zero", Form::Number),
        Column::new("sent", Form::Number),
        Column::new("took", Form::Number),
        Column::new("rate", Form::Number),
        Column::new("pause then predicted", Form::Number),
        Column::new("dirty and sent, on a logarithmic axis", Form::Picture),
    ];
    let left_out = rounds.len().saturating_sub(rows.len());
    let caption = html! {
        "What was dirty when each round began (" span.key.dirty { "ring" } "), and what was sent in it ("
        span.key.sent { "dot" } "), on a logarithmic axis."
        @if left_out > 0 { " " (amounts::counted(left_out as u64, "round")) " in between are left out here." }
    };
    table(&caption, &columns, Some(&axis.drawn()), &rows)
}

fn row(place: usize, round: &RoundReport, axis: Axis) -> Vec<Markup> {
    let at = |field: &str| format!("/rounds/{place}/{field}");
    let dirty_bytes = round.dirty_pages.saturating_mul(PAGE_BYTES);
    let spot = |value: u64| percent(axis.place(value).clamp(1.5, 98.5));
    let shapes = html! {
        @if dirty_bytes > 0 && round.sent_bytes > 0 {
            line.between x1=(spot(round.sent_bytes)) x2=(spot(dirty_bytes)) y1="11" y2="11" {}
        }
        @if round.sent_bytes > 0 { circle.sent cx=(spot(round.sent_bytes)) cy="11" r="4" {} }
        @if dirty_bytes > 0 { circle.dirty cx=(spot(dirty_bytes)) cy="11" r="6.5" {} }
    };
    vec![
        html! { @if round.is_final { "final" } @else { (round.number) } },
        figure::pages(&at("dirty_pages"), round.dirty_pages),
        figure::pages(&at("zero_pages"), round.zero_pages),
        figure::bytes(&at("sent_bytes"), round.sent_bytes),
        figure::duration(&at("duration_ns"), round.duration_ns),
        html! { (speed(round)) },
        html! {
            @if round.is_final || round.predicted_blackout_ns == 0 { "–" } @else {
                (figure::duration(&at("predicted_blackout_ns"), round.predicted_blackout_ns))
            }
        },
        axis.row(&shapes),
    ]
}

/// How fast a round's bytes went.
fn speed(round: &RoundReport) -> String {
    let sent = u128::from(round.sent_bytes) * 1_000_000_000;
    match sent.checked_div(u128::from(round.duration_ns)) {
        Some(rate) if rate > 0 => {
            amounts::rate(u64::try_from(rate).unwrap_or(u64::MAX)).replace(' ', "\u{a0}")
        }
        _ => "–".to_owned(),
    }
}
