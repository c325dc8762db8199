//! Where the passes stand, in one line that is drawn over itself on a terminal, and in a plain line
//! for each run elsewhere.

use std::time::{Duration, Instant};

use crate::render::amounts::nanoseconds;
use crate::render::status_line::StatusLine;
use crate::render::text::printable;

/// How long a kind of run takes, as far as it is known.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    runs: u32,
    took: Duration,
}

/// Tells where the passes stand.
pub(crate) struct Progress {
    line: StatusLine,
    known: Vec<Known>,
    passes: u32,
    pass: u32,
    /// The runs of this pass that are still to come, the one under way among them.
    left: Vec<usize>,
}

impl Progress {
    /// For so many passes (warm-up ones among them) of so many kinds of runs.
    pub(crate) fn new(is_quiet: bool, passes: u32, kinds: usize) -> Self {
        Self {
            line: StatusLine::new(is_quiet),
            known: vec![Known::default(); kinds],
            passes,
            pass: 0,
            left: Vec::new(),
        }
    }

    /// A pass begins, with these kinds of runs.
    pub(crate) fn pass(&mut self, order: &[usize]) {
        self.pass += 1;
        self.left = order.to_vec();
    }

    /// A run begins.
    pub(crate) fn begins(&mut self, title: &str, what: &str) -> Instant {
        let eta = self
            .eta()
            .map(|left| format!(" · {} left", nanoseconds(left.as_nanos() as u64)))
            .unwrap_or_default();
        self.show(&format!("{title}{eta} · {what}"));
        Instant::now()
    }

    /// A run of a kind is over.
    pub(crate) fn ended(&mut self, kind: usize, begun: Instant) {
        if let Some(known) = self.known.get_mut(kind) {
            known.runs += 1;
            known.took += begun.elapsed();
        }
        self.left.retain(|left| *left != kind);
    }

    /// The time to the end; `None` before anything is known.
    fn eta(&self) -> Option<Duration> {
        let means: Vec<Option<Duration>> = self
            .known
            .iter()
            .map(|known| known.took.checked_div(known.runs))
            .collect();
        let known: Vec<Duration> = means.iter().flatten().copied().collect();
        let average = known
            .iter()
            .sum::<Duration>()
            .checked_div(u32::try_from(known.len()).ok()?)?;
        let of = |kind: usize| means.get(kind).copied().flatten().unwrap_or(average);
        let this: Duration = self.left.iter().map(|kind| of(*kind)).sum();
        let whole: Duration = (0..self.known.len()).map(of).sum();
        Some(this + whole * self.passes.saturating_sub(self.pass))
    }

    fn show(&mut self, line: &str) {
        let line = printable(line);
        match self.line.columns() {
            Some(columns) => self
                .line
                .draw(&line.chars().take(columns).collect::<String>()),
            None => self.line.draw(&line),
        }
    }

    /// Says something on a line of its own.
    pub(crate) fn note(&mut self, text: &str) {
        self.line.note(text);
    }

    /// Takes the line away.
    pub(crate) fn clear(&mut self) {
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_from_what_was() {
        let mut progress = Progress::new(true, 3, 2);
        progress.pass(&[0, 1]);
        assert_eq!(progress.eta(), None);
        let ago = |seconds| {
            Instant::now()
                .checked_sub(Duration::from_secs(seconds))
                .unwrap()
        };
        progress.ended(0, ago(10));
        // The other kind is taken to be like what is known: one of this pass, two passes of two.
        assert_eq!(progress.eta().unwrap().as_secs(), 50);
        progress.ended(1, ago(20));
        assert_eq!(progress.eta().unwrap().as_secs(), 60);
        progress.pass(&[1, 0]);
        progress.pass(&[0, 1]);
        progress.ended(0, ago(10));
        assert_eq!(progress.eta().unwrap().as_secs(), 20);
    }
}
