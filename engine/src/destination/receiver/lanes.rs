//! The lanes' side: tokens, grants, letting lanes in, confirming them, and a thread for each.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::*;

/// How many threads prepare memory at most: registering is the kernel's work for each page, and
/// threads beyond some few wait for the same locks.
pub(super) const PREPARERS_MAX: usize = 8;

/// What the source may write from the start, and how much it may have opened at once. A source that
/// can open ranges while the move runs begins with none of them.
pub(super) fn let_in<G: IncomingGuest>(
    endpoint: &dyn DestinationEndpoint,
    guest: &G,
    hello: &Hello,
    settings: &ReceiveSettings,
    shelf: &Shelf,
) -> Result<(Vec<Grant>, Option<u64>), ReceiveError> {
    if endpoint.has_registrations() {
        let guest_bytes = hello.offer().layout.bytes();
        // What is there counts, not what the source has.
        let hugetlb_bytes = guest.memory().layout().hugetlb_bytes();
        let budget = settings.pin_budget;
        let budget = budget.window_bytes(guest_bytes, hugetlb_bytes);
        let budget = budget.map_err(|error| ReceiveError::Transport(error.to_string()))?;
        if hello.message.capabilities & capability::PIN_WINDOW != 0 {
            return Ok((Vec::new(), Some(budget)));
        }
        if endpoint.confirms_before_opening() {
            return Err(ReceiveError::Transport(
                "the source does not open memory in parts, and so not behind the confirmation of \
                 its lanes, which this side's RDMA device needs"
                    .to_owned(),
            ));
        }
        if budget < guest_bytes {
            return Err(ReceiveError::Transport(format!(
                "the source does not open memory in parts, and {guest_bytes} bytes are more than \
                 this side's pin budget allows"
            )));
        }
    }
    Ok((prepare_all(endpoint, guest, shelf)?, None))
}

/// Prepares all of a guest's memory. Where that means registering it with a device, several threads
/// do it, each a piece at a time.
fn prepare_all<G: IncomingGuest>(
    endpoint: &dyn DestinationEndpoint,
    guest: &G,
    shelf: &Shelf,
) -> Result<Vec<Grant>, LaneError> {
    let whole = guest.memory().lane_map().whole();
    if !endpoint.has_registrations() {
        return whole
            .into_iter()
            .map(|range| endpoint.prepare(range))
            .collect();
    }
    let pieces = pieces(&whole);
    let next = AtomicUsize::new(0);
    let prepare = || {
        let mut recorder = shelf.registrar();
        let mut grants = Vec::new();
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            match recorder.time(Operation::Registration, || endpoint.prepare(*piece)) {
                Ok(grant) => grants.push(grant),
                Err(error) => {
                    // The others need not go on.
                    next.store(pieces.len(), Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        Ok(grants)
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let helpers = cores.min(PREPARERS_MAX).min(pieces.len()).saturating_sub(1);
    runtime::scope(|scope| {
        // One that can't be started leaves more to the others.
        let started = (0..helpers).map_while(|_| scope.spawn("dunlin-prepare", prepare).ok());
        let started: Vec<_> = started.collect();
        let mut grants = prepare()?;
        for helper in started {
            let ended = helper.join().map_err(|_| LaneError::System {
                lane: LaneNumber(0),
                doing: "preparing memory",
                source: std::io::Error::other("its thread panicked"),
            })?;
            grants.extend(ended?);
        }
        grants.sort_unstable_by_key(|grant| grant.range.first);
        Ok(grants)
    })
}

/// Cuts ranges into pieces of 1 GiB, or of more where that would make more than [`PIECES_MAX`]:
/// their grants all go into one WELCOME.
fn pieces(whole: &[Run]) -> Vec<Run> {
    let pages: u64 = whole.iter().map(|run| u64::from(run.pages)).sum();
    let piece = pages.div_ceil(PIECES_MAX).next_multiple_of(PIECE_PAGES);
    let piece = u32::try_from(piece.max(PIECE_PAGES)).unwrap_or(u32::MAX);
    let cut = |run: &Run| {
        let run = *run;
        let pieces = (0..run.pages).step_by(piece as usize);
        pieces.map(move |skipped| Run {
            first: PageNumber(run.first.0 + u64::from(skipped)),
            pages: piece.min(run.pages - skipped),
        })
    };
    whole.iter().flat_map(cut).collect()
}

/// A piece of memory that is prepared at once: 1 GiB, some 0.1 s of registering.
const PIECE_PAGES: u64 = (1 << 30) / PAGE_BYTES;

/// How many pieces one guest's memory has at most, beside one for each region. With the 1,024
/// regions of the largest layout, and some 40 bytes for each grant, they fill a third of a WELCOME.
const PIECES_MAX: u64 = 1024;

pub(super) fn issue_tickets(
    hello: &Hello,
    settings: &ReceiveSettings,
) -> Result<Vec<LaneTicket>, GuestError> {
    let lanes = hello.message.lanes.min(settings.lanes_max).max(1);
    let ticket = |number| {
        let mut token = [0; 32];
        getrandom::fill(&mut token)
            .map_err(|error| GuestError::message(format!("no random numbers: {error}")))?;
        Ok(LaneTicket {
            session: hello.session(),
            number: LaneNumber(number),
            token: LaneToken(token),
        })
    };
    (0..lanes).map(ticket).collect()
}

/// Starts the thread that lets lanes in; it starts one for each.
pub(super) fn start_lanes<'scope>(
    scope: Scope<'scope, '_>,
    endpoint: &'scope dyn DestinationEndpoint,
    tickets: Vec<LaneTicket>,
    hello: &Hello,
    settings: &ReceiveSettings,
    outlet: Outlet<'scope>,
    shelf: Shelf,
) -> std::io::Result<()> {
    let lanes = u16::try_from(tickets.len()).unwrap_or(u16::MAX);
    let cpus = lane_cpus(
        &settings.cpus,
        &endpoint.near_cpus(),
        lanes,
        hello.offer().vcpus,
    );
    let peer_timeout = settings.peer_timeout;
    let limit = Deadline::after(settings.session_limit);
    let inside = scope.clone();
    let accept = move || {
        for _ in 0..lanes {
            let accepted = endpoint.accept_lane(&tickets, Deadline::after(peer_timeout));
            let started = accepted.and_then(|mut lane| {
                let number = lane.number();
                shelf.observe_destination(lane.as_mut());
                let recorder = shelf.recorder(Track::Lane(number.0));
                // First of all: behind this the lane can be confirmed.
                let _ = outlet.inputs.send(Input::LaneOpen(number));
                let cpu = cpus.get(usize::from(number.0)).copied().flatten();
                let outlet = outlet.clone();
                let name = format!("dunlin-{}", number.0);
                inside
                    .spawn(name, move || serve(lane, cpu, limit, recorder, &outlet))
                    .map_err(|source| LaneError::System {
                        lane: number,
                        doing: "starting its thread",
                        source,
                    })
            });
            if let Err(error) = started {
                let _ = outlet.inputs.send(Input::LaneFailed(error));
                return;
            }
        }
    };
    scope.spawn("dunlin-accept", accept)?;
    Ok(())
}

/// What lanes that came to their end were made of. They end in the pause, when access is revoked, and
/// freeing a ring and a socket, or a queue pair, is for when the guest runs.
pub(super) struct EndedLanes {
    /// `None` once they may be freed.
    kept: Mutex<Option<Vec<Box<dyn DestinationLane>>>>,
}

impl EndedLanes {
    pub(super) fn new(lanes: usize) -> Self {
        Self {
            kept: Mutex::new(Some(Vec::with_capacity(lanes))),
        }
    }

    fn keep(&self, lane: Box<dyn DestinationLane>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = kept.as_mut() {
            kept.push(lane);
        }
    }

    /// Frees them; from now on each lane's thread does so itself.
    pub(super) fn free(&self) {
        let kept = self
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(kept);
    }
}

/// Where lanes' threads leave what they have to say, and in the end their lanes.
#[derive(Clone)]
pub(super) struct Outlet<'session> {
    pub(super) inputs: SyncSender<Input>,
    pub(super) ended: &'session EndedLanes,
}

/// One lane's thread: takes what arrives, tells of each fence.
///
/// An idle lane is in order for as long as the session may last: a round may hold nothing for it,
/// and whether the source is alive is for control to notice, which then stops the lanes.
pub(super) fn serve(
    mut lane: Box<dyn DestinationLane>,
    cpu: Option<usize>,
    limit: Deadline,
    mut recorder: Kept,
    outlet: &Outlet<'_>,
) {
    if let Some(cpu) = cpu {
        pin_current_thread(cpu);
    }
    loop {
        let begun = recorder.now();
        let fence = lane.next_fence(limit);
        let ended = recorder.now();
        recorder.span(SpanName::LaneReceive, begun, ended);
        record_counters(&mut recorder, lane.as_ref());
        let number = match fence {
            Ok(number) => number,
            Err(error) => {
                let _ = outlet.inputs.send(Input::LaneFailed(error));
                outlet.ended.keep(lane);
                return;
            }
        };
        let fence = Input::Fence {
            lane: lane.number(),
            number,
            counters: lane.counters(),
        };
        if outlet.inputs.send(fence).is_err() {
            return;
        }
    }
}

fn record_counters(recorder: &mut Recorder, lane: &dyn DestinationLane) {
    let (counters, device) = (lane.counters().unwrap_or_default(), lane.device_counters());
    for (counter, all) in [
        (Counter::Payload, counters.payload_bytes),
        (Counter::Wire, counters.wire_bytes),
        (Counter::Runs, counters.runs),
        (Counter::PutZero, counters.zero_pages),
        (Counter::Submissions, counters.submissions),
        (Counter::WorkRequests, device.work_requests),
        (Counter::Doorbells, device.doorbells),
        (Counter::Completions, device.completions),
    ] {
        recorder.counted(counter, all);
    }
}

impl<F: GuestFactory> Destination<'_, F> {
    pub(super) fn lane_open(&mut self, lane: LaneNumber) -> Option<Event> {
        if let Some(open) = self.open.get_mut(usize::from(lane.0)) {
            *open = true;
        }
        self.confirm_lanes()
    }

    /// Compares the lanes that the source names with those that are here, once LANES and all lanes
    /// are: the source may be told that a lane is open before this side's thread has it.
    pub(super) fn confirm_lanes(&mut self) -> Option<Event> {
        if !self.open.iter().all(|open| *open) {
            return None;
        }
        let lanes = self.identities.take()?;
        self.naming_limit = None;
        let identities = match lanes.identities(self.open.len()) {
            Ok(identities) => identities,
            Err(error) => return Some(self.failed(&error.to_string())),
        };
        for (lane, identity) in identities {
            if let Err(error) = self.endpoint.confirm(lane, identity) {
                return Some(self.failed(&error.to_string()));
            }
        }
        Some(Event::LanesConfirmed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_all_and_are_few() {
        let run = |first, pages| Run {
            first: PageNumber(first),
            pages,
        };
        let gib = PIECE_PAGES as u32;
        let cut = pieces(&[run(0, 5), run(8, 2 * gib + 1)]);
        let expected = [
            run(0, 5),
            run(8, gib),
            run(8 + PIECE_PAGES, gib),
            run(8 + 2 * PIECE_PAGES, 1),
        ];
        assert_eq!(cut, expected);
        // 15 TiB in one region: as long as a run can be.
        let cut = pieces(&[run(0, u32::MAX - 7)]);
        assert!(cut.len() as u64 <= PIECES_MAX, "{}", cut.len());
        let pages: u64 = cut.iter().map(|run| u64::from(run.pages)).sum();
        assert_eq!(pages, u64::from(u32::MAX - 7));
        assert_eq!(pieces(&[]), []);
    }
}
