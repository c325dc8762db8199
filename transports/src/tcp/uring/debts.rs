//! The notifications that the kernel still owes, by the flights whose memory they give back.

/// What the kernel owes one flight.
struct Debt {
    flight: u64,
    /// Notifications that completions announced, less those that came.
    notifications: u32,
    /// Bytes moved, so the notifications have something to tell about them.
    has_moved: bool,
    /// The ring that would bring them is no more.
    is_lost: bool,
}

/// Flights with notifications to come. There are no more of them than the stream lets wait.
#[derive(Default)]
pub(super) struct Debts {
    owed: Vec<Debt>,
    /// What notifications have said since it was last asked for; `true`: that the kernel copied.
    word: Option<bool>,
}

impl Debts {
    /// An operation of a flight's completed with this result, and its notification follows.
    pub(super) fn announced(&mut self, flight: u64, result: i32) {
        match self.owed.iter_mut().find(|debt| debt.flight == flight) {
            Some(debt) => {
                debt.notifications += 1;
                debt.has_moved |= result > 0;
            }
            None => self.owed.push(Debt {
                flight,
                notifications: 1,
                has_moved: result > 0,
                is_lost: false,
            }),
        }
    }

    /// A notification came. It comes behind the completion that announced it (io_uring_enter(2)).
    pub(super) fn notified(&mut self, flight: u64, is_copied: bool) {
        let Some(debt) = self.owed.iter_mut().find(|debt| debt.flight == flight) else {
            return;
        };
        debt.notifications = debt.notifications.saturating_sub(1);
        if debt.has_moved {
            self.word = Some(self.word == Some(true) || is_copied);
        }
        self.owed.retain(|debt| debt.notifications > 0);
    }

    /// Whether the kernel may still use a flight's memory, although its operation has completed.
    pub(super) fn owes(&self, flight: u64) -> bool {
        self.owed.iter().any(|debt| debt.flight == flight)
    }

    /// Whether notifications are still to come.
    pub(super) fn are_awaited(&self) -> bool {
        self.owed.iter().any(|debt| !debt.is_lost)
    }

    /// None of them comes any more.
    pub(super) fn lose(&mut self) {
        self.owed.iter_mut().for_each(|debt| debt.is_lost = true);
    }

    /// What notifications have said since the last call; `true`: that the kernel copied.
    pub(super) fn take_word(&mut self) -> Option<bool> {
        self.word.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flight_is_owed_until_all_its_notifications_came() {
        let mut debts = Debts::default();
        debts.announced(7, 4096);
        debts.announced(7, 8192);
        debts.announced(8, 4096);
        debts.notified(7, false);
        assert!(debts.owes(7) && debts.owes(8));
        debts.notified(7, false);
        assert!(!debts.owes(7) && debts.owes(8));
        // Of a flight that nobody knows.
        debts.notified(9, true);
        assert_eq!(debts.take_word(), Some(false));
        debts.notified(8, false);
        assert!(!debts.are_awaited());
    }

    #[test]
    fn one_copy_among_several_is_the_word() {
        let mut debts = Debts::default();
        for flight in 0..3 {
            debts.announced(flight, 1);
        }
        debts.notified(0, false);
        debts.notified(1, true);
        debts.notified(2, false);
        assert_eq!(debts.take_word(), Some(true));
        assert_eq!(debts.take_word(), None);
    }

    #[test]
    fn an_operation_that_moved_nothing_tells_nothing() {
        let mut debts = Debts::default();
        debts.announced(1, -libc::ECANCELED);
        debts.notified(1, true);
        assert_eq!(debts.take_word(), None);
        assert!(!debts.owes(1));
    }

    #[test]
    fn what_is_lost_is_owed_and_not_awaited() {
        let mut debts = Debts::default();
        debts.announced(1, 1);
        debts.lose();
        assert!(debts.owes(1) && !debts.are_awaited());
        debts.announced(2, 1);
        assert!(debts.are_awaited());
    }
}
