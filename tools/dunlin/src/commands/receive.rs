//! `dunlin receive`: waits for guests.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use dunlin_transports::tcp::{Options, listen};

use crate::cli::endpoint::{Endpoint, Scheme};
use crate::cli::guest::Receive;
use crate::console;
use crate::exit::Exit;
use crate::fabric;
use crate::failure::Failure;
use crate::local::state_dir;
use crate::metrics::Port;
use crate::supervisor::admission::Admission;
use crate::supervisor::ledger::Ledger;
use crate::supervisor::metrics::Told;
use crate::supervisor::registry::Registry;
use crate::supervisor::teller::{Arrivals, Happening, Teller};
use crate::supervisor::{Ending, accept, end_on_signals};

/// Waits for guests until a signal comes, or until one has arrived under `--once`.
pub(crate) fn run(arguments: &Receive) -> Result<Exit, Failure> {
    if arguments.with_parent {
        super::end_with_parent()?;
    }
    let runtime = arguments.runtime.directory();
    runtime.prepare()?;
    let records = arguments.state.directory();
    state_dir::prepare(&records)?;
    if arguments.listen.scheme == Scheme::Rdma {
        see_rdma()?;
    }
    let metrics = Port::open(arguments.metrics)?;
    let options = Options::default();
    let listener = listen(&arguments.listen.authority(), &options).map_err(|error| {
        Failure::system(
            format!(
                "can't listen at {} (another port: --listen tcp://HOST:PORT)",
                arguments.listen
            ),
            error,
        )
    })?;
    let address = listener
        .local_addr()
        .map_err(|error| Failure::system("the listening address", error))?;
    let teller = Teller {
        json: arguments.json,
        arrivals: Arrivals::default(),
    };
    let (endings_sender, endings) = channel();
    end_on_signals(endings_sender.clone())?;
    let admission = Arc::new(Admission {
        runtime,
        ledger: Ledger::new(arguments.memory_limit, arguments.reserve),
        registry: Registry::default(),
        records,
        teller,
        endings: Mutex::new(endings_sender),
        arguments: arguments.clone(),
    });
    accept(listener, options, Arc::clone(&admission))?;
    if let Some(port) = metrics {
        port.answer(Arc::new(Told(Arc::clone(&admission))))?;
    }
    admission.teller.tell(&Happening::Listening {
        endpoint: Endpoint::tcp(address).to_string(),
    });
    match endings.recv() {
        Ok(Ending::Signal) if arguments.once => Ok(Exit::Cancelled),
        Ok(Ending::Signal | Ending::Arrived) => Ok(Exit::Done),
        Err(_) => Err(Failure::local("the supervisor lost its threads")),
    }
}

/// Sees that guests can come over RDMA. What a guest's address leads to is seen when it comes: so a
/// link that is down by now is no reason not to start, and a host may start this before its links
/// are up. That there is no device at all is.
fn see_rdma() -> Result<(), Failure> {
    const WAY_OUT: &str = "to take guests over TCP as well, listen at auto://";
    let impossible =
        |reason: &str| Failure::local(format!("no guest can come over RDMA: {reason}; {WAY_OUT}"));
    let devices = fabric::devices().map_err(|reason| impossible(&reason))?;
    if devices.is_empty() {
        return Err(impossible("this host has no RDMA device"));
    }
    let reason = match fabric::ports() {
        Ok(ports) if !ports.is_empty() => return Ok(()),
        // An InfiniBand port has no IP address of its own: rdma_cm knows IPoIB's.
        Ok(_) => "has a port that is up and an IP address".to_owned(),
        Err(reason) => format!("can be looked at: {reason}"),
    };
    console::warn(format_args!(
        "warning: none of this host's RDMA devices ({}) {reason}; guests that demand RDMA are refused \
         until one has (InfiniBand: its IPoIB address counts); {WAY_OUT}",
        devices.join(", ")
    ));
    Ok(())
}
