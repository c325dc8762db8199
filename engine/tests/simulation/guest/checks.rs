//! What a guest tells of its pages: which were written, and what they look like.

use std::sync::atomic::Ordering;
use std::time::Duration;

use dunlin_engine::dirty::{DirtyBitmap, DirtySource};
use dunlin_engine::guest::{GuestError, PageCheck, PageClaim, SelfCheck};
use dunlin_transports::deadline::Deadline;
use dunlin_transports::memory::PageNumber;
use dunlin_transports::runtime;

use super::Machine;
use crate::ledger::page_content;

/// KVM's manual protect: `collect` copies the bits and clears none, `rearm` clears those given.
pub(super) struct Tracker(pub(super) Machine);

impl DirtySource for Tracker {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn start(&self) -> Result<(), GuestError> {
        Ok(())
    }

    fn collect(&self, into: &mut DirtyBitmap) -> Result<(), GuestError> {
        runtime::step();
        for (word, collected) in self.0.0.dirty.iter().zip(into.words_mut()) {
            *collected |= word.load(Ordering::SeqCst);
        }
        Ok(())
    }

    fn rearms_on_collect(&self) -> bool {
        false
    }

    fn rearm(&self, first: PageNumber, words: &[u64]) -> Result<(), GuestError> {
        runtime::step();
        let words_from = (first.0 / 64) as usize;
        for (word, forget) in self.0.0.dirty[words_from..].iter().zip(words) {
            word.fetch_and(!forget, Ordering::SeqCst);
        }
        runtime::step();
        Ok(())
    }

    fn stop(&self) -> Result<(), GuestError> {
        Ok(())
    }
}

/// The guest's own checks: it knows the generation of each of its pages.
pub(super) struct OwnPages(pub(super) Machine);

impl SelfCheck for OwnPages {
    fn claims(&self, first: PageNumber, pages: u32) -> Vec<PageClaim> {
        let claim = |page: u64| PageClaim {
            digest: xxhash_rust::xxh3::xxh3_64(&self.0.page(page)),
            generation: Some(self.0.0.generations[page as usize].load(Ordering::SeqCst)),
            settled: true,
        };
        (first.0..first.0 + u64::from(pages)).map(claim).collect()
    }

    fn check(&self, first: PageNumber, claims: &[PageClaim], deadline: Deadline) -> PageCheck {
        let mut found = PageCheck {
            checked: claims.len() as u64,
            ..PageCheck::default()
        };
        for (page, claim) in (first.0..).zip(claims) {
            loop {
                let known = self.0.0.generations[page as usize].load(Ordering::SeqCst);
                let bytes = self.0.page(page);
                let claimed = claim.generation.unwrap_or(0);
                if bytes == page_content(page, known) && known >= claimed {
                    let same = xxhash_rust::xxh3::xxh3_64(&bytes) == claim.digest;
                    match known == claimed {
                        true if same => found.same += 1,
                        true => {
                            found.different += 1;
                            found
                                .examples
                                .push((PageNumber(page), "another digest".to_owned()));
                        }
                        false => found.later += 1,
                    }
                    break;
                }
                // It may just be being written.
                if deadline.passed() {
                    found.different += 1;
                    let words = format!("generation {known}, {claimed} is claimed");
                    found.examples.push((PageNumber(page), words));
                    break;
                }
                runtime::sleep(Duration::from_micros(100));
            }
        }
        found
    }
}
