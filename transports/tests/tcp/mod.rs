//! TCP on loopback: each mechanism, and both versions of IP.

use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use dunlin_transports::conformance::{Harness, Pair};
use dunlin_transports::deadline::Deadline;
use dunlin_transports::memory::MemoryMap;
use dunlin_transports::tcp::{
    Compression, ConnectionKind, DestinationEndpoint, IncomingLane, Mechanism, Options,
    SourceEndpoint, ZeroCopy, listen, read_preamble,
};

#[cfg(feature = "compression")]
mod compressed;
mod without_a_copy;
mod without_uring;
mod writing;

/// Accepts lanes until dropped, as a supervisor does.
struct Acceptor {
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl Acceptor {
    fn new(listener: TcpListener) -> (Self, mpsc::Receiver<IncomingLane>) {
        let (lanes, incoming) = mpsc::channel();
        let accepting = listener.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                let deadline = Deadline::after(Duration::from_secs(10));
                let Ok(preamble) = read_preamble(&stream, deadline) else {
                    break;
                };
                if preamble.kind != ConnectionKind::Lane
                    || lanes.send(IncomingLane { stream, preamble }).is_err()
                {
                    break;
                }
            }
        });
        let thread = Some(thread);
        (Self { listener, thread }, incoming)
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        // A connection without a preamble ends the thread.
        drop(TcpStream::connect(self.listener.local_addr().unwrap()));
        self.thread.take().map(JoinHandle::join);
    }
}

struct Tcp {
    mechanism: Mechanism,
    compression: Compression,
    zero_copy: ZeroCopy,
    listen: &'static str,
}

/// Everything by itself, over IPv4.
const AUTOMATIC: Tcp = Tcp {
    mechanism: Mechanism::Auto,
    compression: Compression::Off,
    zero_copy: ZeroCopy::Auto,
    listen: "127.0.0.1:0",
};

impl Tcp {
    fn endpoint_mechanism(&self) -> String {
        let memory = MemoryMap::new(Vec::new()).unwrap();
        let options = Options {
            mechanism: self.mechanism,
            compression: self.compression,
            ..Options::default()
        };
        let endpoint = SourceEndpoint::new(([127, 0, 0, 1], 1).into(), memory, options);
        dunlin_transports::lane::SourceEndpoint::mechanism(&endpoint)
    }
}

/// Endpoints on loopback, each with its own mechanism; the source compresses, or does not copy.
fn pair(
    address: &str,
    mechanisms: (Mechanism, Mechanism),
    compression: Compression,
    zero_copy: ZeroCopy,
    source: MemoryMap,
    destination: MemoryMap,
) -> Pair {
    let options = |mechanism| Options {
        mechanism,
        ..Options::default()
    };
    let from = Options {
        compression,
        zero_copy,
        ..options(mechanisms.0)
    };
    // A destination needs no word of it.
    let to = options(mechanisms.1);
    let listener = listen(address, &to).unwrap();
    let peer = listener.local_addr().unwrap();
    let (acceptor, incoming) = Acceptor::new(listener);
    Pair {
        source: Box::new(SourceEndpoint::new(peer, source, from)),
        destination: Box::new(DestinationEndpoint::new(destination, incoming, to)),
        keep: Box::new(acceptor),
    }
}

impl Harness for Tcp {
    fn name(&self) -> String {
        format!("tcp, {:?}, {}", self.mechanism, self.listen)
    }

    fn unavailable(&self) -> Option<String> {
        if let Err(error) = TcpListener::bind(self.listen) {
            return Some(format!("can't listen on {}: {error}", self.listen));
        }
        // What `Auto` would do says whether io_uring is to be had.
        let mechanism = AUTOMATIC.endpoint_mechanism();
        (self.mechanism == Mechanism::IoUring && mechanism != "io_uring").then_some(mechanism)
    }

    fn compresses(&self) -> bool {
        !matches!(self.compression.to_string().as_str(), "off" | "auto")
    }

    fn pair(&self, source: MemoryMap, destination: MemoryMap) -> Pair {
        pair(
            self.listen,
            (self.mechanism, self.mechanism),
            self.compression,
            self.zero_copy,
            source,
            destination,
        )
    }
}

mod uring {
    use super::*;

    dunlin_transports::conformance_tests!(Tcp {
        mechanism: Mechanism::IoUring,
        ..AUTOMATIC
    });
}

mod plain {
    use super::*;

    dunlin_transports::conformance_tests!(Tcp {
        mechanism: Mechanism::Plain,
        ..AUTOMATIC
    });

    #[test]
    fn the_mechanism_is_named() {
        let plain = Tcp {
            mechanism: Mechanism::Plain,
            ..AUTOMATIC
        };
        assert_eq!(plain.endpoint_mechanism(), "writev");
    }
}

mod ipv6 {
    use super::*;

    dunlin_transports::conformance_tests!(Tcp {
        listen: "[::1]:0",
        ..AUTOMATIC
    });
}
