//! A lane and the window: what it asks before it puts a chunk, and what becomes of pages that it may
//! not put.

use dunlin_transports::lane::LaneError;

use super::{LaneFailure, LaneTally, LaneWorker, Round};
use crate::chunk::Chunk;
use crate::clock::Timestamp;
use crate::source::window::Gate;

impl LaneWorker<'_> {
    /// Waits until a chunk can be put, where memory is registered for it; on the way, has what was
    /// put in earlier portions confirmed. `false`: it was untouched, and is not registered.
    pub(super) fn pass_gate(
        &mut self,
        chunk: Chunk,
        tally: &mut LaneTally,
    ) -> Result<bool, LaneFailure> {
        let Some(window) = &self.window else {
            return Ok(true);
        };
        let lane = self.lane.number();
        loop {
            let (portion, waited) = (&mut self.portion, &mut tally.waiting);
            let look = || self.lane.look();
            match window.ask(lane, chunk.first, portion, self.is_fenced, waited, look)? {
                Gate::Open => return Ok(true),
                Gate::Unneeded => return Ok(false),
                Gate::Stopped => return Err(LaneError::Stopped(lane).into()),
                Gate::Behind(portion) => {
                    let fencing = Timestamp::now();
                    let fence = self.lane.fence()?;
                    self.lane.wait_fence(fence, self.context.peer_timeout)?;
                    tally.sending += Timestamp::now().since(fencing);
                    self.is_fenced = true;
                    self.portion = portion;
                    window.pass(lane, portion);
                }
            }
        }
    }

    /// Puts off the pages of a chunk that was touched behind the walk's back. They are collected and
    /// re-armed, so only this keeps them from being lost.
    pub(super) fn postpone(
        &mut self,
        round: &Round,
        chunk: Chunk,
        tally: &mut LaneTally,
    ) -> Result<(), LaneFailure> {
        let Some(window) = self.window.as_ref().filter(|_| round.is_first) else {
            return Err(LaneFailure::Unopened(chunk.first));
        };
        for runs in [&mut self.data, &mut self.zero] {
            window.postpone(runs);
            tally.postponed_pages += runs.iter().map(|run| u64::from(run.pages)).sum::<u64>();
            runs.clear();
        }
        Ok(())
    }
}
