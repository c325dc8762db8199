//! A record as a file, written by a thread of its own: a disk that hangs holds up that thread, not
//! the handover.
//!
//! The file is locked (flock(2)) for as long as its writer lives; the kernel drops the lock when
//! the process dies, however it dies. So whoever finds a record can tell whether somebody still
//! writes it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use dunlin_transports::deadline::Deadline;
use rustix::fs::{FlockOperation, flock};

use super::format::{self, Contents, RECORD_BYTES, Written};
use super::{Durability, Entry, Journal, JournalError, Role, Subject};
use crate::clock::{Timestamp, boot_id};

/// How many writes may wait for a disk that hangs. A session makes no more.
const ORDERS_WAITING: usize = 8;

/// How often a record is made in a folder that others remove at the same moment.
const ATTEMPTS: usize = 4;

/// A record that this process writes. Dropping it gives the lock back.
#[derive(Debug)]
pub struct RecordFile {
    path: PathBuf,
    /// Read once: entries of the pause have no time for `/proc`.
    boot_id: String,
    orders: SyncSender<Order>,
    done: Receiver<Done>,
    /// The number of the last order.
    ordered: u64,
}

#[derive(Debug)]
struct Order {
    number: u64,
    task: Task,
}

#[derive(Debug)]
enum Task {
    Add(Written, Durability),
    Sync,
    /// Nothing, but an answer.
    Rehearse,
}

#[derive(Debug)]
struct Done {
    number: u64,
    result: Result<(), JournalError>,
}

/// A locked record.
#[derive(Debug)]
struct Locked {
    path: PathBuf,
    file: File,
    used: usize,
    /// The guest's folder, locked, where the record was adopted.
    _adopting: Option<File>,
}

impl RecordFile {
    /// Makes a record in `folder` with its first entry, durably, and room for all others.
    pub(super) fn create(folder: &Path, subject: &Subject) -> Result<Self, JournalError> {
        let path = folder.join(file_name(subject));
        let fresh = path.with_extension(format!("{}.new", subject.role.name()));
        // What an earlier attempt left there is nobody's.
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(system("removing", &fresh)(error));
            }
            _ => {}
        }
        let made = Self::write_new_in(folder, &fresh, subject).and_then(|locked| {
            std::fs::rename(&fresh, &path).map_err(system("naming", &path))?;
            sync_folder(folder)?;
            Ok(locked)
        });
        match made {
            Ok(locked) => Self::start(Locked { path, ..locked }),
            Err(error) => {
                let _ = std::fs::remove_file(&fresh);
                Err(error)
            }
        }
    }

    /// Whoever removes the guest's last record removes its folder too, maybe just now.
    fn write_new_in(
        folder: &Path,
        fresh: &Path,
        subject: &Subject,
    ) -> Result<Locked, JournalError> {
        let mut attempt = 0;
        loop {
            make_folder(folder)?;
            attempt += 1;
            match Self::write_new(fresh, subject) {
                Err(JournalError::System { source, .. })
                    if source.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS => {}
                made => return made,
            }
        }
    }

    fn write_new(fresh: &Path, subject: &Subject) -> Result<Locked, JournalError> {
        let damaged = |reason| JournalError::Damaged {
            path: fresh.to_owned(),
            reason,
        };
        let mut bytes = format::blank(subject).map_err(damaged)?;
        let written = Written::now(subject.role.first_entry(), "", &boot_id());
        if let Some((offset, slot)) = format::slot(0, &written).map_err(damaged)? {
            let places = bytes.iter_mut().skip(offset as usize);
            places.zip(&slot).for_each(|(to, from)| *to = *from);
        }
        let mut file = OpenOptions::new()
            .create_new(true)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(fresh)
            .map_err(system("making", fresh))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| system("locking", fresh)(error.into()))?;
        file.write_all(&bytes).map_err(system("writing", fresh))?;
        file.sync_all().map_err(system("syncing", fresh))?;
        Ok(Locked {
            path: fresh.to_owned(),
            file,
            used: 1,
            _adopting: None,
        })
    }

    /// Takes over a record whose writer is gone, in order to add to it. Its own lock is shared, as
    /// a reader's is: an exclusive one would make others take the guest's process for alive. That
    /// nobody else adopts it meanwhile is seen to by a lock on the guest's folder.
    ///
    /// # Errors
    ///
    /// [`JournalError::Held`] when its writer lives, or somebody else adopts it.
    pub(super) fn adopt(path: &Path) -> Result<Self, JournalError> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let adopting = File::open(folder).map_err(system("opening", folder))?;
        lock(&adopting, FlockOperation::NonBlockingLockExclusive, path)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(system("opening", path))?;
        lock(&file, FlockOperation::NonBlockingLockShared, path)?;
        let bytes = read_bounded(&mut file).map_err(system("reading", path))?;
        Self::start(Locked {
            path: path.to_owned(),
            file,
            used: format::slots_used(&bytes),
            _adopting: Some(adopting),
        })
    }

    fn start(mut locked: Locked) -> Result<Self, JournalError> {
        let path = locked.path.clone();
        let (orders, ordered) = sync_channel::<Order>(ORDERS_WAITING);
        let (answers, done) = sync_channel(ORDERS_WAITING + 1);
        std::thread::Builder::new()
            .name("dunlin-record".to_owned())
            .spawn(move || {
                while let Ok(order) = ordered.recv() {
                    let result = locked.perform(&order.task);
                    // Nobody waits any more: the order is done all the same.
                    let _ = answers.try_send(Done {
                        number: order.number,
                        result,
                    });
                }
            })
            .map_err(system("starting the thread that writes", &path))?;
        Ok(Self {
            path,
            boot_id: boot_id(),
            orders,
            done,
            ordered: 0,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn order(&mut self, task: Task, deadline: Deadline) -> Result<(), JournalError> {
        let limit = deadline.remaining();
        self.ordered += 1;
        let order = Order {
            number: self.ordered,
            task,
        };
        match self.orders.try_send(order) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(self.timed_out(Duration::ZERO)),
            Err(TrySendError::Disconnected(_)) => return Err(self.no_writer()),
        }
        loop {
            match self.done.recv_timeout(deadline.remaining()) {
                Ok(done) if done.number == self.ordered => return done.result,
                // What an earlier call gave up waiting for.
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return Err(self.timed_out(limit)),
                Err(RecvTimeoutError::Disconnected) => return Err(self.no_writer()),
            }
        }
    }

    fn timed_out(&self, waited: Duration) -> JournalError {
        JournalError::TimedOut {
            path: self.path.clone(),
            waited,
        }
    }

    fn no_writer(&self) -> JournalError {
        JournalError::Other(format!(
            "the thread that writes {} is gone",
            self.path.display()
        ))
    }
}

impl Journal for RecordFile {
    fn add(
        &mut self,
        entry: Entry,
        words: &str,
        durability: Durability,
        deadline: Deadline,
    ) -> Result<(), JournalError> {
        let written = Written::now(entry, words, &self.boot_id);
        self.order(Task::Add(written, durability), deadline)
    }

    fn rehearse(&mut self, deadline: Deadline) -> Option<Duration> {
        let begin = Timestamp::now();
        self.order(Task::Rehearse, deadline).ok()?;
        Some(Timestamp::now().since(begin))
    }

    fn sync(&mut self, deadline: Deadline) -> Result<(), JournalError> {
        self.order(Task::Sync, deadline)
    }
}

impl Locked {
    fn perform(&mut self, task: &Task) -> Result<(), JournalError> {
        match task {
            Task::Add(written, durability) => {
                self.add(written)?;
                if *durability == Durability::Durable {
                    self.sync()?;
                }
                if written.entry.ends_record() {
                    remove(&self.path)?;
                    if *durability == Durability::Durable {
                        sync_folder_above(&self.path);
                    }
                }
                Ok(())
            }
            Task::Sync => self.sync(),
            Task::Rehearse => Ok(()),
        }
    }

    fn add(&mut self, written: &Written) -> Result<(), JournalError> {
        let slot = format::slot(self.used, written).map_err(|reason| JournalError::Damaged {
            path: self.path.clone(),
            reason,
        })?;
        let Some((offset, bytes)) = slot else {
            return Err(JournalError::Full {
                path: self.path.clone(),
            });
        };
        self.file
            .write_all_at(&bytes, offset)
            .map_err(system("writing", &self.path))?;
        self.used += 1;
        Ok(())
    }

    fn sync(&self) -> Result<(), JournalError> {
        self.file.sync_data().map_err(system("syncing", &self.path))
    }
}

/// Removes a record that nobody will ask for, and its guest's folder when that is the last.
pub(super) fn remove(path: &Path) -> Result<(), JournalError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(system("removing", path)(error));
        }
        _ => {}
    }
    if let Some(folder) = path.parent() {
        // Other records may be there.
        let _ = std::fs::remove_dir(folder);
    }
    Ok(())
}

/// Makes it durable that a record is gone. Where that can't be done, it may come back after a crash
/// of the host, with its end in it.
fn sync_folder_above(path: &Path) {
    let folder = path.parent();
    for folder in [folder, folder.and_then(Path::parent)]
        .into_iter()
        .flatten()
    {
        let _ = sync_folder(folder);
    }
}

fn lock(file: &File, operation: FlockOperation, path: &Path) -> Result<(), JournalError> {
    flock(file, operation).map_err(|error| {
        if error == rustix::io::Errno::WOULDBLOCK {
            JournalError::Held {
                path: path.to_owned(),
            }
        } else {
            system("locking", path)(error.into())
        }
    })
}

/// What a record says, and whether its writer lives.
pub(super) fn look(path: &Path, role: Role) -> Result<(Contents, bool), JournalError> {
    let mut file = File::open(path).map_err(system("opening", path))?;
    // A shared lock on a file of one's own: given back at once, and nobody waits for it.
    let is_alive = match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => false,
        Err(rustix::io::Errno::WOULDBLOCK) => true,
        Err(error) => return Err(system("locking", path)(error.into())),
    };
    let bytes = read_bounded(&mut file).map_err(system("reading", path))?;
    let contents = format::read(&bytes, role).map_err(|reason| JournalError::Damaged {
        path: path.to_owned(),
        reason,
    })?;
    Ok((contents, is_alive))
}

/// The name of a subject's record.
pub(super) fn file_name(subject: &Subject) -> String {
    format!("{}.{}", subject.session, subject.role.name())
}

/// Makes a folder where it is missing.
pub(super) fn make_folder(path: &Path) -> Result<(), JournalError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(system("making", path)(error))
        }
        Ok(()) => path.parent().map_or(Ok(()), sync_folder),
        Err(_) => Ok(()),
    }
}

pub(super) fn sync_folder(folder: &Path) -> Result<(), JournalError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(system("syncing", folder))
}

/// A record's bytes, and one more where there are more: a file that somebody made larger is not
/// read to its end.
fn read_bounded(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(RECORD_BYTES + 1);
    file.take(RECORD_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

pub(super) fn system<'a>(
    doing: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> JournalError + 'a {
    move |source| JournalError::System {
        doing,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use dunlin_transports::lane::SessionId;
    use uuid::Uuid;

    use super::*;

    fn subject() -> Subject {
        Subject {
            uuid: Uuid::from_u128(1),
            name: "vm1".to_owned(),
            epoch: 1,
            session: SessionId([1; 16]),
            role: Role::Source,
            peer: "tcp://b:1".to_owned(),
        }
    }

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(10))
    }

    fn last(path: &Path) -> Entry {
        look(path, Role::Source)
            .unwrap()
            .0
            .entries
            .last()
            .unwrap()
            .entry
    }

    #[test]
    fn entries_are_in_the_file_when_they_are_said_to_be() {
        let folder = tempfile::tempdir().unwrap();
        let mut record = RecordFile::create(folder.path(), &subject()).unwrap();
        let path = record.path().to_owned();
        assert_eq!(last(&path), Entry::Offered);
        record
            .add(Entry::GivenUp, "", Durability::Plain, soon())
            .unwrap();
        assert_eq!(last(&path), Entry::GivenUp);
        record.sync(soon()).unwrap();
        let bytes = std::fs::metadata(&path).unwrap().len();
        assert_eq!(
            bytes, RECORD_BYTES as u64,
            "the room was there from the start"
        );
        record
            .add(Entry::Released, "", Durability::Plain, soon())
            .unwrap();
        assert!(
            !path.exists(),
            "a record that nobody asks for any more is gone"
        );
    }

    #[test]
    fn a_record_is_alive_for_as_long_as_its_writer_is() {
        let folder = tempfile::tempdir().unwrap();
        let record = RecordFile::create(folder.path(), &subject()).unwrap();
        let path = record.path().to_owned();
        assert!(look(&path, Role::Source).unwrap().1);
        assert!(matches!(
            RecordFile::adopt(&path),
            Err(JournalError::Held { .. })
        ));
        drop(record);
        // The writing thread ends a moment later, and the lock goes with it.
        let mut adopted = loop {
            match RecordFile::adopt(&path) {
                Ok(adopted) => break adopted,
                Err(JournalError::Held { .. }) => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        };
        adopted
            .add(Entry::GivenUp, "", Durability::Durable, soon())
            .unwrap();
        assert_eq!(last(&path), Entry::GivenUp);
    }

    #[test]
    fn a_full_record_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let mut record = RecordFile::create(folder.path(), &subject()).unwrap();
        let added: Vec<_> = (0..6)
            .map(|_| record.add(Entry::GivenUp, "", Durability::Plain, soon()))
            .collect();
        assert!(added[..5].iter().all(Result::is_ok));
        assert!(matches!(added[5], Err(JournalError::Full { .. })));
    }

    #[test]
    fn a_disk_that_hangs_holds_up_nobody_beyond_the_deadline() {
        let (held, orders) = sync_channel::<Order>(ORDERS_WAITING);
        let (_answers, done) = sync_channel(1);
        let mut record = RecordFile {
            path: PathBuf::from("/hangs"),
            boot_id: String::new(),
            orders: held,
            done,
            ordered: 0,
        };
        for _ in 0..ORDERS_WAITING {
            let deadline = Deadline::after(Duration::from_millis(5));
            let result = record.add(Entry::GivenUp, "", Durability::Plain, deadline);
            assert!(matches!(result, Err(JournalError::TimedOut { .. })));
        }
        // The queue is full: at once.
        let result = record.add(Entry::GivenUp, "", Durability::Plain, soon());
        assert!(matches!(result, Err(JournalError::TimedOut { .. })));
        drop(orders);
        let result = record.add(Entry::GivenUp, "", Durability::Plain, soon());
        assert!(matches!(result, Err(JournalError::Other(_))));
    }
}
