//! Dunlin: a guest that runs in one process moves into another, as its user would do it.

use anyhow::{Context, bail};
use dunlin_bench::moved::Move;
use dunlin_bench::program::PATIENCE;
use dunlin_bench::site::{SYSTEM_AREA_BYTES, Site, give_way};
use dunlin_bench::usage::{Since, Usage};

use crate::results::{ACK_TIMEOUT, DeviceWork, Outcome, PAUSE_BUDGET_MS};
use crate::runs::Run;

/// The guest's name.
const GUEST: &str = "peer";

/// Moves a guest.
pub(crate) fn run(
    run: &mut Run<'_>,
    scheme: &str,
    lanes: u16,
    scattered: bool,
    window: Option<&str>,
) -> anyhow::Result<Outcome> {
    let random_bytes = run.bench.bytes;
    // All of it random, or every other page of twice as much.
    let (memory, workload) = if scattered {
        (2 * random_bytes, "hot=0,zero=50,block=1")
    } else {
        (random_bytes, "hot=0,zero=0")
    };
    let memory = (memory + SYSTEM_AREA_BYTES).to_string();
    let ends = &run.bench.ends;
    let site = |name, end: &dunlin_bench::ends::End| {
        Site::new(&run.bench.dunlin, run.path(name), end.clone())
    };
    let (source, destination) = (site("a", &ends.source)?, site("b", &ends.destination)?);
    let receiver = destination.receiver(&[])?;
    let mut guest = source.guest(
        GUEST,
        &[
            "--guest",
            "kvm",
            "--memory",
            &memory,
            "--workload",
            workload,
        ],
    )?;
    give_way(guest.id())?;

    let bind = ends.source.address.to_string();
    let (lanes_text, timeout) = (lanes.to_string(), format!("{}s", PATIENCE.as_secs()));
    let (budget, ack_timeout) = (format!("{PAUSE_BUDGET_MS}ms"), ACK_TIMEOUT.to_string());
    let mut arguments = vec!["--verify", "off", "--bind", &bind, "--lanes", &lanes_text];
    arguments.extend(["--peer-timeout", "20s", "--timeout", &timeout]);
    arguments.extend(["--max-blackout", &budget]);
    if scheme == "rdma" {
        arguments.extend(["--rdma-ack-timeout", &ack_timeout]);
    }
    if let Some(window) = window {
        arguments.extend(["--rdma-window", window]);
    }
    let watched = run.watch(guest.id(), receiver.program.id(), Since::Order)?;
    let made = source.send(GUEST, scheme, &receiver, &arguments);
    let usage = run.end(watched)?;
    let made = made?;
    destination.stop(GUEST)?;
    guest.succeed()?;
    outcome(&made, random_bytes, lanes, usage)
}

/// What the report says.
fn outcome(made: &Move, random_bytes: u64, lanes: u16, usage: Usage) -> anyhow::Result<Outcome> {
    if made.lanes != u64::from(lanes) {
        bail!("the move had {} lanes instead of {lanes}", made.lanes);
    }
    if made.sent_bytes < random_bytes {
        bail!("{} bytes were sent, of {random_bytes}", made.sent_bytes);
    }
    let seconds = made.total.as_secs_f64();
    let mut outcome = Outcome::new(random_bytes, made.goodput, seconds, usage);
    outcome.blackout_s = Some(made.blackout.as_secs_f64());
    if made.word("/transport") == "rdma" {
        let asked = |what: &str| made.number(&format!("/device/{what}"));
        outcome.device = Some(DeviceWork {
            bytes: made.sent_bytes,
            work_requests: asked("work_requests")?,
            doorbells: asked("doorbells")?,
            completions: asked("completions")?,
            registrations: asked("registrations").context("of memory")?,
        });
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_report_is_judged() {
        let report = json!({
            "outcome": "moved", "lanes": 2, "transport": "rdma", "sent_bytes": 2048,
            "goodput_bytes_per_s": 77, "total_ns": 2_500_000_000_u64, "rounds": [],
            "blackout": { "total_ns": 3_000_000, "predicted_ns": 3_000_000 },
            "device": { "work_requests": 5, "doorbells": 4, "completions": 3, "registrations": 2 },
        });
        let made = Move::read(&report.to_string()).unwrap();
        let judged = |lanes, bytes| outcome(&made, bytes, lanes, Usage::default());
        let good = judged(2, 2048).unwrap();
        assert_eq!(
            (good.goodput, good.seconds, good.blackout_s),
            (77.0, 2.5, Some(0.003))
        );
        assert_eq!(good.device.unwrap().work_requests, 5);
        assert!(judged(1, 2048).is_err());
        assert!(judged(2, 4096).is_err());
    }
}
