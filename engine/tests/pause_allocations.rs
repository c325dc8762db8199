//! What the sessions' threads allocate while the guest is paused: little, however large it is.
//!
//! Messages and the guest's state are values of their own; all that is as large as memory is made
//! before the pause.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that meets an impossible value should stop there and say so"
)]

mod counting;
mod simulated;

use std::sync::{Arc, Mutex};

use dunlin_engine::protocol::MessageKind;

use counting::{ALLOCATED, Allocations};
use simulated::{Hooks, Session};

/// A guest of 512 MiB, whose dirty bitmap has 16 KiB.
const LARGE_PAGES: u64 = 1 << 17;

/// All that one thread may allocate in a pause: less than one such bitmap.
const BYTES_MAX: usize = 8 << 10;

/// What a move of a guest of so many pages allocates: on the source from the order to pause until
/// COMMIT, on the destination from loading the state until vCPUs are entered.
fn in_the_pause(pages: u64) -> [Allocations; 2] {
    let told = Arc::new(Mutex::new([Allocations::default(); 2]));
    let tell = |side: usize| {
        let told = Arc::clone(&told);
        move || told.lock().unwrap()[side] = ALLOCATED.get()
    };
    let (source, destination) = (tell(0), tell(1));
    let hooks = Hooks {
        pause: Some(Box::new(|machine| {
            machine.write_all(0..200, 2);
            ALLOCATED.take();
            Ok(())
        })),
        // Pages of no lane, so that one more round follows.
        save: Some(Box::new(|machine| {
            let so_far = ALLOCATED.get();
            machine.write_all(250..270, 3);
            ALLOCATED.set(so_far);
            Ok(())
        })),
        ..Hooks::default()
    };
    let mut session = Session::new(&[pages], hooks);
    session.source.write_all(0..300, 1);
    session.hooks = Hooks {
        load: Some(Box::new(|_| {
            ALLOCATED.take();
            Ok(())
        })),
        run: Some(Box::new(move |_| {
            destination();
            Ok(())
        })),
        ..Hooks::default()
    };
    session.at(MessageKind::Commit, move |_| source());
    session.run().assert_moved();
    *told.lock().unwrap()
}

#[test]
fn a_pause_allocates_little_however_large_the_guest_is() {
    for pages in [1 << 12, LARGE_PAGES] {
        for (side, all) in ["source", "destination"]
            .into_iter()
            .zip(in_the_pause(pages))
        {
            println!("{pages} pages, {side}: {all:?}");
            assert!(all.calls > 0, "nothing was counted");
            assert!(all.bytes <= BYTES_MAX, "{all:?}");
        }
    }
}
