//! What the device says by itself ends waits. Ports that go down are seen on a device, by
//! `tests/rdma_link_down.rs`; a removal is told here, since rxe's driver waits for its users first.

use super::super::verbs::DeviceEvent;
use super::lane::LaneError;
use super::*;

#[test]
fn a_device_that_fails_ends_waits_on_both_sides_with_its_name() {
    let _pinned = Pinned::watch();
    let Some(mut session) = Session::new() else {
        return;
    };
    let watches = [
        Arc::clone(&session.source.shared.watch),
        Arc::clone(&session.destination.shared.watch),
    ];
    let accepting = &session.destination;
    std::thread::scope(|scope| {
        let source = &mut session.source_lane;
        let destination = &mut session.destination_lane;
        let waits = [
            scope.spawn(move || {
                loop {
                    let fenced = source.fence();
                    let waited = fenced.and_then(|fence| source.wait_fence(fence, PATIENCE));
                    if let Err(error) = waited {
                        return error;
                    }
                }
            }),
            scope.spawn(move || {
                loop {
                    if let Err(error) = destination.next_fence(soon()) {
                        return error;
                    }
                }
            }),
            scope.spawn(move || accepting.accept_lane(&[], soon()).map(|_| ()).unwrap_err()),
        ];
        // An event of another port, and one of no importance, end nothing.
        for watch in &watches {
            watch.note(DeviceEvent::PortDown(200));
            watch.note(DeviceEvent::Other(18));
            assert!(watch.ended(NUMBER).is_none() && watch.trouble().is_none());
        }
        watches
            .iter()
            .for_each(|watch| watch.note(DeviceEvent::DeviceFatal));
        for wait in waits {
            match wait.join().unwrap() {
                LaneError::System { source, .. } => {
                    let error = source.to_string();
                    assert!(error.starts_with("RDMA device "), "{error}");
                    assert!(
                        error.ends_with("the device failed or was removed"),
                        "{error}"
                    );
                }
                other => panic!("{other}"),
            }
        }
    });
}
