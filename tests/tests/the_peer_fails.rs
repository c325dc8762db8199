//! The destination falls silent, dies, or is not there: the guest goes on at the source, and the
//! error says what happened.

use std::net::TcpListener;

use anyhow::{Context, Result};
use dunlin_tests::program::signal_process;
use dunlin_tests::site::{Receiver, Site, expect_moved};

const RUN: [&str; 6] = [
    "--memory",
    "256MiB",
    "--workload",
    "hot=8MiB,rate=20MiB/s",
    "--guest",
    "process",
];
const SLOW: [&str; 4] = ["--max-bandwidth", "1MiB/s", "--peer-timeout", "1s"];

/// Starts a move that takes its time, and returns the process that receives the guest.
fn begin(here: &Site, receiver: &mut Receiver) -> Result<(dunlin_tests::program::Running, u32)> {
    let mut arguments = vec![
        "send",
        "vm1",
        "--to",
        &receiver.endpoint,
        "--json",
        "--quiet",
    ];
    arguments.extend(SLOW);
    let send = here.start(&arguments)?;
    here.await_phase("vm1", "copying")?;
    let incoming = receiver.process.event("incoming")?;
    let pid = u32::try_from(incoming["pid"].as_u64().context("no pid")?)?;
    Ok((send, pid))
}

#[test]
fn it_falls_silent() -> Result<()> {
    let (here, there) = (Site::new()?, Site::new()?);
    let _guest = here.guest("vm1", &RUN)?;
    let mut receiver = there.receiver(&[])?;
    let (send, pid) = begin(&here, &mut receiver)?;
    signal_process(pid, libc::SIGSTOP);
    let report = send.wait()?.expect_code(5)?.json()?;
    let reason = report["reason"].as_str().unwrap_or_default();
    assert!(
        reason.contains("silent") || reason.contains("nothing moved"),
        "{reason}"
    );
    here.expect_goes_on("vm1")?;

    signal_process(pid, libc::SIGCONT);
    receiver.process.event("failed")?;
    expect_moved(&here.send("vm1", &receiver.endpoint, &[], 0)?)
}

#[test]
fn its_process_is_killed() -> Result<()> {
    let (here, there) = (Site::new()?, Site::new()?);
    let _guest = here.guest("vm1", &RUN)?;
    let mut receiver = there.receiver(&[])?;
    let (send, pid) = begin(&here, &mut receiver)?;
    signal_process(pid, libc::SIGKILL);
    let report = send.wait()?.expect_code(5)?.json()?;
    assert_eq!(report["outcome"], "peer-failed");
    here.expect_goes_on("vm1")?;
    // The supervisor outlives it.
    expect_moved(&here.send("vm1", &receiver.endpoint, &[], 0)?)
}

#[test]
fn the_source_is_killed() -> Result<()> {
    let (here, there) = (Site::new()?, Site::new()?);
    let mut guest = here.guest("vm1", &RUN)?;
    let mut receiver = there.receiver(&[])?;
    let (send, _) = begin(&here, &mut receiver)?;
    guest.kill();
    assert_ne!(send.wait()?.code, 0);
    receiver.process.event("failed")?;
    // What was received is gone, and the next guest of that name is welcome.
    let _guest = here.guest("vm1", &RUN)?;
    expect_moved(&here.send("vm1", &receiver.endpoint, &[], 0)?)
}

#[test]
fn nobody_is_there() -> Result<()> {
    let here = Site::new()?;
    let _guest = here.guest("vm1", &RUN)?;
    let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let report = here.send("vm1", &format!("tcp://{free}"), &[], 5)?;
    let reason = report["reason"].as_str().unwrap_or_default();
    assert!(
        reason.contains(&free.to_string()) && reason.contains("refused"),
        "{reason}"
    );
    here.expect_goes_on("vm1")
}

#[test]
fn it_speaks_something_else() -> Result<()> {
    let here = Site::new()?;
    let _guest = here.guest("vm1", &RUN)?;
    let other = TcpListener::bind("127.0.0.1:0")?;
    let to = format!("tcp://{}", other.local_addr()?);
    let server = std::thread::spawn(move || -> Result<()> {
        use std::io::{Read, Write};
        let (mut stream, _) = other.accept()?;
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")?;
        let _ = stream.read(&mut [0; 1024])?;
        Ok(())
    });
    let report = here.send("vm1", &to, &["--peer-timeout", "1s"], 5)?;
    assert!(
        report["reason"]
            .as_str()
            .is_some_and(|reason| !reason.is_empty()),
        "{report:#}"
    );
    server.join().expect("the server ended")?;
    here.expect_goes_on("vm1")
}
