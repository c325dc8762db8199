//! One connected queue pair: its completion queues, its messages, and how it ends.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::outbox::Window;
use super::verbs::{
    Access, Completion, CompletionChannel, CompletionQueue, ConnectionId, DeviceKind, EventKind,
    LocalPiece, MemoryRegion, ProtectionDomain, QueuePair, QueuePairShape, RegisterError, Transfer,
};
use super::verbs::{DeviceEvent, INLINE_BYTES_MAX};
use super::watch::Watch;
use super::wire::{MESSAGE_BYTES, Message};
use crate::deadline::Deadline;
use crate::lane::{LaneError, LaneNumber};
use crate::memory::{HostMapping, MemoryMap, OwnedMapping, PAGE_BYTES, PageNumber, Run};

/// How many fences may be on their way or unanswered at a time, on one lane. The engine has one or
/// two; this many buffers for them wait at the destination, so that no fence finds none.
pub(super) const FENCES_IN_FLIGHT_MAX: u32 = 64;

/// Bytes of a message's place in its buffer: a cache line.
const SLOT_BYTES: usize = 64;

/// For how long a failed request's cause is waited for. It is on its way: the kernel reports it and
/// the failure one after the other.
const CAUSE_LIMIT: Duration = Duration::from_millis(100);

const _: () = assert!(FENCES_IN_FLIGHT_MAX as usize * SLOT_BYTES <= PAGE_BYTES as usize);
const _: () = assert!(MESSAGE_BYTES == INLINE_BYTES_MAX);

/// Registered places for messages, two pages for each lane at either side: one of those that come,
/// and one of those that go where the device takes none in the request itself. Both are pinned
/// whether the second is used or not.
struct MessageBuffer {
    memory: MemoryMap,
    region: MemoryRegion,
    outgoing: Mutex<[u8; PAGE_BYTES as usize]>,
}

impl MessageBuffer {
    fn new(domain: &Arc<ProtectionDomain>) -> io::Result<Self> {
        let mapping: Arc<dyn HostMapping> = Arc::new(OwnedMapping::new(2 * PAGE_BYTES)?);
        let memory = MemoryMap::new(vec![mapping]).map_err(io::Error::other)?;
        let range = Run {
            first: PageNumber(0),
            pages: 2,
        };
        let region = MemoryRegion::register(domain, &memory, range, Access::Receive);
        let region = region.map_err(|error| match error {
            RegisterError::Memory(error) => io::Error::other(error),
            RegisterError::System(error) => error,
        })?;
        Ok(Self {
            memory,
            region,
            outgoing: Mutex::new([0; PAGE_BYTES as usize]),
        })
    }

    fn place(&self, page: u64, slot: u64) -> u64 {
        let slot = slot % u64::from(FENCES_IN_FLIGHT_MAX);
        self.region.address() + page * PAGE_BYTES + slot * SLOT_BYTES as u64
    }

    /// What came into a slot.
    fn read(&self, slot: u64) -> Option<Message> {
        let mut page = [0; PAGE_BYTES as usize];
        let run = Run {
            first: PageNumber(0),
            pages: 1,
        };
        self.memory.copy_out(run, &mut page).ok()?;
        let at = usize::try_from(slot).ok()?.checked_mul(SLOT_BYTES)?;
        Message::read(page.get(at..at + MESSAGE_BYTES)?)
    }

    /// Writes a message into the page of those that go; the others there stay as they are.
    fn write(&self, slot: u64, message: &[u8; MESSAGE_BYTES]) -> io::Result<()> {
        let slot = (slot % u64::from(FENCES_IN_FLIGHT_MAX)) as usize;
        let mut page = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        let place = page.iter_mut().skip(slot * SLOT_BYTES);
        place.zip(message).for_each(|(to, from)| *to = *from);
        let run = Run {
            first: PageNumber(1),
            pages: 1,
        };
        self.memory.copy_in(run, &*page).map_err(io::Error::other)
    }
}

/// A lane's queue pair before it is connected.
pub(super) struct Parts {
    pub(super) pair: QueuePair,
    sends: Arc<CompletionQueue>,
    receives: Arc<CompletionQueue>,
    channel: Arc<CompletionChannel>,
    messages: MessageBuffer,
}

impl Parts {
    /// Makes a queue pair that takes so many requests, and all that belongs to it.
    pub(super) fn new(domain: &Arc<ProtectionDomain>, requests: u32) -> io::Result<Self> {
        let limits = domain.device().limits();
        let shape = QueuePairShape {
            sends: requests.min(limits.requests_max),
            receives: FENCES_IN_FLIGHT_MAX.min(limits.requests_max),
            inline_bytes: INLINE_BYTES_MAX as u32,
        };
        let channel = CompletionChannel::new(domain.device())?;
        // One for each kind: rxe was seen to change the order of sends' and receives' completions
        // on one queue. Each has room for all requests, since a queue pair that fails completes all
        // that wait, whether asked to or not.
        let sends = CompletionQueue::new(&channel, shape.sends.min(limits.completions_max))?;
        let receives = CompletionQueue::new(&channel, shape.receives.min(limits.completions_max))?;
        Ok(Self {
            pair: QueuePair::new(domain, &sends, &receives, shape)?,
            sends,
            receives,
            channel,
            messages: MessageBuffer::new(domain)?,
        })
    }

    /// Posts the receives; the pair has to be in INIT.
    pub(super) fn post_receives(&self) -> io::Result<()> {
        for id in 0..u64::from(FENCES_IN_FLIGHT_MAX) {
            self.pair.post_receive(
                id,
                self.messages.place(0, id),
                MESSAGE_BYTES as u32,
                self.messages.region.local_key(),
            )?;
        }
        Ok(())
    }
}

/// What is known of a queue pair once it is connected.
pub(super) struct Connected {
    /// The lane's identity.
    pub(super) identity: Vec<u8>,
    /// How much may be under way on it.
    pub(super) window: Window,
}

/// One connected queue pair.
pub(super) struct Connection {
    number: LaneNumber,
    parts: Parts,
    id: ConnectionId,
    identity: Vec<u8>,
    window: Window,
    watch: Arc<Watch>,
    /// The peer ended the connection.
    closed: AtomicBool,
    /// The queue pair is ended.
    ended: AtomicBool,
    /// Receives that are posted and have not completed.
    receives: AtomicU32,
    /// Requests that are posted, ask for their completion, and have not completed. Below zero where
    /// silent requests completed too, because they failed.
    awaited: AtomicI64,
    /// The peer may write: the lane was confirmed.
    confirmed: AtomicBool,
}

impl Connection {
    pub(super) fn new(
        number: LaneNumber,
        parts: Parts,
        id: ConnectionId,
        connected: Connected,
        watch: Arc<Watch>,
    ) -> Arc<Self> {
        Arc::new(Self {
            number,
            parts,
            id,
            identity: connected.identity,
            window: connected.window,
            watch,
            closed: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            receives: AtomicU32::new(FENCES_IN_FLIGHT_MAX),
            awaited: AtomicI64::new(0),
            confirmed: AtomicBool::new(false),
        })
    }

    pub(super) fn number(&self) -> LaneNumber {
        self.number
    }

    pub(super) fn pair(&self) -> &QueuePair {
        &self.parts.pair
    }

    pub(super) fn identity(&self) -> &[u8] {
        &self.identity
    }

    pub(super) fn window(&self) -> Window {
        self.window
    }

    /// Lets the peer write what is prepared, once; `false` when that was done before. Over iWARP the
    /// pair is open already, and it is the endpoint that has nothing prepared before.
    pub(super) fn let_peer_write(&self, kind: DeviceKind) -> io::Result<bool> {
        if self.confirmed.swap(true, Ordering::SeqCst) {
            return Ok(false);
        }
        if kind == DeviceKind::InfiniBand {
            self.parts.pair.let_peer_write(true)?;
        }
        Ok(true)
    }

    /// Whether the lane was confirmed.
    pub(super) fn is_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::SeqCst)
    }

    /// Ends the queue pair, so that nothing of the peer's is carried out any more. May be called
    /// from any thread, and again.
    ///
    /// # Errors
    ///
    /// The device's. One that is gone carries nothing out either; but that is not known from here.
    pub(super) fn end_pair(&self) -> io::Result<()> {
        self.parts.pair.end()?;
        self.ended.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Whether the device said that the queue pair is ended.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Ends the queue pair, and tells the peer. May be called from any thread, and again.
    pub(super) fn end(&self) {
        // Whoever has to know asks whether it has ended.
        let _ = self.end_pair();
        self.id.disconnect();
    }

    /// Whether every receive has completed, which all do once the pair is ended. The device carries
    /// a pair's work out in order, so it is through then with whatever had come from the peer: a
    /// software device may still have copied the bytes of a packet when `end` returned. The
    /// receives' completions are lost to the lane, which has ended.
    pub(super) fn is_drained(&self) -> bool {
        let looked = self.poll_receives(|_| ());
        looked.is_ok() && self.receives.load(Ordering::SeqCst) == 0
    }

    /// Takes completed requests, in order.
    pub(super) fn poll_sends(&self, take: impl FnMut(Completion)) -> io::Result<usize> {
        let taken = self.parts.sends.poll(take)?;
        let count = i64::try_from(taken).unwrap_or(i64::MAX);
        self.awaited.fetch_sub(count, Ordering::SeqCst);
        Ok(taken)
    }

    /// So many requests that ask for their completion are about to be posted.
    pub(super) fn await_sends(&self, count: u32) {
        self.awaited.fetch_add(count.into(), Ordering::SeqCst);
    }

    /// Whether what was posted has arrived at the peer (over iWARP: is TCP's to send). Completions
    /// are lost to the lane: for when it is to be ended.
    pub(super) fn is_sent(&self) -> bool {
        let looked = self.poll_sends(|_| ());
        looked.is_err() || self.awaited.load(Ordering::SeqCst) <= 0
    }

    /// Takes completed receives, in order.
    pub(super) fn poll_receives(&self, take: impl FnMut(Completion)) -> io::Result<usize> {
        let taken = self.parts.receives.poll(take)?;
        let count = u32::try_from(taken).unwrap_or(u32::MAX);
        self.receives.fetch_sub(count, Ordering::SeqCst);
        Ok(taken)
    }

    /// The message of a completed receive; `None` when it is none of the protocol's.
    pub(super) fn message(&self, received: Completion) -> Option<Message> {
        let is_whole = received.bytes as usize == MESSAGE_BYTES
            && received.id < u64::from(FENCES_IN_FLIGHT_MAX);
        is_whole.then(|| self.parts.messages.read(received.id))?
    }

    /// Makes a receive's slot ready for the next message.
    pub(super) fn post_receive(&self, id: u64) -> io::Result<()> {
        self.receives.fetch_add(1, Ordering::SeqCst);
        let posted = self.parts.pair.post_receive(
            id,
            self.parts.messages.place(0, id),
            MESSAGE_BYTES as u32,
            self.parts.messages.region.local_key(),
        );
        // A pair that is ended meanwhile may take none, and then completes none.
        posted.inspect_err(|_| {
            self.receives.fetch_sub(1, Ordering::SeqCst);
        })
    }

    /// How to send a message. `slot` differs among those under way.
    pub(super) fn sending(&self, slot: u64, message: Message) -> io::Result<Transfer> {
        let bytes = message.encode();
        if self.parts.pair.inline_bytes() as usize >= MESSAGE_BYTES {
            return Ok(Transfer::SendInline(bytes));
        }
        self.parts.messages.write(slot, &bytes)?;
        Ok(Transfer::Send(LocalPiece {
            address: self.parts.messages.place(1, slot),
            bytes: MESSAGE_BYTES as u32,
            key: self.parts.messages.region.local_key(),
        }))
    }

    /// Asks both queues to announce what comes next.
    pub(super) fn arm(&self) -> io::Result<()> {
        self.parts.sends.arm()?;
        self.parts.receives.arm()
    }

    /// Readable on a completion or an event of the connection.
    fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [
            self.parts.channel.descriptor(),
            self.id.channel().descriptor(),
        ]
    }

    /// Waits for a completion, an event, or the deadline.
    pub(super) fn wait(&self, until: Deadline) -> Result<(), LaneError> {
        let system = |source| LaneError::System {
            lane: self.number,
            doing: "waiting for the device",
            source,
        };
        self.watch.wait(self.descriptors(), until).map_err(system)?;
        self.parts.channel.drain().map_err(system)
    }

    /// Takes events of device and connection; says why the lane can't go on, if so. What has
    /// completed before may still be taken.
    pub(super) fn look(&self) -> Option<LaneError> {
        self.watch.look();
        if let Some(ended) = self.watch.ended(self.number) {
            return Some(ended);
        }
        loop {
            match self.id.channel().next() {
                Ok(Some(event)) => match event.kind {
                    EventKind::Disconnected | EventKind::Rejected | EventKind::Failed(_) => {
                        self.closed.store(true, Ordering::SeqCst);
                    }
                    EventKind::DeviceRemoved => self.watch.note(DeviceEvent::DeviceFatal),
                    _ => {}
                },
                Ok(None) => break,
                Err(source) => {
                    return Some(LaneError::System {
                        lane: self.number,
                        doing: "taking events of the connection",
                        source,
                    });
                }
            }
        }
        self.watch.ended(self.number).or_else(|| {
            let closed = self.closed.load(Ordering::SeqCst);
            closed.then_some(LaneError::Closed(self.number))
        })
    }

    /// What a request that failed means for the lane.
    pub(super) fn failure(&self, completion: Completion, doing: &'static str) -> LaneError {
        let lane = self.number;
        if self.watch.is_stopped() {
            return LaneError::Stopped(lane);
        }
        if completion.status.may_have_other_cause() {
            // A device or peer that is gone says so too, and better.
            let until = Deadline::after(CAUSE_LIMIT);
            loop {
                if let Some(cause) = self.look() {
                    return cause;
                }
                if until.passed() || self.wait(until).is_err() {
                    break;
                }
            }
        }
        let text = match completion.vendor_error {
            0 => completion.status.to_string(),
            vendor => format!("{} (vendor's error {vendor:#x})", completion.status),
        };
        LaneError::System {
            lane,
            doing,
            source: io::Error::other(text),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.end();
    }
}
