//! Requests under way on one lane, and how many more may be.

use std::collections::VecDeque;
use std::io;

use super::connection::Connection;
use super::verbs::{DeviceLimits, Request, RequestList, Rxe, Transfer};
use super::{REQUEST_BYTES_MAX, WINDOW_BYTES_MAX, WINDOW_BYTES_MIN};
use crate::lane::{DeviceCounters, LaneWork, Observer};
use crate::memory::PAGE_BYTES;

/// How many requests go out with one doorbell at most. A chunk of scattered single pages is 256
/// runs; beyond some tens the doorbell's cost is lost in that of the requests.
const LIST_REQUESTS_MAX: usize = 64;

/// A completion is asked for at least once in so many requests: it is what frees places in the
/// queue, so it must come several times in a queue's length.
const SIGNAL_REQUESTS: u32 = 32;

/// And at least once in this part of the bytes that may be under way. With a half, writes of 1 MiB
/// ask for one completion in 16, and a put that waits for room goes on with as much still under way,
/// 1.3 ms at 100 Gb/s. Below two, what nobody is told of could fill all room.
///
/// This is also what a lane's slowness is seen by: one that moves less than this part within its
/// stall limit looks as if it moved nothing, and counts as stalled. 16 MiB in 10 s are 13 Mb/s for a
/// lane, in 5 s 27 Mb/s; 64 lanes together need 0.9 Gb/s, or 1.7. On links that are slower the
/// operator asks for a smaller window or fewer lanes. More signals would bring that down little by
/// little, and take a completion more for each: with 4 it is one in 8 MiB, beyond 0.1 for each MiB.
const SIGNALS_IN_FLIGHT: u64 = 2;

/// How many bytes may be under way. At 100 Gb/s this is 2.7 ms of traffic, many times what any path
/// in a data centre holds (its delay times its rate: about 1 MiB), so the link never runs dry while
/// a lane looks for the next dirty pages; and little enough that a fence behind it comes soon.
const IN_FLIGHT_BYTES_MAX: u64 = 32 << 20;

/// How many packets of one queue pair may be under way with rxe that repeats what had arrived. Beyond
/// 64 its driver stops, and with Linux 6.1 and several lanes it often stayed so until the retry timer
/// sent again what was not lost; one in some thirty of these retries ended in a request that the peer
/// refused. With 48 there were fewer, and none of those.
const RXE_PACKETS_MAX: u64 = 48;

/// How many bytes may be under way with rxe that bears much: requests have their full length, and
/// little of a processor's time is spent on waking for them. Four lanes moved 24.5 MiB/s with 192 KiB
/// under way each (those 48 packets), 26.4 with 1 MiB, 29.7 with 4 and 27.1 with 32 (medians of three,
/// interleaved, in the machine of docs/softroce.md). More than is needed would only be slow to end.
const RXE_BYTES_MAX: u64 = 4 << 20;

/// How much may be under way on a lane, and in one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// Bytes under way.
    pub(super) in_flight_bytes: u64,
    /// Pages of one request.
    pub(super) request_pages: u32,
}

impl Window {
    /// The window for lanes of a device, whose path MTU is counted as `enum ibv_mtu` does; `asked`
    /// holds where an operator wants another one.
    pub(super) fn of(limits: DeviceLimits, path_mtu: u32, asked: Option<u64>) -> Self {
        let request_pages_max = u64::from(REQUEST_BYTES_MAX) / PAGE_BYTES;
        let in_flight_bytes = match asked {
            Some(bytes) => bytes.clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX),
            None => match limits.rxe {
                None => IN_FLIGHT_BYTES_MAX,
                Some(Rxe::BearsMuch) => RXE_BYTES_MAX,
                // 1 is 256 bytes, each further one twice that.
                Some(Rxe::Repeats) => RXE_PACKETS_MAX * (128 << path_mtu.clamp(1, 5)),
            },
        };
        // Two at least, so that one is under way while the other completes.
        let request_pages = (in_flight_bytes / 2 / PAGE_BYTES).clamp(1, request_pages_max);
        Self {
            in_flight_bytes,
            request_pages: request_pages as u32,
        }
    }
}

/// Requests that a completion stands for: its own and the silent ones before it.
struct Signalled {
    id: u64,
    requests: u32,
    bytes: u64,
    /// The bytes of its own request, and when that was posted, by the observer's clock.
    own_bytes: u64,
    posted: Option<u64>,
}

/// Requests under way.
pub(super) struct Outbox {
    window: Window,
    list: RequestList,
    depth: u32,
    /// The most requests in a row that ask for no completion, and one.
    signal_requests: u32,
    next_id: u64,
    /// All requests before this one are known to have completed.
    completed_before: u64,
    under_way: VecDeque<Signalled>,
    /// Of those under way and in the list.
    requests: u32,
    bytes: u64,
    /// Since the last request that asked for its completion.
    silent_requests: u32,
    silent_bytes: u64,
    /// Requests in the list that ask for their completion.
    awaited: u32,
    /// The bytes of the request that was pushed last.
    last_bytes: u64,
    counters: DeviceCounters,
    pub(super) observer: Observer,
}

impl Outbox {
    /// For a queue of `depth` requests.
    pub(super) fn new(depth: u32, window: Window) -> Self {
        Self {
            window,
            list: RequestList::new(LIST_REQUESTS_MAX.min(depth.max(1) as usize)),
            depth,
            // Half of a short queue: what nobody is told of must not fill it.
            signal_requests: SIGNAL_REQUESTS.min(depth / 2).max(1),
            next_id: 0,
            completed_before: 0,
            under_way: VecDeque::new(),
            requests: 0,
            bytes: 0,
            silent_requests: 0,
            silent_bytes: 0,
            awaited: 0,
            last_bytes: 0,
            counters: DeviceCounters::default(),
            observer: Observer::default(),
        }
    }

    /// Whether a request of so many bytes may be added now.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.requests < self.depth
            && (self.bytes == 0 || self.bytes + bytes <= self.window.in_flight_bytes)
            && !self.list.is_full()
    }

    /// How many pages one request may have.
    pub(super) fn request_pages(&self) -> u32 {
        self.window.request_pages
    }

    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.requests == 0
    }

    /// Adds a request; there has to be room. `wants_completion` for one that somebody waits for.
    /// Returns the request's number, for [`Outbox::has_completed`].
    pub(super) fn push(&mut self, transfer: Transfer, bytes: u64, wants_completion: bool) -> u64 {
        let id = self.next_id;
        self.silent_requests += 1;
        self.silent_bytes += bytes;
        self.last_bytes = bytes;
        let signalled = wants_completion
            || self.silent_requests >= self.signal_requests
            || self.silent_bytes >= self.window.in_flight_bytes / SIGNALS_IN_FLIGHT;
        self.list.push(Request {
            id,
            transfer,
            signalled,
        });
        self.requests += 1;
        self.bytes += bytes;
        if signalled {
            self.close_batch();
        }
        self.next_id += 1;
        id
    }

    /// The last request pushed stands for the silent ones before it.
    fn close_batch(&mut self) {
        self.awaited += 1;
        self.under_way.push_back(Signalled {
            id: self.next_id,
            requests: std::mem::take(&mut self.silent_requests),
            bytes: std::mem::take(&mut self.silent_bytes),
            own_bytes: self.last_bytes,
            posted: None,
        });
    }

    /// Posts what was added, the last of it so that its completion tells of all before: for who
    /// waits until nothing is under way.
    pub(super) fn post_announced(&mut self, connection: &Connection) -> io::Result<()> {
        if self.list.len() > 0 && self.silent_requests > 0 {
            self.list.signal_last();
            // `close_batch` names the request that comes next.
            self.next_id -= 1;
            self.close_batch();
            self.next_id += 1;
        }
        self.post(connection)
    }

    /// Posts what was added. Some requests may be under way that no completion will tell of before
    /// more is pushed: fewer than fill the queue or the window, so there is room for more.
    pub(super) fn post(&mut self, connection: &Connection) -> io::Result<()> {
        if self.list.len() == 0 {
            return Ok(());
        }
        self.counters.work_requests += self.list.len() as u64;
        self.counters.doorbells += 1;
        if let Some(now) = self.observer.now() {
            let posted = self.under_way.iter_mut().rev().take(self.awaited as usize);
            posted.for_each(|signalled| signalled.posted = Some(now));
        }
        connection.await_sends(std::mem::take(&mut self.awaited));
        connection.pair().post(&mut self.list)
    }

    /// Takes the completion of a request that succeeded, and with it those before.
    pub(super) fn complete(&mut self, id: u64) {
        while let Some(first) = self.under_way.front() {
            if first.id > id {
                break;
            }
            self.requests = self.requests.saturating_sub(first.requests);
            self.bytes = self.bytes.saturating_sub(first.bytes);
            self.completed_before = first.id + 1;
            let (bytes, posted) = (first.own_bytes, first.posted);
            if bytes > 0 {
                self.observer.done(LaneWork::Put { bytes }, posted);
            }
            self.under_way.pop_front();
        }
    }

    /// Whether a request and all before it are known to have completed: the peer's device has
    /// acknowledged them (over iWARP: TCP has them), so this side's will not read their memory
    /// again. For a silent request that is known with the next one that asks for its completion.
    pub(super) fn has_completed(&self, id: u64) -> bool {
        id < self.completed_before
    }

    /// Counts completions taken from the device.
    pub(super) fn count_completions(&mut self, taken: usize) {
        self.counters.completions += taken as u64;
    }

    pub(super) fn counters(&self) -> DeviceCounters {
        self.counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rdma::verbs::LocalPiece;

    fn write(bytes: u32) -> Transfer {
        Transfer::Write {
            from: LocalPiece {
                address: 0,
                bytes,
                key: 1,
            },
            to_address: 0,
            to_key: 2,
        }
    }

    #[test]
    fn a_completion_frees_the_silent_requests_before_it() {
        let mut outbox = Outbox::new(128, Window::of(DeviceLimits::default(), 5, None));
        for _ in 0..40 {
            outbox.push(write(4096), 4096, false);
        }
        assert_eq!(outbox.requests, 40);
        // The 32nd asked for its completion, the last eight did not yet.
        outbox.complete(31);
        assert_eq!((outbox.requests, outbox.bytes), (8, 8 * 4096));
        outbox.push(write(4096), 4096, true);
        outbox.complete(40);
        assert!(outbox.is_idle());
        assert_eq!(outbox.bytes, 0);
    }

    #[test]
    fn a_request_has_completed_once_the_device_says_so() {
        let mut outbox = Outbox::new(128, Window::of(DeviceLimits::default(), 5, None));
        let silent = outbox.push(write(4096), 4096, false);
        let first = outbox.push(write(0), 0, true);
        let second = outbox.push(write(0), 0, true);
        let has_completed =
            |outbox: &Outbox| [silent, first, second].map(|id| outbox.has_completed(id));
        assert_eq!(has_completed(&outbox), [false, false, false]);
        outbox.complete(first);
        assert_eq!(has_completed(&outbox), [true, true, false]);
        // A number that was never given out tells of none that comes later.
        outbox.complete(u64::MAX);
        assert_eq!(has_completed(&outbox), [true, true, true]);
        let later = outbox.push(write(0), 0, true);
        assert!(!outbox.has_completed(later));
        outbox.complete(later);
        assert!(outbox.has_completed(later));
    }

    #[test]
    fn requests_and_bytes_under_way_are_bounded() {
        let mut outbox = Outbox::new(40, Window::of(DeviceLimits::default(), 5, None));
        // One that is larger than all room goes out when nothing else does.
        assert!(outbox.has_room(IN_FLIGHT_BYTES_MAX * 2));
        for _ in 0..32 {
            assert!(outbox.has_room(1 << 20));
            outbox.push(write(1 << 20), 1 << 20, false);
        }
        assert!(!outbox.has_room(1 << 20));
        // The 16th was the first that asked for its completion.
        outbox.complete(15);
        assert!(outbox.has_room(16 << 20));
        assert!(!outbox.has_room(17 << 20));
        for _ in 0..8 {
            outbox.push(write(0), 0, false);
        }
        outbox.complete(31);
        // The list is as long as it may be.
        assert!(!outbox.has_room(0));
    }

    fn limits_of(rxe: Rxe) -> DeviceLimits {
        DeviceLimits {
            rxe: Some(rxe),
            ..DeviceLimits::default()
        }
    }

    #[test]
    fn a_window_is_smaller_for_rxe() {
        let rxe = limits_of(Rxe::Repeats);
        for (limits, mtu, asked, in_flight_bytes, request_pages) in [
            (DeviceLimits::default(), 3, None, IN_FLIGHT_BYTES_MAX, 256),
            (rxe, 5, None, 48 * 4096, 24),
            (rxe, 3, None, 48 * 1024, 6),
            (rxe, 0, None, 48 * 256, 1),
            (rxe, 5, Some(IN_FLIGHT_BYTES_MAX), IN_FLIGHT_BYTES_MAX, 256),
            (rxe, 5, Some(0), WINDOW_BYTES_MIN, 1),
            (limits_of(Rxe::BearsMuch), 3, None, RXE_BYTES_MAX, 256),
            (
                DeviceLimits::default(),
                5,
                Some(u64::MAX),
                WINDOW_BYTES_MAX,
                256,
            ),
        ] {
            let expected = Window {
                in_flight_bytes,
                request_pages,
            };
            assert_eq!(Window::of(limits, mtu, asked), expected);
        }
    }

    #[test]
    fn what_nobody_is_told_of_leaves_room_for_more() {
        let rxe = limits_of(Rxe::Repeats);
        let device = DeviceLimits::default();
        for depth in [1, 2, 3, 40, 1024] {
            for (limits, mtu, asked) in [
                (device, 5, None),
                (device, 5, Some(WINDOW_BYTES_MIN)),
                (rxe, 5, None),
                (rxe, 1, None),
                (limits_of(Rxe::BearsMuch), 5, None),
            ] {
                for pages in [1, u64::MAX] {
                    let window = Window::of(limits, mtu, asked);
                    let bytes = u64::from(window.request_pages).min(pages) * PAGE_BYTES;
                    let mut outbox = Outbox::new(depth, window);
                    for _ in 0..5000 {
                        if outbox.list.is_full() {
                            outbox.list.clear();
                        }
                        // The device completes what it is given, and tells of what asks for it.
                        if !outbox.has_room(bytes) {
                            let id = outbox.under_way.front().map(|signalled| signalled.id);
                            outbox.complete(id.expect("no completion will come"));
                        }
                        assert!(outbox.has_room(bytes) || outbox.list.is_full());
                        outbox.push(write(bytes as u32), bytes, false);
                    }
                }
            }
        }
    }

    #[test]
    fn large_writes_ask_for_few_completions() {
        let mut outbox = Outbox::new(1024, Window::of(DeviceLimits::default(), 5, None));
        for _ in 0..1600 {
            if outbox.list.is_full() {
                outbox.list.clear();
            }
            outbox.push(write(1 << 20), 1 << 20, false);
            let last = outbox.next_id - 1;
            if outbox.bytes > IN_FLIGHT_BYTES_MAX / 2 {
                outbox.complete(last);
            }
        }
        // One in 16, so 0.063 for each MiB; a fence adds one, and its word another.
        assert_eq!(outbox.awaited, 100);
    }
}
