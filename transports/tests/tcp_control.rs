//! The control channel over TCP, with honest peers and others.
#![cfg(feature = "tcp")]
// Test code, also where it is not in a test function.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use dunlin_transports::control::{ControlChannel, ControlError, Frame};
use dunlin_transports::deadline::Deadline;
use dunlin_transports::lane::SessionId;
use dunlin_transports::tcp::{
    ConnectionKind, Options, PreambleError, control_channel, dial_control, listen, read_preamble,
};

const SESSION: SessionId = SessionId([5; 16]);

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(30))
}

fn shortly() -> Deadline {
    Deadline::after(Duration::from_millis(50))
}

fn limit(kind: u16) -> Option<u32> {
    match kind {
        1 => Some(16),
        2 => Some(u32::MAX),
        _ => None,
    }
}

fn frame(kind: u16, bytes: usize) -> Frame {
    Frame {
        kind,
        payload: (0..bytes).map(|at| at as u8).collect(),
    }
}

/// Both ends of a channel over the loopback address of `host`.
fn channels(host: &str) -> (ControlChannel, ControlChannel) {
    let options = Options::default();
    let listener = listen(&format!("{host}:0"), &options).unwrap();
    let port = listener.local_addr().unwrap().port();
    let accepting = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let preamble = read_preamble(&stream, soon()).unwrap();
        assert_eq!(
            (preamble.kind, preamble.session),
            (ConnectionKind::Control, SESSION)
        );
        control_channel(stream, &Options::default()).unwrap()
    });
    let (near, address) =
        dial_control(&format!("{host}:{port}"), SESSION, &options, soon()).unwrap();
    assert_eq!(address.port(), port);
    (near, accepting.join().unwrap())
}

/// A channel whose peer is a bare socket, with a short stall limit.
fn victim() -> (ControlChannel, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let options = Options {
        stall_limit: Duration::from_millis(100),
        ..Options::default()
    };
    let channel = control_channel(listener.accept().unwrap().0, &options).unwrap();
    (channel, peer)
}

#[test]
fn frames_pass_both_ways_whole_and_in_order() {
    for host in ["127.0.0.1", "[::1]", "localhost"] {
        let (mut near, mut far) = channels(host);
        let big = frame(2, 3_000_000);
        let expected = big.clone();
        let receiving = std::thread::spawn(move || {
            let first = far.receiver.receive(limit, soon()).unwrap();
            let second = far.receiver.receive(limit, soon()).unwrap();
            far.sender.send(&frame(1, 16), soon()).unwrap();
            (first, second)
        });
        near.sender.send(&big, soon()).unwrap();
        near.sender.send(&frame(1, 0), soon()).unwrap();
        assert_eq!(near.receiver.receive(limit, soon()).unwrap(), frame(1, 16));
        let (first, second) = receiving.join().unwrap();
        assert!(first == expected);
        assert_eq!(second, frame(1, 0));
    }
}

#[test]
fn a_quiet_channel_is_still_good() {
    let (mut near, mut far) = channels("127.0.0.1");
    for _ in 0..3 {
        let quiet = near.receiver.receive(limit, shortly());
        assert!(
            matches!(quiet, Err(ControlError::TimedOut { .. })),
            "{quiet:?}"
        );
    }
    far.sender.send(&frame(1, 4), soon()).unwrap();
    assert_eq!(near.receiver.receive(limit, soon()).unwrap(), frame(1, 4));
    drop(far);
    let over = near.receiver.receive(limit, soon());
    assert!(matches!(over, Err(ControlError::Closed)), "{over:?}");
}

#[test]
fn a_frame_that_began_must_end_within_the_stall_limit() {
    for sent in [
        b"\x10\0\0".as_slice(),
        b"\x10\0\0\0\x01\0\0\0",
        b"\x10\0\0\0\x01\0\0\0abc",
        // Announces 4 GiB, which its kind allows, and sends three bytes.
        b"\xff\xff\xff\xff\x02\0\0\0abc",
    ] {
        let (mut channel, mut peer) = victim();
        peer.write_all(sent).unwrap();
        let result = channel.receiver.receive(limit, soon());
        assert!(
            matches!(result, Err(ControlError::System { .. })),
            "{result:?}"
        );
        let again = channel.receiver.receive(limit, soon());
        assert!(again.is_err(), "the channel is over");
    }
}

#[test]
fn frames_beyond_their_limits_are_refused() {
    let refusal = |sent: &[u8]| {
        let (mut channel, mut peer) = victim();
        peer.write_all(sent).unwrap();
        channel.receiver.receive(limit, soon()).unwrap_err()
    };
    let error = refusal(b"\x11\0\0\0\x01\0\0\0");
    assert!(
        matches!(
            error,
            ControlError::TooLong {
                bytes: 17,
                limit: 16,
                ..
            }
        ),
        "{error}"
    );
    let error = refusal(b"\0\0\0\0\x03\0\0\0");
    assert!(matches!(error, ControlError::UnknownKind(3)), "{error}");
    let error = refusal(b"\0\0\0\0\x01\0\x01\0");
    assert!(matches!(error, ControlError::NotDunlin(_)), "{error}");
}

#[test]
fn random_bytes_never_pass_a_limit() {
    let mut state = 88_172_645_463_325_252_u64;
    for _ in 0..200 {
        let (mut channel, mut peer) = victim();
        let noise: Vec<u8> = (0..64)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                // Small values, so that some frames are valid.
                (state % 5) as u8
            })
            .collect();
        peer.write_all(&noise).unwrap();
        drop(peer);
        while let Ok(frame) = channel.receiver.receive(limit, soon()) {
            assert!(limit(frame.kind).is_some_and(|most| frame.payload.len() <= most as usize));
        }
    }
}

#[test]
fn what_is_not_offered_is_said_so() {
    let listener = listen("127.0.0.1:0", &Options::default()).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    for (at, byte) in [(8, 9_u8), (10, 4)] {
        let mut peer = TcpStream::connect(&address).unwrap();
        let mut preamble = dunlin_transports::tcp::Preamble::control(SESSION).encode();
        preamble[at] = byte;
        peer.write_all(&preamble).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let error = read_preamble(&stream, soon()).unwrap_err();
        assert!(
            matches!(
                error,
                PreambleError::Version(9) | PreambleError::Reserved(_)
            ),
            "{error}"
        );
        drop(stream);
        // The dialling side understands.
        let mut channel = control_channel(peer, &Options::default()).unwrap();
        let error = channel.receiver.receive(limit, soon()).unwrap_err();
        assert!(matches!(error, ControlError::TurnedAway(_)), "{error}");
    }
}

#[test]
fn stopping_ends_a_wait_and_what_follows() {
    let (near, _far) = channels("127.0.0.1");
    let ControlChannel {
        mut sender,
        mut receiver,
        stopper,
    } = near;
    let waiting = std::thread::spawn(move || receiver.receive(limit, soon()));
    stopper.stop();
    let result = waiting.join().unwrap();
    assert!(matches!(result, Err(ControlError::Stopped)), "{result:?}");
    let result = sender.send(&frame(1, 1), soon());
    assert!(matches!(result, Err(ControlError::Stopped)), "{result:?}");
}

#[test]
fn a_send_that_nobody_takes_ends_at_its_deadline() {
    let (mut channel, _peer) = victim();
    let result = channel.sender.send(&frame(2, 64 << 20), shortly());
    assert!(
        matches!(result, Err(ControlError::TimedOut { .. })),
        "{result:?}"
    );
    assert!(
        channel.sender.send(&frame(1, 1), soon()).is_err(),
        "the channel is over"
    );
}

#[test]
fn nobody_listening_is_an_error_that_names_the_peer() {
    // Bound and dropped: nobody listens there now.
    let address = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let peer = address.to_string();
    let Err(error) = dial_control(&peer, SESSION, &Options::default(), soon()) else {
        panic!("nobody listens at {peer}");
    };
    assert!(error.to_string().contains(&peer), "{error}");
    let Err(error) = dial_control("no-port", SESSION, &Options::default(), soon()) else {
        panic!("no port was given");
    };
    assert!(matches!(error, ControlError::Connect { .. }), "{error}");
}

#[test]
fn the_traffic_class_is_set_on_both_ends() {
    for host in ["127.0.0.1", "[::1]"] {
        let options = Options {
            // DSCP AF21.
            tos: Some(0x48),
            ..Options::default()
        };
        let listener = listen(&format!("{host}:0"), &options).unwrap();
        let address = listener.local_addr().unwrap();
        let (_near, _) = dial_control(&address.to_string(), SESSION, &options, soon()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let socket = socket2::SockRef::from(&stream);
        let class = if address.is_ipv6() {
            socket.tclass_v6().unwrap()
        } else {
            socket.tos_v4().unwrap()
        };
        assert_eq!(class, 0x48);
        let mut preamble = [0; 64];
        stream.read_exact(&mut preamble).unwrap();
    }
}
