//! The little of HTTP/1.1 (RFC 9112) that a scrape needs: one GET a connection. Whoever connects is
//! a stranger: there are at most [`CONNECTIONS_MAX`], each has [`TIME_MAX`] and
//! [`HEAD_BYTES_MAX`], and nothing that one does reaches the guest.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use dunlin_engine::telemetry::prometheus::CONTENT_TYPE;

use super::Source;
use crate::places::{ACCEPT_REST, Places};

/// The most connections at a time: a few monitors. Each costs a thread.
const CONNECTIONS_MAX: usize = 8;

/// How long a connection may take for everything. A scrape takes milliseconds, Prometheus gives up
/// after 10 s.
const TIME_MAX: Duration = Duration::from_secs(5);

/// The longest request: a line and headers. Prometheus' have some 300 bytes.
const HEAD_BYTES_MAX: usize = 8 << 10;

/// How much is written before it is looked whether there is time left.
const PIECE_BYTES: usize = 64 << 10;

/// Answers for as long as the process lives.
pub(super) fn serve(listener: &TcpListener, source: &Arc<dyn Source>) {
    let places = Places::new(CONNECTIONS_MAX);
    loop {
        let Ok((stream, _)) = listener.accept() else {
            thread::sleep(ACCEPT_REST);
            continue;
        };
        let Some(place) = places.take() else {
            // The crowd's last is let go without a word: a word could wait, too.
            continue;
        };
        let source = Arc::clone(source);
        // Where no thread can be made, the closure and with it the connection is dropped.
        let _ = thread::Builder::new()
            .name("metrics-client".to_owned())
            .spawn(move || {
                let _place = place;
                // A client that does not read or hangs up is its own loss.
                let _ = attend(&stream, source.as_ref());
            });
    }
}

fn attend(stream: &TcpStream, source: &dyn Source) -> io::Result<()> {
    let end = Instant::now() + TIME_MAX;
    let answer = match head(stream, end)? {
        Some(head) => Answer::to(&head, source),
        None => Answer::error("431 Request Header Fields Too Large", "too long a request"),
    };
    write(stream, end, &answer.bytes())
}

/// Reads a request up to the empty line behind its headers; `None` when it is too long.
fn head(mut stream: &TcpStream, end: Instant) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    loop {
        stream.set_read_timeout(Some(left(end)?))?;
        let read = stream.read(&mut piece)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.extend_from_slice(piece.get(..read).unwrap_or_default());
        if head.windows(4).any(|window| window == b"\r\n\r\n") {
            return Ok(Some(head));
        }
        if head.len() > HEAD_BYTES_MAX {
            return Ok(None);
        }
    }
}

fn write(mut stream: &TcpStream, end: Instant, bytes: &[u8]) -> io::Result<()> {
    for piece in bytes.chunks(PIECE_BYTES) {
        stream.set_write_timeout(Some(left(end)?))?;
        stream.write_all(piece)?;
    }
    Ok(())
}

/// The time that is left.
fn left(end: Instant) -> io::Result<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    match left.is_zero() {
        true => Err(io::ErrorKind::TimedOut.into()),
        false => Ok(left),
    }
}

struct Answer {
    status: &'static str,
    content_type: &'static str,
    body: String,
    /// Whether the body is left out, as for HEAD.
    is_bare: bool,
}

impl Answer {
    fn to(head: &[u8], source: &dyn Source) -> Self {
        let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        let mut words = line.split(' ');
        let (method, target, version) = (words.next(), words.next(), words.next());
        if !version.is_some_and(|version| version.starts_with("HTTP/1.")) || words.next().is_some()
        {
            return Self::error("400 Bad Request", "this is not HTTP/1.1");
        }
        let path = target.unwrap_or_default().split('?').next();
        match (method, path) {
            (Some("GET" | "HEAD"), Some("/metrics")) => Self {
                status: "200 OK",
                content_type: CONTENT_TYPE,
                body: source.text(),
                is_bare: method == Some("HEAD"),
            },
            (Some("GET" | "HEAD"), _) => Self::error("404 Not Found", "metrics are at /metrics"),
            _ => Self::error("405 Method Not Allowed", "only GET is answered"),
        }
    }

    fn error(status: &'static str, body: &str) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            body: format!("{body}\n"),
            is_bare: false,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut text = format!(
            "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.status,
            self.content_type,
            self.body.len()
        );
        if !self.is_bare {
            text.push_str(&self.body);
        }
        text.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    struct Constant;

    impl Source for Constant {
        fn text(&self) -> String {
            "up 1\n".to_owned()
        }
    }

    fn serving() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || serve(&listener, &(Arc::new(Constant) as Arc<dyn Source>)));
        address
    }

    fn ask(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        // The other side may have had enough before all is written.
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[test]
    fn a_scrape_gets_the_metrics() {
        let address = serving();
        let answer = ask(address, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains(CONTENT_TYPE) && answer.contains("Content-Length: 5\r\n"));
        assert!(answer.ends_with("\r\n\r\nup 1\n"), "{answer}");
        let answer = ask(address, b"HEAD /metrics HTTP/1.1\r\n\r\n");
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    }

    #[test]
    fn anything_else_gets_an_error() {
        let address = serving();
        for (request, status) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], "404"),
            (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
            (b"GET /metrics\r\n\r\n", "400"),
            (b"\xff\xfe\r\n\r\n", "400"),
            (b"GET /metrics HTTP/1.1 x\r\n\r\n", "400"),
        ] {
            let answer = ask(address, request);
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}")),
                "{answer}"
            );
        }
        let endless = [b"GET /metrics HTTP/1.1\r\n".to_vec(), vec![b'x'; 64 << 10]].concat();
        let answer = ask(address, &endless);
        // Reset where the rest was never read.
        assert!(answer.is_empty() || answer.contains("431"), "{answer}");
    }

    #[test]
    fn a_crowd_is_let_go_and_those_who_come_later_are_answered() {
        let address = serving();
        let crowd: Vec<_> = (0..CONNECTIONS_MAX)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        let asked = || ask(address, b"GET /metrics HTTP/1.1\r\n\r\n");
        while !asked().is_empty() {
            // The crowd's threads take their places one by one.
            thread::yield_now();
        }
        drop(crowd);
        while asked().is_empty() {
            thread::yield_now();
        }
    }
}
