//! The one suite that every transport passes, written against the traits of [`crate::lane`].
//!
//! A transport brings a [`Harness`] and gets one `#[test]` for each case:
//!
//! ```text
//! dunlin_transports::conformance_tests!(MyHarness);
//! ```
//!
//! Nothing here assumes a socket. What a transport with registrations and asynchronous transfers
//! needs is kept: ranges are prepared on both sides and grants accepted before a put, contact and
//! identities are passed on as control does, and source memory is left alone between a put and its fence unless a case is about just that.
//!
//! | room | what is in it |
//! |---|---|
//! | [`moving`] | bytes arrive, in order, and nowhere else |
//! | [`fetching`] | the destination fetches, where the transport can |
//! | [`fences`] | what a fence promises, and its deadlines |
//! | [`admission`] | who is let in |
//! | [`opening`] | ranges come and go while lanes are at work |
//! | [`ending`] | revoking, stopping, and peers that vanish |
//! | `pinned` | what this process has pinned |
//! | `session` | what the cases share: two memories, two endpoints, their lanes |

// The suite is test code that lives outside of `cfg(test)`, so that other crates can run it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::any::Any;

use crate::lane::{DestinationEndpoint, SourceEndpoint};
use crate::memory::MemoryMap;

pub mod admission;
pub mod ending;
pub mod fences;
pub mod fetching;
pub mod moving;
pub mod opening;

#[cfg(any(test, feature = "rdma"))]
mod pinned;
mod session;

#[cfg(any(test, feature = "rdma"))]
pub use pinned::Pinned;

/// Both endpoints of one session, with no lane and nothing prepared.
pub struct Pair {
    /// The source's.
    pub source: Box<dyn SourceEndpoint>,
    /// The destination's.
    pub destination: Box<dyn DestinationEndpoint>,
    /// What has to live as long as they do: an accepting thread, a device.
    pub keep: Box<dyn Any + Send>,
}

/// How a transport makes a session for a case.
pub trait Harness: Sync {
    /// The transport's name, for messages.
    fn name(&self) -> String;

    /// Why the transport can't be tested on this host; `None` when it can.
    fn unavailable(&self) -> Option<String> {
        None
    }

    /// Whether what can be compressed always is.
    fn compresses(&self) -> bool {
        false
    }

    /// Both endpoints over these memories, which have the same layout.
    fn pair(&self, source: MemoryMap, destination: MemoryMap) -> Pair;
}

/// Runs one case, or says why not.
pub fn run_case(harness: &dyn Harness, case: fn(&dyn Harness)) {
    match harness.unavailable() {
        Some(reason) => println!("skipped: {reason} ({})", harness.name()),
        None => case(harness),
    }
}

/// Makes one `#[test]` for each case of the suite, run with the given [`Harness`].
#[macro_export]
macro_rules! conformance_tests {
    (@functions ($harness:expr) $($room:ident::$case:ident)*) => {
        $(
            #[test]
            fn $case() {
                $crate::conformance::run_case(&$harness, $crate::conformance::$room::$case);
            }
        )*
    };
    ($harness:expr) => {
        $crate::conformance_tests! {
            @functions ($harness)
            moving::single_pages_arrive
            moving::a_big_run_arrives
            moving::many_scattered_runs_arrive_and_touch_nothing_else
            moving::runs_in_several_regions_arrive
            moving::zero_pages_read_as_zero
            moving::what_is_put_last_stays
            moving::counters_tell_what_was_put
            moving::random_traffic_on_many_lanes_compares_equal
            fetching::offered_pages_can_be_fetched
            fetching::what_was_not_offered_cannot_be_fetched
            fences::a_fence_covers_what_was_put_on_every_lane
            fences::fences_count_from_one
            fences::waiting_for_a_fence_ends_where_nothing_moves_and_can_be_taken_up_again
            fences::waiting_for_a_fence_lasts_while_something_moves
            fences::waiting_for_a_fence_that_was_never_sent_is_refused
            fences::next_fence_ends_at_its_deadline
            admission::a_put_outside_of_memory_is_refused
            admission::a_put_into_what_was_not_prepared_lands_nowhere
            admission::a_put_into_what_was_retired_lands_nowhere
            admission::what_was_never_prepared_cannot_be_retired
            admission::lanes_without_a_valid_ticket_are_turned_away
            admission::a_lane_that_is_not_the_one_named_over_control_writes_nothing
            admission::memory_is_not_open_beside_a_lane_that_was_not_confirmed
            admission::a_malformed_contact_is_refused
            admission::waiting_for_a_lane_ends_at_its_deadline
            admission::opening_a_lane_that_nobody_accepts_ends_at_its_deadline
            opening::a_put_into_what_this_side_retired_is_refused
            opening::a_range_is_prepared_and_granted_again
            opening::a_run_over_the_borders_of_both_sides_arrives
            opening::ranges_come_and_go_while_a_lane_puts_elsewhere
            opening::registrations_are_counted
            ending::revoking_keeps_out_what_is_under_way
            ending::revoking_stops_a_source_that_goes_on_writing
            ending::stopping_ends_a_blocked_put
            ending::stopping_ends_a_wait_for_a_fence_on_both_sides
            ending::stopping_ends_a_wait_for_a_lane_on_both_sides
            ending::a_source_that_vanishes_is_noticed
            ending::a_destination_that_vanishes_is_noticed
        }
    };
}
