use proptest::prelude::*;

use super::*;
use crate::tcp::compression::Codec;

fn lane() -> Preamble {
    Preamble {
        kind: ConnectionKind::Lane,
        session: SessionId([3; 16]),
        lane: LaneNumber(5),
        token: LaneToken([9; 32]),
    }
}

#[test]
fn bytes_and_preambles_map_to_each_other() {
    for preamble in [
        lane(),
        Preamble::control(SessionId([1; 16])),
        Preamble::settling(SessionId([1; 16])),
    ] {
        assert_eq!(Preamble::decode(&preamble.encode()).unwrap(), preamble);
    }
    let mut golden = [0_u8; PREAMBLE_BYTES];
    golden[..16].copy_from_slice(b"DUNLIN\r\n\x01\0\x02\0\x05\0\0\0");
    golden[16..32].fill(3);
    golden[32..].fill(9);
    assert_eq!(lane().encode(), golden);
}

#[test]
fn what_is_not_offered_has_its_own_error() {
    let with = |at: usize, byte: u8| {
        let mut bytes = lane().encode();
        bytes[at] = byte;
        Preamble::decode(&bytes).unwrap_err()
    };
    assert!(matches!(with(0, b'd'), PreambleError::NotDunlin));
    assert!(matches!(with(8, 2), PreambleError::Version(2)));
    assert!(matches!(
        with(10, 4),
        PreambleError::Reserved("a byte stream")
    ));
    assert!(matches!(with(10, 9), PreambleError::UnknownKind(9)));
    assert!(matches!(
        with(12, 64),
        PreambleError::Field {
            field: "lane number",
            value: 64
        }
    ));
    assert!(matches!(
        with(14, 1),
        PreambleError::Field {
            field: "reserved field",
            ..
        }
    ));
    // A control connection has no lane.
    for kind in [1, 3] {
        assert!(matches!(
            with(10, kind),
            PreambleError::Field {
                field: "lane number",
                value: 5
            }
        ));
    }
}

#[test]
fn answers_map_to_their_bytes() {
    let mut answers = vec![accepted([].into()), Answer::RefusedOtherwise(77)];
    answers.extend(Refusal::ALL.map(Answer::Refused));
    answers.push(accepted([Codec::Zstd].into()));
    answers.push(accepted(Codec::ALL.into()));
    for answer in answers {
        assert_eq!(Answer::decode(answer.encode()), Some(answer));
    }
    assert_eq!(Answer::decode([0; 8]), None);
}

fn accepted(codecs: Vec<Codec>) -> Answer {
    let takes = codecs.into_iter().collect();
    Answer::Accepted { takes }
}

#[test]
fn golden_answers_stay_readable() {
    for (bytes, answer) in [
        // From before there were compressed frames.
        (b"DNLA\0\0\x01\0", accepted(vec![])),
        (b"DNLA\0\0\x01\x01", accepted(vec![Codec::Lz4])),
        (b"DNLA\0\0\x01\x03", accepted(Codec::ALL.into())),
        (b"DNLA\x05\0\x01\0", Answer::Refused(Refusal::Token)),
    ] {
        assert_eq!(Answer::decode(*bytes), Some(answer));
        assert_eq!(&answer.encode(), bytes);
    }
    // Codecs of later versions are not used.
    let later = Answer::decode(*b"DNLA\0\0\x01\xfe");
    assert_eq!(later, Some(accepted(vec![Codec::Zstd])));
    // A later version's refusal: its number is read, and nothing else.
    let later = Answer::decode(*b"DNLA\x01\0\x02\xff");
    assert_eq!(later, Some(Answer::Refused(Refusal::Version)));
}

proptest! {
    #[test]
    fn any_bytes_decode_or_are_refused(bytes in proptest::array::uniform32(any::<u8>())) {
        let mut preamble = lane().encode();
        preamble[..32].copy_from_slice(&bytes);
        prop_assert!(Preamble::decode(&preamble).is_err());
        preamble[..8].copy_from_slice(&MAGIC);
        if let Ok(read) = Preamble::decode(&preamble) {
            prop_assert_eq!(read.encode(), preamble);
        }
    }
}
