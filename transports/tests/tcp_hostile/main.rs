//! Peers that lie, stammer or fall silent: no panic, no byte outside of what was prepared, and an
//! end within the limits.
#![cfg(all(feature = "tcp", feature = "testing"))]
// Test code, also where it is not in a test function.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use dunlin_transports::deadline::Deadline;
use dunlin_transports::lane::{
    DestinationEndpoint as _, DestinationLane, FenceNumber, Grant, LaneError, LaneNumber,
    LaneTicket, LaneToken, SessionId, SourceEndpoint as _, SourceLane,
};
use dunlin_transports::memory::{
    HostMapping, MemoryMap, OwnedMapping, PAGE_BYTES, PageNumber, Run,
};
use dunlin_transports::tcp::{
    DestinationEndpoint, IncomingLane, Mechanism, Options, Preamble, PreambleError, SourceEndpoint,
    ZeroCopy, read_preamble,
};

#[cfg(feature = "compression")]
mod packed;

/// What a destination of this build says when it lets a lane in.
const LET_IN: &[u8; 8] = if cfg!(feature = "compression") {
    b"DNLA\0\0\x01\x03"
} else {
    b"DNLA\0\0\x01\0"
};

const MECHANISMS: [Mechanism; 2] = [Mechanism::Auto, Mechanism::Plain];
const PAGES: u64 = 1024;
const PREPARED: u32 = 512;

const PATIENCE: Duration = Duration::from_secs(30);

fn soon() -> Deadline {
    Deadline::after(PATIENCE)
}

fn shortly() -> Deadline {
    Deadline::after(Duration::from_millis(200))
}

fn options(mechanism: Mechanism, stall_limit: Duration) -> Options {
    Options {
        mechanism,
        stall_limit,
        ..Options::default()
    }
}

fn run(first: u64, pages: u32) -> Run {
    Run {
        first: PageNumber(first),
        pages,
    }
}

fn memory() -> MemoryMap {
    let mapping: Arc<dyn HostMapping> = Arc::new(OwnedMapping::new(PAGES * PAGE_BYTES).unwrap());
    MemoryMap::new(vec![mapping]).unwrap()
}

fn bytes(memory: &MemoryMap, run: Run) -> Vec<u8> {
    let mut bytes = vec![0; run.bytes() as usize];
    memory.copy_out(run, &mut bytes).unwrap();
    bytes
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    near.set_nodelay(true).unwrap();
    (near, listener.accept().unwrap().0)
}

fn ticket() -> LaneTicket {
    LaneTicket {
        session: SessionId([1; 16]),
        number: LaneNumber(0),
        token: LaneToken([2; 32]),
    }
}

/// A destination's lane whose peer is a bare socket; the first `PREPARED` pages are prepared.
struct Victim {
    peer: TcpStream,
    lane: Box<dyn DestinationLane>,
    memory: MemoryMap,
    _endpoint: DestinationEndpoint,
}

impl Victim {
    fn new(options: Options) -> Self {
        let memory = memory();
        let (lanes, incoming) = mpsc::channel();
        let endpoint = DestinationEndpoint::new(memory.clone(), incoming, options);
        endpoint.prepare(run(0, PREPARED)).unwrap();
        let (mut peer, stream) = connection();
        let preamble = Preamble::lane(&ticket());
        lanes.send(IncomingLane { stream, preamble }).unwrap();
        let lane = endpoint.accept_lane(&[ticket()], soon()).unwrap();
        let mut answer = [0; 8];
        peer.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, LET_IN);
        Self {
            peer,
            lane,
            memory,
            _endpoint: endpoint,
        }
    }
}

fn header(kind: u16, count: u16, value: u64) -> Vec<u8> {
    let mut bytes = b"DNLF".to_vec();
    bytes.extend(kind.to_le_bytes());
    bytes.extend(count.to_le_bytes());
    bytes.extend(value.to_le_bytes());
    bytes
}

fn table(runs: &[(u64, u32, u32)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (first, pages, flags) in runs {
        bytes.extend(first.to_le_bytes());
        bytes.extend(pages.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
    }
    bytes
}

/// A frame of these runs (flags 1: zero) whose data is made of `fill`.
fn frame(runs: &[(u64, u32, u32)], fill: u8) -> Vec<u8> {
    let data: u64 = runs
        .iter()
        .filter(|(_, _, flags)| *flags == 0)
        .map(|(_, pages, _)| u64::from(*pages) * PAGE_BYTES)
        .sum();
    let mut bytes = header(1, runs.len() as u16, data);
    bytes.extend(table(runs));
    bytes.resize(bytes.len() + data as usize, fill);
    bytes
}

fn fence(number: u64) -> Vec<u8> {
    header(2, 0, number)
}

#[test]
fn honest_frames_by_hand_are_understood() {
    for mechanism in MECHANISMS {
        let mut victim = Victim::new(options(mechanism, Duration::from_secs(10)));
        victim.memory.copy_in(run(4, 1), &[9; 4096]).unwrap();
        let mut sent = frame(&[(0, 2, 0), (4, 1, 1), (6, 1, 0)], 7);
        sent.extend(fence(1));
        victim.peer.write_all(&sent).unwrap();
        assert_eq!(victim.lane.next_fence(soon()).unwrap(), FenceNumber(1));
        assert!(
            bytes(&victim.memory, run(0, 2))
                .iter()
                .all(|byte| *byte == 7)
        );
        assert!(
            bytes(&victim.memory, run(6, 1))
                .iter()
                .all(|byte| *byte == 7)
        );
        assert!(
            bytes(&victim.memory, run(4, 1))
                .iter()
                .all(|byte| *byte == 0)
        );
        let mut word = [0; 16];
        victim.peer.read_exact(&mut word).unwrap();
        assert_eq!(word.to_vec(), header(3, 0, 1));
        let counted = victim.lane.counters().unwrap();
        assert_eq!(counted.payload_bytes, 3 * PAGE_BYTES);
        assert_eq!((counted.runs, counted.zero_pages), (2, 1));
    }
}

#[test]
fn what_breaks_the_protocol_is_refused_before_memory_is_touched() {
    let beyond = PAGES;
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("magic", vec![0; 64]),
        ("kind", header(9, 0, 0)),
        ("a word from the source", header(3, 0, 1)),
        ("fence out of turn", fence(2)),
        ("fence zero", fence(0)),
        ("fence with runs", header(2, 1, 1)),
        ("no runs", header(1, 0, 0)),
        ("too many runs", header(1, 513, 0)),
        ("too much data", header(1, 1, 5 << 20)),
        ("absurd data", header(1, 1, u64::MAX)),
        ("absurd packed data", header(4, 1, u64::MAX)),
        ("empty run", [header(1, 1, 0), table(&[(0, 0, 0)])].concat()),
        (
            "unknown flag",
            [header(1, 1, 4096), table(&[(0, 1, 2)])].concat(),
        ),
        (
            "data missing",
            [header(1, 1, 0), table(&[(0, 1, 0)])].concat(),
        ),
        (
            "data for zero",
            [header(1, 1, 4096), table(&[(0, 1, 1)])].concat(),
        ),
        (
            "a run beyond the frame",
            [header(1, 1, 4096), table(&[(0, u32::MAX, 0)])].concat(),
        ),
        ("outside of memory", frame(&[(beyond, 1, 0)], 7)),
        ("far outside", frame(&[(u64::MAX, 1, 0)], 7)),
        ("far outside, zero", frame(&[(u64::MAX, u32::MAX, 1)], 7)),
        ("not prepared", frame(&[(u64::from(PREPARED), 1, 0)], 7)),
        (
            "half prepared",
            frame(&[(u64::from(PREPARED) - 1, 2, 0)], 7),
        ),
        (
            "zero half prepared",
            frame(&[(u64::from(PREPARED) - 1, 2, 1)], 7),
        ),
        (
            "one of two",
            frame(&[(0, 1, 0), (u64::from(PREPARED), 1, 0)], 7),
        ),
    ];
    for mechanism in MECHANISMS {
        for (name, sent) in &cases {
            let mut victim = Victim::new(options(mechanism, Duration::from_secs(10)));
            for page in 0..PAGES {
                victim.memory.copy_in(run(page, 1), &[1; 4096]).unwrap();
            }
            victim.peer.write_all(sent).unwrap();
            let result = victim.lane.next_fence(soon());
            let refused = matches!(
                result,
                Err(LaneError::Protocol { .. }
                    | LaneError::Memory { .. }
                    | LaneError::NotPrepared { .. })
            );
            assert!(refused, "{name}: {result:?}");
            let untouched = bytes(&victim.memory, run(0, PAGES as u32));
            assert!(untouched.iter().all(|byte| *byte == 1), "{name}");
            assert!(
                victim.lane.next_fence(soon()).is_err(),
                "{name}: the lane is over"
            );
        }
    }
}

#[cfg(not(feature = "compression"))]
#[test]
fn compressed_frames_are_refused_where_they_are_not_built_in() {
    for (kind, name) in [(4, "lz4"), (5, "zstd")] {
        let mut victim = Victim::new(options(Mechanism::Auto, Duration::from_secs(10)));
        let header = header(kind, 1, (4096 << 32) | 4);
        let sent = [header, table(&[(0, 1, 0)]), vec![1, 2, 3, 4]].concat();
        victim.peer.write_all(&sent).unwrap();
        let error = victim.lane.next_fence(soon()).unwrap_err();
        let expected = format!("{name} frames are not built in here");
        assert!(error.to_string().contains(&expected), "{error}");
    }
}

#[test]
fn mutated_frames_reach_only_what_is_prepared() {
    let mut honest = frame(&[(0, 2, 0), (8, 3, 1), (20, 1, 0)], 7);
    honest.extend(frame(&[(30, 1, 0)], 8));
    honest.extend(fence(1));
    honest.extend(frame(&[(40, 400, 1)], 0));
    honest.extend(fence(2));
    // Where the heads are: data makes up most of it, and changing that proves nothing.
    let heads: Vec<usize> = (0..64)
        .chain(12_352..12_384)
        .chain(16_480..honest.len())
        .collect();
    for mechanism in MECHANISMS {
        for seed in 1..=200_u64 {
            let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut sent = honest.clone();
            for _ in 0..=random.below(3) {
                let at = heads[random.below(heads.len())];
                match random.below(3) {
                    0 => sent[at] ^= 1 << random.below(8),
                    1 => sent[at] = random.next() as u8,
                    _ => sent[at] = 0xff,
                }
            }
            if random.below(4) == 0 {
                sent.truncate(random.below(sent.len()));
            }
            let mut victim = Victim::new(options(mechanism, Duration::from_millis(200)));
            victim.peer.write_all(&sent).unwrap();
            drop(victim.peer);
            // It ends: in an error, since the peer is gone behind two fences at the latest.
            let fences = (0..3)
                .take_while(|_| victim.lane.next_fence(soon()).is_ok())
                .count();
            assert!(fences <= 2);
            let rest = bytes(
                &victim.memory,
                run(PREPARED.into(), PAGES as u32 - PREPARED),
            );
            assert!(rest.iter().all(|byte| *byte == 0), "seed {seed}");
        }
    }
}

#[test]
fn random_bytes_end_a_lane() {
    for seed in 1..=100_u64 {
        let mut random = Random(seed);
        let noise: Vec<u8> = (0..500).map(|_| random.next() as u8).collect();
        let mut victim = Victim::new(options(Mechanism::Auto, Duration::from_secs(10)));
        victim.peer.write_all(&noise).unwrap();
        assert!(victim.lane.next_fence(soon()).is_err());
    }
}

#[test]
fn an_announcement_without_data_ends_at_the_stall_limit() {
    for mechanism in MECHANISMS {
        for sent in [
            header(1, 1, 4096)[..5].to_vec(),
            header(1, 2, 4096),
            frame(&[(0, 256, 0)], 7)[..5000].to_vec(),
            frame(&[(0, 256, 0)], 7)[..50_000].to_vec(),
        ] {
            let mut victim = Victim::new(options(mechanism, Duration::from_millis(50)));
            victim.peer.write_all(&sent).unwrap();
            // Were it not for the stall limit, this would take an hour.
            let deadline = Deadline::after(Duration::from_secs(3600));
            let result = victim.lane.next_fence(deadline);
            assert!(
                matches!(result, Err(LaneError::Stalled { .. })),
                "{result:?}"
            );
        }
    }
}

#[test]
fn a_peer_that_trickles_is_held_to_the_deadline() {
    for mechanism in MECHANISMS {
        let mut victim = Victim::new(options(mechanism, Duration::from_secs(10)));
        let mut peer = victim.peer.try_clone().unwrap();
        let trickling = std::thread::spawn(move || {
            for byte in frame(&[(0, 256, 0)], 7) {
                if peer.write_all(&[byte]).is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let result = victim.lane.next_fence(shortly());
        assert!(
            matches!(result, Err(LaneError::Stalled { .. })),
            "{result:?}"
        );
        drop(victim);
        trickling.join().unwrap();
    }
}

#[test]
fn a_peer_that_never_fences_is_held_to_the_deadline() {
    for mechanism in MECHANISMS {
        let mut victim = Victim::new(options(mechanism, Duration::from_secs(10)));
        let mut peer = victim.peer.try_clone().unwrap();
        let flooding = std::thread::spawn(move || {
            let frame = frame(&[(0, 256, 0), (300, 100, 1)], 7);
            while peer.write_all(&frame).is_ok() {}
        });
        let result = victim.lane.next_fence(shortly());
        assert!(
            matches!(result, Err(LaneError::Stalled { .. })),
            "{result:?}"
        );
        drop(victim);
        flooding.join().unwrap();
    }
}

#[test]
fn a_slow_sender_within_the_stall_limit_is_waited_for() {
    for mechanism in MECHANISMS {
        // A frame takes several stall limits, but something moves in each.
        let mut victim = Victim::new(options(mechanism, Duration::from_millis(150)));
        let mut peer = victim.peer.try_clone().unwrap();
        let mut sent = header(1, 1, 256 * PAGE_BYTES);
        sent.extend(table(&[(0, 256, 0)]));
        sent.extend((0..256 * PAGE_BYTES / 8).flat_map(u64::to_le_bytes));
        sent.extend(fence(1));
        let sending = std::thread::spawn(move || {
            for piece in sent.chunks(32 << 10) {
                peer.write_all(piece).unwrap();
                std::thread::sleep(Duration::from_millis(15));
            }
        });
        assert_eq!(victim.lane.next_fence(soon()).unwrap(), FenceNumber(1));
        let arrived = bytes(&victim.memory, run(0, 256));
        let expected: Vec<u8> = (0..256 * PAGE_BYTES / 8)
            .flat_map(u64::to_le_bytes)
            .collect();
        assert!(arrived == expected, "{mechanism:?}");
        sending.join().unwrap();
    }
}

/// Sources of each kind, with this stall limit: by themselves, plain, and without a copy though the
/// kernel copies.
fn sources(stall_limit: Duration) -> [Options; 3] {
    let without_a_copy = Options {
        zero_copy: ZeroCopy::Always,
        ..options(Mechanism::Auto, stall_limit)
    };
    let [auto, plain] = MECHANISMS.map(|mechanism| options(mechanism, stall_limit));
    [auto, plain, without_a_copy]
}

/// A source's lane whose peer is a bare socket, of a destination from before there were compressed
/// frames.
fn open_source(options: Options) -> (Box<dyn SourceLane>, TcpStream, MemoryMap) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // Inherited by what is accepted; small, so that the source soon has to wait.
    socket2::SockRef::from(&listener)
        .set_recv_buffer_size(64 << 10)
        .unwrap();
    let memory = memory();
    let peer = listener.local_addr().unwrap();
    let endpoint = SourceEndpoint::new(peer, memory.clone(), options);
    let all = run(0, PAGES as u32);
    endpoint.prepare(all).unwrap();
    let grant = Grant {
        range: all,
        key: Vec::new(),
    };
    endpoint.accept_grants(&[grant]).unwrap();
    let accepting = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let preamble = read_preamble(&stream, soon()).unwrap();
        assert_eq!(preamble, Preamble::lane(&ticket()));
        stream.write_all(b"DNLA\0\0\x01\0").unwrap();
        stream
    });
    let lane = endpoint.open_lane(&ticket(), soon()).unwrap();
    (lane, accepting.join().unwrap(), memory)
}

#[test]
fn a_slow_receiver_within_the_stall_limit_gets_every_byte() {
    for options in sources(Duration::from_millis(150)) {
        let mechanism = (options.mechanism, options.zero_copy);
        let (mut lane, mut peer, memory) = open_source(options);
        for page in 0..PAGES {
            let words = (0..512).flat_map(|word: u64| ((page << 32) | word).to_le_bytes());
            memory
                .copy_in(run(page, 1), &words.collect::<Vec<u8>>())
                .unwrap();
        }
        let receiving = std::thread::spawn(move || {
            // Frames are read by hand; all runs come in order here.
            let mut pages = Vec::new();
            loop {
                let mut head = [0; 16];
                peer.read_exact(&mut head).unwrap();
                if head[4] == 2 {
                    return (pages, peer);
                }
                let count = usize::from(u16::from_le_bytes([head[6], head[7]]));
                let bytes = u64::from_le_bytes(head[8..].try_into().unwrap()) as usize;
                let mut table = vec![0; count * 16];
                peer.read_exact(&mut table).unwrap();
                let mut data = vec![0; bytes];
                for piece in data.chunks_mut(32 << 10) {
                    std::thread::sleep(Duration::from_millis(8));
                    peer.read_exact(piece).unwrap();
                }
                pages.extend(data);
            }
        });
        lane.put(&[run(0, PAGES as u32)]).unwrap();
        lane.fence().unwrap();
        let (received, _peer) = receiving.join().unwrap();
        assert!(
            received == bytes(&memory, run(0, PAGES as u32)),
            "{mechanism:?}"
        );
    }
}

#[test]
fn a_wait_for_a_fence_outlasts_its_limit_while_the_receiver_takes_what_was_sent() {
    // What lies in the buffers takes the receiver several limits, and something of it moves in each.
    const LIMIT: Duration = Duration::from_millis(500);
    for options in sources(PATIENCE) {
        let (mut lane, peer, _) = open_source(options);
        let receiving = std::thread::spawn(move || {
            let mut taken = 0;
            let mut piece = vec![0; 16 << 10];
            // As many bytes as there are of data; so many as the heads have stay behind.
            while taken < PAGES * PAGE_BYTES {
                std::thread::sleep(Duration::from_millis(12));
                taken += (&peer).read(&mut piece).unwrap() as u64;
            }
            (&peer).write_all(&header(3, 0, 1)).unwrap();
            peer
        });
        lane.put(&[run(0, PAGES as u32)]).unwrap();
        let fence = lane.fence().unwrap();
        lane.wait_fence(fence, LIMIT).unwrap();
        drop(receiving.join().unwrap());
    }
}

#[test]
fn a_receiver_that_takes_only_what_its_system_takes_ends_a_wait_for_a_fence() {
    for options in sources(PATIENCE) {
        let (mut lane, _peer, _) = open_source(options);
        lane.put(&[run(0, 16)]).unwrap();
        let fence = lane.fence().unwrap();
        let waited = lane.wait_fence(fence, Duration::from_millis(100));
        assert!(
            matches!(waited, Err(LaneError::Stalled { .. })),
            "{waited:?}"
        );
    }
}

#[test]
fn a_receiver_that_takes_nothing_ends_a_put_at_the_stall_limit() {
    for options in sources(Duration::from_millis(100)) {
        let (mut lane, _peer, _) = open_source(options);
        let error = loop {
            if let Err(error) = lane.put(&[run(0, PAGES as u32)]) {
                break error;
            }
        };
        assert!(matches!(error, LaneError::Stalled { .. }), "{error}");
        assert!(lane.put(&[run(0, 1)]).is_err(), "the lane is over");
        assert!(lane.fence().is_err(), "the lane is over");
    }
}

#[test]
fn words_that_nobody_asked_for_end_a_source_lane() {
    for mechanism in MECHANISMS {
        for word in [
            header(3, 0, 2),
            header(3, 0, 0),
            header(2, 0, 1),
            vec![0xff; 16],
        ] {
            let (mut lane, mut peer, _) = open_source(options(mechanism, Duration::from_secs(10)));
            let fence = lane.fence().unwrap();
            peer.write_all(&word).unwrap();
            let result = lane.wait_fence(fence, PATIENCE);
            assert!(
                matches!(result, Err(LaneError::Protocol { .. })),
                "{result:?}"
            );
        }
    }
}

#[test]
fn lanes_that_are_turned_away_do_not_prolong_the_wait() {
    let (lanes, incoming) = mpsc::channel();
    let limit = Duration::from_secs(10);
    let endpoint = DestinationEndpoint::new(memory(), incoming, options(Mechanism::Auto, limit));
    let guessed = LaneTicket {
        token: LaneToken([9; 32]),
        ..ticket()
    };
    let mut peers = Vec::new();
    for shown in [&guessed, &guessed, &ticket()] {
        let (peer, stream) = connection();
        let preamble = Preamble::lane(shown);
        lanes.send(IncomingLane { stream, preamble }).unwrap();
        peers.push(peer);
    }
    // However many wait, none is looked at behind the deadline.
    let waited = endpoint.accept_lane(&[ticket()], Deadline::after(Duration::ZERO));
    let waited = waited.map(|_| ());
    assert!(
        matches!(waited, Err(LaneError::Stalled { .. })),
        "{waited:?}"
    );
    let lane = endpoint.accept_lane(&[ticket()], soon()).unwrap();
    assert_eq!(lane.number(), LaneNumber(0));
    for (peer, answer) in peers.iter_mut().zip([5, 5, 0]) {
        let mut bytes = [0; 8];
        peer.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes[4], answer);
    }
}

#[test]
fn a_preamble_must_be_whole_by_the_deadline() {
    let (mut peer, stream) = connection();
    let trickling = std::thread::spawn(move || {
        for byte in Preamble::lane(&ticket()).encode() {
            if peer.write_all(&[byte]).is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let result = read_preamble(&stream, shortly());
    assert!(matches!(result, Err(PreambleError::TimedOut)), "{result:?}");
    drop(stream);
    trickling.join().unwrap();

    let (mut peer, stream) = connection();
    peer.write_all(
        b"GET / HTTP/1.1\r\nHost: example.org\r\nUser-Agent: curl/8.0\r\nAccept: */*\r\n\r\n",
    )
    .unwrap();
    let result = read_preamble(&stream, soon());
    assert!(
        matches!(result, Err(PreambleError::NotDunlin)),
        "{result:?}"
    );

    let (mut peer, stream) = connection();
    peer.write_all(&Preamble::lane(&ticket()).encode()[..63])
        .unwrap();
    drop(peer);
    let result = read_preamble(&stream, soon());
    assert!(
        matches!(result, Err(PreambleError::System(_))),
        "{result:?}"
    );
}
