//! Every message over the wire, golden bytes, and bytes that are none.

use dunlin_transports::control::Frame;
use dunlin_transports::lane::SessionId;
use dunlin_transports::memory::PageNumber;
use proptest::prelude::*;
use uuid::Uuid;

use super::check::shortened;
use super::*;
use crate::guest::PageClaim;
use crate::records::verdict::Answer;
use crate::state::DeviceState;

#[test]
fn versions_without_overlap_have_nothing_in_common() {
    assert_eq!(common_version(1, 1), Some(1));
    assert_eq!(common_version(1, 9), Some(1));
    assert_eq!(common_version(2, 9), None);
    assert_eq!(common_version(0, 0), None);
    assert_eq!(common_version(9, 1), None);
}

fn hello() -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        capabilities: 3,
        session: [1; 16].into(),
        uuid: [2; 16].into(),
        name: "vm1".to_owned(),
        epoch: 4,
        kind: "kvm".to_owned(),
        vcpus: 2,
        layout: WireLayout {
            generation: 1,
            regions: vec![WireRegion {
                address: 0,
                bytes: 1 << 20,
                backing: 0,
                backing_page_bytes: 4096,
            }],
        },
        configuration: DeviceState::new().encode().unwrap().into(),
        lanes: 2,
        transport: "tcp".to_owned(),
        host: WireHost::default(),
        peer_timeout_ms: 5000,
    }
}

fn messages() -> Vec<Message> {
    let claim = |generation| PageClaim {
        digest: 9,
        generation,
        settled: generation.is_none(),
    };
    vec![
        Message::Hello(Box::new(hello())),
        Message::Welcome(Welcome {
            version: 1,
            capabilities: 1,
            tokens: vec![[7; 32].into()],
            grants: Grants {
                first: vec![0],
                pages: vec![256],
                keys: vec![vec![].into()],
            },
            host: WireHost::default(),
            mechanism: "io_uring".to_owned(),
        }),
        Message::Refused(Refused::new("no room")),
        Message::Ping(Ping { sent_ns: 1 }),
        Message::Pong(Pong {
            ping_sent_ns: 1,
            answered_ns: 2,
        }),
        Message::Prepare(Prepare {
            fences: vec![3, 4],
            counts: Counts {
                payload_bytes: 8192,
                zero_pages: 1,
            },
            digests: vec![5, u64::MAX],
            state: vec![0x80].into(),
            blackout_cap_ns: 500_000_000,
        }),
        Message::Ready(Ready::default()),
        Message::Commit,
        Message::Running(Running {
            commit_received_ns: 1,
            running_ns: vec![2, 3],
            owned_ns: Some(2),
        }),
        Message::Released,
        Message::Abort(Abort::new("cancelled")),
        Message::Aborted(Abort::new("out of memory")),
        Message::VerifyPages(VerifyPages::new(
            PageNumber(64),
            &[claim(None), claim(Some(5))],
        )),
        Message::VerifyEnd,
        Message::Verified(Verified {
            checked: 2,
            same: 2,
            ..Verified::default()
        }),
        Message::Ask(Ask::new(SessionId([5; 16]), Uuid::from_u128(6), 7)),
        Message::Answer(WireAnswer::new(Answer::Aborted, "its process is gone")),
        Message::Settled,
    ]
}

#[test]
fn every_message_survives_the_wire_within_its_limit() {
    let messages = messages();
    assert_eq!(
        messages.iter().map(Message::kind).collect::<Vec<_>>(),
        MessageKind::ALL.to_vec()
    );
    for message in messages {
        let frame = message.to_frame();
        assert!(frame.payload.len() <= frame_limit(frame.kind).unwrap() as usize);
        assert_eq!(Message::from_frame(&frame).unwrap(), message);
    }
    assert_eq!(frame_limit(0), None);
    assert_eq!(frame_limit(16), None);
}

/// Version 1's bytes of a HELLO stay readable for ever.
#[test]
fn golden_hello() {
    let golden: &[u8] = &[
        0xaf, 0, 1, 1, 1, 2, 3, 3, 0x50, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 4, 0x50,
        2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 5, 0x63, b'v', b'm', b'1', 6, 4, 7, 0x63,
        b'k', b'v', b'm', 8, 2, 9, 0xa2, 0, 1, 1, 0x81, 0xa4, 0, 0, 1, 0x1a, 0, 0x10, 0, 0, 2, 0,
        3, 0x19, 0x10, 0, 10, 0x41, 0x80, 11, 2, 12, 0x63, b't', b'c', b'p', 13, 0xa5, 0, 0x60, 1,
        0x60, 2, 0, 3, 0x60, 4, 0x60, 14, 0x19, 0x13, 0x88,
    ];
    assert_eq!(Message::Hello(Box::new(hello())).to_frame().payload, golden);
}

#[test]
fn golden_ask_and_answer() {
    let ask = Message::Ask(Ask::new(SessionId([5; 16]), Uuid::from_u128(6), 7));
    let mut golden = vec![0xa3, 0, 0x50];
    golden.extend([5; 16]);
    golden.extend([1, 0x50]);
    golden.extend([0; 15]);
    golden.extend([6, 2, 7]);
    assert_eq!(ask.to_frame().payload, golden);
    let answer = Message::Answer(WireAnswer::new(Answer::MayHaveRun, "x"));
    assert_eq!(answer.to_frame().payload, [0xa2, 0, 4, 1, 0x61, b'x']);
}

#[test]
fn every_answer_survives_the_wire_and_an_unknown_one_is_refused() {
    for answer in Answer::ALL {
        assert_eq!(WireAnswer::new(answer, "").answer().unwrap(), answer);
    }
    let unknown = WireAnswer {
        answer: 6,
        reason: String::new(),
    };
    assert!(unknown.answer().is_err());
}

/// READY and RUNNING of a destination that does not tell when it acquired and recorded.
#[test]
fn moments_that_are_not_told_are_those_before_them() {
    let bytes = [0xa5, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5];
    let frame = Frame {
        kind: MessageKind::Ready.number(),
        payload: bytes.to_vec(),
    };
    let Message::Ready(ready) = Message::from_frame(&frame).unwrap() else {
        panic!("another message");
    };
    assert_eq!(ready.moments().map(|moment| moment.0), [1, 2, 3, 4, 4, 5]);
}

#[test]
fn a_hello_out_of_bounds_is_refused() {
    assert!(hello().offer().is_ok());
    let bad: [fn(&mut Hello); 7] = [
        |hello| hello.name = "../etc".to_owned(),
        |hello| hello.kind = String::new(),
        |hello| hello.lanes = 0,
        |hello| hello.lanes = 65,
        |hello| hello.epoch = u64::MAX,
        |hello| hello.layout.regions.clear(),
        |hello| hello.configuration = vec![0xff].into(),
    ];
    for spoil in bad {
        let mut hello = hello();
        spoil(&mut hello);
        assert!(hello.offer().is_err(), "{hello:?}");
    }
}

#[test]
fn a_peers_text_can_not_steer_the_terminal() {
    assert_eq!(
        Abort {
            reason: "a\x1b[2Jb\n".to_owned()
        }
        .reason(),
        "a [2Jb "
    );
    assert_eq!(shortened("ääää", 5), "ää");
}

proptest! {
    #[test]
    fn mutated_frames_never_panic(
        which in 0_usize..15,
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut frame = messages()[which].to_frame();
        if !frame.payload.is_empty() {
            let at = at.index(frame.payload.len());
            frame.payload[at] = value;
            if value % 3 == 0 {
                frame.payload.truncate(cut.index(frame.payload.len()));
            }
        }
        match Message::from_frame(&frame) {
            Ok(Message::Hello(hello)) => drop(hello.offer()),
            Ok(Message::Welcome(welcome)) => {
                drop(welcome.grants.to_grants());
                drop(welcome.tickets(SessionId([0; 16]), 2));
            }
            Ok(Message::VerifyPages(pages)) => drop(pages.claims()),
            Ok(_) | Err(_) => {}
        }
    }
}
