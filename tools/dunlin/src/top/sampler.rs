//! Asks the guests how they are, over and over, on a thread of its own: one that does not answer
//! must not hold up the keys.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use dunlin_engine::report::Report;

use crate::failure::Failure;
use crate::local::client::Connection;
use crate::local::protocol::{GuestStatus, Request, Response};
use crate::local::roll::{Roll, roll};
use crate::local::runtime_dir::RuntimeDir;

/// How long a guest may take to answer.
const ANSWER_MAX: Duration = Duration::from_millis(500);

/// What was heard at one time.
pub(super) struct Sample {
    /// The guests.
    pub(super) guests: Vec<Seen>,
    /// What went wrong, in words.
    pub(super) troubles: Vec<String>,
}

/// A guest, and what its last move measured.
#[derive(Clone)]
pub(super) struct Seen {
    /// How it is.
    pub(super) status: GuestStatus,
    /// The report of its last move, where it is still here.
    pub(super) last: Option<Arc<Report>>,
}

/// The thread.
pub(super) struct Sampler(Receiver<Sample>);

impl Sampler {
    /// Starts to ask.
    pub(super) fn start(runtime: RuntimeDir, interval: Duration) -> Result<Self, Failure> {
        // Who does not look gets no pile of old news.
        let (sender, samples) = sync_channel(1);
        thread::Builder::new()
            .name("sampler".to_owned())
            .spawn(move || sample_on(&runtime, interval, &sender))
            .map_err(|error| Failure::system("a thread", error))?;
        Ok(Self(samples))
    }

    /// What was heard since the last look.
    pub(super) fn next(&self) -> Option<Sample> {
        self.0.try_recv().ok()
    }
}

fn sample_on(runtime: &RuntimeDir, interval: Duration, sender: &SyncSender<Sample>) {
    let mut known = BTreeMap::new();
    while sender.send(sample(runtime, &mut known)).is_ok() {
        thread::sleep(interval);
    }
}

/// Reports by guest; a guest that moves again has none until that is over.
type Known = BTreeMap<String, Arc<Report>>;

/// Asks once.
pub(super) fn sample(runtime: &RuntimeDir, known: &mut Known) -> Sample {
    let Roll { guests, failures } = match roll(runtime, ANSWER_MAX) {
        Ok(roll) => roll,
        Err(failure) => Roll {
            guests: Vec::new(),
            failures: vec![failure],
        },
    };
    known.retain(|name, _| guests.iter().any(|guest| guest.name == *name));
    let guests = guests.into_iter().map(|status| {
        if status.move_under_way.is_some() || status.last_move.is_none() {
            known.remove(&status.name);
        } else if !known.contains_key(&status.name)
            && let Ok(report) = last_report(runtime, &status.name)
        {
            known.insert(status.name.clone(), Arc::new(report));
        }
        let last = known.get(&status.name).map(Arc::clone);
        Seen { status, last }
    });
    Sample {
        guests: guests.collect(),
        troubles: failures.iter().map(ToString::to_string).collect(),
    }
}

/// Who watches a move that is over is told its report at once.
fn last_report(runtime: &RuntimeDir, name: &str) -> Result<Report, Failure> {
    let mut connection = Connection::open(runtime, name)?;
    connection.answer_within(Some(ANSWER_MAX))?;
    match connection.ask(&Request::Watch {})? {
        Response::Report { report } => Ok(*report),
        _ => Err(connection.unexpected()),
    }
}
