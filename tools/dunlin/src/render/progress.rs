//! The live line: where a move stands, in one line that is drawn over itself on a terminal, and
//! in a plain line every few seconds elsewhere.

use std::time::{Duration, Instant};

use dunlin_engine::report::{Phase, Progress};

use super::amounts::{bytes, nanoseconds, rate};
use super::status_line::StatusLine;

/// How often a plain line is written where there is no terminal.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

/// What stands between two fields of the line.
const FIELD_BREAK: &str = " · ";

/// Draws the live line.
pub(crate) struct LiveLine {
    line: StatusLine,
    /// When a plain line was written last, and in which phase.
    last: Option<(Instant, Phase)>,
}

impl LiveLine {
    /// A line that suits standard error; nothing at all when `quiet`.
    pub(crate) fn new(quiet: bool) -> Self {
        Self {
            line: StatusLine::new(quiet),
            last: None,
        }
    }

    /// Shows where the move stands.
    pub(crate) fn show(&mut self, name: &str, progress: &Progress) {
        if self.line.is_quiet() {
            return;
        }
        let text = line(name, progress);
        if let Some(columns) = self.line.columns() {
            self.line.draw(&fitted(&text, columns));
            return;
        }
        let is_due = self
            .last
            .is_none_or(|(at, phase)| at.elapsed() >= PLAIN_INTERVAL || phase != progress.phase);
        if is_due {
            self.last = Some((Instant::now(), progress.phase));
            self.line.draw(&text);
        }
    }

    /// Writes a sentence on a line of its own.
    pub(crate) fn note(&mut self, text: &str) {
        self.line.note(text);
    }

    /// Takes the live line away.
    pub(crate) fn clear(&mut self) {
        self.line.clear();
    }
}

/// Where a move stands, in one line.
pub(crate) fn line(name: &str, progress: &Progress) -> String {
    let elapsed = nanoseconds(progress.elapsed_ns);
    match progress.phase {
        Phase::Connecting => format!("{name}: reaching the destination · {elapsed}"),
        Phase::Preparing => format!("{name}: preparing · {elapsed}"),
        Phase::Switchover => format!("{name}: paused, handing over · {elapsed}"),
        Phase::Verifying => format!("{name}: runs there, comparing memory · {elapsed}"),
        Phase::InDoubt => format!("{name}: PAUSED, its owner is not known, asking · {elapsed}"),
        Phase::Done => format!("{name}: over · {elapsed}"),
        Phase::Copying => {
            let mut line = format!(
                "{name}: round {} · {}% of {} dirty · {}",
                progress.round,
                done_percent(progress),
                bytes(progress.dirty_pages.saturating_mul(4096)),
                rate(progress.rate_bytes_per_s),
            );
            if let Some(eta) = progress.eta_ns {
                line.push_str(&format!(" · {} left", nanoseconds(eta)));
            }
            if let Some(blackout) = progress.predicted_blackout_ns {
                line.push_str(&format!(" · blackout ≈ {}", nanoseconds(blackout)));
            }
            line
        }
    }
}

/// As many whole fields of a line as fit. The first is cut where it alone is too wide.
fn fitted(line: &str, columns: usize) -> String {
    let mut shown = String::new();
    let mut shown_columns = 0;
    for field in line.split(FIELD_BREAK) {
        let mut needed = field.chars().count();
        if shown.is_empty() {
            shown = field.chars().take(columns).collect();
        } else {
            needed += FIELD_BREAK.chars().count();
            if shown_columns + needed > columns {
                break;
            }
            shown.push_str(FIELD_BREAK);
            shown.push_str(field);
        }
        shown_columns += needed;
    }
    shown
}

fn done_percent(progress: &Progress) -> u64 {
    let done = progress
        .dirty_pages
        .saturating_sub(progress.remaining_pages);
    done.saturating_mul(100)
        .checked_div(progress.dirty_pages)
        .unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copying_line_tells_round_rate_and_prediction() {
        let progress = Progress {
            phase: Phase::Copying,
            round: 2,
            dirty_pages: 1000,
            remaining_pages: 250,
            sent_bytes: 1 << 30,
            rate_bytes_per_s: 1 << 30,
            eta_ns: Some(2_000_000_000),
            predicted_blackout_ns: Some(9_000_000),
            elapsed_ns: 1,
            lanes: Vec::new(),
        };
        assert_eq!(
            line("vm1", &progress),
            "vm1: round 2 · 75% of 3.91 MiB dirty · 1 GiB/s · 2 s left · blackout ≈ 9 ms"
        );
        let none = Progress {
            dirty_pages: 0,
            remaining_pages: 0,
            ..progress
        };
        assert!(line("vm1", &none).contains("100%"));
    }

    #[test]
    fn a_narrow_terminal_shows_whole_fields() {
        let line = "vm1: round 2 · 75% · blackout ≈ 9 ms";
        for (columns, shown) in [
            (80, line),
            (36, line),
            (35, "vm1: round 2 · 75%"),
            (18, "vm1: round 2 · 75%"),
            (17, "vm1: round 2"),
            (5, "vm1: "),
            (0, ""),
        ] {
            assert_eq!(fitted(line, columns), shown, "{columns}");
        }
    }
}
