//! `dunlin settle`: who owns a guest after a handover that was cut off.
//!
//! A guest whose process lives asks by itself; a person's decision is passed on to it. A process
//! that is gone left a record, and this command asks in its place, or closes the record by a
//! person's word.

use std::time::{Duration, Instant};

use dunlin_engine::records::directory::{Found, StateDirectory};
use dunlin_engine::records::verdict::Answer;
use dunlin_engine::records::{Entry, Role};
use dunlin_engine::session::Decision;
use dunlin_engine::source::asking::{Answered, ask};
use dunlin_transports::deadline::Deadline;
use dunlin_transports::tcp::{Options, dial_settling};
use serde::Serialize;

use crate::cli::endpoint::Endpoint;
use crate::cli::settle::Settle;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::local::client::Connection;
use crate::local::protocol::{GuestState, GuestStatus, RecordStatus, Request, Response};
use crate::local::runtime_dir::RuntimeDir;
use crate::render::guests;

/// How long a destination may take to answer.
const ASK_MAX: Duration = Duration::from_secs(5);

/// How long a guest's process may take to act on a decision.
const ACT_MAX: Duration = Duration::from_secs(15);

/// How often it is looked whether it has.
const ACT_INTERVAL: Duration = Duration::from_millis(50);

/// What came of it.
#[derive(Debug, Serialize)]
struct Settlement {
    guest: String,
    is_settled: bool,
    what: String,
}

/// Settles, or says what is known.
pub(crate) fn run(arguments: &Settle) -> Result<Exit, Failure> {
    let runtime = arguments.runtime.directory();
    let settlements = match live(&runtime, arguments)? {
        Some(status) => vec![with_process(&runtime, &status, arguments)?],
        None => without_process(&arguments.state.directory(), arguments)?,
    };
    if arguments.json {
        super::print_json(&settlements)?;
    } else {
        for settlement in &settlements {
            super::print(&guests::settlement(&settlement.guest, &settlement.what))?;
        }
    }
    let all = settlements.iter().all(|settlement| settlement.is_settled);
    Ok(if all { Exit::Done } else { Exit::UnknownOwner })
}

fn decision(arguments: &Settle) -> Option<(Decision, &str)> {
    let how = arguments.fenced.as_deref()?;
    match (arguments.resume_here, arguments.discard_here) {
        (true, _) => Some((Decision::ResumeHere, how)),
        (_, true) => Some((Decision::DiscardHere, how)),
        _ => None,
    }
}

/// The guest's process, if one lives here.
fn live(runtime: &RuntimeDir, arguments: &Settle) -> Result<Option<GuestStatus>, Failure> {
    runtime.check_if_there()?;
    let named = arguments.name().map(|name| name.0);
    if let Some(name) = named.filter(|name| runtime.is_taken(name)) {
        return Ok(Some(Connection::open(runtime, &name)?.status()?));
    }
    for name in runtime.names()? {
        if !runtime.is_taken(&name) {
            continue;
        }
        let status = Connection::open(runtime, &name).and_then(|mut guest| guest.status());
        if let Some(status) = status.ok().filter(|status| status.uuid == arguments.guest) {
            return Ok(Some(status));
        }
    }
    Ok(None)
}

fn with_process(
    runtime: &RuntimeDir,
    status: &GuestStatus,
    arguments: &Settle,
) -> Result<Settlement, Failure> {
    let name = &status.name;
    let settlement = |is_settled, what: String| Settlement {
        guest: name.clone(),
        is_settled,
        what,
    };
    let Some((decision, fenced)) = decision(arguments) else {
        return Ok(match &status.in_doubt {
            None => settlement(
                true,
                "it is known who owns it; nothing to settle".to_owned(),
            ),
            Some(reason) => settlement(
                false,
                format!(
                    "{reason}. Its process goes on asking. Where the destination is fenced off: --resume-here --fenced HOW; where the guest is seen running there: --discard-here --fenced HOW"
                ),
            ),
        });
    };
    let mut connection = Connection::open(runtime, name)?;
    let request = Request::Settle {
        decision,
        fenced: fenced.to_owned(),
    };
    match connection.ask(&request)? {
        Response::Done => {}
        _ => return Err(connection.unexpected()),
    }
    let begun = Instant::now();
    while begun.elapsed() < ACT_MAX {
        let status = Connection::open(runtime, name).and_then(|mut guest| guest.status());
        match (status, decision) {
            (Ok(status), Decision::ResumeHere) if status.state == GuestState::Running => {
                return Ok(settlement(true, "it goes on here".to_owned()));
            }
            (Ok(status), _) if status.in_doubt.is_none() && status.move_under_way.is_none() => {
                return Ok(settlement(true, settled_otherwise(&status)));
            }
            (Err(_), _) if !runtime.is_taken(name) => {
                return Ok(settlement(true, "it is not kept here any more".to_owned()));
            }
            _ => std::thread::sleep(ACT_INTERVAL),
        }
    }
    Err(Failure::local(format!(
        "the process of guest '{name}' has not acted on the decision within {} s",
        ACT_MAX.as_secs()
    )))
}

/// The destination's answer came at the same moment as the decision.
fn settled_otherwise(status: &GuestStatus) -> String {
    match status.state {
        GuestState::Running => "it goes on here".to_owned(),
        GuestState::Moved => "it runs at the destination".to_owned(),
        _ => "it is not kept here any more".to_owned(),
    }
}

fn without_process(
    records: &StateDirectory,
    arguments: &Settle,
) -> Result<Vec<Settlement>, Failure> {
    let (found, _) = records
        .records()
        .map_err(|error| Failure::local(error.to_string()))?;
    let wanted: Vec<_> = found
        .into_iter()
        .filter(Found::is_in_doubt)
        .filter(|found| {
            let subject = &found.subject;
            subject.name == arguments.guest || subject.uuid.to_string() == arguments.guest
        })
        .collect();
    if wanted.is_empty() {
        return Err(Failure::new(
            Exit::NoGuest,
            format!(
                "there is neither a guest '{}' here nor a handover of it that is not settled in {}; 'dunlin status' shows what there is",
                arguments.guest,
                records.path().display()
            ),
        ));
    }
    wanted
        .iter()
        .map(|found| one_record(records, found, arguments))
        .collect()
}

fn one_record(
    records: &StateDirectory,
    found: &Found,
    arguments: &Settle,
) -> Result<Settlement, Failure> {
    let close = |entry, words: &str| {
        records
            .close(found, entry, words)
            .map_err(|error| Failure::local(error.to_string()))
    };
    let settlement = |is_settled, what: String| Settlement {
        guest: found.subject.name.clone(),
        is_settled,
        what,
    };
    match decision(arguments) {
        Some((Decision::ResumeHere, _)) => Err(Failure::new(
            Exit::Conflict,
            format!(
                "guest '{}' can't go on here: its memory went with its process; --discard-here closes its record",
                found.subject.name
            ),
        )),
        Some((Decision::DiscardHere, fenced)) => {
            close(Entry::DiscardedByHand, fenced)?;
            Ok(settlement(true, "its record is closed".to_owned()))
        }
        None if found.subject.role == Role::Destination => Ok(settlement(false, meaning(found))),
        None => match ask_for(found) {
            Err(reason) => Ok(settlement(
                false,
                format!(
                    "{}; {} can't be asked: {reason}",
                    meaning(found),
                    found.subject.peer
                ),
            )),
            Ok(answered) => match answered.answer {
                Answer::Running | Answer::Ended => {
                    let words = answered.words();
                    close(Entry::Released, &words)?;
                    answered.settle(Deadline::after(ASK_MAX));
                    Ok(settlement(
                        true,
                        format!("moved to {}; {words}", found.subject.peer),
                    ))
                }
                Answer::Aborted => {
                    let words = answered.words();
                    close(Entry::Stayed, &words)?;
                    answered.settle(Deadline::after(ASK_MAX));
                    Ok(settlement(
                        true,
                        format!("LOST: its process here is gone, and {words}"),
                    ))
                }
                Answer::Undecided | Answer::MayHaveRun | Answer::NoRecord => Ok(settlement(
                    false,
                    format!("{}; {}", meaning(found), answered.words()),
                )),
            },
        },
    }
}

fn ask_for(found: &Found) -> Result<Answered, String> {
    let subject = &found.subject;
    let endpoint: Endpoint = subject.peer.parse()?;
    let deadline = Deadline::after(ASK_MAX);
    let options = Options::default();
    let channel = dial_settling(&endpoint.authority(), subject.session, &options, deadline)
        .map_err(|error| error.to_string())?;
    ask(
        channel,
        subject.session,
        subject.uuid,
        subject.epoch,
        deadline,
    )
    .map_err(|error| error.to_string())
}

/// What a record means whose process is gone, and what to do.
fn meaning(found: &Found) -> String {
    let subject = &found.subject;
    let (peer, name) = (&subject.peer, &subject.name);
    match (subject.role, found.entry) {
        (Role::Source, _) => format!(
            "it was handed over to {peer}, and its process here ended before that side said that it runs: 'dunlin settle {name}' asks there; --discard-here --fenced HOW closes the record"
        ),
        (Role::Destination, Entry::Running) => format!(
            "it came from {peer} and ran here, and its process is gone; its source may still keep it paused: settle it there first, then 'dunlin settle {name} --discard-here --fenced HOW' closes the record here"
        ),
        (Role::Destination, _) => format!(
            "it came from {peer}, may have run here for a moment, and its process is gone; its source keeps it paused: settle it there, then 'dunlin settle {name} --discard-here --fenced HOW' closes the record here"
        ),
    }
}

/// What `dunlin status` shows of a record.
pub(super) fn status_of(found: &Found) -> RecordStatus {
    let subject = &found.subject;
    RecordStatus {
        name: subject.name.clone(),
        uuid: subject.uuid.to_string(),
        epoch: subject.epoch,
        session: subject.session.to_string(),
        role: subject.role.name().to_owned(),
        entry: found.entry.name().to_owned(),
        peer: subject.peer.clone(),
        path: found.path.display().to_string(),
        what: meaning(found),
    }
}
