//! Both sides' records, in directories of their own, and a supervisor who answers from them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dunlin_engine::destination::answer_doubt;
use dunlin_engine::records::directory::{Found, StateDirectory};
use dunlin_engine::records::file::RecordFile;
use dunlin_engine::records::{Durability, Entry, Journal, JournalError, Role, Subject};
use dunlin_engine::report::Progress;
use dunlin_engine::session::Decision;
use dunlin_engine::settings::MoveHandle;
use dunlin_engine::source::{MoveObserver, Reconnect};
use dunlin_transports::control::{ControlChannel, ControlError};
use dunlin_transports::deadline::Deadline;
use dunlin_transports::inmemory::{Faults, control_pair};
use dunlin_transports::lane::SessionId;
use tempfile::TempDir;
use uuid::Uuid;

/// What was asked of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Add(Entry, Durability),
    Sync,
}

/// A record's file that keeps account of what was asked of it.
struct Accounted {
    file: RecordFile,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Journal for Accounted {
    fn add(
        &mut self,
        entry: Entry,
        words: &str,
        durability: Durability,
        deadline: Deadline,
    ) -> Result<(), JournalError> {
        self.asked
            .lock()
            .unwrap()
            .push(Asked::Add(entry, durability));
        self.file.add(entry, words, durability, deadline)
    }

    fn sync(&mut self, deadline: Deadline) -> Result<(), JournalError> {
        self.asked.lock().unwrap().push(Asked::Sync);
        self.file.sync(deadline)
    }
}

/// A host's state directory.
#[derive(Clone)]
pub(crate) struct Records {
    /// What was asked of all its journals, in order.
    pub(crate) asked: Arc<Mutex<Vec<Asked>>>,
    directory: StateDirectory,
    _files: Arc<TempDir>,
}

impl Records {
    pub(crate) fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        let directory = StateDirectory::new(files.path().join("state"));
        directory.prepare().unwrap();
        Self {
            asked: Arc::default(),
            directory,
            _files: Arc::new(files),
        }
    }

    /// Begins a record.
    pub(crate) fn begin(
        &self,
        role: Role,
        uuid: Uuid,
        epoch: u64,
        session: SessionId,
    ) -> Box<dyn Journal> {
        let subject = Subject {
            uuid,
            name: "vm1".to_owned(),
            epoch,
            session,
            role,
            peer: "memory".to_owned(),
        };
        Box::new(Accounted {
            file: self.directory.begin(&subject).unwrap(),
            asked: Arc::clone(&self.asked),
        })
    }

    /// What is recorded.
    pub(crate) fn all(&self) -> Vec<Found> {
        let (found, damaged) = self.directory.records().unwrap();
        assert!(damaged.is_empty(), "{damaged:?}");
        found
    }
}

/// Reaches a supervisor who answers from these records; nobody, where there are none.
pub(crate) struct Supervisor {
    pub(crate) session: SessionId,
    pub(crate) records: Option<Records>,
}

impl Reconnect for Supervisor {
    fn reconnect(&mut self, _deadline: Deadline) -> Result<ControlChannel, ControlError> {
        let Some(records) = self.records.clone() else {
            return Err(ControlError::Closed);
        };
        let session = self.session;
        let (here, there) = control_pair(Faults::new());
        std::thread::spawn(move || {
            let limit = Duration::from_secs(5);
            let _ = answer_doubt(there, session, &records.directory, limit);
        });
        Ok(here)
    }
}

/// A person who decides as soon as the words are told.
pub(crate) struct Person {
    pub(crate) handle: Arc<MoveHandle>,
    pub(crate) words: &'static str,
    pub(crate) decision: Option<Decision>,
}

impl MoveObserver for Person {
    fn progress(&self, _progress: &Progress) {}

    fn note(&self, _note: &str) {}

    fn in_doubt(&self, reason: &str) {
        if let Some(decision) = self.decision.filter(|_| reason.contains(self.words)) {
            self.handle.decide(decision, "it is switched off");
        }
    }
}
