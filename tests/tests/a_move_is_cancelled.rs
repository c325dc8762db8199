//! A move is cancelled, in each phase that an operator can meet: the guest goes on where it is, the
//! destination keeps nothing, and a second try succeeds.

use std::net::TcpListener;

use anyhow::Result;
use dunlin_tests::program::eventually;
use dunlin_tests::site::{Site, expect_moved};

const RUN: [&str; 6] = [
    "--memory",
    "256MiB",
    "--workload",
    "hot=8MiB,rate=20MiB/s",
    "--guest",
    "process",
];

#[test]
fn while_connecting() -> Result<()> {
    let (here, there) = (Site::new()?, Site::new()?);
    let _guest = here.guest("vm1", &RUN)?;
    // Takes the connection, and says nothing.
    let mute = TcpListener::bind("127.0.0.1:0")?;
    let to = format!("tcp://{}", mute.local_addr()?);
    let send = here.start(&[
        "send",
        "vm1",
        "--to",
        &to,
        "--json",
        "--quiet",
        "--peer-timeout",
        "1min",
    ])?;
    eventually("the move begins", || {
        Ok(here.status("vm1")?["state"] == "moving")
    })?;
    here.run(&["cancel", "vm1"])?.expect_code(0)?;
    let report = send.wait()?.expect_code(9)?.json()?;
    assert_eq!(report["outcome"], "cancelled", "{report:#}");
    here.expect_goes_on("vm1")?;
    drop(mute);

    let receiver = there.receiver(&[])?;
    expect_moved(&here.send("vm1", &receiver.endpoint, &[], 0)?)
}

#[test]
fn in_a_round() -> Result<()> {
    let (here, there) = (Site::new()?, Site::new()?);
    let _guest = here.guest("vm1", &RUN)?;
    let mut receiver = there.receiver(&[])?;
    let to = receiver.endpoint.clone();
    let slow = [
        "send",
        "vm1",
        "--to",
        &to,
        "--json",
        "--quiet",
        "--max-bandwidth",
        "1MiB/s",
    ];
    let send = here.start(&slow)?;
    here.await_phase("vm1", "copying")?;
    here.run(&["cancel", "vm1"])?.expect_code(0)?;
    send.wait()?.expect_code(9)?;
    here.expect_goes_on("vm1")?;
    receiver.process.event("failed")?;
    assert_ne!(
        there.run(&["status", "vm1"])?.code,
        0,
        "the destination kept something"
    );

    expect_moved(&here.send("vm1", &to, &[], 0)?)?;
    there.expect_goes_on("vm1")
}

#[test]
fn by_ctrl_c() -> Result<()> {
    let (here, there) = (Site::new()?, Site::new()?);
    let _guest = here.guest("vm1", &RUN)?;
    let receiver = there.receiver(&[])?;
    let slow = [
        "send",
        "vm1",
        "--to",
        &receiver.endpoint,
        "--quiet",
        "--max-bandwidth",
        "1MiB/s",
    ];
    let send = here.start(&slow)?;
    here.await_phase("vm1", "copying")?;
    send.signal(libc::SIGINT);
    send.wait()?.expect_code(9)?;
    here.expect_goes_on("vm1")?;
    expect_moved(&here.send("vm1", &receiver.endpoint, &[], 0)?)
}

/// Killing `send` only detaches it: the move goes on. Then its limits are changed, and it is done.
#[test]
fn killing_send_does_not_cancel_and_set_changes_a_move_under_way() -> Result<()> {
    let (here, there) = (Site::new()?, Site::new()?);
    let guest = here.guest("vm1", &RUN)?;
    let receiver = there.receiver(&[])?;
    let slow = [
        "send",
        "vm1",
        "--to",
        &receiver.endpoint,
        "--quiet",
        "--max-bandwidth",
        "1MiB/s",
    ];
    let mut send = here.start(&slow)?;
    here.await_phase("vm1", "copying")?;
    send.kill();
    let again = here.run(&slow)?;
    assert_eq!(again.code, 14, "a second move at the same time: {again:?}");
    here.await_phase("vm1", "copying")?;
    let set = [
        "set",
        "vm1",
        "--max-bandwidth",
        "none",
        "--max-blackout",
        "1s",
    ];
    here.run(&set)?.expect_code(0)?;
    guest.wait()?.expect_code(0)?;
    there.expect_goes_on("vm1")
}
