//! The state directory: `guests/UUID/SESSION.source` and `guests/UUID/SESSION.destination`.
//!
//! It outlives processes and the host. Both sides may use the same one, on one host.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dunlin_transports::deadline::Deadline;
use dunlin_transports::lane::SessionId;
use uuid::Uuid;

use super::file::{RecordFile, look, make_folder, remove, sync_folder, system};
use super::verdict::{Answer, Evidence, Verdict, verdict};
use super::{
    Archive, Durability, Entry, Journal, JournalError, Role, Subject, session_from_digits,
};
use crate::clock::boot_id;

/// The most records of one guest. Each is one page; there are more than two only when moves were
/// left in doubt.
const RECORDS_MAX: usize = 64;

/// How long recording a decision may take: nobody's pause depends on it.
const DECISION_TIME: Duration = Duration::from_secs(10);

/// A state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDirectory {
    path: PathBuf,
}

/// A record that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is about.
    pub subject: Subject,
    /// Its last entry.
    pub entry: Entry,
    /// That entry's words.
    pub words: String,
    /// When that entry was written: milliseconds since 1970.
    pub unix_ms: u64,
    /// Whether the process that writes it lives.
    pub is_alive: bool,
    /// Whether it was begun in this boot of the host.
    pub is_same_boot: bool,
    /// Where it is.
    pub path: PathBuf,
}

impl Found {
    /// Whether nobody can tell by this record alone whose the guest is: its process went away
    /// behind the give-up, or while it held the guest.
    pub fn is_in_doubt(&self) -> bool {
        let open = match self.subject.role {
            Role::Source => self.entry == Entry::GivenUp,
            Role::Destination => {
                matches!(self.entry, Entry::Owned | Entry::Running | Entry::Broken)
            }
        };
        open && !self.is_alive
    }

    fn evidence(&self, has_later_epoch: bool) -> Evidence {
        Evidence {
            entry: Some(self.entry),
            is_alive: self.is_alive,
            is_same_boot: self.is_same_boot,
            has_later_epoch,
        }
    }
}

impl StateDirectory {
    /// The state directory at `path`. Nothing is made or read yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it where it is missing (its parent must be there), and checks that it is this user's
    /// alone to write.
    ///
    /// # Errors
    ///
    /// When it is not, or can't be made.
    pub fn prepare(&self) -> Result<(), JournalError> {
        make_folder(&self.path)?;
        make_folder(&self.guests())?;
        for path in [&self.path, &self.guests()] {
            let metadata = std::fs::symlink_metadata(path).map_err(system("looking at", path))?;
            let user = rustix::process::geteuid().as_raw();
            let shown = path.display();
            if !metadata.is_dir() {
                let words = format!("{shown} is not a directory (a link is not followed)");
                return Err(JournalError::Other(words));
            }
            if metadata.uid() != user {
                let owner = metadata.uid();
                let words = format!("{shown} belongs to user {owner}, not to {user}");
                return Err(JournalError::Other(words));
            }
            if metadata.mode() & 0o022 != 0 {
                let words =
                    format!("others may write to {shown}: 'chmod 700 {shown}' makes it safe");
                return Err(JournalError::Other(words));
            }
        }
        Ok(())
    }

    /// Begins a session's record: its first entry is durable when this returns, and there is room
    /// for all others. Records that this session makes pointless are removed.
    ///
    /// # Errors
    ///
    /// When the disk is full, read-only or missing; when a later epoch of the guest was seen here;
    /// when a move of the guest is in doubt here.
    pub fn begin(&self, subject: &Subject) -> Result<RecordFile, JournalError> {
        let folder = self.folder(subject.uuid);
        if !self.guests().is_dir() {
            let missing = io::Error::from_raw_os_error(libc::ENOENT);
            return Err(system("opening", &self.guests())(missing));
        }
        let records = self.of_guest(subject.uuid)?;
        if records.len() >= RECORDS_MAX {
            return Err(JournalError::Other(format!(
                "{} holds {RECORDS_MAX} records of moves that were left in doubt: settle them first",
                folder.display()
            )));
        }
        for found in &records {
            if found.subject.session == subject.session && found.subject.role == subject.role {
                return Err(JournalError::Other(format!(
                    "session {} was here before",
                    subject.session
                )));
            }
            refuse_stale(found, subject)?;
            if is_superseded(found, subject) {
                // Pointless, and harmless where it can't be removed.
                let _ = std::fs::remove_file(&found.path);
            }
        }
        RecordFile::create(&folder, subject)
    }

    /// All records, by guest.
    ///
    /// # Errors
    ///
    /// When the directory can't be read. What is damaged is told in the second list.
    pub fn records(&self) -> Result<(Vec<Found>, Vec<JournalError>), JournalError> {
        let mut all = (Vec::new(), Vec::new());
        for folder in entries(&self.guests())? {
            let name = folder.file_name().and_then(|name| name.to_str());
            if let Some(uuid) = name.and_then(|name| name.parse().ok()) {
                let found = self.read_folder(uuid)?;
                all.0.extend(found.0);
                all.1.extend(found.1);
            }
        }
        Ok(all)
    }

    /// The records of one guest that can be read.
    ///
    /// # Errors
    ///
    /// When its folder can't be read.
    pub fn of_guest(&self, uuid: Uuid) -> Result<Vec<Found>, JournalError> {
        Ok(self.read_folder(uuid)?.0)
    }

    /// Closes a record whose process is gone, by a person's word or by the other side's answer.
    ///
    /// # Errors
    ///
    /// When its process lives, or the disk fails.
    pub fn close(&self, found: &Found, entry: Entry, words: &str) -> Result<(), JournalError> {
        RecordFile::adopt(&found.path)?.add(
            entry,
            words,
            Durability::Durable,
            Deadline::after(DECISION_TIME),
        )
    }

    fn abort(&self, found: &Found) -> Result<(), JournalError> {
        let mut record = RecordFile::adopt(&found.path)?;
        // It may have gone on between the look and the lock.
        let (contents, _) = look_at_own(&found.path)?;
        if contents != Some(Entry::Expected) {
            return Err(JournalError::Held {
                path: found.path.clone(),
            });
        }
        let words = "its process is gone";
        let deadline = Deadline::after(DECISION_TIME);
        record.add(Entry::Aborted, words, Durability::Durable, deadline)?;
        sync_folder(&self.folder(found.subject.uuid))
    }

    fn guests(&self) -> PathBuf {
        self.path.join("guests")
    }

    fn folder(&self, uuid: Uuid) -> PathBuf {
        self.guests().join(uuid.to_string())
    }

    fn record_path(&self, uuid: Uuid, session: SessionId, role: Role) -> PathBuf {
        self.folder(uuid).join(format!("{session}.{}", role.name()))
    }

    fn read_folder(&self, uuid: Uuid) -> Result<(Vec<Found>, Vec<JournalError>), JournalError> {
        let boot = boot_id();
        let mut all = (Vec::new(), Vec::new());
        for path in entries(&self.folder(uuid))? {
            let Some(role) = role_of(&path) else {
                continue;
            };
            match look(&path, role) {
                Ok((contents, is_alive)) => {
                    let (Some(first), Some(last)) =
                        (contents.entries.first(), contents.entries.last())
                    else {
                        continue;
                    };
                    all.0.push(Found {
                        entry: last.entry,
                        words: last.words.clone(),
                        unix_ms: last.unix_ms,
                        is_alive,
                        is_same_boot: !boot.is_empty() && first.boot_id == boot,
                        subject: contents.subject.clone(),
                        path,
                    });
                }
                // Gone between the listing and the look.
                Err(JournalError::System { source, .. })
                    if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => all.1.push(error),
            }
        }
        all.0
            .sort_by_key(|found| (found.subject.epoch, found.unix_ms));
        Ok(all)
    }
}

impl Archive for StateDirectory {
    fn answer(&self, uuid: Uuid, session: SessionId, epoch: u64) -> (Answer, String) {
        let records = match self.of_guest(uuid) {
            Ok(records) => records,
            Err(error) => return (Answer::Undecided, error.to_string()),
        };
        let asked = |found: &&Found| {
            found.subject.session == session && found.subject.role == Role::Destination
        };
        let found = records.iter().find(asked);
        let has_later_epoch = records.iter().any(|found| found.subject.epoch > epoch);
        let evidence = found.map_or(
            Evidence {
                entry: None,
                is_alive: false,
                is_same_boot: true,
                has_later_epoch,
            },
            |found| found.evidence(has_later_epoch),
        );
        let words = found.map_or_else(String::new, |found| {
            let gone = if found.is_alive {
                ""
            } else {
                ", its process is gone"
            };
            let boot = if found.is_same_boot {
                ""
            } else {
                ", the host has restarted since"
            };
            format!("its record says '{}'{gone}{boot}", found.entry.name())
        });
        match (verdict(evidence), found) {
            (Verdict::Say(answer), _) => (answer, words),
            (Verdict::AbortFirst, None) => (Answer::NoRecord, words),
            (Verdict::AbortFirst, Some(found)) => match self.abort(found) {
                Ok(()) => (Answer::Aborted, format!("{words}, and no vCPU was entered")),
                Err(error) => (Answer::Undecided, error.to_string()),
            },
        }
    }

    /// A guest whose process lives runs on without the record.
    fn forget(&self, uuid: Uuid, session: SessionId) {
        let path = self.record_path(uuid, session, Role::Destination);
        let open = look(&path, Role::Destination).is_ok_and(|(contents, _)| {
            let last = contents.entries.last().map(|written| written.entry);
            matches!(last, Some(Entry::Running | Entry::Aborted | Entry::Ended))
        });
        if open {
            // At worst it is found again, and asked for by nobody.
            let _ = remove(&path);
        }
    }
}

/// Refuses a guest of an epoch that was overtaken here.
fn refuse_stale(found: &Found, subject: &Subject) -> Result<(), JournalError> {
    let is_owner_record = matches!(
        found.entry,
        Entry::Owned | Entry::Running | Entry::Broken | Entry::Ended
    );
    let stale = found.subject.role == Role::Destination
        && is_owner_record
        && found.subject.epoch >= subject.epoch;
    let in_doubt = found.subject.role == Role::Source
        && found.entry == Entry::GivenUp
        && found.subject.epoch >= subject.epoch;
    if stale || in_doubt {
        let name = &found.subject.name;
        let epoch = found.subject.epoch.saturating_add(1);
        return Err(JournalError::Other(format!(
            "guest '{name}' was handed over as epoch {epoch} and that is not settled here, so epoch {} is not taken: 'dunlin settle {name}' shows what to do ({})",
            subject.epoch,
            found.path.display()
        )));
    }
    Ok(())
}

/// Whether nobody can ask for a record any more, now that its guest comes with this subject. A
/// source that is in doubt begins no new move, and nobody else has its epoch.
fn is_superseded(found: &Found, subject: &Subject) -> bool {
    let unused = match found.subject.role {
        Role::Destination => matches!(found.entry, Entry::Expected | Entry::Aborted),
        Role::Source => matches!(found.entry, Entry::Offered),
    };
    unused && !found.is_alive && found.subject.epoch <= subject.epoch
}

fn look_at_own(path: &Path) -> Result<(Option<Entry>, bool), JournalError> {
    let (contents, is_alive) = look(path, Role::Destination)?;
    let last = contents.entries.last().map(|written| written.entry);
    Ok((last, is_alive))
}

fn role_of(path: &Path) -> Option<Role> {
    let (session, role) = path.file_name()?.to_str()?.split_once('.')?;
    session_from_digits(session)?;
    [Role::Source, Role::Destination]
        .into_iter()
        .find(|each| each.name() == role)
}

/// The paths in a folder; none where there is no such folder.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, JournalError> {
    let listing = match std::fs::read_dir(folder) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(system("reading", folder)(error)),
    };
    listing
        .map(|entry| {
            entry
                .map(|entry| entry.path())
                .map_err(system("reading", folder))
        })
        .collect()
}

#[cfg(test)]
mod tests;
