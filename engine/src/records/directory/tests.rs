//! What the state directory keeps, refuses, answers and forgets.

use std::os::unix::fs::PermissionsExt;

use dunlin_transports::deadline::Deadline;
use tempfile::TempDir;

use super::*;
use crate::records::Durability;

const GUEST: Uuid = Uuid::from_u128(7);

struct Place {
    state: StateDirectory,
    _files: TempDir,
}

impl Place {
    fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        let state = StateDirectory::new(files.path().join("state"));
        state.prepare().unwrap();
        Self {
            state,
            _files: files,
        }
    }

    fn begin(&self, role: Role, session: u8, epoch: u64) -> RecordFile {
        self.state.begin(&subject(role, session, epoch)).unwrap()
    }

    /// A destination's record up to an entry, whose process is gone.
    fn dead(&self, session: u8, epoch: u64, entries: &[Entry]) {
        let mut record = self.begin(Role::Destination, session, epoch);
        entries.iter().for_each(|entry| add(&mut record, *entry));
        self.bury(record);
    }

    /// Waits until a record's lock is free: its writing thread ends a moment after it is dropped.
    fn bury(&self, record: RecordFile) {
        drop(record);
        while self
            .state
            .of_guest(GUEST)
            .unwrap()
            .iter()
            .any(|found| found.is_alive)
        {
            std::thread::yield_now();
        }
    }

    fn answer(&self, session: u8, epoch: u64) -> Answer {
        self.state.answer(GUEST, SessionId([session; 16]), epoch).0
    }

    fn refusal(&self, role: Role, session: u8, epoch: u64) -> String {
        let begun = self.state.begin(&subject(role, session, epoch));
        begun.expect_err("it was not refused").to_string()
    }

    fn entries(&self) -> Vec<Entry> {
        let found = self.state.of_guest(GUEST).unwrap();
        found.iter().map(|found| found.entry).collect()
    }
}

fn subject(role: Role, session: u8, epoch: u64) -> Subject {
    Subject {
        uuid: GUEST,
        name: "vm1".to_owned(),
        epoch,
        session: SessionId([session; 16]),
        role,
        peer: "tcp://a:1".to_owned(),
    }
}

fn add(record: &mut RecordFile, entry: Entry) {
    let deadline = Deadline::after(DECISION_TIME);
    record.add(entry, "", Durability::Plain, deadline).unwrap();
}

#[test]
fn a_process_that_died_before_commit_never_ran_the_guest_and_that_is_recorded() {
    let place = Place::new();
    let record = place.begin(Role::Destination, 1, 4);
    assert_eq!(place.answer(1, 4), Answer::Undecided, "it is alive");
    place.bury(record);
    assert_eq!(place.answer(1, 4), Answer::Aborted);
    assert_eq!(place.entries(), [Entry::Aborted]);
    assert_eq!(place.answer(1, 4), Answer::Aborted, "and it stays so");
}

#[test]
fn a_process_that_died_behind_commit_may_have_run_the_guest() {
    let place = Place::new();
    place.dead(1, 4, &[Entry::Owned]);
    assert_eq!(place.answer(1, 4), Answer::MayHaveRun);
    assert_eq!(
        place.entries(),
        [Entry::Owned],
        "nothing is recorded by asking"
    );
    assert_eq!(place.answer(2, 4), Answer::NoRecord, "another session");
}

#[test]
fn what_runs_here_is_said_to_run_until_its_process_dies() {
    let place = Place::new();
    let mut record = place.begin(Role::Destination, 1, 4);
    add(&mut record, Entry::Owned);
    assert_eq!(place.answer(1, 4), Answer::Undecided);
    add(&mut record, Entry::Running);
    assert_eq!(place.answer(1, 4), Answer::Running);
    place.bury(record);
    assert_eq!(place.answer(1, 4), Answer::MayHaveRun);
}

#[test]
fn a_guest_that_was_moved_on_meanwhile_is_recognised_by_its_epoch() {
    let place = Place::new();
    // It ran here as epoch 5, and is on its way to somebody else.
    place.dead(1, 4, &[Entry::Owned, Entry::Running]);
    let mut onward = place.begin(Role::Source, 2, 5);
    add(&mut onward, Entry::GivenUp);
    assert_eq!(place.answer(1, 4), Answer::Ended);
}

#[test]
fn settled_records_are_forgotten_and_others_are_not() {
    let place = Place::new();
    place.dead(1, 4, &[Entry::Owned]);
    place.state.forget(GUEST, SessionId([1; 16]));
    assert_eq!(
        place.entries(),
        [Entry::Owned],
        "its source may not forget what may have run"
    );
    place.dead(2, 5, &[Entry::Owned, Entry::Running]);
    place.state.forget(GUEST, SessionId([2; 16]));
    assert_eq!(place.entries(), [Entry::Owned]);
}

#[test]
fn a_stale_guest_is_refused() {
    let place = Place::new();
    place.dead(1, 4, &[Entry::Owned, Entry::Running]);
    let refusal = place.refusal(Role::Destination, 2, 4);
    assert!(refusal.contains("dunlin settle vm1"), "{refusal}");
    // Its next epoch may come.
    drop(place.begin(Role::Destination, 3, 5));
}

#[test]
fn a_guest_that_was_given_up_is_not_taken_in_at_its_old_epoch() {
    let place = Place::new();
    let mut given_up = place.begin(Role::Source, 1, 4);
    add(&mut given_up, Entry::GivenUp);
    let refusal = place.refusal(Role::Destination, 2, 4);
    assert!(refusal.contains("not settled"), "{refusal}");
}

#[test]
fn a_session_begins_once() {
    let place = Place::new();
    let _record = place.begin(Role::Source, 1, 4);
    let refusal = place.refusal(Role::Source, 1, 4);
    assert!(refusal.contains("was here before"), "{refusal}");
    // The other side of the same session, on the same host.
    drop(place.begin(Role::Destination, 1, 4));
}

#[test]
fn tombstones_go_when_the_guest_comes_again() {
    let place = Place::new();
    place.dead(1, 4, &[Entry::Aborted]);
    place.dead(2, 4, &[]);
    drop(place.begin(Role::Destination, 3, 4));
    let sessions: Vec<_> = place.state.of_guest(GUEST).unwrap();
    assert_eq!(sessions.len(), 1);
    assert_eq!(sessions[0].subject.session, SessionId([3; 16]));
}

#[test]
fn a_person_closes_only_what_nobody_writes() {
    let place = Place::new();
    let mut record = place.begin(Role::Source, 1, 4);
    add(&mut record, Entry::GivenUp);
    let found = &place.state.of_guest(GUEST).unwrap()[0];
    assert!(!found.is_in_doubt(), "its process lives and asks by itself");
    let held = place
        .state
        .close(found, Entry::DiscardedByHand, "power cut");
    assert!(matches!(held, Err(JournalError::Held { .. })));
    place.bury(record);
    let found = &place.state.of_guest(GUEST).unwrap()[0];
    assert!(found.is_in_doubt());
    place
        .state
        .close(found, Entry::DiscardedByHand, "power cut")
        .unwrap();
    assert!(place.entries().is_empty());
    assert!(!place.state.folder(GUEST).exists());
}

#[test]
fn after_a_crash_of_the_host_a_plain_entry_proves_nothing() {
    let place = Place::new();
    place.dead(1, 4, &[]);
    let path = &place.state.of_guest(GUEST).unwrap()[0].path;
    // The record as a host would have left it that has restarted since.
    let text = std::fs::read_to_string(path).unwrap();
    let (header, slots) = text.split_at(1024);
    let boot = boot_id();
    let json = slots[17..].lines().next().unwrap().trim_end();
    let json = json.replace(&boot, "another-boot");
    let line = format!(
        "{:016x} {json}",
        xxhash_rust::xxh3::xxh3_64(json.as_bytes())
    );
    let slot = format!("{line:<511}\n");
    std::fs::write(path, format!("{header}{slot}{}", &slots[512..])).unwrap();
    assert_eq!(place.answer(1, 4), Answer::MayHaveRun);
    assert_eq!(
        place.entries(),
        [Entry::Expected],
        "and nothing is recorded"
    );
}

#[test]
fn damaged_records_are_told_and_do_not_hide_the_rest() {
    let place = Place::new();
    place.dead(1, 4, &[Entry::Owned]);
    let name = format!("{}.destination", SessionId([2; 16]));
    std::fs::write(place.state.folder(GUEST).join(name), "garbage").unwrap();
    std::fs::write(place.state.folder(GUEST).join("notes.txt"), "mine").unwrap();
    let (found, damaged) = place.state.records().unwrap();
    assert_eq!((found.len(), damaged.len()), (1, 1));
    assert!(
        damaged[0].to_string().contains("no record"),
        "{}",
        damaged[0]
    );
}

#[test]
fn a_directory_that_others_can_write_is_refused() {
    let place = Place::new();
    let path = place.state.path();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    let refusal = place.state.prepare().unwrap_err().to_string();
    assert!(refusal.contains("chmod 700"), "{refusal}");
}

#[test]
fn a_directory_that_is_gone_is_refused_and_not_made_anew() {
    let place = Place::new();
    std::fs::remove_dir_all(place.state.path()).unwrap();
    let refusal = place.refusal(Role::Source, 1, 4);
    assert!(refusal.contains("No such file"), "{refusal}");
}
