//! The supervisor of `dunlin receive`: accepts connections, lets guests in, and gives each a
//! process of its own.
//!
//! | room | what is in it |
//! |---|---|
//! | here | the accept loop, and its bounds |
//! | [`admission`] | whether a guest may come, and its process |
//! | [`registry`] | the guests that are here or on their way, by session, name and UUID |
//! | [`ledger`] | the memory that they were promised |
//! | [`host`] | what memory this host has |
//! | [`handoff`] | giving a connection to a guest's process |
//! | [`metrics`] | what it tells Prometheus |
//! | [`leftovers`] | the files of a guest that did not come |
//! | [`teller`] | telling the operator what happens |
//!
//! A stranger costs a thread and a few hundred KiB, for at most [`GREETING_MAX`], and there are at
//! most [`STRANGERS_MAX`] of them: who has said nothing valid by then is let go.

pub(crate) mod admission;
pub(crate) mod handoff;
pub(crate) mod host;
pub(crate) mod ledger;
mod leftovers;
pub(crate) mod metrics;
pub(crate) mod registry;
pub(crate) mod teller;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use dunlin_engine::destination::{ReceiveError, answer_doubt};
use dunlin_engine::records::verdict::Answer;
use dunlin_transports::deadline::Deadline;
use dunlin_transports::tcp::{
    ConnectionKind, Options, Preamble, Refusal, control_channel, read_preamble, refuse,
};

use self::admission::Admission;
use self::handoff::Parcel;
use self::teller::Happening;
use crate::failure::Failure;

/// The most connections that have not yet shown what they are: all lanes of two sessions.
const STRANGERS_MAX: usize = 128;

/// How long a connection may take for its preamble and, for a control connection, its HELLO.
const GREETING_MAX: Duration = Duration::from_secs(10);

/// How long to rest when the system has no descriptors left for another connection.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// What ends the supervisor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// A signal.
    Signal,
    /// A guest arrived, and one was all that was wanted.
    Arrived,
}

/// Accepts connections on a thread of its own, for as long as the process lives.
///
/// # Errors
///
/// When the thread can't be made.
pub(crate) fn accept(
    listener: TcpListener,
    options: Options,
    admission: Arc<Admission>,
) -> Result<(), Failure> {
    thread::Builder::new()
        .name("accept".to_owned())
        .spawn(move || accept_each(&listener, &options, &admission))
        .map(|_| ())
        .map_err(|error| Failure::system("the thread that accepts", error))
}

fn accept_each(listener: &TcpListener, options: &Options, admission: &Arc<Admission>) {
    let strangers = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok((stream, peer)) = listener.accept() else {
            thread::sleep(ACCEPT_REST);
            continue;
        };
        let Some(stranger) = Stranger::count(&strangers) else {
            refuse(&stream, Refusal::Busy);
            continue;
        };
        let admission = Arc::clone(admission);
        let options = options.clone();
        // Where no thread can be made, the closure and with it the connection is dropped.
        let _ = thread::Builder::new()
            .name("greeting".to_owned())
            .spawn(move || {
                greet(stream, peer, &options, &admission);
                drop(stranger);
            });
    }
}

/// Finds out what a connection is, and passes it on.
fn greet(stream: TcpStream, peer: SocketAddr, options: &Options, admission: &Arc<Admission>) {
    let deadline = Deadline::after(GREETING_MAX);
    let preamble = match read_preamble(&stream, deadline) {
        Ok(preamble) => preamble,
        Err(error) => {
            admission.teller.tell(&Happening::TurnedAway {
                peer,
                reason: error.to_string(),
            });
            return;
        }
    };
    match preamble.kind {
        ConnectionKind::Control => {
            admission.control(stream, preamble.session, peer, options, deadline);
        }
        ConnectionKind::Lane => lane(stream, &preamble, admission),
        ConnectionKind::Settling => settle(stream, &preamble, peer, options, admission),
    }
}

fn lane(stream: TcpStream, preamble: &Preamble, admission: &Admission) {
    let Some(socket) = admission.registry.route(preamble.session) else {
        refuse(&stream, Refusal::Session);
        return;
    };
    let parcel = Parcel::Lane {
        stream,
        preamble: preamble.encode().to_vec(),
    };
    // The lane's token is the guest's process's to check. A process that is gone takes its
    // connections with it.
    let _ = socket.give(&parcel);
}

/// Answers a source that is in doubt.
fn settle(
    stream: TcpStream,
    preamble: &Preamble,
    peer: SocketAddr,
    options: &Options,
    admission: &Admission,
) {
    let asked = control_channel(stream, options)
        .map_err(ReceiveError::from)
        .and_then(|control| answer_doubt(control, preamble.session, admission, GREETING_MAX));
    let happening = match asked {
        Ok(asked) => {
            if asked.is_settled && matches!(asked.answer, Answer::Running | Answer::Ended) {
                admission.source_knows();
            }
            Happening::Asked {
                session: asked.session.to_string(),
                peer,
                answer: asked.answer.words().to_owned(),
                is_settled: asked.is_settled,
            }
        }
        Err(error) => Happening::TurnedAway {
            peer,
            reason: error.to_string(),
        },
    };
    admission.teller.tell(&happening);
}

/// Passes every signal on as an ending.
///
/// # Errors
///
/// When signals can't be handled.
pub(crate) fn end_on_signals(endings: Sender<Ending>) -> Result<(), Failure> {
    crate::signals::on_each(move |_| {
        // The receiver is gone only when the process is about to end.
        let _ = endings.send(Ending::Signal);
    })
}

/// One connection that has not yet shown what it is.
struct Stranger(Arc<AtomicUsize>);

impl Stranger {
    fn count(strangers: &Arc<AtomicUsize>) -> Option<Self> {
        // Counted up by one thread only; counted down by any.
        if strangers.load(Ordering::Acquire) >= STRANGERS_MAX {
            return None;
        }
        strangers.fetch_add(1, Ordering::AcqRel);
        Some(Self(Arc::clone(strangers)))
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
