//! Places for connections: as many as there are may be open at a time. Each costs a thread, and who
//! connects is a stranger.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How long whoever accepts is to rest when the system has no descriptors left for another
/// connection.
pub(crate) const ACCEPT_REST: Duration = Duration::from_millis(100);

/// All places. One thread gives them out.
pub(crate) struct Places {
    most: usize,
    taken: Arc<AtomicUsize>,
}

impl Places {
    /// So many.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            taken: Arc::default(),
        }
    }

    /// A place, if one is free.
    pub(crate) fn take(&self) -> Option<Place> {
        // Taken by one thread only; given back by any.
        if self.taken.load(Ordering::Acquire) >= self.most {
            return None;
        }
        self.taken.fetch_add(1, Ordering::AcqRel);
        Some(Place(Arc::clone(&self.taken)))
    }
}

/// One of the places. It is free again when this is dropped.
pub(crate) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_so_many_and_they_come_back() {
        let places = Places::new(2);
        let first = places.take().unwrap();
        let _second = places.take().unwrap();
        assert!(places.take().is_none());
        drop(first);
        assert!(places.take().is_some());
    }
}
