//! The link goes down under waiting lanes.
//!
//! This takes the link of a software device (rxe) on a virtual interface down and up again, so it
//! needs root, and is on its own: no other test could use the device meanwhile. Elsewhere it says so.
#![cfg(all(feature = "rdma", feature = "testing"))]
// Test code, also where it is not in a test function.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Command;

use dunlin_transports::lane::{DestinationEndpoint as _, SourceEndpoint as _};

mod fabric;

use fabric::{
    Ends, PATIENCE, destination, interface, memory, run, soon, source, ticket, until_error,
};

fn set_link(interface: &str, state: &str) -> bool {
    let mut command = Command::new("ip");
    let status = command.args(["link", "set", interface, state]).status();
    status.is_ok_and(|status| status.success())
}

/// Puts the link back, however the test ends.
struct LinkUp(String);

impl Drop for LinkUp {
    fn drop(&mut self) {
        set_link(&self.0, "up");
    }
}

#[test]
fn a_link_that_goes_down_ends_waiting_lanes_with_its_name() {
    let Some(ends) = Ends::here() else { return };
    let Some(interface) = interface(&ends.destination_device) else {
        println!("skipped: the RDMA device has a real network interface");
        return;
    };
    let (from, to) = (memory(64), memory(64));
    let (destination, source) = (destination(&ends, to), source(&ends, from));
    source.accept_contact(&destination.contact()).unwrap();
    let grant = destination.prepare(run(0, 64)).unwrap();
    source.prepare(run(0, 64)).unwrap();
    source.accept_grants(&[grant]).unwrap();
    let (mut lane, mut other) = std::thread::scope(|scope| {
        let accepting = scope.spawn(|| destination.accept_lane(&[ticket()], soon()).unwrap());
        let lane = source.open_lane(&ticket(), soon()).unwrap();
        (lane, accepting.join().unwrap())
    });
    destination
        .confirm(lane.number(), &lane.identity())
        .unwrap();
    lane.put(&[run(0, 64)]).unwrap();
    let fence = lane.fence().unwrap();
    other.next_fence(soon()).unwrap();
    lane.wait_fence(fence, PATIENCE).unwrap();
    std::thread::scope(|scope| {
        let serving = scope.spawn(move || until_error(|| other.next_fence(soon()).map(drop)));
        let accepting = scope.spawn(|| {
            let accepted = destination.accept_lane(&[ticket()], soon());
            accepted.map(|_| ()).unwrap_err()
        });
        let waiting = scope.spawn(move || {
            until_error(|| {
                lane.put(&[run(0, 64)])?;
                let fence = lane.fence()?;
                lane.wait_fence(fence, PATIENCE)
            })
        });
        let _up = LinkUp(interface.clone());
        assert!(set_link(&interface, "down"));
        // A wire that is cut goes down at both ends.
        for (error, device) in [
            (serving.join(), &ends.destination_device),
            (accepting.join(), &ends.destination_device),
            (waiting.join(), &ends.source_device),
        ] {
            let error = error.unwrap().to_string();
            let expected = format!("port 1 of RDMA device {device} is down");
            assert!(error.contains(&expected), "{error}");
        }
        // Where no lane is at work, the endpoints know.
        for (trouble, device) in [
            (destination.trouble(), &ends.destination_device),
            (source.trouble(), &ends.source_device),
        ] {
            let expected = format!("port 1 of RDMA device {device} is down");
            assert_eq!(trouble, Some(expected));
        }
    });
}
