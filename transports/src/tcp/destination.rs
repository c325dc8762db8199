//! The destination's endpoint: lets lanes in, and takes write access away.

use std::net::TcpStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::compression::{CodecSet, Unpacking};
use super::mechanism::MechanismNote;
use super::preamble::{self, Answer, ConnectionKind, Preamble, Refusal};
use super::receiving::ReceivingLane;
use super::sockets::LaneSockets;
use super::{Options, socket, stream};
use crate::deadline::Deadline;
use crate::lane::{self, DestinationLane, Grant, LaneError, LaneNumber, LaneTicket, LaneToken};
use crate::memory::{MemoryMap, Run};
use crate::prepared::WriteGate;

/// How often a wait for a lane looks whether the endpoint was stopped.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// The name of a lane where an endpoint's call concerns none.
const NO_LANE: LaneNumber = LaneNumber(0);

/// A connection whose preamble said that it is a lane.
#[derive(Debug)]
pub struct IncomingLane {
    /// The connection, behind its preamble.
    pub stream: TcpStream,
    /// What it said.
    pub preamble: Preamble,
}

/// The destination's side of a session's lanes.
pub struct DestinationEndpoint {
    memory: MemoryMap,
    incoming: Mutex<Receiver<IncomingLane>>,
    options: Options,
    mechanism: Arc<MechanismNote>,
    sockets: Arc<LaneSockets>,
    gate: Arc<WriteGate>,
    used: Mutex<Vec<LaneToken>>,
}

impl DestinationEndpoint {
    /// An endpoint that takes its lanes from `incoming`, where whoever accepts connections passes
    /// them on.
    pub fn new(memory: MemoryMap, incoming: Receiver<IncomingLane>, options: Options) -> Self {
        Self {
            memory,
            incoming: Mutex::new(incoming),
            mechanism: Arc::new(MechanismNote::probe(options.mechanism)),
            options,
            sockets: Arc::default(),
            gate: Arc::default(),
            used: Mutex::default(),
        }
    }

    /// Judges a lane that wants in. Accepting uses its token up.
    fn judge(&self, shown: &Preamble, tickets: &[LaneTicket]) -> Result<(), Refusal> {
        if shown.kind != ConnectionKind::Lane {
            return Err(Refusal::Kind);
        }
        if !tickets.iter().any(|ticket| ticket.session == shown.session) {
            return Err(Refusal::Session);
        }
        let expected =
            |ticket: &&LaneTicket| ticket.session == shown.session && ticket.number == shown.lane;
        let ticket = tickets.iter().find(expected).ok_or(Refusal::Lane)?;
        if !ticket.token.matches(&shown.token) {
            return Err(Refusal::Token);
        }
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.iter().any(|token| token.matches(&shown.token)) {
            return Err(Refusal::Token);
        }
        used.push(shown.token.clone());
        Ok(())
    }

    /// Makes a lane of a connection that was judged.
    fn admit(&self, incoming: IncomingLane) -> Result<Box<dyn DestinationLane>, LaneError> {
        let lane = incoming.preamble.lane;
        let system = |doing, source| LaneError::System {
            lane,
            doing,
            source,
        };
        let connection = Arc::new(incoming.stream);
        if !self.sockets.add(&connection) {
            return Err(LaneError::Stopped(lane));
        }
        socket::configure(&connection, &self.options)
            .map_err(|source| system("setting up the connection", source))?;
        let stream = stream::open(&connection, &self.options, &self.mechanism)
            .map_err(|source| system("setting up io_uring", source))?;
        let unpacking =
            Unpacking::new().map_err(|source| system("setting up compression", source))?;
        let takes = CodecSet::built_in();
        preamble::answer(&connection, Answer::Accepted { takes })
            .map_err(|source| system("letting the lane in", source))?;
        Ok(Box::new(ReceivingLane::new(
            lane,
            stream,
            unpacking,
            self.memory.clone(),
            Arc::clone(&self.gate),
            Arc::clone(&self.sockets),
            &self.options,
        )))
    }
}

impl lane::DestinationEndpoint for DestinationEndpoint {
    fn transport(&self) -> &'static str {
        "tcp"
    }

    fn mechanism(&self) -> String {
        self.mechanism.words()
    }

    fn prepare(&self, range: Run) -> Result<Grant, LaneError> {
        self.memory
            .check(range)
            .map_err(|source| LaneError::Memory {
                lane: NO_LANE,
                source,
            })?;
        if !self.gate.prepare(range) {
            return Err(LaneError::Stopped(NO_LANE));
        }
        Ok(Grant {
            range,
            key: Vec::new(),
        })
    }

    fn retire(&self, range: Run) -> Result<(), LaneError> {
        if self.gate.retire(range, || self.sockets.stop()) {
            return Ok(());
        }
        Err(LaneError::NotPrepared {
            lane: NO_LANE,
            run: range,
        })
    }

    fn accept_lane(
        &self,
        tickets: &[LaneTicket],
        deadline: Deadline,
    ) -> Result<Box<dyn DestinationLane>, LaneError> {
        let begun = Instant::now();
        let lane = tickets.first().map_or(NO_LANE, |ticket| ticket.number);
        loop {
            if self.sockets.is_stopped() {
                return Err(LaneError::Stopped(lane));
            }
            // Also where lanes that are turned away come without end.
            if deadline.passed() {
                return Err(LaneError::Stalled {
                    lane,
                    doing: "waiting for a lane",
                    waited: begun.elapsed(),
                });
            }
            let wait = deadline.remaining().min(STOP_CHECK_INTERVAL);
            let incoming = {
                let incoming = self.incoming.lock().unwrap_or_else(PoisonError::into_inner);
                incoming.recv_timeout(wait)
            };
            match incoming {
                Ok(incoming) => match self.judge(&incoming.preamble, tickets) {
                    Ok(()) => return self.admit(incoming),
                    Err(refusal) => preamble::refuse(&incoming.stream, refusal),
                },
                Err(RecvTimeoutError::Timeout) => {}
                // Nobody accepts connections any more.
                Err(RecvTimeoutError::Disconnected) => return Err(LaneError::Closed(lane)),
            }
        }
    }

    fn revoke_all(&self) -> Result<(), LaneError> {
        // In this order: no batch begins any more; those under way lose their connection; and when
        // they have ended, none is left.
        self.gate.revoke();
        self.sockets.stop();
        self.gate.wait_until_idle();
        Ok(())
    }

    fn stop(&self) {
        self.sockets.stop();
    }
}
