//! Every message over the wire, golden bytes, and bytes that are none.

use dunlin_transports::control::Frame;
use dunlin_transports::lane::{GRANT_KEY_BYTES_MAX, Grant, SessionId};
use dunlin_transports::memory::{PageNumber, Run};
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

fn run(first: u64, pages: u32) -> Run {
    Run {
        first: PageNumber(first),
        pages,
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
            contact: None,
            pin_budget_bytes: None,
            costs: None,
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
        Message::Lanes(Lanes::new(vec![vec![1, 2], vec![3; 64]])),
        Message::LanesConfirmed,
        Message::Open(Ranges::new(&[run(512, 2048), run(4096, 512)])),
        Message::Grants(Grants::new(&[Grant {
            range: run(512, 2048),
            key: vec![7; 12],
        }])),
        Message::Close(Ranges::new(&[run(512, 2048)])),
        Message::Closed(Ranges::new(&[run(512, 2048)])),
        Message::Prefault(Ranges::new(&[run(512, 2048)])),
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
fn golden_lanes_and_what_belongs_to_them() {
    let lanes = Lanes::new(vec![vec![7, 8], vec![]]);
    let golden = [0xa1, 0, 0x82, 0x42, 7, 8, 0x40];
    assert_eq!(Message::Lanes(lanes.clone()).to_frame().payload, golden);
    assert_eq!(Message::Lanes(lanes).to_frame().kind, 20);
    let confirmed = Message::LanesConfirmed.to_frame();
    assert_eq!((confirmed.kind, confirmed.payload), (21, vec![]));
    // What a transport without contacts says stays as it was.
    let Some(Message::Welcome(mut welcome)) = messages().into_iter().nth(1) else {
        panic!("another message");
    };
    let without = Message::Welcome(welcome.clone()).to_frame().payload;
    assert_eq!(without.first(), Some(&0xa6));
    assert!(welcome.contact().unwrap().is_empty());
    welcome.contact = Some(vec![9; 3].into());
    let with = Message::Welcome(welcome.clone()).to_frame().payload;
    assert_eq!(with.first(), Some(&0xa7));
    assert_eq!(with.get(1..without.len()), without.get(1..));
    assert_eq!(with.get(without.len()..), Some(&[6, 0x43, 9, 9, 9][..]));
    assert_eq!(welcome.contact().unwrap(), [9; 3]);
    let refused = Refused::transport("x");
    let payload = Message::Refused(refused.clone()).to_frame().payload;
    assert_eq!(payload, [0xa2, 0, 0x61, b'x', 1, 1]);
    assert!(refused.is_of_transport() && !Refused::new("x").is_of_transport());
}

#[test]
fn golden_ranges_and_grants() {
    let ranges = || Ranges::new(&[run(512, 2048), run(1 << 40, 1)]);
    let golden = [
        0xa2, 0, 0x82, 0x19, 2, 0, 0x1b, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0x82, 0x19, 8, 0, 1,
    ];
    for (message, kind) in [
        (Message::Open(ranges()), 22),
        (Message::Close(ranges()), 24),
        (Message::Closed(ranges()), 25),
        (Message::Prefault(ranges()), 26),
    ] {
        let frame = message.to_frame();
        assert_eq!((frame.kind, frame.payload.as_slice()), (kind, &golden[..]));
    }
    let grant = Grant {
        range: run(1, 2),
        key: vec![9, 8],
    };
    let frame = Message::Grants(Grants::new(&[grant])).to_frame();
    let golden = [0xa3, 0, 0x81, 1, 1, 0x81, 2, 2, 0x81, 0x42, 9, 8];
    assert_eq!((frame.kind, frame.payload.as_slice()), (23, &golden[..]));
}

/// What tells of a window comes behind what was there before; without it nothing changes.
#[test]
fn golden_fields_of_the_window() {
    let Some(Message::Welcome(mut welcome)) = messages().into_iter().nth(1) else {
        panic!("another message");
    };
    let without = Message::Welcome(welcome.clone()).to_frame().payload;
    welcome.pin_budget_bytes = Some(7 << 20);
    let with = Message::Welcome(welcome).to_frame().payload;
    assert_eq!(with.get(1..without.len()), without.get(1..));
    assert_eq!(
        with.get(without.len()..),
        Some(&[7, 0x1a, 0, 0x70, 0, 0][..])
    );
    let verified = Verified {
        registrations: Some(WireRegistrations {
            made: 3,
            ended: 2,
            bytes_max: 5,
        }),
        ..Verified::default()
    };
    let golden = [
        0xa6, 0, 0, 1, 0, 2, 0, 3, 0, 4, 0x80, 6, 0xa3, 0, 3, 1, 2, 2, 5,
    ];
    assert_eq!(Message::Verified(verified).to_frame().payload, golden);
}

#[test]
fn golden_field_of_the_recording_and_the_longest_fits_its_frame() {
    let told = |bytes: Vec<u8>| {
        let verified = Verified {
            recording: Some(bytes.into()),
            examples: vec!["x".repeat(REASON_BYTES_MAX); 16],
            ..Verified::default()
        };
        Message::Verified(verified).to_frame().payload
    };
    assert!(told(vec![1, 2, 3]).ends_with(&[7, 0x43, 1, 2, 3]));
    let longest = told(vec![0; crate::telemetry::wire::WIRE_BYTES_MAX]).len();
    let limit = frame_limit(MessageKind::Verified.number()).unwrap() as usize;
    assert!(longest <= limit, "{longest} bytes, {limit} are agreed");
}

#[test]
fn ranges_out_of_bounds_are_refused_and_the_most_fit_their_frame() {
    let kind = MessageKind::Open;
    let many = |count: usize| vec![run(u64::MAX - (1 << 33), u32::MAX); count];
    let most = Ranges::new(&many(RANGES_IN_MESSAGE_MAX));
    assert_eq!(most.to_runs(kind).unwrap().len(), RANGES_IN_MESSAGE_MAX);
    let bytes = Message::Open(most).to_frame().payload.len();
    assert!(
        bytes <= frame_limit(kind.number()).unwrap() as usize,
        "{bytes}"
    );
    let grants: Vec<_> = many(RANGES_IN_MESSAGE_MAX)
        .into_iter()
        .map(|range| Grant {
            range,
            key: vec![0; GRANT_KEY_BYTES_MAX],
        })
        .collect();
    let grants = Grants::new(&grants);
    assert_eq!(grants.to_batch().unwrap().len(), RANGES_IN_MESSAGE_MAX);
    let frame = Message::Grants(grants).to_frame();
    assert!(frame.payload.len() <= frame_limit(frame.kind).unwrap() as usize);

    let uneven = Ranges {
        first: vec![1, 2],
        pages: vec![1],
    };
    assert!(uneven.to_runs(kind).is_err());
    for bad in [
        vec![],
        many(RANGES_IN_MESSAGE_MAX + 1),
        vec![run(3, 0)],
        vec![run(u64::MAX, 1)],
    ] {
        assert!(Ranges::new(&bad).to_runs(kind).is_err(), "{bad:?}");
    }
    assert!(Grants::default().to_batch().is_err());
}

#[test]
fn contacts_and_identities_out_of_bounds_are_refused() {
    let Some(Message::Welcome(mut welcome)) = messages().into_iter().nth(1) else {
        panic!("another message");
    };
    welcome.contact = Some(vec![0; 65].into());
    assert!(welcome.contact().is_err());
    assert_eq!(
        Lanes::new(vec![vec![1], vec![]])
            .identities(2)
            .unwrap()
            .len(),
        2
    );
    for bad in [
        vec![],
        vec![vec![1]],
        vec![vec![]; 3],
        vec![vec![0; 65], vec![]],
    ] {
        assert!(Lanes::new(bad.clone()).identities(2).is_err(), "{bad:?}");
    }
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
        which in 0_usize..messages().len(),
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
                let _ = welcome.contact();
            }
            Ok(Message::VerifyPages(pages)) => drop(pages.claims()),
            Ok(Message::Lanes(lanes)) => drop(lanes.identities(2)),
            Ok(Message::Open(ranges) | Message::Close(ranges) | Message::Closed(ranges)) => {
                drop(ranges.to_runs(MessageKind::Open));
            }
            Ok(Message::Grants(grants)) => drop(grants.to_batch()),
            Ok(_) | Err(_) => {}
        }
    }
}
