//! A delay, planted for the test that must find it: in the part of the pause that it is in, and in
//! no other. Only with the feature `planted-delays`; without it, nothing is here and nothing waits.
//!
//! The part is named by the side that it delays and its name in the receipt, as in
//! `source:save-state`; what is on the link is delayed by the side that waits for it.

#[cfg(feature = "planted-delays")]
mod delays {
    use std::sync::{Mutex, PoisonError};
    use std::time::Duration;

    static PLANTED: Mutex<Option<(String, Duration)>> = Mutex::new(None);

    /// From now on this part, and no other, is so much longer.
    pub fn plant(part: &str, delay: Duration) {
        let mut planted = PLANTED.lock().unwrap_or_else(PoisonError::into_inner);
        *planted = Some((part.to_owned(), delay));
    }

    pub(crate) fn delay(part: &str) {
        let planted = PLANTED.lock().unwrap_or_else(PoisonError::into_inner);
        let delay = planted.as_ref().filter(|(planted, _)| planted == part);
        let delay = delay.map(|(_, delay)| *delay);
        drop(planted);
        if let Some(delay) = delay {
            std::thread::sleep(delay);
        }
    }
}

#[cfg(feature = "planted-delays")]
pub(crate) use delays::delay;
#[cfg(feature = "planted-delays")]
pub use delays::plant;

/// Nothing is planted.
#[cfg(not(feature = "planted-delays"))]
#[inline(always)]
pub(crate) fn delay(_part: &str) {}
