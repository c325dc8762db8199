//! The source's endpoint: connects lanes and shows their tickets.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::compression::{CodecSet, Compression};
use super::mechanism::MechanismNote;
use super::preamble::{ANSWER_BYTES, Answer, Preamble};
use super::sending::{BatchForm, SendingLane};
use super::sockets::LaneSockets;
use super::{Options, socket, stream};
use crate::deadline::Deadline;
use crate::lane::{self, Grant, LaneError, LaneNumber, LaneTicket, SourceLane};
use crate::memory::{MemoryMap, Run};
use crate::prepared::SourceRanges;

/// The name of a lane where an endpoint's call concerns none.
const NO_LANE: LaneNumber = LaneNumber(0);

/// The source's side of a session's lanes.
pub struct SourceEndpoint {
    peer: SocketAddr,
    memory: MemoryMap,
    options: Options,
    mechanism: Arc<MechanismNote>,
    /// The destination does not take what `options` would have compressed.
    is_declined: AtomicBool,
    sockets: Arc<LaneSockets>,
    ranges: Arc<SourceRanges>,
}

impl SourceEndpoint {
    /// An endpoint whose lanes go to `peer`: the address that answered the control connection.
    pub fn new(peer: SocketAddr, memory: MemoryMap, options: Options) -> Self {
        Self {
            peer,
            memory,
            mechanism: Arc::new(MechanismNote::probe(options.mechanism)),
            is_declined: AtomicBool::new(false),
            options,
            sockets: Arc::default(),
            ranges: Arc::default(),
        }
    }

    /// Connects and shows the ticket. Also returns which compressed frames the lane takes.
    fn connect(
        &self,
        ticket: &LaneTicket,
        deadline: Deadline,
    ) -> Result<(Arc<TcpStream>, CodecSet), LaneError> {
        let lane = ticket.number;
        let begun = Instant::now();
        let fail = |doing, source: std::io::Error| {
            if self.sockets.is_stopped() {
                LaneError::Stopped(lane)
            } else if source.kind() == ErrorKind::TimedOut {
                LaneError::Stalled {
                    lane,
                    doing,
                    waited: begun.elapsed(),
                }
            } else if socket::is_closed(&source) {
                LaneError::Closed(lane)
            } else {
                LaneError::System {
                    lane,
                    doing,
                    source,
                }
            }
        };
        let unreachable = |source| {
            if self.sockets.is_stopped() {
                return LaneError::Stopped(lane);
            }
            LaneError::Connect {
                lane,
                peer: self.peer.to_string(),
                source,
            }
        };
        let connection = socket::unconnected(self.peer, &self.options).map_err(unreachable)?;
        let connection = Arc::new(connection);
        if !self.sockets.add(&connection) {
            return Err(LaneError::Stopped(lane));
        }
        socket::connect(&connection, self.peer, &self.options, deadline).map_err(unreachable)?;
        let preamble = Preamble::lane(ticket).encode();
        socket::write_all(&connection, &preamble, deadline)
            .map_err(|source| fail("introducing the lane", source))?;
        let mut answer = [0; ANSWER_BYTES];
        socket::read_exact(&connection, &mut answer, deadline)
            .map_err(|source| fail("waiting to be let in", source))?;
        let Some(answer) = Answer::decode(answer) else {
            return Err(LaneError::Protocol {
                lane,
                violation: format!("the answer to a preamble was {answer:02x?}"),
            });
        };
        match (answer, answer.reason()) {
            (_, Some(reason)) => Err(LaneError::Refused { lane, reason }),
            (Answer::Accepted { takes }, None) => Ok((connection, takes)),
            (_, None) => Ok((connection, CodecSet::default())),
        }
    }

    /// How a lane compresses, whose destination takes this.
    fn compression(&self, takes: CodecSet) -> Compression {
        let wanted = self.options.compression;
        match wanted.codec() {
            Some(codec) if !takes.contains(codec) => {
                self.is_declined.store(true, Ordering::Relaxed);
                Compression::Off
            }
            _ => wanted,
        }
    }
}

impl lane::SourceEndpoint for SourceEndpoint {
    fn transport(&self) -> &'static str {
        "tcp"
    }

    fn mechanism(&self) -> String {
        self.options.compression.mechanism(
            &self.mechanism.words(),
            self.is_declined.load(Ordering::Relaxed),
        )
    }

    fn prepare(&self, range: Run) -> Result<(), LaneError> {
        self.memory
            .check(range)
            .map_err(|source| LaneError::Memory {
                lane: NO_LANE,
                source,
            })?;
        self.ranges.prepare(range);
        Ok(())
    }

    fn retire(&self, range: Run) -> Result<(), LaneError> {
        if self.ranges.retire(range) {
            return Ok(());
        }
        Err(LaneError::NotPrepared {
            lane: NO_LANE,
            run: range,
        })
    }

    fn accept_grants(&self, grants: &[Grant]) -> Result<(), LaneError> {
        for grant in grants {
            let lane = NO_LANE;
            self.memory
                .check(grant.range)
                .map_err(|source| LaneError::Memory { lane, source })?;
            if !grant.key.is_empty() {
                return Err(LaneError::Protocol {
                    lane,
                    violation: format!("a TCP grant with a key of {} bytes", grant.key.len()),
                });
            }
            self.ranges.grant(grant.range);
        }
        Ok(())
    }

    fn open_lane(
        &self,
        ticket: &LaneTicket,
        deadline: Deadline,
    ) -> Result<Box<dyn SourceLane>, LaneError> {
        let (connection, takes) = self.connect(ticket, deadline)?;
        let lane = ticket.number;
        let options = &self.options;
        let system = |doing, source| LaneError::System {
            lane,
            doing,
            source,
        };
        let stream = stream::open(&connection, options, &self.mechanism)
            .map_err(|source| system("setting up io_uring", source))?;
        let form = BatchForm {
            bytes: options.batch_bytes,
            compression: self.compression(takes),
        };
        let lane = SendingLane::new(
            lane,
            stream,
            connection,
            self.memory.clone(),
            Arc::clone(&self.ranges),
            Arc::clone(&self.sockets),
            form,
        );
        let lane = lane.map_err(|source| system("setting up compression", source))?;
        Ok(Box::new(lane))
    }

    fn stop(&self) {
        self.sockets.stop();
    }
}
