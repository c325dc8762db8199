//! The screen: a line about all, the table of guests, the chosen one's details, the keys.

use dunlin_engine::report::{Phase, Progress};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState, Wrap};

use super::details;
use super::sampler::Seen;
use super::view::View;
use crate::local::protocol::GuestState;
use crate::render::amounts::{bytes, counted, nanoseconds, rate};
use crate::render::guests::state;
use crate::render::text::printable;

/// From this height on the chosen guest's details stand below the table.
const ROOMY_ROWS: u16 = 20;

/// The least rows for details.
const DETAILS_ROWS: u16 = 11;

/// The columns of a bar.
const BAR_COLUMNS: usize = 12;

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View) {
    let area = frame.area();
    let [head, body, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(summary(view), head);
    frame.render_widget(keys(view), foot);
    let chosen = view.chosen();
    match chosen {
        Some(seen) if view.is_in_full => details::draw(frame, body, seen, view),
        Some(seen) if area.height >= ROOMY_ROWS => {
            let rows = u16::try_from(view.guests.len()).unwrap_or(u16::MAX);
            let rows = rows.saturating_add(2).min(body.height - DETAILS_ROWS);
            let [table, below] =
                Layout::vertical([Constraint::Length(rows), Constraint::Fill(1)]).areas(body);
            guests(frame, table, view);
            details::draw(frame, below, seen, view);
        }
        Some(_) => guests(frame, body, view),
        None => nobody(frame, body, view),
    }
}

fn summary(view: &View) -> Line<'static> {
    let under_way = |seen: &&Seen| seen.status.move_under_way.is_some();
    let moving = view.guests.iter().filter(under_way).count();
    let mut spans = vec![
        " dunlin ".bold().reversed(),
        format!(" {}", counted(view.guests.len() as u64, "guest")).into(),
        format!(", {moving} moving").into(),
        format!("  {}", printable(&view.directory)).dim(),
    ];
    if let Some(trouble) = view.troubles.first() {
        spans.push(format!("  {}", printable(trouble)).fg(Color::Red));
    }
    Line::from(spans)
}

fn keys(view: &View) -> Line<'static> {
    let enter = if view.is_in_full {
        "all guests"
    } else {
        "in full"
    };
    let key = |name: &'static str, what: String| {
        [
            Span::styled(format!(" {name} "), Style::new().reversed()),
            Span::raw(format!(" {what}  ")),
        ]
    };
    let keys = [
        key("↑↓", "choose".to_owned()),
        key("enter", enter.to_owned()),
        key("q", "quit".to_owned()),
    ];
    Line::from(keys.into_iter().flatten().collect::<Vec<_>>())
}

fn nobody(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let text = if view.has_looked {
        "\n No guests here. 'dunlin run' starts one, 'dunlin receive' waits for one; \
         --runtime-dir names another place."
    } else {
        "\n Looking …"
    };
    frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: false }), area);
}

/// How much of the table fits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// Everything.
    Wide,
    /// What matters on 80 columns.
    Narrow,
}

fn guests(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let fit = match area.width {
        110.. => Fit::Wide,
        _ => Fit::Narrow,
    };
    let rows: Vec<_> = view.guests.iter().map(|seen| row(seen, fit)).collect();
    let (names, widths): (Vec<_>, Vec<_>) = match fit {
        Fit::Wide => (
            vec![
                "guest",
                "state",
                "memory",
                "round",
                "done",
                "rate",
                "left",
                "pause ≈",
                "to",
            ],
            vec![
                Constraint::Fill(2),
                Constraint::Length(13),
                Constraint::Length(9),
                Constraint::Length(5),
                Constraint::Length(18),
                Constraint::Length(11),
                Constraint::Length(8),
                Constraint::Length(8),
                Constraint::Fill(3),
            ],
        ),
        Fit::Narrow => (
            vec![
                "guest",
                "state",
                "memory",
                "round",
                "done",
                "rate",
                "pause ≈",
            ],
            vec![
                Constraint::Min(10),
                Constraint::Length(13),
                Constraint::Length(9),
                Constraint::Length(5),
                Constraint::Length(18),
                Constraint::Length(11),
                Constraint::Length(8),
            ],
        ),
    };
    let head = Row::new(names).style(Style::new().dim());
    let table = Table::new(rows, widths)
        .header(head)
        .column_spacing(1)
        .highlight_symbol("▶ ")
        .row_highlight_style(Style::new().add_modifier(Modifier::BOLD));
    let mut chosen = TableState::default().with_selected(view.chosen_place());
    frame.render_stateful_widget(table, area, &mut chosen);
}

fn row(seen: &Seen, fit: Fit) -> Row<'static> {
    let guest = &seen.status;
    let under_way = guest.move_under_way.as_ref();
    let progress = under_way.and_then(|under_way| under_way.progress.as_ref());
    let name = Cell::from(printable(&guest.name));
    let state = Cell::from(state(guest.state)).style(colour(guest.state));
    let memory = Cell::from(bytes(guest.memory_bytes));
    let of_move =
        |told: fn(&Progress) -> String| Cell::from(progress.map_or_else(|| "-".to_owned(), told));
    let round = of_move(|progress| progress.round.to_string());
    let done = of_move(done);
    let speed = of_move(|progress| rate(progress.rate_bytes_per_s));
    let predicted = of_move(|progress| {
        let predicted = progress.predicted_blackout_ns;
        predicted.map_or_else(|| "-".to_owned(), nanoseconds)
    });
    match fit {
        Fit::Narrow => Row::new([name, state, memory, round, done, speed, predicted]),
        Fit::Wide => {
            let left =
                of_move(|progress| progress.eta_ns.map_or_else(|| "-".to_owned(), nanoseconds));
            let to = under_way.map_or_else(|| "-".to_owned(), |move_| printable(&move_.to));
            Row::new([
                name,
                state,
                memory,
                round,
                done,
                speed,
                left,
                predicted,
                to.into(),
            ])
        }
    }
}

/// How far the round is, as a bar; outside of rounds, where the move stands.
pub(super) fn done(progress: &Progress) -> String {
    match progress.phase {
        Phase::Copying => {}
        Phase::Connecting => return "connecting".to_owned(),
        Phase::Preparing => return "preparing".to_owned(),
        Phase::Switchover => return "paused".to_owned(),
        Phase::Verifying => return "comparing".to_owned(),
        Phase::InDoubt => return "in doubt".to_owned(),
        Phase::Done => return "over".to_owned(),
    }
    let all = progress.dirty_pages;
    let dealt_with = all.saturating_sub(progress.remaining_pages);
    let percent = dealt_with
        .saturating_mul(100)
        .checked_div(all)
        .unwrap_or(100);
    let filled = usize::try_from(percent).unwrap_or(0).min(100) * BAR_COLUMNS / 100;
    let bar = "█".repeat(filled) + &"░".repeat(BAR_COLUMNS - filled);
    format!("{bar} {percent:>3}%")
}

/// A state's colour.
fn colour(state: GuestState) -> Style {
    match state {
        GuestState::Running => Style::new().fg(Color::Green),
        GuestState::Moving | GuestState::Incoming | GuestState::Starting => {
            Style::new().fg(Color::Cyan)
        }
        GuestState::UnknownOwner | GuestState::Paused => {
            Style::new().fg(Color::Red).add_modifier(Modifier::BOLD)
        }
        GuestState::Moved | GuestState::Discarded | GuestState::Ending => Style::new().dim(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dunlin_engine::report::Outcome;
    use dunlin_engine::telemetry;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::sampler::Sample;
    use super::super::view::tests::{seen, view};
    use super::*;
    use crate::local::protocol::LastMove;
    use crate::render::example;

    /// What is on a screen of that size.
    fn drawn(view: &View, columns: u16, rows: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
        terminal.draw(|frame| draw(frame, view)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn the_screen_tells_of_guests_and_moves() {
        let view = view(vec![seen("vm1", false), seen("vm2", true)]);
        let wide = drawn(&view, 140, 40);
        for word in [
            "2 guests", "1 moving", "vm1", "running", "75%", "1 GiB/s", "9 ms", "host-b",
        ] {
            assert!(wide.contains(word), "{word}:\n{wide}");
        }
        assert!(wide.contains("lane 1"), "{wide}");
        let narrow = drawn(&view, 80, 12);
        assert!(
            narrow.contains("75%") && !narrow.contains("lane 1"),
            "{narrow}"
        );
    }

    /// A guest that stayed after its last move, of which everything that is declared was measured.
    fn stayed(name: &str) -> Seen {
        let mut report = example::failed(Outcome::Cancelled, "somebody changed their mind");
        report.guest.name = name.to_owned();
        report.telemetry = Some(telemetry::example::whole_move());
        let mut stayed = seen(name, false);
        stayed.status.last_move = Some(LastMove {
            to: "tcp://host-b:7471".to_owned(),
            outcome: report.outcome,
            reason: report.reason.clone(),
        });
        stayed.last = Some(Arc::new(report));
        stayed
    }

    #[test]
    fn a_guest_in_full_has_what_its_last_move_measured() {
        let mut view = view(vec![stayed("vm1")]);
        view.is_in_full = true;
        let text = drawn(&view, 120, 80);
        assert!(text.contains("last move, to tcp://host-b:7471"), "{text}");
        let told = telemetry::example::whole_move();
        for (end, measured) in told.ends() {
            for operation in &measured.operations {
                let name = format!(" {} ", operation.name.name());
                let is_told = |line: &str| {
                    let figures = [&*name, end.name(), " 6 ", " 256 ns ", " 2.5 ms "];
                    figures.iter().all(|figure| line.contains(figure))
                };
                assert!(text.lines().any(is_told), "{end:?}{name}in\n{text}");
            }
        }
        // Of a build that does not record there is nothing to show, and all the rest is.
        let mut bare = stayed("vm1");
        bare.last = Some(Arc::new(example::failed(Outcome::Cancelled, "so be it")));
        view.take(Sample {
            guests: vec![bare],
            troubles: Vec::new(),
        });
        let text = drawn(&view, 120, 80);
        assert!(
            text.contains("last move, to") && !text.contains("p99"),
            "{text}"
        );
    }

    #[test]
    fn any_size_and_any_state_can_be_drawn() {
        let mut view = view(vec![
            seen(&"n".repeat(200), true),
            seen("b\u{1b}[2J", false),
            stayed("c\u{1b}[2J"),
        ]);
        for step in 0..4 {
            view.is_in_full = step > 0;
            view.choose_next();
            for (columns, rows) in [(1, 1), (10, 3), (40, 19), (40, 20), (80, 24), (300, 100)] {
                let text = drawn(&view, columns, rows);
                assert!(!text.contains('\u{1b}'), "{text}");
            }
        }
        view.take(Sample {
            guests: Vec::new(),
            troubles: vec!["it can't be read".to_owned()],
        });
        let text = drawn(&view, 80, 24);
        assert!(text.contains("No guests here"), "{text}");
        assert!(text.contains("it can't be read"), "{text}");
    }
}
