//! Peers that are killed, and peers that lie about what may be written.
//!
//! These tests need an RDMA device; without one each says so.
#![cfg(all(feature = "rdma", feature = "testing"))]
// Test code, also where it is not in a test function.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use dunlin_transports::conformance::Pinned;
use dunlin_transports::lane::{
    DestinationEndpoint as _, Grant, LaneError, SourceEndpoint as _, SourceLane,
};
use dunlin_transports::memory::{MemoryMap, PAGE_BYTES, PageNumber, Run};
use dunlin_transports::rdma::LinkLayer;

mod fabric;

use fabric::{Ends, PATIENCE, destination, memory, run, soon, source, ticket};

/// Pages of the memories here; large enough that a kill finds writes under way.
const PAGES: u32 = 8192;

/// Tells a process of this test what to be.
const ROLE: &str = "DUNLIN_TEST_ROLE";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// The other end, in a process of its own; control is its standard input and output.
struct Peer {
    process: Child,
    to: ChildStdin,
    from: Lines<BufReader<ChildStdout>>,
}

impl Peer {
    fn start(role: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_other_end", "--nocapture"])
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let to = process.stdin.take().unwrap();
        let from = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, to, from }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.to, "{line}").unwrap();
        self.to.flush().unwrap();
    }

    /// The next line that the other end means for control; the test harness prints others.
    fn hear(&mut self) -> String {
        loop {
            let line = self.from.next().unwrap().unwrap();
            if let Some((_, said)) = line.split_once('@') {
                return said.to_owned();
            }
        }
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn hear() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.trim().to_owned()
}

fn round(lane: &mut dyn SourceLane) -> Result<(), LaneError> {
    lane.put(&[run(0, PAGES)])?;
    let fence = lane.fence()?;
    lane.wait_fence(fence, PATIENCE)
}

/// Not a test of its own: what a [`Peer`] runs, until it is killed.
#[test]
fn the_other_end() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let ends = Ends::here().unwrap();
    let memory = memory(PAGES.into());
    let range = run(0, PAGES);
    if role == "source" {
        let endpoint = source(&ends, memory);
        endpoint.accept_contact(&bytes(&hear())).unwrap();
        endpoint.prepare(range).unwrap();
        let mut lane = endpoint.open_lane(&ticket(), soon()).unwrap();
        println!("@{}", hex(&lane.identity()));
        let key = bytes(&hear());
        endpoint.accept_grants(&[Grant { range, key }]).unwrap();
        loop {
            round(&mut *lane).unwrap();
        }
    }
    let endpoint = destination(&ends, memory);
    println!("@{}", hex(&endpoint.contact()));
    let mut lane = endpoint.accept_lane(&[ticket()], soon()).unwrap();
    endpoint.confirm(lane.number(), &bytes(&hear())).unwrap();
    println!("@{}", hex(&endpoint.prepare(range).unwrap().key));
    loop {
        lane.next_fence(soon()).unwrap();
    }
}

fn is_about_the_peer(error: &LaneError) -> bool {
    !matches!(error, LaneError::Stalled { .. } | LaneError::Stopped(_))
}

fn snapshot(memory: &MemoryMap) -> Vec<u8> {
    let mut bytes = vec![0; PAGES as usize * PAGE_BYTES as usize];
    memory.copy_out(run(0, PAGES), &mut bytes).unwrap();
    bytes
}

#[test]
fn a_source_killed_in_the_middle_of_writing_is_noticed() {
    let _pinned = Pinned::watch();
    let Some(ends) = Ends::here() else { return };
    let memory = memory(PAGES.into());
    let endpoint = destination(&ends, memory.clone());
    let mut peer = Peer::start("source");
    peer.tell(&hex(&endpoint.contact()));
    let mut lane = endpoint.accept_lane(&[ticket()], soon()).unwrap();
    let identity = bytes(&peer.hear());
    endpoint.confirm(lane.number(), &identity).unwrap();
    peer.tell(&hex(&endpoint.prepare(run(0, PAGES)).unwrap().key));
    lane.next_fence(soon()).unwrap();
    // Behind a fence that was seen the next put is on its way.
    peer.kill();
    let error = loop {
        match lane.next_fence(soon()) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(is_about_the_peer(&error), "{error}");
    let after = snapshot(&memory);
    std::thread::sleep(Duration::from_millis(50));
    assert!(snapshot(&memory) == after, "a dead source still writes");
}

#[test]
fn a_destination_killed_in_the_middle_of_writing_is_noticed() {
    let _pinned = Pinned::watch();
    let Some(ends) = Ends::here() else { return };
    let endpoint = source(&ends, memory(PAGES.into()));
    let mut peer = Peer::start("destination");
    endpoint.accept_contact(&bytes(&peer.hear())).unwrap();
    let range = run(0, PAGES);
    endpoint.prepare(range).unwrap();
    let mut lane = endpoint.open_lane(&ticket(), soon()).unwrap();
    peer.tell(&hex(&lane.identity()));
    let key = bytes(&peer.hear());
    endpoint.accept_grants(&[Grant { range, key }]).unwrap();
    round(&mut *lane).unwrap();
    std::thread::scope(|scope| {
        let putting = scope.spawn(|| {
            loop {
                if let Err(error) = round(&mut *lane) {
                    return error;
                }
            }
        });
        peer.kill();
        let error = putting.join().unwrap();
        assert!(is_about_the_peer(&error), "{error}");
    });
}

/// By its lane, and what the device of the other end said. Over iWARP it says nothing that lanes
/// could hear, and ends the connection.
fn assert_names_the_refusal(error: &LaneError) {
    let text = error.to_string();
    if Ends::here().unwrap().link_layer == LinkLayer::Iwarp {
        assert!(is_about_the_peer(error), "{text}");
        return;
    }
    let is_named = [
        "the peer does not let this memory be reached",
        "the peer does not take such a request",
    ];
    let is_named = is_named.iter().any(|cause| text.contains(cause));
    assert!(is_named && text.starts_with("lane 0: "), "{text}");
}

/// A session between two endpoints of this process, whose source is told `grant` for all memory.
fn lied_to(lie: impl Fn(Grant) -> Grant) -> Option<(LaneError, Option<LaneError>)> {
    const PREPARED: u32 = 64;
    let ends = Ends::here()?;
    let (from, to) = (memory(256), memory(256));
    let whole = Run {
        first: PageNumber(0),
        pages: 256,
    };
    to.fill_zero(whole).unwrap();
    let destination = destination(&ends, to.clone());
    let source = source(&ends, from);
    source.accept_contact(&destination.contact()).unwrap();
    let (mut lane, mut other) = std::thread::scope(|scope| {
        let accepting = scope.spawn(|| destination.accept_lane(&[ticket()], soon()).unwrap());
        let lane = source.open_lane(&ticket(), soon()).unwrap();
        (lane, accepting.join().unwrap())
    });
    destination
        .confirm(lane.number(), &lane.identity())
        .unwrap();
    let grant = lie(destination.prepare(run(0, PREPARED)).unwrap());
    let range = grant.range;
    source.prepare(range).unwrap();
    if let Err(error) = source.accept_grants(&[grant]) {
        return Some((error, None));
    }
    let last = run(range.end().0 - 1, 1);
    let error = lane.put(&[last]).and_then(|()| {
        let fence = lane.fence()?;
        lane.wait_fence(fence, PATIENCE)
    });
    let mut after = vec![0; 256 * PAGE_BYTES as usize];
    to.copy_out(whole, &mut after).unwrap();
    assert!(after.iter().all(|byte| *byte == 0), "a lie was written to");
    Some((error.unwrap_err(), other.next_fence(soon()).err()))
}

#[test]
fn a_grant_with_a_false_key_address_or_length_writes_nowhere() {
    let _pinned = Pinned::watch();
    let key = |grant: &Grant, flipped: usize| {
        let mut key = grant.key.clone();
        *key.get_mut(flipped).unwrap() ^= 0x10;
        key
    };
    for flipped in [0, 1, 3, 4 + 2, 4 + 5] {
        let Some((error, other)) = lied_to(|grant| Grant {
            key: key(&grant, flipped),
            ..grant
        }) else {
            return;
        };
        assert_names_the_refusal(&error);
        let other = other.unwrap();
        assert!(is_about_the_peer(&other), "{other}");
    }
    let longer = |grant: Grant| Grant {
        range: run(0, 65),
        ..grant
    };
    let (error, _) = lied_to(longer).unwrap();
    assert_names_the_refusal(&error);
}

#[test]
fn a_grant_whose_key_is_no_key_is_refused() {
    let _pinned = Pinned::watch();
    for key in [vec![], vec![0; 11], vec![0; 13], vec![0xff; 12]] {
        let Some((error, other)) = lied_to(|grant| Grant {
            key: key.clone(),
            ..grant
        }) else {
            return;
        };
        assert!(matches!(error, LaneError::Protocol { .. }), "{error}");
        let text = error.to_string();
        // Of the right length, and an address from which the range would pass the end of all.
        let named = format!("a bad key of {} bytes", key.len());
        assert!(text.contains(&named), "{text}");
        assert!(other.is_none());
    }
}

#[test]
fn a_grant_outside_of_memory_or_over_another_one_is_refused() {
    let _pinned = Pinned::watch();
    for (range, named) in [
        (run(250, 10), "a run of 10 pages at page 250 is not inside"),
        (run(u64::MAX - 1, 1), "is not inside"),
        (run(0, 0), "a run of 0 pages at page 0 is not inside"),
    ] {
        let Some(ends) = Ends::here() else { return };
        let (source, destination) = (source(&ends, memory(256)), destination(&ends, memory(256)));
        let good = destination.prepare(run(0, 64)).unwrap();
        let bad = Grant {
            range,
            key: good.key.clone(),
        };
        let error = source.accept_grants(&[bad]).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
        let over = Grant {
            range: run(63, 2),
            key: good.key.clone(),
        };
        let error = source.accept_grants(&[good, over]).unwrap_err().to_string();
        let named = "a grant of 2 pages at page 63 overlaps one of 64 pages at page 0";
        assert!(error.contains(named), "{error}");
    }
}
