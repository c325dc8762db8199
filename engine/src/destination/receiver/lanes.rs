//! The lanes' side: tokens, grants, letting lanes in, and a thread for each.

use super::*;

pub(super) fn prepare_all<G: IncomingGuest>(
    endpoint: &dyn DestinationEndpoint,
    guest: &G,
) -> Result<Vec<Grant>, LaneError> {
    guest
        .memory()
        .lane_map()
        .whole()
        .into_iter()
        .map(|range| endpoint.prepare(range))
        .collect()
}

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
    inputs: SyncSender<Input>,
) -> std::io::Result<()> {
    let lanes = u16::try_from(tickets.len()).unwrap_or(u16::MAX);
    let cpus = lane_cpus(&settings.cpus, lanes, hello.offer().vcpus);
    let peer_timeout = settings.peer_timeout;
    let limit = Deadline::after(settings.session_limit);
    let inside = scope.clone();
    let accept = move || {
        for _ in 0..lanes {
            let accepted = endpoint.accept_lane(&tickets, Deadline::after(peer_timeout));
            let started = accepted.and_then(|lane| {
                let number = lane.number();
                let cpu = cpus.get(usize::from(number.0)).copied().flatten();
                let inputs = inputs.clone();
                let name = format!("dunlin-{}", number.0);
                inside
                    .spawn(name, move || serve(lane, cpu, limit, &inputs))
                    .map_err(|source| LaneError::System {
                        lane: number,
                        doing: "starting its thread",
                        source,
                    })
            });
            if let Err(error) = started {
                let _ = inputs.send(Input::LaneFailed(error));
                return;
            }
        }
    };
    scope.spawn("dunlin-accept", accept)?;
    Ok(())
}

/// One lane's thread: takes what arrives, tells of each fence.
///
/// An idle lane is in order for as long as the session may last: a round may hold nothing for it,
/// and whether the source is alive is for control to notice, which then stops the lanes.
pub(super) fn serve(
    mut lane: Box<dyn DestinationLane>,
    cpu: Option<usize>,
    limit: Deadline,
    inputs: &SyncSender<Input>,
) {
    if let Some(cpu) = cpu {
        pin_current_thread(cpu);
    }
    loop {
        let input = match lane.next_fence(limit) {
            Ok(number) => Input::Fence {
                lane: lane.number(),
                number,
                counters: lane.counters(),
            },
            Err(error) => Input::LaneFailed(error),
        };
        let last = matches!(input, Input::LaneFailed(_));
        if inputs.send(input).is_err() || last {
            return;
        }
    }
}
