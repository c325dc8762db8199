//! What `dunlin status` shows: a table of guests, or one guest in full.

use dunlin_engine::report::Outcome;

use super::amounts::{bytes, count, counted, nanoseconds};
use super::palette::Palette;
use super::progress;
use super::text::wrapped;
use crate::local::protocol::{GuestState, GuestStatus, RecordStatus};

/// All guests, a line each.
pub(crate) fn table(guests: &[GuestStatus], palette: Palette) -> String {
    let width = guests.iter().map(|guest| guest.name.len()).max();
    let width = width.unwrap_or(0).max("name".len());
    let mut text = palette.faint(&format!(
        "{:<width$}  {:<13}  {:>9}  {:>5}  {:>5}  {:<7}  {:>15}",
        "name", "state", "memory", "vcpus", "epoch", "kind", "pages written"
    ));
    text.push('\n');
    for guest in guests {
        let written = guest
            .workload
            .map_or("-".to_owned(), |workload| count(workload.pages_written));
        let state = format!("{:<13}", state(guest.state));
        text.push_str(&format!(
            "{:<width$}  {}  {:>9}  {:>5}  {:>5}  {:<7}  {written:>15}\n",
            guest.name,
            coloured(guest.state, &state, palette),
            bytes(guest.memory_bytes),
            guest.vcpus,
            guest.epoch,
            guest.kind,
        ));
        if let Some(under_way) = &guest.move_under_way {
            let stands = match &under_way.progress {
                Some(progress) => progress::line(&guest.name, progress),
                None => format!("{}: begins", guest.name),
            };
            text.push_str(&format!("  to {}, {stands}\n", under_way.to));
        }
        if let Some(reason) = &guest.in_doubt {
            for line in [reason.clone(), what_to_do(&guest.name)] {
                wrapped(&line, 2).iter().for_each(|line| {
                    text.push_str(line);
                    text.push('\n');
                });
            }
        }
    }
    text
}

/// One guest, a fact a line.
pub(crate) fn full(guest: &GuestStatus, palette: Palette) -> String {
    let mut text = format!(
        "{}  {}\n",
        palette.strong(&guest.name),
        coloured(guest.state, state(guest.state), palette)
    );
    let mut fact = |name: &str, value: String| {
        let name = palette.faint(&format!("{name:<9}"));
        text.push_str(&format!("  {name} {value}\n"));
    };
    fact(
        "guest",
        format!(
            "{}, {} of {} memory, {}",
            guest.kind,
            bytes(guest.memory_bytes),
            guest.backing,
            counted(u64::from(guest.vcpus), "vCPU")
        ),
    );
    fact("uuid", guest.uuid.clone());
    fact("epoch", guest.epoch.to_string());
    fact("process", guest.pid.to_string());
    if let Some(workload) = &guest.workload {
        fact(
            "workload",
            format!(
                "{} written, longest gap {}",
                counted(workload.pages_written, "page"),
                nanoseconds(workload.longest_gap_ns)
            ),
        );
    }
    if let Some(under_way) = &guest.move_under_way {
        fact("moving to", under_way.to.clone());
        if let Some(progress) = &under_way.progress {
            fact("", progress::line(&guest.name, progress));
        }
    }
    if let Some(reason) = &guest.in_doubt {
        let lines = [reason.clone(), what_to_do(&guest.name)];
        let lines = lines.iter().flat_map(|line| wrapped(line, 0));
        for (index, line) in lines.enumerate() {
            fact(if index == 0 { "in doubt" } else { "" }, line);
        }
    }
    if let Some(last) = &guest.last_move {
        let reason = last.reason.as_deref().unwrap_or("well");
        fact(
            "last move",
            format!("to {}: {}: {reason}", last.to, outcome(last.outcome)),
        );
    }
    text
}

/// What came of settling.
pub(crate) fn settlement(guest: &str, what: &str) -> String {
    let lines = wrapped(&format!("{guest}: {what}"), 0);
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// What a person can do about a guest whose owner is not known.
fn what_to_do(name: &str) -> String {
    format!(
        "it settles by itself once the records of the destination's 'dunlin receive' can tell; a person who has fenced that host off decides by: dunlin settle {name} --resume-here --fenced HOW"
    )
}

/// Records of handovers that no process here can settle, a few lines each.
pub(crate) fn records(records: &[RecordStatus], palette: Palette) -> String {
    let mut text = String::new();
    for record in records {
        text.push_str(&format!(
            "{}  {}  epoch {}, {}\n",
            palette.strong(&record.name),
            palette.bad("UNKNOWN OWNER"),
            record.epoch,
            record.uuid,
        ));
        for line in wrapped(&record.what, 2) {
            text.push_str(&line);
            text.push('\n');
        }
    }
    text
}

pub(crate) fn state(state: GuestState) -> &'static str {
    match state {
        GuestState::Starting => "starting",
        GuestState::Incoming => "incoming",
        GuestState::Running => "running",
        GuestState::Moving => "moving",
        GuestState::Moved => "moved",
        GuestState::UnknownOwner => "UNKNOWN OWNER",
        GuestState::Discarded => "discarded",
        GuestState::Paused => "PAUSED",
        GuestState::Ending => "ending",
    }
}

/// An outcome's name, as in JSON.
fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Moved => "moved",
        Outcome::MovedUnverified => "moved-unverified",
        Outcome::Cancelled => "cancelled",
        Outcome::NotConverging => "not-converging",
        Outcome::BlackoutCap => "blackout-cap",
        Outcome::TimedOut => "timed-out",
        Outcome::Refused => "refused",
        Outcome::PeerFailed => "peer-failed",
        Outcome::Failed => "failed",
        Outcome::NotResumed => "not-resumed",
        Outcome::Unknown => "unknown",
        Outcome::ResumedByHand => "resumed-by-hand",
        Outcome::DiscardedByHand => "discarded-by-hand",
    }
}

fn coloured(state: GuestState, text: &str, palette: Palette) -> String {
    match state {
        GuestState::Running => palette.good(text),
        GuestState::UnknownOwner | GuestState::Paused => palette.bad(text),
        _ => palette.careful(text),
    }
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;
    use crate::local::protocol::WorkloadStatus;

    #[test]
    fn outcomes_are_named_as_in_json() {
        for each in example::OUTCOMES {
            let json = serde_json::to_value(each).unwrap();
            assert_eq!(json, outcome(each));
        }
    }

    #[test]
    fn a_guest_is_one_line() {
        let guest = GuestStatus {
            name: "vm1".to_owned(),
            uuid: String::new(),
            epoch: 1,
            state: GuestState::Running,
            kind: "kvm".to_owned(),
            pid: 7,
            memory_bytes: 4 << 30,
            backing: "memfd".to_owned(),
            vcpus: 2,
            workload: Some(WorkloadStatus {
                pages_written: 12_345,
                loops: 1,
                longest_gap_ns: 5,
            }),
            move_under_way: None,
            in_doubt: None,
            last_move: None,
        };
        let text = table(&[guest], Palette::PLAIN);
        assert_eq!(text.lines().count(), 2);
        assert!(text.contains("vm1   running            4 GiB"), "{text}");
        assert!(text.contains("12,345"), "{text}");
    }
}
