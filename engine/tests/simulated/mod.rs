//! A move without hosts: a simulated guest on both sides, the in-memory transport between them, and
//! faults where a test orders them.
//!
//! | room | what is in it |
//! |---|---|
//! | [`machine`] | the guest: memory, a dirty tracker as KVM's manual protect, hooks, a record of calls |
//! | [`records`] | both sides' records, a supervisor who answers from them, a person who decides |
//! | [`session`] | both sides of a move on two threads, with a watchdog |
//! | [`by_hand`] | one side of a session, played by the test itself |
//!
//! Every scenario is a crate of its own and uses a part of this.

#![allow(dead_code, reason = "every scenario's crate uses a part of this")]

pub(crate) mod by_hand;
pub(crate) mod machine;
pub(crate) mod records;
pub(crate) mod session;

use std::time::{Duration, Instant};

#[allow(unused_imports, reason = "every scenario's crate uses a part of this")]
pub(crate) use machine::{Call, Hooks};
pub(crate) use session::Session;

/// Waits for something that another thread brings about. What is waited for is bounded by
/// construction; the limit only turns a hang into a failure.
pub(crate) fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "waited in vain for {what}"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A small deterministic generator (SplitMix64), so that a failing seed can be run again.
pub(crate) struct Seeded(pub(crate) u64);

impl Seeded {
    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
