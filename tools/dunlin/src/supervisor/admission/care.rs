//! Looking after a guest's process once it has one: what it says, how it ends, what its record says
//! then, and to whom.

use std::process::Child;
use std::sync::PoisonError;
use std::thread;

use dunlin_engine::guest::GuestIdentity;
use dunlin_engine::outside::{Outside, ReleaseReason};
use dunlin_engine::records::directory::Found;
use dunlin_engine::records::verdict::Answer;
use dunlin_engine::records::{Archive, Entry, Role};
use dunlin_transports::lane::SessionId;
use rustix::process::{Pid, Signal, kill_process};
use uuid::Uuid;

use super::super::Ending;
use super::super::handoff::{Word, hear};
use super::super::leftovers::last_line;
use super::super::teller::Happening;
use super::{Admission, Admitted, GuestProcess};
use crate::guest::hooks::Hooks;

impl Admission {
    /// A source knows that its guest runs here.
    pub(crate) fn source_knows(&self) {
        if self.arguments.once {
            let endings = self.endings.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = endings.send(Ending::Arrived);
        }
    }

    fn record_of(&self, uuid: Uuid, session: SessionId) -> Option<Found> {
        // One that can't be read is shown by 'dunlin status'.
        let records = self.records.of_guest(uuid).unwrap_or_default();
        records.into_iter().find(|found| {
            found.subject.session == session && found.subject.role == Role::Destination
        })
    }

    /// The process is gone without a guest. Where it could not say so any more, that it never ran
    /// one is recorded, and what it acquired is released.
    fn close_record(&self, admitted: &Admitted, record: Option<Found>, released: bool) {
        let Some(record) = record else {
            return;
        };
        if matches!(record.entry, Entry::Expected | Entry::Acquiring) {
            let GuestIdentity { uuid, epoch, .. } = admitted.identity;
            self.records.answer(uuid, admitted.session, epoch);
        }
        if record.has_acquired && !released {
            self.release(&record);
        }
    }

    /// Releases what a process acquired for a guest that did not come, and which it can't release
    /// any more.
    fn release(&self, record: &Found) {
        // Its hook may still be at work, for as long as it is allowed to.
        thread::sleep(self.arguments.hooks.hook_timeout);
        let mut hooks = Hooks {
            choices: self.arguments.hooks.clone(),
            epoch: record.subject.epoch.saturating_add(1),
            subject: record.subject.clone(),
        };
        if let Err(error) = hooks.release(ReleaseReason::NotCome) {
            self.teller.tell(&Happening::Failed {
                name: record.subject.name.clone(),
                reason: error.to_string(),
            });
        }
    }

    /// Hears what a guest's process says until it is gone, and buries it.
    pub(super) fn look_after(&self, admitted: Admitted, mut guest: GuestProcess) {
        let pid = guest.child.id();
        let name = admitted.name.clone();
        let mut arrived = false;
        let mut told = false;
        let mut released = false;
        while let Ok(Some(word)) = hear(&guest.socket) {
            match word {
                Word::MemoryAllocated => admitted.promise.is_allocated(),
                Word::Arrived {
                    epoch,
                    source_knows,
                } => {
                    arrived = true;
                    admitted.entry.has_arrived();
                    self.teller.tell(&Happening::Arrived {
                        name: name.clone(),
                        epoch,
                        pid,
                    });
                    // Until the source knows, somebody has to be here to answer it.
                    if source_knows {
                        self.source_knows();
                        if self.arguments.bench {
                            end(&guest.child);
                        }
                    }
                }
                Word::OutsideReleased => released = true,
                Word::Failed { reason } => {
                    told = true;
                    self.teller.tell(&Happening::Failed {
                        name: name.clone(),
                        reason,
                    });
                }
            }
        }
        let status = match guest.child.wait() {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        let record = self.record_of(admitted.identity.uuid, admitted.session);
        let may_have_run = record.as_ref().is_some_and(Found::is_in_doubt);
        if arrived {
            self.teller.tell(&Happening::Gone { name, status });
            if self.arguments.bench {
                guest.leftovers.remove();
            }
            // Nobody else is coming: whoever asks is answered by the next receiver.
            self.source_knows();
        } else if may_have_run {
            self.teller.tell(&Happening::Failed {
                name,
                reason: format!(
                    "it may have run here for a moment: its process ended, {status}; 'dunlin status' shows what to do"
                ),
            });
        } else {
            if !told {
                let last = last_line(&self.runtime.log(&name));
                self.teller.tell(&Happening::Failed {
                    name,
                    reason: format!(
                        "its process ended, {status}; the last line of its log: {last}"
                    ),
                });
            }
            guest.leftovers.remove();
            self.close_record(&admitted, record, released);
        }
        // The places are given back only now that the process is gone.
        drop(admitted);
    }
}

/// Asks a guest's process to end. It is this one's child, so its number is still its own.
fn end(guest: &Child) {
    if let Some(process) = i32::try_from(guest.id()).ok().and_then(Pid::from_raw) {
        // It may have ended by itself.
        let _ = kill_process(process, Signal::TERM);
    }
}

/// Answers from the records, also for guests that came to an earlier receiver: what their process
/// acquired and can't release any more is released then.
impl Archive for Admission {
    fn answer(&self, uuid: Uuid, session: SessionId, epoch: u64) -> (Answer, String) {
        let before = self.record_of(uuid, session);
        let answered = self.records.answer(uuid, session, epoch);
        let is_ours = self.registry.knows(session);
        if let (Answer::Aborted, Some(record)) = (answered.0, before)
            && matches!(record.entry, Entry::Expected | Entry::Acquiring)
            && record.has_acquired
            && !is_ours
        {
            self.release(&record);
        }
        answered
    }

    fn forget(&self, uuid: Uuid, session: SessionId) {
        self.records.forget(uuid, session);
    }
}
