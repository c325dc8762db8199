//! One guest in full: its move under way with each lane, or what its last move measured.

use dunlin_engine::report::{Progress, Report};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Block, Borders, Paragraph, Row, Sparkline, Table, Wrap};

use super::sampler::Seen;
use super::view::{RATES_KEPT, View};
use crate::render::amounts::{bytes, count, counted, nanoseconds, rate};
use crate::render::palette::Palette;
use crate::render::progress;
use crate::render::receipt::headline;
use crate::render::text::printable;

/// The columns of a lane's bar.
const BAR_COLUMNS: u64 = 24;

/// Draws a guest's details.
pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, seen: &Seen, view: &View) {
    let guest = &seen.status;
    let title = format!(" {} ", printable(&guest.name));
    let block = Block::new().borders(Borders::TOP).title(title.bold());
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let facts = facts(seen);
    let rows = u16::try_from(facts.len()).unwrap_or(u16::MAX);
    let [above, below] =
        Layout::vertical([Constraint::Length(rows), Constraint::Fill(1)]).areas(inner);
    let facts = Paragraph::new(facts).wrap(Wrap { trim: false });
    frame.render_widget(facts, above);
    let under_way = guest.move_under_way.as_ref();
    if let Some(progress) = under_way.and_then(|under_way| under_way.progress.as_ref()) {
        under_way_drawn(frame, below, progress, &view.rates(&guest.name));
    } else if let Some(report) = &seen.last {
        operations(frame, below, report);
    }
}

fn facts(seen: &Seen) -> Vec<Line<'static>> {
    let guest = &seen.status;
    let mut lines = vec![Line::from(format!(
        " {}, {} of {} memory, {}, epoch {}, process {}",
        guest.kind,
        bytes(guest.memory_bytes),
        guest.backing,
        counted(u64::from(guest.vcpus), "vCPU"),
        guest.epoch,
        guest.pid
    ))];
    if let Some(workload) = &guest.workload {
        lines.push(Line::from(format!(
            " {} written, longest gap {}",
            counted(workload.pages_written, "page"),
            nanoseconds(workload.longest_gap_ns)
        )));
    }
    if let Some(under_way) = &guest.move_under_way {
        let stands = under_way
            .progress
            .as_ref()
            .map_or_else(|| "begins".to_owned(), |told| progress::line("move", told));
        let to = printable(&under_way.to);
        lines.push(Line::from(format!(" to {to}, {}", printable(&stands))));
    }
    if let Some(reason) = &guest.in_doubt {
        let words = format!(
            " {}; 'dunlin settle {}' says what to do",
            printable(reason),
            printable(&guest.name)
        );
        lines.push(Line::from(words.fg(Color::Red)));
    }
    if let Some(last) = &guest.last_move {
        let told = seen.last.as_ref();
        let words = told.map_or_else(
            || last.reason.clone().unwrap_or_default(),
            |report| headline(report, Palette::PLAIN),
        );
        lines.push(Line::from(format!(
            " last move, to {}: {}",
            printable(&last.to),
            printable(&words)
        )));
    }
    lines
}

fn under_way_drawn(frame: &mut Frame<'_>, area: Rect, progress: &Progress, rates: &[u64]) {
    let lanes = u16::try_from(progress.lanes.len()).unwrap_or(u16::MAX);
    let [curve, table] = Layout::vertical([
        Constraint::Max(6),
        Constraint::Length(lanes.saturating_add(1)),
    ])
    .areas(area);
    let width = usize::from(curve.width).min(RATES_KEPT);
    let shown = rates.get(rates.len().saturating_sub(width)..);
    let most = rates.iter().copied().max().unwrap_or(0);
    let title = format!(" rate, at most {} ", rate(most));
    let sparkline = Sparkline::default()
        .block(Block::new().title(title.dim()))
        .style(Style::new().fg(Color::Cyan))
        .data(shown.unwrap_or_default());
    frame.render_widget(sparkline, curve);
    let fastest = progress
        .lanes
        .iter()
        .map(|lane| lane.rate_bytes_per_s)
        .max();
    let rows = progress.lanes.iter().map(|lane| {
        Row::new([
            format!(" lane {}", lane.lane),
            bytes(lane.sent_bytes),
            rate(lane.rate_bytes_per_s),
            bar(lane.rate_bytes_per_s, fastest.unwrap_or(0)),
        ])
    });
    let widths = [
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(12),
        Constraint::Fill(1),
    ];
    let head = Row::new([" lane", "sent", "rate", ""]).style(Style::new().dim());
    frame.render_widget(Table::new(rows, widths).header(head), table);
}

/// A bar as long as `part` is of `most`.
fn bar(part: u64, most: u64) -> String {
    let columns = u128::from(part) * u128::from(BAR_COLUMNS);
    let columns = columns.checked_div(u128::from(most)).unwrap_or(0);
    "█".repeat(usize::try_from(columns).unwrap_or(0))
}

/// How long the operations of the last move took, on each end.
fn operations(frame: &mut Frame<'_>, area: Rect, report: &Report) {
    let Some(told) = &report.telemetry else {
        return;
    };
    let rows = told.ends().flat_map(|(end, measured)| {
        measured.operations.iter().map(move |operation| {
            let summary = operation.summary;
            Row::new([
                format!(" {}", operation.name.name()),
                end.name().to_owned(),
                count(summary.count),
                nanoseconds(summary.p50_ns),
                nanoseconds(summary.p99_ns),
                nanoseconds(summary.max_ns),
            ])
        })
    });
    let widths = [
        Constraint::Length(20),
        Constraint::Length(12),
        Constraint::Length(10),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(9),
    ];
    let head = Row::new([" last move", "where", "times", "p50", "p99", "longest"]);
    let table = Table::new(rows, widths).header(head.style(Style::new().dim()));
    frame.render_widget(table, area);
}
