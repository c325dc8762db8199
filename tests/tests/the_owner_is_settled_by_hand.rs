//! A handover that no record can settle: the destination's process is killed once the ownership is
//! its own and before it says that the guest runs. The source keeps the guest and says so, until a
//! person decides.

use anyhow::Result;
use dunlin_tests::program::{Running, eventually, is_stopped, signal_process};
use dunlin_tests::site::{Receiver, Site, expect_moved};
use serde_json::Value;

const RUN: [&str; 6] = [
    "--memory",
    "24MiB",
    "--workload",
    "hot=2MiB,rate=20MiB/s",
    "--guest",
    "process",
];

/// A guest here whose owner nobody knows.
struct InDoubt {
    here: Site,
    there: Site,
    receiver: Receiver,
    guest: Running,
    send: Running,
}

fn in_doubt() -> Result<InDoubt> {
    let (here, mut there) = (Site::new()?, Site::new()?);
    let guest = here.guest("vm1", &RUN)?;
    there.set_environment("DUNLIN_STOP_AT", Some("owned"));
    let mut receiver = there.receiver(&[])?;
    let to = receiver.endpoint.clone();
    let send = here.start(&[
        "send",
        "vm1",
        "--to",
        &to,
        "--json",
        "--quiet",
        "--peer-timeout",
        "500ms",
    ])?;
    let pid = receiver.process.event("incoming")?["pid"].as_u64();
    let pid = u32::try_from(pid.unwrap_or_default())?;
    eventually("the destination stands at 'owned'", || Ok(is_stopped(pid)))?;
    signal_process(pid, libc::SIGKILL);
    eventually("the answer is known", || {
        let status = here.status("vm1")?;
        let reason = status["in_doubt"].as_str().unwrap_or_default();
        Ok(reason.contains("may have run there, and does not any more"))
    })?;
    Ok(InDoubt {
        here,
        there,
        receiver,
        guest,
        send,
    })
}

fn settle(site: &Site, arguments: &[&str], code: i32) -> Result<Value> {
    let mut all = vec!["settle", "vm1", "--json"];
    all.extend(arguments);
    site.run(&all)?.expect_code(code)?.json()
}

#[test]
fn the_guest_goes_on_here_and_can_be_moved_again() -> Result<()> {
    let doubt = in_doubt()?;
    let here = &doubt.here;
    assert_eq!(here.status("vm1")?["state"], "unknown-owner");
    // Looking decides nothing.
    let looked = settle(here, &[], 11)?;
    assert_eq!(looked[0]["is_settled"], false, "{looked:#}");
    // Neither does a wish without a reason, or an end without force.
    here.run(&["settle", "vm1", "--resume-here"])?
        .expect_code(2)?;
    here.run(&["stop", "vm1"])?.expect_code(11)?;

    let how = ["--resume-here", "--fenced", "its process was killed"];
    assert_eq!(settle(here, &how, 0)?[0]["is_settled"], true);
    let report = doubt.send.wait()?.expect_code(16)?.json()?;
    assert_eq!(report["outcome"], "resumed-by-hand", "{report:#}");
    assert_eq!(report["in_doubt"]["words"], "its process was killed");
    here.expect_goes_on("vm1")?;

    // The other side's record says that it may have run there: its old epoch is not taken again
    // until a person has closed that too.
    let there = &doubt.there;
    let status = there.run(&["status", "--json"])?.expect_code(0)?.json()?;
    assert_eq!(status["in_doubt"][0]["entry"], "owned", "{status:#}");
    let to = &doubt.receiver.endpoint;
    let refused = here.send("vm1", to, &[], 4)?;
    let reason = refused["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("dunlin settle vm1"), "{refused:#}");
    settle(
        there,
        &["--discard-here", "--fenced", "it goes on at its source"],
        0,
    )?;

    // The environment of that receiver stops processes: another one.
    let other = Site::new()?;
    let receiver = other.receiver(&[])?;
    expect_moved(&here.send("vm1", &receiver.endpoint, &[], 0)?)?;
    drop(doubt.guest);
    Ok(())
}

#[test]
fn the_guest_is_not_kept_here() -> Result<()> {
    let mut doubt = in_doubt()?;
    let how = ["--discard-here", "--fenced", "it is restored from a backup"];
    settle(&doubt.here, &how, 0)?;
    let report = doubt.send.wait()?.expect_code(17)?.json()?;
    assert_eq!(report["outcome"], "discarded-by-hand", "{report:#}");
    eventually("its process ends", || Ok(doubt.guest.ended().is_some()))?;
    let status = doubt.here.run(&["status", "--json"])?.json()?;
    assert_eq!(status["guests"].as_array().map(Vec::len), Some(0));
    assert_eq!(status["in_doubt"].as_array().map(Vec::len), Some(0));
    Ok(())
}

/// Its process dies before the answer comes. The record is found, and asked for.
#[test]
fn a_source_that_died_is_settled_from_its_record() -> Result<()> {
    let (mut here, there) = (Site::new()?, Site::new()?);
    here.set_environment("DUNLIN_STOP_AT", Some("committed"));
    let mut guest = here.guest("vm1", &RUN)?;
    here.set_environment("DUNLIN_STOP_AT", None);
    let receiver = there.receiver(&[])?;
    let to = receiver.endpoint.clone();
    let send = here.start(&["send", "vm1", "--to", &to, "--quiet"])?;
    eventually("the source stands at 'committed'", || {
        Ok(is_stopped(guest.pid()))
    })?;
    let uuid = guest_uuid(&there)?;
    guest.kill();
    send.wait()?.expect_code(3)?;
    there.expect_goes_on("vm1")?;

    let status = here.run(&["status", "--json"])?.expect_code(0)?.json()?;
    assert_eq!(status["in_doubt"][0]["entry"], "given-up", "{status:#}");
    // It can't be started anew meanwhile.
    let mut again = vec!["run", "--name", "vm1", "--uuid", &uuid];
    again.extend(RUN);
    here.run(&again)?.expect_code(14)?;

    let settled = settle(&here, &[], 0)?;
    let what = settled[0]["what"].as_str().unwrap_or_default();
    assert!(what.starts_with("moved to"), "{settled:#}");
    let status = here.run(&["status", "--json"])?.expect_code(0)?.json()?;
    assert_eq!(status["in_doubt"].as_array().map(Vec::len), Some(0));
    there.expect_goes_on("vm1")
}

fn guest_uuid(site: &Site) -> Result<String> {
    eventually("the guest is there", || {
        Ok(site
            .status("vm1")
            .is_ok_and(|guest| guest["state"] == "running"))
    })?;
    let status = site.status("vm1")?;
    Ok(status["uuid"].as_str().unwrap_or_default().to_owned())
}
