//! Those who look at the board: who watches a move, and who is being answered.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use dunlin_engine::report::{Progress, Report};

use super::board::{Board, Inner};

/// How far a watcher has read.
#[derive(Debug, Default)]
pub(crate) struct Place {
    progress: u64,
    notes: u64,
    /// The next state of doubt that was not read.
    doubts: u64,
}

/// What a watcher is told next.
#[derive(Debug)]
pub(crate) enum News {
    /// A note of the move.
    Note(String),
    /// Where the move stands.
    Progress(Progress),
    /// It is not known who owns the guest, and why.
    InDoubt(String),
    /// The move is over.
    Over(Arc<Report>),
    /// Nothing new in the time that was asked for.
    Nothing,
}

/// Someone who watches a move.
pub(crate) struct Watch {
    board: Arc<Board>,
    number: u64,
    place: Place,
}

impl Watch {
    /// A watcher of the move with this number, who has read nothing.
    pub(super) fn new(board: &Arc<Board>, number: u64) -> Self {
        Self {
            board: Arc::clone(board),
            number,
            place: Place::default(),
        }
    }

    /// What is new, or [`News::Nothing`] after `limit`.
    pub(crate) fn next(&mut self, limit: Duration) -> News {
        let end = Instant::now() + limit;
        let board = Arc::clone(&self.board);
        let mut inner = board.lock();
        loop {
            if let Some(news) = self.news(&inner) {
                return news;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return News::Nothing;
            }
            inner = board
                .changed
                .wait_timeout(inner, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn news(&mut self, inner: &Inner) -> Option<News> {
        if let Some((number, report, _)) = &inner.finished
            && *number >= self.number
        {
            return Some(News::Over(Arc::clone(report)));
        }
        let under_way = inner
            .under_way
            .as_ref()
            .filter(|move_| move_.number == self.number)?;
        let first = under_way.notes_count - under_way.notes.len() as u64;
        let next = self.place.notes.max(first);
        if let Some(note) = under_way.notes.get((next - first) as usize) {
            self.place.notes = next + 1;
            return Some(News::Note(note.clone()));
        }
        if let Some((number, reason)) = &inner.in_doubt
            && *number >= self.place.doubts
        {
            self.place.doubts = number + 1;
            return Some(News::InDoubt(reason.clone()));
        }
        let progress = under_way.progress.as_ref()?;
        (self.place.progress < under_way.progress_count).then(|| {
            self.place.progress = under_way.progress_count;
            News::Progress(progress.clone())
        })
    }
}

/// Someone who is being answered.
pub(crate) struct Attendance(Arc<Board>);

impl Attendance {
    /// One more, whom the board has counted.
    pub(super) fn new(board: &Arc<Board>) -> Self {
        Self(Arc::clone(board))
    }
}

impl Drop for Attendance {
    fn drop(&mut self) {
        self.0.lock().attended -= 1;
        self.0.changed.notify_all();
    }
}
