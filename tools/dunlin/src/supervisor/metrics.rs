//! What the supervisor tells Prometheus: who came and who did not, and every guest of its runtime
//! directory.

use std::sync::Arc;
use std::time::Duration;

use super::admission::Admission;
use crate::local::roll::roll;
use crate::metrics::exposition::Exposition;
use crate::metrics::{Source, told};

/// How long a guest may take to say how it is: a scrape waits for all of them, one by one.
const GUEST_MAX: Duration = Duration::from_millis(500);

/// Where a supervisor's metrics come from.
pub(crate) struct Told(pub(crate) Arc<Admission>);

impl Source for Told {
    fn text(&self) -> String {
        let mut exposition = Exposition::new();
        for (outcome, count) in self.0.teller.arrivals.counts() {
            exposition.sample(told::ARRIVALS, &[("outcome", outcome)], count);
        }
        // A directory that can't be read has no guests to tell of; 'dunlin status' says why.
        let roll = roll(&self.0.runtime, GUEST_MAX).unwrap_or_default();
        for guest in &roll.guests {
            exposition.guest(guest);
        }
        exposition.text()
    }
}
