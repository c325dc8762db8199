//! Socket options, connecting and listening, and reads and writes of a few bytes by a deadline.
//!
//! Sockets are in blocking mode (io_uring wants them so: on a non-blocking one it gives up instead
//! of waiting); each call that must not block asks for that itself with `MSG_DONTWAIT`.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvFlags, SendFlags};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::Options;
use crate::deadline::Deadline;

/// Connections that may wait to be accepted: all lanes of two sessions and some strangers.
const BACKLOG: i32 = 256;

/// Probes without an answer after which an idle connection is over.
const KEEPALIVE_PROBES: u32 = 3;

/// Sets what every connection has, on a socket of either direction.
///
/// Buffer sizes are left to the kernel's autotuning: setting them turns it off, and the limits for
/// explicit sizes (`net.core.wmem_max`, 208 KiB by default) are far below those of autotuning
/// (`net.ipv4.tcp_wmem`, 4 MiB). Nor did it pay where the limits were 4 MiB: by the kernel, with 1
/// MiB and with 4 MiB, one lane made 2.0, 1.9 and 1.6 GB/s, two 2.4, 2.5 and 1.9 (`lane_throughput
/// --socket-buffer 0,1048576,4194304`; loopback, 2 cores with other work, medians of 9 passes in
/// turns that spread over a factor of two and more, so only the last of the three stands out).
pub(super) fn configure(stream: &TcpStream, options: &Options) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let interval = options.keepalive.max(Duration::from_secs(1));
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(interval)
            .with_interval(interval)
            .with_retries(KEEPALIVE_PROBES),
    )?;
    socket.set_tcp_user_timeout(Some(options.user_timeout))?;
    if let Some(bytes) = options.socket_buffer_bytes {
        socket.set_send_buffer_size(bytes as usize)?;
        socket.set_recv_buffer_size(bytes as usize)?;
    }
    let is_ipv6 = stream.local_addr()?.is_ipv6();
    set_traffic_class(&socket, is_ipv6, options)
}

fn set_traffic_class(socket: &Socket, is_ipv6: bool, options: &Options) -> io::Result<()> {
    let Some(class) = options.tos.map(u32::from) else {
        return Ok(());
    };
    if is_ipv6 {
        socket.set_tclass_v6(class)?;
        // A dual-stack socket that carries IPv4 takes its class from here; one that is bound to
        // IPv6 alone refuses it, which does no harm.
        let _ = socket.set_tos_v4(class);
        return Ok(());
    }
    socket.set_tos_v4(class)
}

/// Listens on `addr` (`host:port`, IPv6 in brackets). Names are resolved; the first address that
/// can be bound is taken.
///
/// # Errors
///
/// When the name can't be resolved or no address can be bound.
pub fn listen(addr: &str, options: &Options) -> io::Result<TcpListener> {
    let mut last = None;
    for address in addr.to_socket_addrs()? {
        match listen_at(address, options) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| no_address(addr)))
}

fn listen_at(address: SocketAddr, options: &Options) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    // Accepted sockets inherit the class, so that even the handshake has it.
    set_traffic_class(&socket, address.is_ipv6(), options)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn no_address(name: &str) -> io::Error {
    io::Error::new(
        ErrorKind::AddrNotAvailable,
        format!("{name} has no address"),
    )
}

/// A socket for a connection to `peer`, not yet connected.
pub(super) fn unconnected(peer: SocketAddr, options: &Options) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(peer), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(local) = options.bind {
        socket.bind(&SocketAddr::new(local, 0).into())?;
    }
    set_traffic_class(&socket, peer.is_ipv6(), options)?;
    Ok(TcpStream::from(OwnedFd::from(socket)))
}

/// Connects by the deadline. A shutdown of the socket from another thread ends it early.
pub(super) fn connect(
    stream: &TcpStream,
    peer: SocketAddr,
    options: &Options,
    deadline: Deadline,
) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_nonblocking(true)?;
    match socket.connect(&peer.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
            if !wait_ready(stream, PollFlags::OUT, deadline)? {
                return Err(ErrorKind::TimedOut.into());
            }
            if let Some(error) = socket.take_error()? {
                return Err(error);
            }
            // Writable, without error and without a peer: shut down from this side.
            socket
                .peer_addr()
                .map_err(|_| io::Error::from(ErrorKind::ConnectionAborted))?;
        }
        Err(error) => return Err(error),
    }
    configure(stream, options)
}

/// The addresses behind `host:port`, by the deadline.
fn resolve(peer: &str, deadline: Deadline) -> io::Result<Vec<SocketAddr>> {
    // Nothing to ask anybody.
    if let Ok(address) = peer.parse() {
        return Ok(vec![address]);
    }
    let name = peer.to_owned();
    resolve_by(
        move || name.to_socket_addrs().map(Iterator::collect),
        deadline,
    )
    .map_err(|error| {
        if error.kind() == ErrorKind::TimedOut {
            return io::Error::new(
                ErrorKind::TimedOut,
                format!("resolving {peer} takes too long"),
            );
        }
        error
    })
}

/// Runs a resolver on a thread of its own; it may outlive this call, for as long as the resolver's
/// own limits are.
fn resolve_by(
    resolver: impl FnOnce() -> io::Result<Vec<SocketAddr>> + Send + 'static,
    deadline: Deadline,
) -> io::Result<Vec<SocketAddr>> {
    let (sender, resolved) = std::sync::mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("dunlin-resolve".to_owned())
        .spawn(move || {
            // Fails where nobody waits any more.
            let _ = sender.send(resolver());
        })?;
    match resolved.recv_timeout(deadline.remaining()) {
        Ok(resolved) => resolved,
        Err(RecvTimeoutError::Timeout) => Err(ErrorKind::TimedOut.into()),
        Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the resolver's thread died")),
    }
}

/// Connects to the first address of `peer` (`host:port`) that answers by the deadline. A name that
/// has several gets an equal share of what is left of the time for each.
pub(super) fn connect_by_name(
    peer: &str,
    options: &Options,
    deadline: Deadline,
) -> io::Result<(TcpStream, SocketAddr)> {
    let mut addresses = resolve(peer, deadline)?;
    addresses.retain(|address| {
        options
            .bind
            .is_none_or(|local| local.is_ipv4() == address.is_ipv4())
    });
    let mut last = no_address(peer);
    for (index, address) in addresses.iter().enumerate() {
        let shares = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
        let share = Deadline::after(deadline.remaining() / shares);
        let stream = unconnected(*address, options)?;
        match connect(&stream, *address, options, share) {
            Ok(()) => return Ok((stream, *address)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Waits until the socket is ready (or broken, which counts as ready); `false` at the deadline.
pub(super) fn wait_ready(
    socket: impl AsFd,
    flags: PollFlags,
    deadline: Deadline,
) -> io::Result<bool> {
    loop {
        let left = deadline.remaining();
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut polled = [PollFd::new(&socket, flags)];
        match rustix::event::poll(&mut polled, Some(&timeout)) {
            Ok(0) if deadline.passed() => return Ok(false),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Writes all of `bytes` by the deadline.
///
/// # Errors
///
/// [`ErrorKind::TimedOut`] at the deadline, or the system's.
pub(super) fn write_all(
    stream: &TcpStream,
    mut bytes: &[u8],
    deadline: Deadline,
) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::net::send(stream, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => {
                if !wait_ready(stream, PollFlags::OUT, deadline)? {
                    return Err(ErrorKind::TimedOut.into());
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads what is there into `buffer` (not empty), at least one byte, by the deadline.
///
/// # Errors
///
/// [`ErrorKind::TimedOut`] at the deadline, [`ErrorKind::UnexpectedEof`] when the peer closed, or
/// the system's.
pub(super) fn read_some(
    stream: &TcpStream,
    buffer: &mut [u8],
    deadline: Deadline,
) -> io::Result<usize> {
    loop {
        match rustix::net::recv(stream, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok((received, _)) => return Ok(received),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => {
                if !wait_ready(stream, PollFlags::IN, deadline)? {
                    return Err(ErrorKind::TimedOut.into());
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Fills `buffer` by the deadline, which is for all of it: a peer that sends a byte now and then
/// gains nothing.
///
/// # Errors
///
/// As for [`read_some`].
pub(super) fn read_exact(
    stream: &TcpStream,
    buffer: &mut [u8],
    deadline: Deadline,
) -> io::Result<()> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        if deadline.passed() {
            return Err(ErrorKind::TimedOut.into());
        }
        filled += read_some(stream, rest, deadline)?;
    }
    Ok(())
}

/// Whether the peer takes what is sent, seen from the bytes in the socket's send queue.
///
/// That no call moved anything says little by itself: a full send queue of some MiB wakes its
/// writer only once a third of it is free again, which takes long on a slow link.
pub(super) struct SendQueue {
    bytes: libc::c_int,
}

impl SendQueue {
    /// A first look.
    pub(super) fn of(stream: &TcpStream) -> Self {
        let mut queue = Self { bytes: 0 };
        queue.has_moved(stream);
        queue
    }

    /// Whether the queue has changed since the last look. Where the system does not say: no.
    pub(super) fn has_moved(&mut self, stream: &TcpStream) -> bool {
        let mut bytes: libc::c_int = 0;
        // SAFETY: TIOCOUTQ (SIOCOUTQ, see tcp(7)) writes one int where it is told.
        let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
        let has_moved = result == 0 && bytes != self.bytes;
        self.bytes = bytes;
        has_moved
    }
}

/// How many bytes wait for their first way out: for the peer's window, or the congestion window.
/// `None` where the system does not say.
#[cfg(feature = "compression")]
pub(super) fn unsent_bytes(stream: &TcpStream) -> Option<u64> {
    /// From linux/sockios.h; the libc crate does not have it.
    const SIOCOUTQNSD: libc::Ioctl = 0x894b;
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQNSD writes one int where it is told.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), SIOCOUTQNSD, &raw mut bytes) };
    u64::try_from(bytes).ok().filter(|_| result == 0)
}

/// Whether an error says that the peer is gone, in whichever way it went.
pub(super) fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::UnexpectedEof
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::NotConnected
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolver_that_does_not_answer_is_held_to_the_deadline() {
        let (answer, asked) = std::sync::mpsc::channel::<()>();
        let silent = move || {
            let _ = asked.recv();
            Ok(Vec::new())
        };
        let resolved = resolve_by(silent, Deadline::after(Duration::from_millis(50)));
        assert_eq!(resolved.unwrap_err().kind(), ErrorKind::TimedOut);
        drop(answer);
    }

    #[cfg(feature = "compression")]
    #[test]
    fn what_the_peer_does_not_take_counts_as_unsent() {
        use std::io::{Read, Write};

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        assert_eq!(unsent_bytes(&near), Some(0));
        near.set_nonblocking(true).unwrap();
        let mut written = 0;
        while let Ok(count) = (&near).write(&[7; 64 << 10]) {
            written += count as u64;
        }
        let unsent = unsent_bytes(&near).unwrap();
        assert!(0 < unsent && unsent < written, "{unsent} of {written}");
        // Taken, all of it leaves.
        let mut taken = vec![0; written as usize];
        far.read_exact(&mut taken).unwrap();
        assert_eq!(unsent_bytes(&near), Some(0));
    }

    #[test]
    fn names_and_addresses_are_resolved() {
        let soon = || Deadline::after(Duration::from_secs(30));
        let literal = "127.0.0.1:7471".parse().unwrap();
        assert_eq!(resolve("127.0.0.1:7471", soon()).unwrap(), [literal]);
        assert!(
            resolve("localhost:7471", soon())
                .unwrap()
                .iter()
                .all(|address| address.ip().is_loopback())
        );
        assert!(resolve("no-port", soon()).is_err());
    }
}
