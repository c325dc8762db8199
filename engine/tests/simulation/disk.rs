//! A host's disk, with the records of moves on it.
//!
//! A record is written as the engine writes it to a file: by a thread of its own, so that a slow
//! disk holds up nobody past a deadline, and a write that nobody waits for any more is made all the
//! same. Whoever writes holds the record until that thread has ended. Plain entries outlive the
//! process, durable ones the host.

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dunlin_engine::clock::boot_id;
use dunlin_engine::records::verdict::{Answer, Evidence, Verdict, verdict};
use dunlin_engine::records::{Archive, Durability, Entry, Journal, JournalError, Role, Subject};
use dunlin_transports::deadline::Deadline;
use dunlin_transports::lane::SessionId;
use dunlin_transports::runtime::simulation::{ProcessId, World, current};
use dunlin_transports::runtime::{self, Receiver, Sender, channel, spawn};
use uuid::Uuid;

use super::ledger::Side;
use super::stage::{Moment, Stage};

/// How long a write takes where nothing is wrong.
const WRITE: Duration = Duration::from_micros(20);

/// How long it takes to make what is written durable.
const SYNC: Duration = Duration::from_micros(300);

/// What is wrong with a disk.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Condition {
    /// Each write and each sync takes so much longer.
    pub(crate) slower: Duration,
    /// There is no room for another record.
    pub(crate) is_full: bool,
    /// Every write fails.
    pub(crate) fails: bool,
}

struct Record {
    number: u64,
    subject: Subject,
    /// The boot in which it was begun.
    boot: String,
    /// Each entry, and whether it is durable.
    entries: Vec<(Entry, bool)>,
    /// Who holds it.
    writer: Option<ProcessId>,
}

#[derive(Default)]
struct Contents {
    records: Vec<Record>,
    next: u64,
    condition: Condition,
}

/// A host's disk. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Disk {
    world: World,
    contents: Arc<Mutex<Contents>>,
}

fn failure(kind: io::ErrorKind) -> JournalError {
    JournalError::System {
        doing: "writing",
        path: PathBuf::from("the record"),
        source: kind.into(),
    }
}

impl Disk {
    /// An empty disk.
    pub(crate) fn new(world: &World) -> Self {
        Self {
            world: world.clone(),
            contents: Arc::default(),
        }
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something begins to be wrong with it, or ends to be.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Condition)) {
        change(&mut self.contents().condition);
    }

    /// The host dies: what is not durable may be lost.
    pub(crate) fn crash(&self) {
        let mut contents = self.contents();
        for record in &mut contents.records {
            let durable = record.entries.iter().rposition(|(_, durable)| *durable);
            let durable = durable.map_or(0, |last| last + 1);
            let plain = record.entries.len() - durable;
            let survive = self.world.draw(plain as u64 + 1) as usize;
            record.entries.truncate(durable + survive);
        }
    }

    fn slowly(&self, takes: Duration) {
        let slower = self.contents().condition.slower;
        runtime::sleep(takes + slower);
    }

    /// Begins a record, which the calling thread's process holds: its first entry is durable when
    /// this returns.
    pub(crate) fn begin(&self, subject: &Subject, stage: &Stage) -> Result<Book, JournalError> {
        self.slowly(WRITE + SYNC);
        let mut contents = self.contents();
        if contents.condition.is_full {
            return Err(failure(io::ErrorKind::StorageFull));
        }
        if contents.condition.fails {
            return Err(failure(io::ErrorKind::Other));
        }
        contents.next += 1;
        let number = contents.next;
        contents.records.push(Record {
            number,
            subject: subject.clone(),
            boot: boot_id(),
            entries: vec![(subject.role.first_entry(), true)],
            writer: current().map(|member| member.process()),
        });
        drop(contents);
        let (orders, ordered) = channel();
        let (answers, done) = channel();
        let disk = self.clone();
        let write = move || disk.write_all(number, &ordered, &answers);
        spawn("dunlin-record", write).map_err(|error| failure(error.kind()))?;
        Ok(Book {
            side: match subject.role {
                Role::Source => Side::Source,
                Role::Destination => Side::Destination,
            },
            stage: stage.clone(),
            orders,
            done,
            ordered: 0,
        })
    }

    /// The thread that writes a record, to its end.
    fn write_all(&self, number: u64, orders: &Receiver<Order>, answers: &Sender<Done>) {
        while let Ok(order) = orders.recv() {
            let result = self.write(number, order.task);
            let _ = answers.send((order.number, result));
        }
        self.change_record(number, |record| record.writer = None);
    }

    fn write(&self, number: u64, task: Task) -> Result<(), JournalError> {
        let (entry, is_durable) = match task {
            Task::Add(entry, durability) => (Some(entry), durability == Durability::Durable),
            Task::Sync => (None, true),
        };
        if let Some(entry) = entry {
            self.slowly(WRITE);
            self.check()?;
            self.change_record(number, |record| record.entries.push((entry, false)));
        }
        if is_durable {
            self.slowly(SYNC);
            self.check()?;
            self.change_record(number, Record::make_durable);
        }
        if entry.is_some_and(Entry::ends_record) {
            let mut contents = self.contents();
            contents.records.retain(|record| record.number != number);
        }
        Ok(())
    }

    fn check(&self) -> Result<(), JournalError> {
        if self.contents().condition.fails {
            return Err(failure(io::ErrorKind::Other));
        }
        Ok(())
    }

    fn change_record(&self, number: u64, change: impl FnOnce(&mut Record)) {
        let mut contents = self.contents();
        let mut records = contents.records.iter_mut();
        if let Some(record) = records.find(|record| record.number == number) {
            change(record);
        }
    }

    /// What this disk, of a host with this boot id, tells of a session.
    pub(crate) fn evidence(&self, boot: &str, session: SessionId, epoch: u64) -> Evidence {
        let contents = self.contents();
        let found = contents.records.iter().find(|record| {
            record.subject.session == session && record.subject.role == Role::Destination
        });
        let mut all = contents.records.iter();
        Evidence {
            entry: found.and_then(|record| Some(record.entries.last()?.0)),
            is_alive: found.is_some_and(|record| record.is_held(&self.world)),
            is_same_boot: found.is_none_or(|record| record.boot == boot),
            has_later_epoch: all.any(|record| record.subject.epoch > epoch),
        }
    }

    /// The last entry of a record that has no end.
    pub(crate) fn open_entry(&self, session: SessionId, role: Role) -> Option<Entry> {
        let contents = self.contents();
        let mut records = contents.records.iter();
        let found =
            records.find(|record| record.subject.session == session && record.subject.role == role);
        Some(found?.entries.last()?.0)
    }

    /// Records that the session never ran the guest and never will, unless somebody holds the
    /// record or has gone on since.
    fn abort(&self, session: SessionId) -> Result<(), JournalError> {
        self.slowly(WRITE + SYNC);
        self.check()?;
        let mut contents = self.contents();
        let mut records = contents.records.iter_mut();
        let found = records.find(|record| {
            record.subject.session == session && record.subject.role == Role::Destination
        });
        match found {
            Some(record)
                if !record.is_held(&self.world)
                    && matches!(
                        record.entries.last(),
                        Some((Entry::Expected | Entry::Acquiring, ..))
                    ) =>
            {
                record.entries.push((Entry::Aborted, true));
                Ok(())
            }
            _ => Err(JournalError::Other("the record went on".to_owned())),
        }
    }
}

impl Record {
    fn is_held(&self, world: &World) -> bool {
        self.writer.is_some_and(|writer| world.is_alive(writer))
    }

    fn make_durable(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.1 = true);
    }
}

impl Archive for Disk {
    fn answer(&self, _uuid: Uuid, session: SessionId, epoch: u64) -> (Answer, String) {
        runtime::step();
        let evidence = self.evidence(&boot_id(), session, epoch);
        let words = format!("{evidence:?}");
        runtime::step();
        match verdict(evidence) {
            Verdict::Say(answer) => (answer, words),
            Verdict::AbortFirst => match self.abort(session) {
                Ok(()) => (Answer::Aborted, words),
                Err(error) => (Answer::Undecided, error.to_string()),
            },
        }
    }

    fn forget(&self, _uuid: Uuid, session: SessionId) {
        runtime::step();
        let is_over =
            |entry: &Entry| matches!(entry, Entry::Running | Entry::Aborted | Entry::Ended);
        self.contents().records.retain(|record| {
            record.subject.session != session
                || record.subject.role != Role::Destination
                || !record.entries.last().is_some_and(|last| is_over(&last.0))
        });
    }
}

#[derive(Clone, Copy)]
enum Task {
    Add(Entry, Durability),
    Sync,
}

struct Order {
    number: u64,
    task: Task,
}

type Done = (u64, Result<(), JournalError>);

/// A record that is being written.
pub(crate) struct Book {
    side: Side,
    stage: Stage,
    orders: Sender<Order>,
    done: Receiver<Done>,
    /// The number of the last order.
    ordered: u64,
}

impl Book {
    fn order(&mut self, task: Task, deadline: Deadline) -> Result<(), JournalError> {
        self.ordered += 1;
        let number = self.ordered;
        let gone = || JournalError::Other("the thread that writes it is gone".to_owned());
        let order = Order { number, task };
        self.orders.send(order).map_err(|_| gone())?;
        loop {
            match self.done.recv_timeout(deadline.remaining()) {
                Ok((done, result)) if done == number => return result,
                // What an earlier call gave up waiting for.
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => {
                    return Err(JournalError::TimedOut {
                        path: PathBuf::from("the record"),
                        waited: Duration::ZERO,
                    });
                }
                Err(RecvTimeoutError::Disconnected) => return Err(gone()),
            }
        }
    }
}

impl Journal for Book {
    fn add(
        &mut self,
        entry: Entry,
        words: &str,
        durability: Durability,
        deadline: Deadline,
    ) -> Result<(), JournalError> {
        self.stage.passes(Moment::Records(self.side, entry));
        let result = self.order(Task::Add(entry, durability), deadline);
        let (world, side) = (self.stage.world(), self.side.name());
        world.note(|| match &result {
            Ok(()) => format!("{side}: recorded {entry:?} ({durability:?}, {words})"),
            Err(error) => format!("{side}: could not record {entry:?}: {error}"),
        });
        result
    }

    fn sync(&mut self, deadline: Deadline) -> Result<(), JournalError> {
        self.order(Task::Sync, deadline)
    }
}
