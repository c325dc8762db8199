//! Raw connections: bytes as docs/protocol.md describes them, written by hand.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

/// How long a raw read waits.
const READ_TIME_MAX: Duration = Duration::from_secs(30);

/// A control connection's first 64 bytes.
pub fn preamble(version: u16, kind: u16, lane: u16, session: [u8; 16], token: [u8; 32]) -> Vec<u8> {
    let mut bytes = b"DUNLIN\r\n".to_vec();
    for field in [version, kind, lane, 0] {
        bytes.extend(field.to_le_bytes());
    }
    bytes.extend(session);
    bytes.extend(token);
    bytes
}

/// A control frame.
pub fn frame(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len())
        .unwrap_or(u32::MAX)
        .to_le_bytes()
        .to_vec();
    bytes.extend(kind.to_le_bytes());
    bytes.extend([0, 0]);
    bytes.extend(payload);
    bytes
}

/// Connects to a port of this machine and says `bytes`.
///
/// # Errors
///
/// When there is no connection.
pub fn say(port: u16, bytes: &[u8]) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).context("connecting")?;
    stream.set_read_timeout(Some(READ_TIME_MAX))?;
    // A peer that hangs up in the middle is within its rights.
    let _ = stream.write_all(bytes);
    Ok(stream)
}

/// Reads until the peer hangs up. What it said is returned, at most 1 MiB.
///
/// # Errors
///
/// When it neither says anything nor hangs up for half a minute.
pub fn hear_out(stream: TcpStream) -> Result<Vec<u8>> {
    let mut heard = Vec::new();
    match stream.take(1 << 20).read_to_end(&mut heard) {
        Ok(_) => Ok(heard),
        // Hung up with our bytes unread.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(heard),
        Err(error) => Err(error).context("the peer neither speaks nor hangs up"),
    }
}

/// A generator of numbers that look random and can be had again from the same seed.
pub struct Numbers(u64);

impl Numbers {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The next number (xorshift64).
    pub fn next_number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end` (of at least one).
    pub fn below(&mut self, end: usize) -> usize {
        (self.next_number() % end.max(1) as u64) as usize
    }

    /// So many bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next_number() as u8).collect()
    }
}

/// What a recording relay does with bytes on their way to the destination.
pub type Meddle = Box<dyn FnMut(usize, &mut Vec<u8>) + Send>;

/// A relay between a source and a destination: connection after connection is passed on to `port`,
/// and `meddle` sees (and may change) each piece of what the source says, with the connection's
/// number. Returns the relay's own port. Ends when the listener's last connection does.
///
/// # Errors
///
/// When no port is free.
pub fn relay(port: u16, meddle: impl Fn(usize) -> Meddle + Send + 'static) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let own = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for (number, inward) in listener.incoming().map_while(Result::ok).enumerate() {
            let Ok(outward) = TcpStream::connect(("127.0.0.1", port)) else {
                return;
            };
            let (Ok(inward_reader), Ok(outward_reader)) = (inward.try_clone(), outward.try_clone())
            else {
                return;
            };
            let mut meddle = meddle(number);
            std::thread::spawn(move || {
                pass_on(inward_reader, outward, |bytes| meddle(number, bytes));
            });
            std::thread::spawn(move || pass_on(outward_reader, inward, |_| {}));
        }
    });
    Ok(own)
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, mut meddle: impl FnMut(&mut Vec<u8>)) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let mut bytes = buffer.get(..count).unwrap_or_default().to_vec();
        meddle(&mut bytes);
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    // Either side may be gone already.
    let _ = to.shutdown(std::net::Shutdown::Both);
    let _ = from.shutdown(std::net::Shutdown::Both);
}
