//! Between the supervisor and the process of one guest: messages over a Unix socket pair, with
//! which connections change hands (`SCM_RIGHTS`, unix(7)).
//!
//! A message is a header of [`HEADER_BYTES`] and a body. A connection travels with the header's
//! first byte, and what was already read from it (a preamble, the HELLO) is the body.
//!
//! Both ends are the same program, yet one of them speaks to a peer over the network and may have
//! gone wrong: lengths are checked, and nothing is allocated before.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use dunlin_engine::protocol::HELLO_BYTES_MAX;
use dunlin_transports::control::Frame;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

/// Kind (2), the frame's kind (2), the body's length (4).
const HEADER_BYTES: usize = 8;

/// The longest body: a HELLO, which is longer than any preamble or word.
const BODY_BYTES_MAX: usize = HELLO_BYTES_MAX as usize;

/// What the supervisor gives.
#[derive(Debug)]
pub(crate) enum Parcel {
    /// The control connection of a guest that wants to come here, and its HELLO.
    Control {
        /// The connection.
        stream: TcpStream,
        /// The frame that was read from it.
        hello: Frame,
    },
    /// A lane's connection, and the preamble that was read from it.
    Lane {
        /// The connection.
        stream: TcpStream,
        /// The bytes that were read from it.
        preamble: Vec<u8>,
    },
}

/// What the guest's process says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "word", rename_all = "kebab-case")]
pub(crate) enum Word {
    /// The guest's memory is allocated: what the kernel counts, it counts now.
    MemoryAllocated,
    /// The guest runs here.
    Arrived {
        /// Its epoch from now on.
        epoch: u64,
        /// Whether its source knows; otherwise it will ask.
        source_knows: bool,
    },
    /// The guest did not come.
    Failed {
        /// Why.
        reason: String,
    },
}

const KIND_CONTROL: u16 = 1;
const KIND_LANE: u16 = 2;
const KIND_WORD: u16 = 3;

/// Gives a connection away.
///
/// # Errors
///
/// When the other end is gone or what goes with the connection is too long.
pub(crate) fn give(socket: &UnixStream, parcel: &Parcel) -> io::Result<()> {
    let (kind, frame_kind, stream, body) = match parcel {
        Parcel::Control { stream, hello } => {
            (KIND_CONTROL, hello.kind, stream, hello.payload.as_slice())
        }
        Parcel::Lane { stream, preamble } => (KIND_LANE, 0, stream, preamble.as_slice()),
    };
    write_message(socket, kind, frame_kind, Some(stream.as_fd()), body)
}

/// Takes the next connection; `None` when the other end is gone.
///
/// # Errors
///
/// When the other end breaks the rules of this room.
pub(crate) fn take(socket: &UnixStream) -> io::Result<Option<Parcel>> {
    let Some(message) = read_message(socket)? else {
        return Ok(None);
    };
    let stream = message
        .connection
        .map(TcpStream::from)
        .ok_or_else(|| broken("a connection is missing"))?;
    match message.kind {
        KIND_CONTROL => Ok(Some(Parcel::Control {
            stream,
            hello: Frame {
                kind: message.frame_kind,
                payload: message.body,
            },
        })),
        KIND_LANE => Ok(Some(Parcel::Lane {
            stream,
            preamble: message.body,
        })),
        _ => Err(broken("an unknown kind of message")),
    }
}

/// Says a word to the supervisor.
///
/// # Errors
///
/// When the supervisor is gone.
pub(crate) fn say(socket: &UnixStream, word: &Word) -> io::Result<()> {
    write_message(socket, KIND_WORD, 0, None, &serde_json::to_vec(word)?)
}

/// The next word of a guest's process; `None` when the process is gone.
///
/// # Errors
///
/// When it breaks the rules of this room.
pub(crate) fn hear(socket: &UnixStream) -> io::Result<Option<Word>> {
    let Some(message) = read_message(socket)? else {
        return Ok(None);
    };
    if message.kind != KIND_WORD {
        return Err(broken("an unknown kind of message"));
    }
    Ok(Some(serde_json::from_slice(&message.body)?))
}

struct Message {
    kind: u16,
    frame_kind: u16,
    connection: Option<OwnedFd>,
    body: Vec<u8>,
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn write_message(
    mut socket: &UnixStream,
    kind: u16,
    frame_kind: u16,
    connection: Option<BorrowedFd<'_>>,
    body: &[u8],
) -> io::Result<()> {
    if body.len() > BODY_BYTES_MAX {
        return Err(broken("what goes with a connection is too long"));
    }
    let length = u32::try_from(body.len()).map_err(|_| broken("a body is too long"))?;
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend_from_slice(&kind.to_le_bytes());
    header.extend_from_slice(&frame_kind.to_le_bytes());
    header.extend_from_slice(&length.to_le_bytes());

    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let connections = connection.as_slice();
    if !connections.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(connections)) {
        return Err(broken("no room for a descriptor"));
    }
    let sent = loop {
        let pieces = [IoSlice::new(&header)];
        match sendmsg(socket, &pieces, &mut ancillary, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => continue,
            sent => break sent?,
        }
    };
    // The descriptor went with the first byte; the rest is plain bytes.
    socket.write_all(header.get(sent..).unwrap_or_default())?;
    socket.write_all(body)
}

fn read_message(mut socket: &UnixStream) -> io::Result<Option<Message>> {
    let mut header = [0; HEADER_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let read = loop {
        let mut pieces = [IoSliceMut::new(&mut header)];
        match recvmsg(socket, &mut pieces, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => continue,
            message => break message?.bytes,
        }
    };
    if read == 0 {
        return Ok(None);
    }
    let connection = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    socket.read_exact(header.get_mut(read..).unwrap_or_default())?;
    let [k0, k1, f0, f1, l0, l1, l2, l3] = header;
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if length > BODY_BYTES_MAX {
        return Err(broken("a body is too long"));
    }
    let mut body = vec![0; length];
    socket.read_exact(&mut body)?;
    Ok(Some(Message {
        kind: u16::from_le_bytes([k0, k1]),
        frame_kind: u16::from_le_bytes([f0, f1]),
        connection,
        body,
    }))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn a_connection_changes_hands_and_still_works() {
        let (left, right) = UnixStream::pair().unwrap();
        let (mut peer, stream) = connection();
        let (mut lane_peer, lane) = connection();
        let hello = Frame {
            kind: 1,
            payload: vec![7; 200 << 10],
        };
        let sent = hello.clone();
        // On a thread: the body is longer than the socket's buffer may be.
        let giver = std::thread::spawn(move || {
            give(
                &left,
                &Parcel::Control {
                    stream,
                    hello: sent,
                },
            )
            .unwrap();
            give(
                &left,
                &Parcel::Lane {
                    stream: lane,
                    preamble: b"preamble".to_vec(),
                },
            )
            .unwrap();
        });
        let Some(Parcel::Control {
            stream: mut arrived,
            hello: heard,
        }) = take(&right).unwrap()
        else {
            panic!("the control connection comes first");
        };
        assert_eq!(heard, hello);
        let Some(Parcel::Lane {
            stream: mut lane,
            preamble,
        }) = take(&right).unwrap()
        else {
            panic!("then the lane");
        };
        assert_eq!(preamble, b"preamble");
        giver.join().unwrap();
        assert!(take(&right).unwrap().is_none());

        peer.write_all(b"ping").unwrap();
        lane_peer.write_all(b"lane").unwrap();
        let mut bytes = [0; 4];
        arrived.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"ping");
        lane.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"lane");
    }

    #[test]
    fn words_arrive_and_an_end_is_an_end() {
        let (left, right) = UnixStream::pair().unwrap();
        let word = Word::Failed {
            reason: "no".to_owned(),
        };
        say(&left, &word).unwrap();
        assert_eq!(hear(&right).unwrap(), Some(word));
        drop(left);
        assert_eq!(hear(&right).unwrap(), None);
    }

    #[test]
    fn what_breaks_the_rules_is_an_error() {
        for bytes in [
            // A length beyond the limit.
            &[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff][..],
            // A kind that is unknown, and no connection.
            &[9, 0, 0, 0, 0, 0, 0, 0],
            // A header that breaks off.
            &[1, 0, 0],
        ] {
            let (mut left, right) = UnixStream::pair().unwrap();
            left.write_all(bytes).unwrap();
            drop(left);
            assert!(take(&right).is_err(), "{bytes:?}");
        }
        let (mut left, right) = UnixStream::pair().unwrap();
        left.write_all(&[3, 0, 0, 0, 1, 0, 0, 0, b'x']).unwrap();
        assert!(hear(&right).is_err());
    }
}
