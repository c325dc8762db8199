//! What depends on what a device can do.

use std::path::Path;

use super::lane::FenceNumber;
use super::*;

#[test]
fn memory_is_paged_on_demand_where_the_device_can_and_refused_where_it_cannot() {
    let pinned = Pinned::watch();
    let Some(found) = device() else { return };
    let options = Options {
        on_demand_paging: true,
        ..Options::default()
    };
    let mut session = match Session::with(found.address, options) {
        Ok(session) => session,
        Err(error @ RdmaError::NoPagingOnDemand { .. }) => {
            let error = error.to_string();
            // One of them leads to that address.
            let mut devices = super::super::addresses().unwrap().into_iter();
            let is_named = devices.any(|found| error.contains(&found.device));
            assert!(is_named, "{error}");
            assert!(error.contains("leave it off"), "{error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let identity = session.source_lane.identity();
    session.destination.confirm(NUMBER, &identity).unwrap();
    // What the peer writes is pinned, what is sent is not; nor are messages and zeros much.
    let more = pinned.more_bytes();
    let one_side = u64::from(PAGES) * PAGE_BYTES;
    session.source_lane.put(&[run(0, PAGES)]).unwrap();
    let fence = session.source_lane.fence().unwrap();
    assert_eq!(
        session.destination_lane.next_fence(soon()).unwrap(),
        FenceNumber(1)
    );
    session.source_lane.wait_fence(fence, PATIENCE).unwrap();
    assert_eq!(
        bytes(&session.destination_memory),
        bytes(&session.source_memory)
    );
    session.source.retire(run(0, PAGES)).unwrap();
    assert_eq!(pinned.more_bytes(), more);
    assert!(more >= one_side);
}

#[test]
fn a_device_in_software_is_near_to_no_processor() {
    let _pinned = Pinned::watch();
    let Some(session) = Session::new() else {
        return;
    };
    let near = [session.source.near_cpus(), session.destination.near_cpus()];
    assert_eq!(near[0], near[1]);
    assert!(near[0].is_sorted());
    let name = device().unwrap().device;
    if !Path::new("/sys/class/infiniband")
        .join(name)
        .join("device")
        .exists()
    {
        assert!(near[0].is_empty(), "{near:?}");
    }
}

#[test]
fn what_a_session_has_pinned_is_seen_and_gone_with_it() {
    let pinned = Pinned::watch();
    let Some(session) = Session::new() else {
        return;
    };
    let both_sides = 2 * u64::from(PAGES) * PAGE_BYTES;
    assert!(pinned.more_bytes() >= both_sides);
    // Memory, messages of each end, and zeros; where the program that lists them is there.
    let listed = pinned.more_registrations();
    assert!(listed.is_none_or(|listed| listed >= 5), "{listed:?}");
    println!("registrations that `rdma` lists: {listed:?}");
    drop(session);
    pinned.assert_as_before();
}
