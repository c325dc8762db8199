//! What is said over a guest's control socket: one JSON object a line, `"v": 1` in each request.
//!
//! ```text
//! → {"v":1,"request":"status"}            ← {"response":"status","guest":{…}}
//! → {"v":1,"request":"send","order":{…}}  ← {"response":"accepted"}, then as for watch
//! → {"v":1,"request":"watch"}             ← {"response":"progress"|"note",…} …, {"response":"report",…}
//! → {"v":1,"request":"cancel"}            ← {"response":"done"}
//! → {"v":1,"request":"set",…}             ← {"response":"done"}
//! → {"v":1,"request":"stop","force":false} ← {"response":"done"}
//! → {"v":1,"request":"settle",…}          ← {"response":"done"}
//! anything else                           ← {"response":"error","kind":…,"message":…}
//! ```

use std::path::PathBuf;
use std::time::Duration;

use dunlin_engine::report::{Outcome, Progress, Report};
use dunlin_engine::session::Decision;
use dunlin_engine::settings::{MoveSettings, OnStall, Verify};
use dunlin_transports::tcp::Compression;
use serde::{Deserialize, Serialize};

use crate::cli::rdma::RdmaChoices;
use crate::exit::Exit;
use crate::failure::Failure;

/// The protocol's version.
pub(crate) const VERSION: u64 = 1;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Request {
    /// How the guest is.
    Status {},
    /// Move the guest.
    Send {
        /// Where to and how.
        order: Box<MoveOrder>,
    },
    /// Tell of the move under way until it is over.
    Watch {},
    /// End the move under way, if it is not too late.
    Cancel {},
    /// Change the move under way.
    Set {
        /// The new budget.
        #[serde(default)]
        max_blackout_ns: Option<u64>,
        /// The new bandwidth, in bytes a second; 0: no limit.
        #[serde(default)]
        max_bandwidth_bytes_per_s: Option<u64>,
    },
    /// Decide about a guest whose owner is not known.
    Settle {
        /// What.
        decision: Decision,
        /// How the other side is fenced off.
        fenced: String,
    },
    /// End the guest.
    Stop {
        /// Even when it is not known who owns it.
        #[serde(default)]
        force: bool,
    },
}

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "kebab-case")]
pub(crate) enum Response {
    /// How the guest is.
    Status {
        /// The guest.
        guest: Box<GuestStatus>,
    },
    /// The move begins.
    Accepted,
    /// Where the move stands.
    Progress {
        /// Where.
        progress: Progress,
    },
    /// Something about the move that a person may want to know.
    Note {
        /// One sentence.
        text: String,
    },
    /// It is not known who owns the guest, and why; said again whenever there is something new.
    InDoubt {
        /// What is known of it, and what the destination says.
        reason: String,
    },
    /// The move is over.
    Report {
        /// How it ended.
        report: Box<Report>,
    },
    /// It is done, or will be.
    Done,
    /// It can't be done.
    Error {
        /// An exit code's name.
        kind: String,
        /// One sentence.
        message: String,
    },
}

impl Response {
    /// The error with this exit code.
    pub(crate) fn error(exit: Exit, message: impl Into<String>) -> Self {
        Self::Error {
            kind: exit.entry().name.to_owned(),
            message: message.into(),
        }
    }
}

/// The failure that an error response stands for.
pub(crate) fn failure(kind: &str, message: String) -> Failure {
    let exit = crate::exit::TABLE
        .iter()
        .find(|entry| entry.name == kind)
        .map_or(Exit::Local, |entry| entry.exit);
    Failure::new(exit, message)
}

/// How lanes do their I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum IoChoice {
    /// io_uring where the kernel has it, otherwise writev
    #[default]
    Auto,
    /// io_uring
    #[value(name = "io_uring")]
    IoUring,
    /// Plain writev and readv
    Writev,
}

/// Whether lanes over io_uring send without a copy of the kernel's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ZeroCopyChoice {
    /// Where the kernel says that it avoids the copy
    #[default]
    Auto,
    /// Never
    Off,
}

impl ZeroCopyChoice {
    fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

/// A move, as an operator orders it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MoveOrder {
    /// The destination's endpoint.
    pub(crate) to: String,
    /// The budget.
    pub(crate) max_blackout_ns: u64,
    /// The cap; `None`: ten times the budget.
    pub(crate) blackout_cap_ns: Option<u64>,
    /// What happens when rounds don't help any more.
    pub(crate) on_stall: OnStall,
    /// The most guest bytes a second; `None`: no limit.
    pub(crate) max_bandwidth_bytes_per_s: Option<u64>,
    /// The most rounds.
    pub(crate) max_rounds: u32,
    /// The most time; `None`: no limit.
    pub(crate) timeout_ns: Option<u64>,
    /// How memory is compared.
    pub(crate) verify: Verify,
    /// How many lanes; `None`: chosen by the engine.
    pub(crate) lanes: Option<u16>,
    /// CPUs for lane threads.
    pub(crate) cpus: Vec<usize>,
    /// How long the peer may be silent.
    pub(crate) peer_timeout_ns: u64,
    /// The local address that connections start from.
    pub(crate) bind: Option<std::net::IpAddr>,
    /// The DSCP mark of the connections' packets.
    pub(crate) dscp: Option<u8>,
    /// How lanes do their I/O.
    pub(crate) io: IoChoice,
    /// Whether lanes over io_uring send without a copy. Left out where they find out by themselves, so
    /// that processes of older builds take the order.
    #[serde(default, skip_serializing_if = "ZeroCopyChoice::is_auto")]
    pub(crate) zero_copy: ZeroCopyChoice,
    /// How lanes over TCP compress.
    #[serde(default = "uncompressed")]
    pub(crate) compress: String,
    /// What is decided about RDMA.
    #[serde(default)]
    pub(crate) rdma: RdmaChoices,
    /// The file that the guest's dirty pages go to. Left out where there is none, so that processes
    /// of older builds take the order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) dirty_trace: Option<PathBuf>,
}

fn uncompressed() -> String {
    Compression::Off.to_string()
}

impl MoveOrder {
    /// A move to an endpoint, with the engine's defaults for everything else.
    pub(crate) fn to(endpoint: impl Into<String>) -> Self {
        let defaults = MoveSettings::default();
        Self {
            to: endpoint.into(),
            max_blackout_ns: nanoseconds(defaults.max_blackout),
            blackout_cap_ns: defaults.blackout_cap.map(nanoseconds),
            on_stall: defaults.on_stall,
            max_bandwidth_bytes_per_s: defaults.max_bandwidth,
            max_rounds: defaults.max_rounds,
            timeout_ns: defaults.timeout.map(nanoseconds),
            verify: defaults.verify,
            lanes: defaults.lanes,
            cpus: defaults.cpus,
            peer_timeout_ns: nanoseconds(defaults.peer_timeout),
            bind: None,
            dscp: None,
            io: IoChoice::default(),
            zero_copy: ZeroCopyChoice::default(),
            compress: uncompressed(),
            rdma: RdmaChoices::default(),
            dirty_trace: None,
        }
    }

    /// The part that the engine decides by.
    pub(crate) fn settings(&self) -> MoveSettings {
        MoveSettings {
            max_blackout: Duration::from_nanos(self.max_blackout_ns),
            blackout_cap: self.blackout_cap_ns.map(Duration::from_nanos),
            on_stall: self.on_stall,
            max_bandwidth: self.max_bandwidth_bytes_per_s,
            max_rounds: self.max_rounds,
            timeout: self.timeout_ns.map(Duration::from_nanos),
            verify: self.verify,
            lanes: self.lanes,
            cpus: self.cpus.clone(),
            peer_timeout: Duration::from_nanos(self.peer_timeout_ns),
            pin_budget: self.rdma.source_budget(),
        }
    }
}

/// A duration's nanoseconds, as many as fit: 584 years.
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What a guest does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum GuestState {
    /// It is being made here: its memory is filled.
    Starting,
    /// It is being sent here.
    Incoming,
    /// It runs.
    Running,
    /// It runs and is being sent away.
    Moving,
    /// It was sent away; its process is about to end.
    Moved,
    /// It is paused, and nobody knows which side owns it.
    UnknownOwner,
    /// It is paused: it stayed here, and could not be resumed.
    Paused,
    /// A person decided that it is not kept here; its process is about to end.
    Discarded,
    /// Its process is about to end.
    Ending,
}

/// How a guest is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct GuestStatus {
    /// Its name.
    pub(crate) name: String,
    /// Its UUID.
    pub(crate) uuid: String,
    /// The ownership epoch.
    pub(crate) epoch: u64,
    /// What it does.
    pub(crate) state: GuestState,
    /// `kvm` or `process`.
    pub(crate) kind: String,
    /// Its process.
    pub(crate) pid: u32,
    /// Its memory.
    pub(crate) memory_bytes: u64,
    /// What backs its memory.
    pub(crate) backing: String,
    /// Its vCPUs or threads.
    pub(crate) vcpus: u32,
    /// What its workload counted; `None` while it is incoming.
    pub(crate) workload: Option<WorkloadStatus>,
    /// The move under way.
    pub(crate) move_under_way: Option<MoveStatus>,
    /// Why it is not known who owns the guest, where that is so.
    pub(crate) in_doubt: Option<String>,
    /// How the last move ended, if one did since the process began.
    pub(crate) last_move: Option<LastMove>,
}

/// A record of a handover that nobody can settle by it alone, and whose process is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecordStatus {
    /// The guest's name.
    pub(crate) name: String,
    /// Its UUID.
    pub(crate) uuid: String,
    /// Its epoch before the move.
    pub(crate) epoch: u64,
    /// The session, in hexadecimal.
    pub(crate) session: String,
    /// `source` or `destination`.
    pub(crate) role: String,
    /// The record's last entry.
    pub(crate) entry: String,
    /// Where the other side is.
    pub(crate) peer: String,
    /// Where the record is.
    pub(crate) path: String,
    /// What it means, and what to do.
    pub(crate) what: String,
}

/// What a guest's workload counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WorkloadStatus {
    /// Pages written since the guest was first started, wherever it ran.
    pub(crate) pages_written: u64,
    /// How many times its program went round since then.
    pub(crate) loops: u64,
    /// The longest gap that the guest saw in its own work.
    pub(crate) longest_gap_ns: u64,
}

/// A move under way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct MoveStatus {
    /// Where to.
    pub(crate) to: String,
    /// Where it stands; `None` before the first word.
    pub(crate) progress: Option<Progress>,
}

/// How a move ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LastMove {
    /// Where to.
    pub(crate) to: String,
    /// How it ended.
    pub(crate) outcome: Outcome,
    /// Why, where it did not end well.
    pub(crate) reason: Option<String>,
}

/// Writes a request's line, without its end.
pub(crate) fn encode(request: &Request) -> serde_json::Result<serde_json::Value> {
    let mut value = serde_json::to_value(request)?;
    if let Some(object) = value.as_object_mut() {
        object.insert("v".to_owned(), VERSION.into());
    }
    Ok(value)
}

/// Reads a request's line.
///
/// # Errors
///
/// In one sentence, what is wrong with it.
pub(crate) fn decode(line: &[u8]) -> Result<Request, String> {
    let value: serde_json::Value =
        serde_json::from_slice(line).map_err(|error| format!("not JSON: {error}"))?;
    let serde_json::Value::Object(mut object) = value else {
        return Err("a request is a JSON object".to_owned());
    };
    match object.remove("v") {
        Some(version) if version.as_u64() == Some(VERSION) => {}
        Some(version) => {
            return Err(format!(
                "version {version} is not spoken here, version {VERSION} is"
            ));
        }
        None => return Err(format!("the version is missing: \"v\": {VERSION}")),
    }
    serde_json::from_value(serde_json::Value::Object(object))
        .map_err(|error| format!("not a request: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_come_back_as_they_were() {
        for request in [
            Request::Status {},
            Request::Cancel {},
            Request::Stop { force: true },
            Request::Settle {
                decision: Decision::ResumeHere,
                fenced: "power cut".to_owned(),
            },
            Request::Set {
                max_blackout_ns: Some(5),
                max_bandwidth_bytes_per_s: None,
            },
        ] {
            let line = serde_json::to_vec(&encode(&request).unwrap()).unwrap();
            assert_eq!(decode(&line).unwrap(), request);
        }
    }

    #[test]
    fn garbage_gets_a_sentence() {
        for (line, named) in [
            (&b""[..], "not JSON"),
            (b"\xff\xfe", "not JSON"),
            (b"[1]", "a request is a JSON object"),
            (b"{}", "the version is missing"),
            (br#"{"v":2,"request":"status"}"#, "version 2"),
            (br#"{"v":"1","request":"status"}"#, "version \"1\""),
            (br#"{"v":1}"#, "request"),
            (br#"{"v":1,"request":"fly"}"#, "fly"),
            (br#"{"v":1,"request":"status","loud":true}"#, "loud"),
            (br#"{"v":1,"request":"set","max_blackout_ns":-1}"#, "-1"),
        ] {
            let reason = decode(line).unwrap_err();
            assert!(reason.contains(named), "{named}: {reason}");
        }
        // Nested deeper than a parser's stack: an error, not a crash.
        assert!(decode("[".repeat(200_000).as_bytes()).is_err());
    }
}
