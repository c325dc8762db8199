//! Two network namespaces with a veth pair between them: as near to two hosts as one machine gets.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use dunlin_tests::host::{Link, has_namespaces};
use dunlin_tests::program::{Running, eventually};
use dunlin_tests::site::{Site, expect_moved};

const RUN: [&str; 4] = ["--memory", "256MiB", "--workload", "hot=8MiB,rate=20MiB/s"];

#[test]
fn a_guest_moves_from_one_to_the_other() -> Result<()> {
    if !has_namespaces() {
        return Ok(());
    }
    let link = Link::new("mv")?;
    let here = Site::in_namespace(&link.namespaces[0])?;
    let there = Site::in_namespace(&link.namespaces[1])?;
    let _guest = here.guest("vm1", &RUN)?;
    let receiver = there.receiver_at(&format!("tcp://{}:0", link.addresses[1]), &[])?;
    let bind = ["--bind", link.addresses[0], "--tos", "46", "--lanes", "2"];
    expect_moved(&here.send("vm1", &receiver.endpoint, &bind, 0)?)?;
    there.expect_goes_on("vm1")
}

#[test]
fn the_link_is_cut_in_mid_move_and_the_guest_goes_on() -> Result<()> {
    if !has_namespaces() {
        return Ok(());
    }
    let link = Link::new("ct")?;
    let here = Site::in_namespace(&link.namespaces[0])?;
    let there = Site::in_namespace(&link.namespaces[1])?;
    let _guest = here.guest("vm1", &RUN)?;
    let mut receiver = there.receiver_at(&format!("tcp://{}:0", link.addresses[1]), &[])?;
    let to = receiver.endpoint.clone();
    let slow = [
        "--max-bandwidth",
        "2MiB/s",
        "--peer-timeout",
        "1s",
        "--json",
        "--quiet",
    ];
    let send = here.start(&[&["send", "vm1", "--to", &to], slow.as_slice()].concat())?;
    here.await_phase("vm1", "copying")?;
    link.set_up(false)?;
    let report = send.wait()?.expect_code(5)?.json()?;
    assert_eq!(report["outcome"], "peer-failed", "{report:#}");
    here.expect_goes_on("vm1")?;
    receiver.process.event("failed")?;

    link.set_up(true)?;
    // A link that comes up takes a moment until packets pass.
    let reaches = || -> Result<bool> {
        let mut ping = Command::new("ip");
        ping.args(["netns", "exec", &link.namespaces[0], "bash", "-c"]);
        ping.arg(format!(
            "exec 3<>/dev/tcp/{}/{}",
            link.addresses[1],
            receiver_port(&to)
        ));
        Ok(Running::start(ping)?.wait()?.code == 0)
    };
    eventually("the link carries again", || {
        std::thread::sleep(Duration::from_millis(100));
        reaches()
    })?;
    expect_moved(&here.send("vm1", &to, &[], 0)?)?;
    there.expect_goes_on("vm1")
}

fn receiver_port(endpoint: &str) -> &str {
    endpoint.rsplit(':').next().unwrap_or_default()
}
