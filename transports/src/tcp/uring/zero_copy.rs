//! Whether a lane's next batch is sent without a copy: rules, without a ring and without a clock.
//!
//! `IORING_OP_SENDMSG_ZC` has the network card read guest memory itself. It spares a copy, and costs
//! pinning each page and a second completion, the notification that memory may be used again. Where
//! the path to the card can't carry foreign pages (loopback, veth, a card without scatter-gather)
//! the kernel copies all the same, which costs both. So a lane tries with one batch, asks for the
//! kernel's own word (`IORING_SEND_ZC_REPORT_USAGE`, since Linux 6.2), and goes by that.
//!
//! Measured where the kernel copies (`lane_throughput --zero-copy off,auto,always`; loopback, 2 cores
//! with other work, medians of 9 passes in turns, GB/s): one lane made 1.55 without, 1.56 where it
//! tried, and 0.77 where it did not heed the kernel's word; two made 1.36, 1.36 and 0.74; one with
//! single pages apart 0.78 without, and 0.65. So trying costs nothing that shows, and not listening
//! half. What is gained where the kernel does not copy needs a real card, and was not measured.

use std::io;

use crate::tcp::ZeroCopy;
use crate::tcp::mechanism::ZeroCopyFinding;

/// The least guest memory in a batch that is sent without a copy.
///
/// The kernel's documentation (networking/msg_zerocopy.rst) puts the gain above some 10 KB. A batch
/// also takes one of [`PENDING_MAX`] places until its notification comes, which a small one is not
/// worth, and the last batches of a round are small just where a wait shows, in the pause. With 64
/// KiB a place stands for at least a sixteenth of a whole batch. Compressed batches leave from a
/// buffer of the lane's own, which it needs again at once, and have no guest memory in them.
pub(super) const GUEST_BYTES_MIN: usize = 64 << 10;

/// How many batches may wait for their notifications; what comes while so many do is copied.
///
/// What is not acknowledged is no more than the socket's send buffer, which grows to 4 MiB where
/// `net.ipv4.tcp_wmem` is as the kernel sets it: 4 batches of 1 MiB, and parts of two. 16 also
/// serve hosts whose limit was raised to 16 MiB for long links. A place costs the table of a batch
/// and its segments, 25 KiB at most, so all of them 400 KiB a lane.
pub(super) const PENDING_MAX: usize = 16;

/// What a lane knows so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing was tried.
    Untried,
    /// One batch is on its way; the others are copied until the kernel's word about it comes.
    Trying,
    /// The kernel avoids the copy.
    Avoids,
    /// Whatever the kernel says; `true`: it copies.
    Always(bool),
    /// Batches are copied, for good.
    Over,
}

/// Decides for one lane.
pub(super) struct Policy {
    state: State,
    /// As [`PENDING_MAX`], or fewer where the kernel's limit of locked memory is lower.
    pending_max: usize,
}

impl Policy {
    pub(super) fn new(wanted: ZeroCopy) -> Self {
        Self {
            state: match wanted {
                ZeroCopy::Auto => State::Untried,
                ZeroCopy::Always => State::Always(false),
                ZeroCopy::Off => State::Over,
            },
            pending_max: PENDING_MAX,
        }
    }

    /// Whether a batch with so much guest memory goes without a copy, while `pending` others wait for
    /// their notifications.
    pub(super) fn takes(&self, guest_bytes: usize, pending: usize) -> bool {
        let is_open = match self.state {
            State::Untried | State::Avoids | State::Always(_) => true,
            State::Trying | State::Over => false,
        };
        is_open && guest_bytes >= GUEST_BYTES_MIN && pending < self.pending_max
    }

    /// Such a batch was handed over.
    pub(super) fn handed_over(&mut self) {
        if self.state == State::Untried {
            self.state = State::Trying;
        }
    }

    /// The kernel's word about a batch. One copy ends it: what takes the pages' way now (a packet
    /// capture, another route) may stay.
    pub(super) fn told(&mut self, is_copied: bool) -> Option<ZeroCopyFinding> {
        let had_avoided = self.state == State::Avoids;
        match (self.state, is_copied) {
            (State::Trying, false) => {
                self.state = State::Avoids;
                Some(ZeroCopyFinding::Avoided)
            }
            (State::Trying | State::Avoids, true) => {
                self.state = State::Over;
                Some(ZeroCopyFinding::Ended {
                    had_avoided,
                    refusal: None,
                })
            }
            (State::Always(false), true) => {
                self.state = State::Always(true);
                Some(ZeroCopyFinding::Copied)
            }
            _ => None,
        }
    }

    /// The kernel refused a batch, while `pending` others waited for their notifications. These count
    /// towards the limit of locked memory: with fewer of them the next one may pass.
    pub(super) fn refused(
        &mut self,
        refusal: io::Error,
        pending: usize,
    ) -> Option<ZeroCopyFinding> {
        if pending > 0 {
            self.pending_max = self.pending_max.min(pending);
            return None;
        }
        let had_avoided = self.state == State::Avoids;
        let was_over = self.state == State::Over;
        self.state = State::Over;
        (!was_over).then_some(ZeroCopyFinding::Ended {
            had_avoided,
            refusal: Some(refusal),
        })
    }
}

/// Whether a completion says that the kernel would not do it without a copy, rather than that the
/// connection failed: an operation, a flag or a kind of socket that it does not know, or no room
/// within the limits of locked memory.
pub(super) fn is_refusal(result: i32) -> bool {
    matches!(
        -result,
        libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOMEM | libc::ENOBUFS
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const BATCH: usize = 1 << 20;

    fn trying() -> Policy {
        let mut policy = Policy::new(ZeroCopy::Auto);
        assert!(policy.takes(BATCH, 0));
        policy.handed_over();
        policy
    }

    #[test]
    fn one_batch_tries_while_the_others_are_copied() {
        let mut policy = trying();
        assert!(!policy.takes(BATCH, 1));
        assert!(!policy.takes(BATCH, 0));
        let found = policy.told(false);
        assert!(matches!(found, Some(ZeroCopyFinding::Avoided)), "{found:?}");
        assert!(policy.takes(BATCH, PENDING_MAX - 1));
        assert!(policy.told(false).is_none());
    }

    #[test]
    fn a_copy_ends_it_for_good() {
        for had_avoided in [false, true] {
            let mut policy = trying();
            if had_avoided {
                policy.told(false);
            }
            let found = policy.told(true);
            assert!(
                matches!(
                    found,
                    Some(ZeroCopyFinding::Ended { had_avoided: had, refusal: None })
                        if had == had_avoided
                ),
                "{found:?}"
            );
            // Those under way then tell nothing new.
            assert!(policy.told(true).is_none() && policy.told(false).is_none());
            assert!(!policy.takes(BATCH, 0));
        }
    }

    #[test]
    fn small_batches_and_too_many_at_once_are_copied() {
        for wanted in [ZeroCopy::Auto, ZeroCopy::Always] {
            let policy = Policy::new(wanted);
            assert!(!policy.takes(GUEST_BYTES_MIN - 1, 0));
            assert!(policy.takes(GUEST_BYTES_MIN, 0));
            assert!(!policy.takes(BATCH, PENDING_MAX));
        }
        assert!(!Policy::new(ZeroCopy::Off).takes(BATCH, 0));
    }

    #[test]
    fn a_refusal_lowers_the_number_at_once_and_then_ends_it() {
        let refusal = || io::Error::from_raw_os_error(libc::ENOMEM);
        for wanted in [ZeroCopy::Auto, ZeroCopy::Always] {
            let mut policy = Policy::new(wanted);
            policy.handed_over();
            policy.told(false);
            assert!(policy.refused(refusal(), 3).is_none());
            assert!(policy.takes(BATCH, 2) && !policy.takes(BATCH, 3));
            let found = policy.refused(refusal(), 0);
            assert!(
                matches!(
                    &found,
                    Some(ZeroCopyFinding::Ended { refusal: Some(refusal), .. })
                        if refusal.raw_os_error() == Some(libc::ENOMEM)
                ),
                "{found:?}"
            );
            assert!(!policy.takes(BATCH, 0));
            assert!(policy.refused(refusal(), 0).is_none(), "said twice");
        }
    }

    #[test]
    fn always_goes_on_where_the_kernel_copies_and_says_so_once() {
        let mut policy = Policy::new(ZeroCopy::Always);
        let found = policy.told(true);
        assert!(matches!(found, Some(ZeroCopyFinding::Copied)), "{found:?}");
        assert!(policy.told(true).is_none());
        assert!(policy.takes(BATCH, 0));
    }
}
