//! A receiver that strangers talk to: garbage, half a preamble, mutated moves. It goes on listening,
//! grows by nothing worth the name, and a good move succeeds afterwards.

use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use dunlin_tests::program::resident_kib;
use dunlin_tests::site::{Site, expect_moved};
use dunlin_tests::wire::{Meddle, Numbers, frame, preamble, relay, say};

const RUN: [&str; 6] = [
    "--memory",
    "64MiB",
    "--workload",
    "hot=4MiB,rate=10MiB/s",
    "--guest",
    "process",
];

/// What a stranger says.
fn garbage(number: u64) -> Vec<u8> {
    let mut numbers = Numbers::new(0x9e37_79b9 + number);
    let session = [number as u8; 16];
    match number % 10 {
        0 => Vec::new(),
        1 => numbers.bytes(1000),
        2 => preamble(1, 1, 0, session, [0; 32])[..20].to_vec(),
        // A control connection that goes on with noise.
        3 => [preamble(1, 1, 0, session, [0; 32]), numbers.bytes(5000)].concat(),
        // A frame that announces four gigabytes.
        4 => [preamble(1, 1, 0, session, [0; 32]), vec![0xff; 8]].concat(),
        // A HELLO of noise, and one that is cut.
        5 => [
            preamble(1, 1, 0, session, [0; 32]),
            frame(1, &numbers.bytes(300)),
        ]
        .concat(),
        6 => {
            let hello = frame(1, &numbers.bytes(200_000));
            [preamble(1, 1, 0, session, [0; 32]), hello[..100].to_vec()].concat()
        }
        // Lanes of sessions that nobody has.
        7 => preamble(1, 2, number as u16, session, [number as u8; 32]),
        8 => preamble(
            numbers.next_number() as u16,
            numbers.next_number() as u16,
            1,
            session,
            [1; 32],
        ),
        _ => b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
    }
}

#[test]
fn two_hundred_strangers_then_a_good_move() -> Result<()> {
    let (here, there) = (Site::new()?, Site::new()?);
    let _guest = here.guest("vm1", &RUN)?;
    let mut receiver = there.receiver(&[])?;
    let port = receiver.port()?;
    let before = resident_kib(receiver.process.pid())?;
    let mut held: Vec<TcpStream> = Vec::new();
    for number in 0..200 {
        let stream = say(port, &garbage(number))?;
        // Some hang up, some stay and say nothing more.
        if number % 3 == 0 {
            held.push(stream);
            if held.len() > 20 {
                held.remove(0);
            }
        }
    }
    drop(held);
    assert!(receiver.process.ended().is_none());
    expect_moved(&here.send("vm1", &receiver.endpoint, &[], 0)?)?;
    there.expect_goes_on("vm1")?;
    let after = resident_kib(receiver.process.pid())?;
    assert!(
        after < before + 32 * 1024,
        "the receiver grew from {before} to {after} KiB"
    );
    Ok(())
}

/// Someone in the middle changes one byte of what the source says, on control or on a lane. Over TCP
/// without TLS a changed page can't be told from a page, so only what is checked is asserted: nobody
/// crashes, there is never more than one guest and never none, and a good move works afterwards.
#[test]
fn mutated_frames_on_control_and_lanes_then_a_good_move() -> Result<()> {
    let (here, there) = (Site::new()?, Site::new()?);
    let mut guest = here.guest("vm1", &RUN)?;
    let receiver = there.receiver(&[])?;
    for seed in 0..40_u64 {
        // The first connection is control, the others are lanes. In the first kilobyte are the
        // preamble, the headers and the tables.
        let spoilt = Arc::new(Mutex::new(false));
        let meddle = move |connection: usize| -> Meddle {
            let mut numbers = Numbers::new(seed * 7919 + 1);
            let target = usize::from(seed % 2 == 1);
            let at = numbers.below(if target == 0 { 700 } else { 200 });
            let flip = 1 << numbers.below(8);
            let mut passed = 0;
            let spoilt = Arc::clone(&spoilt);
            Box::new(move |_, bytes| {
                let mut spoilt = spoilt
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                let here = at
                    .checked_sub(passed)
                    .filter(|_| connection == target && !*spoilt);
                if let Some(byte) = here.and_then(|at| bytes.get_mut(at)) {
                    *byte ^= flip;
                    *spoilt = true;
                }
                passed += bytes.len();
            })
        };
        let port = relay(receiver.port()?, meddle)?;
        let to = format!("tcp://127.0.0.1:{port}");
        let send = [
            "send",
            "vm1",
            "--to",
            &to,
            "--json",
            "--quiet",
            "--peer-timeout",
            "500ms",
        ];
        let output = here.run(&send)?;
        match output.code {
            // The byte did not matter, or was part of a page: the guest is there now. Bring it home.
            0 | 10 => {
                let home = here.receiver(&[])?;
                there.send("vm1", &home.endpoint, &["--verify", "off"], 0)?;
                here.expect_goes_on("vm1")?;
            }
            // COMMIT was spoilt, and with it the destination's last word: the source keeps the guest
            // paused. It must not run there as well.
            11 => {
                assert_ne!(
                    there.run(&["status", "vm1"])?.code,
                    0,
                    "two owners: {output:?}"
                );
                here.run(&["stop", "vm1", "--force"])?.expect_code(0)?;
                guest = here.guest("vm1", &RUN)?;
            }
            4 | 5 | 6 | 7 | 12 => here
                .expect_goes_on("vm1")
                .with_context(|| format!("{output:?}"))?,
            other => anyhow::bail!("exit code {other}: {output:?}"),
        }
    }
    here.send("vm1", &receiver.endpoint, &["--verify", "off"], 0)?;
    there.expect_goes_on("vm1")?;
    drop(guest);
    Ok(())
}
