//! The destination says no before the first page: the source learns why, and the guest goes on.

use std::io::{Read, Write};
use std::net::TcpListener;

use anyhow::Result;
use dunlin_tests::site::Site;
use dunlin_tests::wire::{frame, hear_out, preamble, say};

const RUN: [&str; 6] = [
    "--memory",
    "256MiB",
    "--workload",
    "hot=8MiB,rate=20MiB/s",
    "--guest",
    "process",
];

fn refused(here: &Site, to: &str, said: &[&str]) -> Result<()> {
    let report = here.send("vm1", to, &[], 4)?;
    assert_eq!(report["outcome"], "refused");
    let reason = report["reason"].as_str().unwrap_or_default();
    for word in said {
        assert!(reason.contains(word), "'{word}' is not in: {reason}");
    }
    here.expect_goes_on("vm1")
}

#[test]
fn for_want_of_memory() -> Result<()> {
    let (here, there) = (Site::new()?, Site::new()?);
    let _guest = here.guest("vm1", &RUN)?;
    let receiver = there.receiver(&["--memory-limit", "128MiB"])?;
    refused(&here, &receiver.endpoint, &["256", "128"])
}

#[test]
fn since_the_name_is_taken() -> Result<()> {
    let (here, there) = (Site::new()?, Site::new()?);
    let _guest = here.guest("vm1", &RUN)?;
    let _other = there.guest("vm1", &RUN)?;
    let receiver = there.receiver(&[])?;
    refused(&here, &receiver.endpoint, &["vm1"])
}

/// A source of another protocol version is told which one is spoken here.
#[test]
fn a_source_of_another_version() -> Result<()> {
    let there = Site::new()?;
    let mut receiver = there.receiver(&[])?;
    let heard = hear_out(say(receiver.port()?, &preamble(9, 1, 0, [1; 16], [0; 32]))?)?;
    assert_eq!(heard.get(..4), Some(&b"DNLA"[..]), "{heard:?}");
    assert_eq!(
        heard.get(4..6),
        Some(&[1, 0][..]),
        "the code for 'version': {heard:?}"
    );
    receiver.process.event("turned-away")?;

    // A HELLO that offers versions 7 to 9: {0: 7, 1: 9, …} with nothing else right about it.
    let mut bytes = preamble(1, 1, 0, [1; 16], [0; 32]);
    bytes.extend(frame(1, &[0xa2, 0, 7, 1, 9]));
    let heard = hear_out(say(receiver.port()?, &bytes)?)?;
    assert!(heard.len() > 8, "no word of refusal: {heard:?}");
    Ok(())
}

/// A destination of another version answers: the source says so and goes on.
#[test]
fn a_destination_of_another_version() -> Result<()> {
    let here = Site::new()?;
    let _guest = here.guest("vm1", &RUN)?;
    let other = TcpListener::bind("127.0.0.1:0")?;
    let to = format!("tcp://{}", other.local_addr()?);
    let server = std::thread::spawn(move || -> Result<()> {
        let (mut stream, _) = other.accept()?;
        stream.read_exact(&mut [0; 64])?;
        stream.write_all(b"DNLA\x01\x00\x02\x00")?;
        let _ = stream.read(&mut [0; 1024])?;
        Ok(())
    });
    let report = here.send("vm1", &to, &["--peer-timeout", "2s"], 5)?;
    let reason = report["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("version"), "{reason}");
    server.join().expect("the server ended")?;
    here.expect_goes_on("vm1")
}
