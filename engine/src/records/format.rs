//! A record as bytes: one page, in lines that a person can read with `cat`.
//!
//! ```text
//! offset  bytes
//!      0   1024  what the record is about, and its version
//!   1024    512  the first entry
//!   1536    512  the second, and so on: six in all
//! ```
//! A line is 16 hexadecimal digits of XXH3-64 over what follows them, a space, one JSON object,
//! spaces, and a line feed. A slot that is all spaces is free. Entries are written in place, each
//! within one page of the page cache; one whose checksum is wrong was being written when the host
//! went down, and does not count.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::{Entry, PEER_BYTES_MAX, Role, Subject, WORDS_BYTES_MAX, cut};
use crate::guest::GUEST_NAME_BYTES_MAX;

/// The version of the format. Others are refused.
const VERSION: u32 = 1;

const HEADER_BYTES: usize = 1024;
const ENTRY_BYTES: usize = 512;

/// How many entries a record takes: no session writes more than five.
const ENTRIES_MAX: usize = 6;

/// Bytes in a record: one page, so that no entry crosses a border of the page cache.
pub(super) const RECORD_BYTES: usize = HEADER_BYTES + ENTRIES_MAX * ENTRY_BYTES;

/// Digits of a line's checksum.
const CHECKSUM_DIGITS: usize = 16;

#[derive(Serialize, Deserialize)]
struct Header {
    record: u32,
    #[serde(flatten)]
    subject: Subject,
}

/// An entry, and when and where it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Written {
    /// What.
    pub entry: Entry,
    /// For whoever reads it.
    pub words: String,
    /// Milliseconds since 1970, by the host's clock. For people: nothing is decided by it.
    pub unix_ms: u64,
    /// The host's boot.
    pub boot_id: String,
}

impl Written {
    /// An entry that is written now.
    pub(super) fn now(entry: Entry, words: &str, boot_id: &str) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            entry,
            words: cut(words, WORDS_BYTES_MAX).to_owned(),
            unix_ms: since.map_or(0, |since| {
                u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
            }),
            boot_id: boot_id.to_owned(),
        }
    }
}

/// A record's subject and its entries, oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) subject: Subject,
    pub(super) entries: Vec<Written>,
}

/// The header of a new record, and room for all its entries.
///
/// # Errors
///
/// When a name or an endpoint is too long.
pub(super) fn blank(subject: &Subject) -> Result<Vec<u8>, String> {
    if subject.name.len() > GUEST_NAME_BYTES_MAX {
        return Err(format!("the guest's name has {} bytes", subject.name.len()));
    }
    let header = Header {
        record: VERSION,
        subject: Subject {
            peer: cut(&subject.peer, PEER_BYTES_MAX).to_owned(),
            ..subject.clone()
        },
    };
    let mut bytes = line(&header, HEADER_BYTES)?;
    for _ in 0..ENTRIES_MAX {
        bytes.extend(free_slot());
    }
    Ok(bytes)
}

/// Where the entry with this index goes, and its bytes; `None` when the record is full.
///
/// # Errors
///
/// When it does not fit its slot.
pub(super) fn slot(index: usize, written: &Written) -> Result<Option<(u64, Vec<u8>)>, String> {
    if index >= ENTRIES_MAX {
        return Ok(None);
    }
    let offset = (HEADER_BYTES + index * ENTRY_BYTES) as u64;
    let mut words = written.words.as_str();
    loop {
        let shorter = Written {
            words: words.to_owned(),
            ..written.clone()
        };
        match line(&shorter, ENTRY_BYTES) {
            Ok(bytes) => return Ok(Some((offset, bytes))),
            // Words full of what JSON escapes grow by up to six times.
            Err(_) if !words.is_empty() => words = cut(words, words.len() / 2),
            Err(reason) => return Err(reason),
        }
    }
}

/// Reads a record.
///
/// # Errors
///
/// When it is none of this version, or has no valid entry at all.
pub(super) fn read(bytes: &[u8], role: Role) -> Result<Contents, String> {
    if bytes.len() != RECORD_BYTES {
        return Err(format!("it has {} bytes, not {RECORD_BYTES}", bytes.len()));
    }
    let (header, slots) = bytes.split_at(HEADER_BYTES);
    let header: Header = parsed(header)?;
    if header.record != VERSION {
        let version = header.record;
        return Err(format!(
            "it is of version {version}, this build reads version {VERSION}"
        ));
    }
    if header.subject.role != role {
        return Err("it is the other side's".to_owned());
    }
    let entries: Vec<Written> = slots
        .chunks(ENTRY_BYTES)
        .filter_map(|slot| parsed(slot).ok())
        .collect();
    if entries.is_empty() {
        return Err("it has no valid entry".to_owned());
    }
    Ok(Contents {
        subject: header.subject,
        entries,
    })
}

/// How many of a record's slots were ever written to, valid or not.
pub(super) fn slots_used(bytes: &[u8]) -> usize {
    let slots = bytes.get(HEADER_BYTES..).unwrap_or_default();
    let free = free_slot();
    slots
        .chunks(ENTRY_BYTES)
        .rposition(|slot| slot != free)
        .map_or(0, |last| last + 1)
}

fn free_slot() -> Vec<u8> {
    let mut slot = vec![b' '; ENTRY_BYTES - 1];
    slot.push(b'\n');
    slot
}

fn line<T: Serialize>(value: &T, bytes: usize) -> Result<Vec<u8>, String> {
    let json = serde_json::to_string(value).map_err(|error| error.to_string())?;
    let mut line = format!("{:016x} {json}", xxh3_64(json.as_bytes())).into_bytes();
    if line.len() >= bytes {
        return Err(format!("{} bytes do not fit into {bytes}", line.len()));
    }
    line.resize(bytes - 1, b' ');
    line.push(b'\n');
    Ok(line)
}

fn parsed<T: DeserializeOwned>(line: &[u8]) -> Result<T, String> {
    let text = std::str::from_utf8(line).map_err(|error| error.to_string())?;
    let (checksum, json) = text
        .split_at_checked(CHECKSUM_DIGITS)
        .ok_or("a line is too short")?;
    let json = json.trim();
    let wanted = u64::from_str_radix(checksum, 16).map_err(|_| "a line has no checksum")?;
    if xxh3_64(json.as_bytes()) != wanted {
        return Err("a line's checksum is wrong".to_owned());
    }
    serde_json::from_str(json).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use dunlin_transports::lane::SessionId;
    use uuid::Uuid;

    use super::*;

    fn subject() -> Subject {
        Subject {
            uuid: Uuid::from_u128(7),
            name: "vm1".to_owned(),
            epoch: 3,
            session: SessionId([0xab; 16]),
            role: Role::Source,
            peer: "tcp://host-b:7471".to_owned(),
        }
    }

    fn record(entries: &[(Entry, &str)]) -> Vec<u8> {
        let mut bytes = blank(&subject()).unwrap();
        for (index, (entry, words)) in entries.iter().enumerate() {
            let written = Written::now(*entry, words, "boot");
            let (offset, slot) = slot(index, &written).unwrap().unwrap();
            let offset = offset as usize;
            bytes[offset..offset + slot.len()].copy_from_slice(&slot);
        }
        bytes
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = record(&[(Entry::Offered, ""), (Entry::GivenUp, "now")]);
        assert_eq!(bytes.len(), RECORD_BYTES);
        assert_eq!(slots_used(&bytes), 2);
        let contents = read(&bytes, Role::Source).unwrap();
        assert_eq!(contents.subject, subject());
        let entries: Vec<_> = contents.entries.iter().map(|found| found.entry).collect();
        assert_eq!(entries, [Entry::Offered, Entry::GivenUp]);
        assert_eq!(contents.entries[1].words, "now");
    }

    #[test]
    fn a_torn_entry_does_not_count_and_its_slot_is_used() {
        let mut bytes = record(&[(Entry::Offered, ""), (Entry::GivenUp, "")]);
        bytes[HEADER_BYTES + ENTRY_BYTES + 30] ^= 1;
        let contents = read(&bytes, Role::Source).unwrap();
        assert_eq!(contents.entries.len(), 1);
        assert_eq!(slots_used(&bytes), 2);
    }

    #[test]
    fn what_is_no_record_is_refused_with_the_reason() {
        let good = record(&[(Entry::Offered, "")]);
        assert!(read(&good[1..], Role::Source).unwrap_err().contains("4095"));
        assert!(
            read(&good, Role::Destination)
                .unwrap_err()
                .contains("other side")
        );
        let mut bad = good.clone();
        bad[40] ^= 1;
        assert!(read(&bad, Role::Source).unwrap_err().contains("checksum"));
        let empty = record(&[]);
        assert!(read(&empty, Role::Source).unwrap_err().contains("entry"));
        assert!(read(&[0; RECORD_BYTES], Role::Source).is_err());
        assert!(read(&[0xff; RECORD_BYTES], Role::Source).is_err());
    }

    #[test]
    fn words_never_burst_a_slot() {
        let words = "\u{1}\"ä".repeat(500);
        let written = Written::now(Entry::Aborted, &words, "boot");
        let (_, bytes) = slot(0, &written).unwrap().unwrap();
        assert_eq!(bytes.len(), ENTRY_BYTES);
        let back: Written = parsed(&bytes).unwrap();
        assert!(words.starts_with(&back.words) && !back.words.is_empty());
        assert!(slot(ENTRIES_MAX, &written).unwrap().is_none());
    }

    /// Bytes that an earlier build wrote. They must stay readable.
    #[test]
    fn version_1_stays_readable() {
        let json = r#"{"record":1,"uuid":"00000000-0000-0000-0000-000000000007","name":"vm1","epoch":3,"session":"abababababababababababababababab","role":"source","peer":"tcp://host-b:7471"}"#;
        let entry = r#"{"entry":"given-up","words":"w","unix_ms":5,"boot_id":"b"}"#;
        let padded = |json: &str, bytes: usize| {
            let line = format!("{:016x} {json}", xxh3_64(json.as_bytes()));
            format!("{line:<width$}\n", width = bytes - 1).into_bytes()
        };
        let mut bytes = padded(json, HEADER_BYTES);
        bytes.extend(padded(entry, ENTRY_BYTES));
        (1..ENTRIES_MAX).for_each(|_| bytes.extend(free_slot()));
        let contents = read(&bytes, Role::Source).unwrap();
        assert_eq!(contents.subject, subject());
        assert_eq!(contents.entries[0].entry, Entry::GivenUp);
    }
}
