//! An endpoint's open sockets, and how it ends them all at once.

use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The sockets of an endpoint's lanes. Stopping shuts them down, which wakes whoever waits on one,
/// through io_uring or not, and lets no new wait begin.
#[derive(Default)]
pub(super) struct LaneSockets {
    stopped: AtomicBool,
    open: Mutex<Vec<Weak<TcpStream>>>,
}

impl LaneSockets {
    /// Takes a socket in; `false` when the endpoint was stopped.
    pub(super) fn add(&self, socket: &Arc<TcpStream>) -> bool {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|other| other.strong_count() > 0);
        open.push(Arc::downgrade(socket));
        // Read with the lock held: `stop` sets it first and then looks at the list, so a socket
        // that it does not find here finds the flag.
        !self.is_stopped()
    }

    /// Ends all of them, and all that come.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for socket in open.iter().filter_map(Weak::upgrade) {
            // Fails only where the connection is gone already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }
}
