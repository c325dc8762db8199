//! The guests that are here or on their way: who they are, and where their lanes go.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dunlin_transports::lane::SessionId;
use uuid::Uuid;

use super::handoff::{Parcel, give};

/// How long a guest's process may take nothing of what it is given.
const GIVE_MAX: Duration = Duration::from_secs(10);

/// The way to a guest's process. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Route(Arc<Mutex<UnixStream>>);

impl Route {
    /// The way over a socket.
    pub(crate) fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_write_timeout(Some(GIVE_MAX))?;
        Ok(Self(Arc::new(Mutex::new(socket))))
    }

    /// Gives a connection to the process.
    ///
    /// # Errors
    ///
    /// When the process is gone, or takes nothing.
    pub(crate) fn give(&self, parcel: &Parcel) -> io::Result<()> {
        // One at a time: a parcel is several writes.
        let socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        give(&socket, parcel)
    }
}

#[derive(Debug)]
struct Guest {
    name: String,
    uuid: Uuid,
    on_its_way: bool,
    route: Option<Route>,
}

/// The guests. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Registry {
    guests: Arc<Mutex<BTreeMap<SessionId, Guest>>>,
}

impl Registry {
    /// Notes a guest that wants to come, for as long as the entry lives.
    ///
    /// # Errors
    ///
    /// When one of its session, its name or its UUID is here or on its way, or when `alone` and
    /// another is on its way.
    pub(crate) fn enter(
        &self,
        session: SessionId,
        name: &str,
        uuid: Uuid,
        alone: bool,
    ) -> Result<Entry, Taken> {
        let mut guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        if guests.contains_key(&session) {
            return Err(Taken {
                reason: "this session has begun already".to_owned(),
                may_pass: false,
            });
        }
        if let Some(other) = guests.values().find(|guest| guest.name == name) {
            return Err(Taken {
                reason: format!("a guest named '{name}' {} here", other.being()),
                may_pass: other.on_its_way,
            });
        }
        if let Some(other) = guests.values().find(|guest| guest.uuid == uuid) {
            return Err(Taken {
                reason: format!(
                    "a guest with UUID {uuid} {} here, named '{}'",
                    other.being(),
                    other.name
                ),
                may_pass: other.on_its_way,
            });
        }
        if let Some(other) = guests.values().find(|_| alone) {
            return Err(Taken {
                reason: "this destination takes one guest (--once)".to_owned(),
                may_pass: other.on_its_way,
            });
        }
        guests.insert(
            session,
            Guest {
                name: name.to_owned(),
                uuid,
                on_its_way: true,
                route: None,
            },
        );
        Ok(Entry {
            session,
            guests: Arc::clone(&self.guests),
        })
    }

    /// Whether a guest of this session is here or on its way.
    pub(crate) fn knows(&self, session: SessionId) -> bool {
        let guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        guests.contains_key(&session)
    }

    /// Where a session's lanes go; `None` when it has none, or none any more.
    pub(crate) fn route(&self, session: SessionId) -> Option<Route> {
        let guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        guests.get(&session)?.route.clone()
    }
}

/// Why a guest has no place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// In one sentence.
    pub(crate) reason: String,
    /// Whether the place may be free in a moment: its guest is on its way, and may be on its way
    /// out just now.
    pub(crate) may_pass: bool,
}

impl Guest {
    fn being(&self) -> &'static str {
        if self.on_its_way {
            "is already on its way"
        } else {
            "is already"
        }
    }
}

/// A guest's place among the guests. Dropped, it is free again.
#[derive(Debug)]
pub(crate) struct Entry {
    session: SessionId,
    guests: Arc<Mutex<BTreeMap<SessionId, Guest>>>,
}

impl Entry {
    /// Lanes go this way from now on.
    pub(crate) fn opens(&self, route: Route) {
        self.change(|guest| guest.route = Some(route));
    }

    /// The guest is here, and no lane goes to it any more.
    pub(crate) fn has_arrived(&self) {
        self.change(|guest| {
            guest.on_its_way = false;
            guest.route = None;
        });
    }

    fn change(&self, change: impl FnOnce(&mut Guest)) {
        let mut guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(guest) = guests.get_mut(&self.session) {
            change(guest);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        guests.remove(&self.session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_name_and_uuid_are_each_taken_once() {
        let registry = Registry::default();
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let session = |number| SessionId([number; 16]);
        let entry = registry.enter(session(1), "a", one, false).unwrap();
        assert!(registry.enter(session(1), "b", two, false).is_err());
        let taken = registry.enter(session(2), "a", two, false).unwrap_err();
        assert_eq!(taken.reason, "a guest named 'a' is already on its way here");
        assert!(taken.may_pass);
        entry.has_arrived();
        let taken = registry.enter(session(2), "b", one, false).unwrap_err();
        assert!(
            taken.reason.ends_with("is already here, named 'a'"),
            "{taken:?}"
        );
        assert!(!taken.may_pass);
        assert!(registry.enter(session(2), "b", two, true).is_err());
        drop(entry);
        registry.enter(session(1), "a", one, true).unwrap();
    }

    #[test]
    fn lanes_have_a_way_only_between_begin_and_arrival() {
        let registry = Registry::default();
        let session = SessionId([1; 16]);
        assert!(registry.route(session).is_none());
        let entry = registry
            .enter(session, "a", Uuid::from_u128(1), false)
            .unwrap();
        assert!(registry.route(session).is_none());
        let (near, _far) = UnixStream::pair().unwrap();
        entry.opens(Route::new(near).unwrap());
        assert!(registry.route(session).is_some());
        entry.has_arrived();
        assert!(registry.route(session).is_none());
    }
}
