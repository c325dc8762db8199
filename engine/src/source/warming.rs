//! Registers memory with the device ahead of the lanes, so that no registration is left for the
//! pause: what the guest ever touched, and nothing else, since registering makes memory present
//! (law 5).

use dunlin_transports::lane::SourceEndpoint;

use crate::chunk::{CHUNK_PAGES, ChunkCursor, ChunkPlan};
use crate::layout::Layout;
use crate::untouched::Untouched;

/// Goes through all memory once. Where registering fails, the lane that needs it fails too, and says
/// why.
///
/// No proof of untouchedness is needed here, so nothing has to be armed: a page that is touched
/// behind this one's back is registered when a lane puts it.
pub(super) fn warm(
    endpoint: &dyn SourceEndpoint,
    layout: &Layout,
    untouched: &Untouched,
    is_stopped: impl Fn() -> bool,
) {
    let cursor = ChunkCursor::new(ChunkPlan::new(layout, CHUNK_PAGES));
    while let Some(chunk) = cursor.claim() {
        let run = chunk.run();
        let mut untouched_pages = 0;
        untouched.for_each_range(run, |range| untouched_pages += u64::from(range.pages));
        let is_touched = untouched_pages < u64::from(run.pages);
        if is_stopped() || (is_touched && endpoint.warm(run).is_err()) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use dunlin_transports::deadline::Deadline;
    use dunlin_transports::lane::{Grant, LaneError, LaneNumber, LaneTicket, SourceLane};
    use dunlin_transports::memory::{HostMapping, OwnedMapping, PAGE_BYTES, PageNumber, Run};

    use super::*;
    use crate::layout::{Backing, GuestAddress, GuestMemory, Region, RegionShape};

    /// Notes what is warmed, up to a number of times.
    struct Noting {
        warmed: Mutex<Vec<u64>>,
        limit: usize,
    }

    impl SourceEndpoint for Noting {
        fn transport(&self) -> &'static str {
            "noting"
        }

        fn mechanism(&self) -> String {
            String::new()
        }

        fn prepare(&self, _range: Run) -> Result<(), LaneError> {
            Ok(())
        }

        fn retire(&self, _range: Run) -> Result<(), LaneError> {
            Ok(())
        }

        fn accept_grants(&self, _grants: &[Grant]) -> Result<(), LaneError> {
            Ok(())
        }

        fn warm(&self, range: Run) -> Result<(), LaneError> {
            let mut warmed = self.warmed.lock().unwrap();
            if warmed.len() == self.limit {
                return Err(LaneError::Stopped(LaneNumber(0)));
            }
            warmed.push(range.first.0);
            Ok(())
        }

        fn open_lane(
            &self,
            ticket: &LaneTicket,
            _deadline: Deadline,
        ) -> Result<Box<dyn SourceLane>, LaneError> {
            Err(LaneError::Stopped(ticket.number))
        }

        fn stop(&self) {}
    }

    /// Memory of four chunks, of which the second and the last have a page that was touched.
    fn warmed(limit: usize, is_stopped: bool) -> Vec<u64> {
        let bytes = 4 * u64::from(CHUNK_PAGES) * PAGE_BYTES;
        let mapping: Arc<dyn HostMapping> = Arc::new(OwnedMapping::new(bytes).unwrap());
        let shape = RegionShape {
            address: GuestAddress(0),
            bytes,
            backing: Backing::Anonymous,
            backing_page_bytes: PAGE_BYTES,
        };
        let region = Region {
            file: None,
            file_offset: 0,
            guest_mapping: Arc::clone(&mapping),
            lane_mapping: mapping,
        };
        let layout = Layout::new(1, vec![shape]).unwrap();
        let memory = GuestMemory::new(layout, vec![region]).unwrap();
        for chunk in [1, 3] {
            let page = Run {
                first: PageNumber(chunk * u64::from(CHUNK_PAGES) + 7),
                pages: 1,
            };
            let bytes = [1; PAGE_BYTES as usize];
            memory.lane_map().copy_in(page, &bytes).unwrap();
        }
        let endpoint = Noting {
            warmed: Mutex::default(),
            limit,
        };
        let untouched = Untouched::new(&memory);
        warm(&endpoint, memory.layout(), &untouched, || is_stopped);
        endpoint.warmed.into_inner().unwrap()
    }

    #[test]
    fn what_was_never_touched_is_left_alone() {
        let chunk = u64::from(CHUNK_PAGES);
        assert_eq!(warmed(usize::MAX, false), [chunk, 3 * chunk]);
    }

    #[test]
    fn a_refusal_or_a_stop_ends_it() {
        assert_eq!(warmed(1, false), [u64::from(CHUNK_PAGES)]);
        assert!(warmed(usize::MAX, true).is_empty());
    }
}
