//! How much guest memory a side keeps registered with a device, and so pinned, at once.
//!
//! Only for transports with registrations. Both sides have a budget; the smaller one is the window
//! in which the source opens and closes ranges (docs/protocol.md).

use rustix::process::{Resource, getrlimit};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The smallest budget that can be named.
pub const PIN_BUDGET_BYTES_MIN: u64 = 8 << 20;

/// What is registered beside guest memory, at most: 256 KiB of zeros, and two pages of message buffers
/// for each of 64 lanes, which is 768 KiB. Taken off the budget, so that the process stays within the figure that was given.
const OVERHEAD_BYTES: u64 = 1 << 20;

/// What `auto` needs where the limit on locked memory binds and the guest is larger: with less, the
/// lanes would mostly wait.
const AUTO_BYTES_MIN: u64 = 64 << 20;

/// CAP_IPC_LOCK, with which RLIMIT_MEMLOCK does not bind (capabilities(7)).
const CAP_IPC_LOCK: u32 = 14;

/// What the operator says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PinBudget {
    /// What the host can spare: RLIMIT_MEMLOCK where it binds, and three quarters of the memory
    /// that is available or the guest's already. Huge pages were set aside for the guest when it was
    /// made, so pinning them takes nothing more from the host.
    #[default]
    Auto,
    /// So many bytes, [`PIN_BUDGET_BYTES_MIN`] at least.
    Bytes(u64),
    /// All of the guest.
    Unlimited,
}

/// Why memory can't be registered under a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PinBudgetError {
    /// The budget is below the smallest one.
    #[error("a pin budget of {0} bytes; {PIN_BUDGET_BYTES_MIN} bytes (8 MiB) are the least")]
    TooSmall(u64),
    /// The limit on locked memory is below the budget that was named.
    #[error(
        "a pin budget of {budget_bytes} bytes is more than may be locked here: the limit is \
         {limit_bytes} bytes (RLIMIT_MEMLOCK); name no more, or raise it with `ulimit -l unlimited`, \
         or LimitMEMLOCK=infinity in the systemd unit"
    )]
    AboveLimit {
        /// What was named.
        budget_bytes: u64,
        /// What may be locked.
        limit_bytes: u64,
    },
    /// The limit on locked memory leaves too little.
    #[error(
        "memory can't be registered: the limit on locked memory is {0} bytes (RLIMIT_MEMLOCK), \
         {AUTO_BYTES_MIN} bytes (64 MiB) are needed at least; raise it with `ulimit -l unlimited`, \
         or LimitMEMLOCK=infinity in the systemd unit"
    )]
    LockedMemory(u64),
}

/// What a host offers, for [`PinBudget::Auto`].
#[derive(Clone, Copy, Debug)]
struct Offer {
    /// RLIMIT_MEMLOCK, where it binds.
    locked_bytes_max: Option<u64>,
    /// What can be had without swapping, and what this process has in memory already. Neither holds
    /// hugetlb pages.
    spare_bytes: u64,
}

impl PinBudget {
    /// How many bytes of a guest of `guest_bytes`, `hugetlb_bytes` of which are hugetlb pages on this
    /// side, may be registered at once in this process.
    ///
    /// # Errors
    ///
    /// When a budget is too small, or this host's limit on locked memory is.
    pub fn window_bytes(self, guest_bytes: u64, hugetlb_bytes: u64) -> Result<u64, PinBudgetError> {
        self.window(guest_bytes, hugetlb_bytes, Offer::of_this_host)
    }

    fn window(
        self,
        guest_bytes: u64,
        hugetlb_bytes: u64,
        offer: impl FnOnce() -> Offer,
    ) -> Result<u64, PinBudgetError> {
        let budget = match self {
            Self::Unlimited => return Ok(u64::MAX),
            Self::Bytes(bytes) if bytes < PIN_BUDGET_BYTES_MIN => {
                return Err(PinBudgetError::TooSmall(bytes));
            }
            // Else it would be seen in the middle of the move, once so much was registered. A guest
            // that is smaller never comes so far.
            Self::Bytes(bytes) => {
                let most = bytes.min(guest_bytes.saturating_add(OVERHEAD_BYTES));
                match offer().locked_bytes_max {
                    Some(limit_bytes) if limit_bytes < most => {
                        return Err(PinBudgetError::AboveLimit {
                            budget_bytes: bytes,
                            limit_bytes,
                        });
                    }
                    _ => bytes,
                }
            }
            Self::Auto => {
                let offer = offer();
                let needed = guest_bytes
                    .saturating_add(OVERHEAD_BYTES)
                    .min(AUTO_BYTES_MIN);
                if let Some(limit) = offer.locked_bytes_max.filter(|limit| *limit < needed) {
                    return Err(PinBudgetError::LockedMemory(limit));
                }
                // At least the smallest: a host with next to no memory left is in trouble anyway.
                let spare = (offer.spare_bytes / 4 * 3).max(PIN_BUDGET_BYTES_MIN);
                let spare = spare.saturating_add(hugetlb_bytes);
                spare.min(offer.locked_bytes_max.unwrap_or(u64::MAX))
            }
        };
        Ok(budget.saturating_sub(OVERHEAD_BYTES))
    }
}

/// This process's limit on locked memory, in bytes, where it binds.
pub fn locked_bytes_max() -> Option<u64> {
    Offer::of_this_host().locked_bytes_max
}

impl Offer {
    fn of_this_host() -> Self {
        let limit = getrlimit(Resource::Memlock).current;
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let available = kibibytes(&meminfo, "MemAvailable:").unwrap_or(0);
        // A guest's memory may be mapped twice, and then counts twice: better too little.
        let resident = kibibytes(&status, "VmRSS:").unwrap_or(0) / 2;
        Self {
            locked_bytes_max: limit.filter(|_| !may_lock(&status)),
            spare_bytes: available.saturating_add(resident),
        }
    }
}

/// Whether the effective capabilities in `/proc/PID/status` let a process lock what it wants.
fn may_lock(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    effective.is_some_and(|bits| bits >> CAP_IPC_LOCK & 1 == 1)
}

/// A line's value in files of /proc, in bytes.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number = line.split_whitespace().next()?.parse::<u64>().ok()?;
    number.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn auto(guest: u64, locked: Option<u64>, spare: u64) -> Result<u64, PinBudgetError> {
        PinBudget::Auto.window(guest, 0, || Offer {
            locked_bytes_max: locked,
            spare_bytes: spare,
        })
    }

    #[test]
    fn auto_is_the_smaller_of_what_may_be_locked_and_what_can_be_spared() {
        assert_eq!(auto(GIB, None, 4 * GIB), Ok(3 * GIB - MIB));
        assert_eq!(auto(GIB, Some(100 * MIB), 4 * GIB), Ok(99 * MIB));
        assert_eq!(auto(GIB, Some(64 * MIB), 4 * GIB), Ok(63 * MIB));
        assert_eq!(
            auto(GIB, Some(64 * MIB - 1), 4 * GIB),
            Err(PinBudgetError::LockedMemory(64 * MIB - 1))
        );
        // A small guest needs no more than itself.
        assert_eq!(auto(20 * MIB, Some(21 * MIB), 4 * GIB), Ok(20 * MIB));
        assert!(auto(20 * MIB, Some(21 * MIB - 1), 4 * GIB).is_err());
        // Little memory left is no reason to refuse.
        assert_eq!(auto(GIB, None, 0), Ok(7 * MIB));
    }

    /// A host that gave its memory to hugetlb has little that is available, and pins what it set aside.
    #[test]
    fn huge_pages_are_not_spared_but_they_are_locked() {
        let auto = |guest, hugetlb, locked, spare| {
            PinBudget::Auto.window(guest, hugetlb, || Offer {
                locked_bytes_max: locked,
                spare_bytes: spare,
            })
        };
        assert_eq!(auto(64 * GIB, 64 * GIB, None, 0), Ok(64 * GIB + 7 * MIB));
        assert_eq!(auto(3 * GIB, 2 * GIB, None, GIB), Ok(2816 * MIB - MIB));
        assert_eq!(auto(2 * GIB, 2 * GIB, Some(GIB), 0), Ok(GIB - MIB));
        assert!(auto(2 * GIB, 2 * GIB, Some(MIB), 0).is_err());
        assert_eq!(auto(GIB, u64::MAX, None, GIB), Ok(u64::MAX - MIB));
        let named = PinBudget::Bytes(GIB).window(2 * GIB, 2 * GIB, || Offer {
            locked_bytes_max: None,
            spare_bytes: 0,
        });
        assert_eq!(named, Ok(GIB - MIB));
    }

    #[test]
    fn what_is_named_has_to_be_allowed() {
        let named = |budget: u64, guest: u64, limit: Option<u64>| {
            PinBudget::Bytes(budget).window(guest, 0, || Offer {
                locked_bytes_max: limit,
                spare_bytes: 0,
            })
        };
        assert_eq!(named(GIB, 4 * GIB, None), Ok(GIB - MIB));
        assert_eq!(named(GIB, 4 * GIB, Some(GIB)), Ok(GIB - MIB));
        let refused = PinBudgetError::AboveLimit {
            budget_bytes: GIB,
            limit_bytes: GIB - 1,
        };
        assert_eq!(named(GIB, 4 * GIB, Some(GIB - 1)), Err(refused));
        let words = refused.to_string();
        for word in [
            "1073741824 bytes",
            "1073741823 bytes (RLIMIT_MEMLOCK)",
            "`ulimit -l unlimited`",
        ] {
            assert!(words.contains(word), "{words}");
        }
        // A guest that never needs so much.
        assert_eq!(named(GIB, 20 * MIB, Some(21 * MIB)), Ok(GIB - MIB));
        assert!(named(GIB, 20 * MIB, Some(21 * MIB - 1)).is_err());
    }

    #[test]
    fn what_is_named_is_taken_as_it_is() {
        let named = |bytes| {
            PinBudget::Bytes(bytes).window(GIB, 0, || Offer {
                locked_bytes_max: None,
                spare_bytes: 0,
            })
        };
        assert_eq!(named(8 * MIB), Ok(7 * MIB));
        assert_eq!(named(2 * GIB), Ok(2 * GIB - MIB));
        assert_eq!(
            named(8 * MIB - 1),
            Err(PinBudgetError::TooSmall(8 * MIB - 1))
        );
        assert_eq!(PinBudget::Unlimited.window_bytes(GIB, 0), Ok(u64::MAX));
    }

    #[test]
    fn the_kernels_words_are_read() {
        let status = "VmRSS:\t     2048 kB\nCapEff:\t0000000000004000\n";
        assert!(may_lock(status));
        assert!(!may_lock("CapEff:\t00000000ffffbfff\n") && !may_lock(""));
        assert_eq!(kibibytes(status, "VmRSS:"), Some(2 * MIB));
        assert_eq!(kibibytes("MemAvailable: x kB", "MemAvailable:"), None);
        // On the host that runs this, there is something to spare.
        assert!(Offer::of_this_host().spare_bytes > 0);
    }
}
