//! What an endpoint's lanes use to move bytes, as reports name it.

use std::io;
use std::sync::{Mutex, PoisonError};

use super::Mechanism;
use super::uring::UringStream;

/// What a lane found out about sending without a copy.
#[derive(Debug)]
pub(super) enum ZeroCopyFinding {
    /// The kernel avoids the copy.
    Avoided,
    /// The kernel copies all the same, and the lane goes on regardless.
    Copied,
    /// The lane goes on plainly.
    Ended {
        /// It had avoided copies before.
        had_avoided: bool,
        /// What the kernel refused with; `None`: it copied.
        refusal: Option<io::Error>,
    },
}

/// What the lanes of an endpoint use. Lanes add to it what they find out.
pub(super) struct MechanismNote(Mutex<Noted>);

struct Noted {
    stream: String,
    /// Lanes that avoid copies.
    lanes_avoiding: usize,
    /// A lane sends in that way although the kernel copies.
    is_copied: bool,
    /// Why the kernel did not let a lane try.
    refusal: Option<String>,
}

impl MechanismNote {
    /// What lanes will use.
    pub(super) fn probe(mechanism: Mechanism) -> Self {
        let stream = match mechanism {
            Mechanism::Plain => "writev".to_owned(),
            Mechanism::IoUring => "io_uring".to_owned(),
            Mechanism::Auto => match UringStream::probe() {
                Ok(()) => "io_uring".to_owned(),
                Err(error) => without_uring(&error),
            },
        };
        Self(Mutex::new(Noted {
            stream,
            lanes_avoiding: 0,
            is_copied: false,
            refusal: None,
        }))
    }

    /// A lane does without io_uring.
    pub(super) fn falls_back(&self, error: &io::Error) {
        self.change(|noted| noted.stream = without_uring(error));
    }

    /// A lane knows more about sending without a copy.
    pub(super) fn found(&self, finding: &ZeroCopyFinding) {
        self.change(|noted| match finding {
            ZeroCopyFinding::Avoided => noted.lanes_avoiding += 1,
            ZeroCopyFinding::Copied => noted.is_copied = true,
            ZeroCopyFinding::Ended {
                had_avoided,
                refusal,
            } => {
                if *had_avoided {
                    noted.lanes_avoiding = noted.lanes_avoiding.saturating_sub(1);
                }
                if let Some(refusal) = refusal {
                    noted.refusal = Some(refusal.to_string());
                }
            }
        });
    }

    /// The byte stream's part of the mechanism. That the kernel copies where a lane only tried is no
    /// part of it: so it does on every loopback.
    pub(super) fn words(&self) -> String {
        let noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = &noted.stream;
        match &noted.refusal {
            _ if noted.lanes_avoiding > 0 => format!("{stream}, zero-copy"),
            _ if noted.is_copied => format!("{stream}, zero-copy (the kernel copies)"),
            Some(refusal) => format!("{stream} (zero-copy: {refusal})"),
            None => stream.clone(),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Noted)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

fn without_uring(error: &io::Error) -> String {
    format!("writev (io_uring: {error})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_follow_what_lanes_find_out() {
        let note = MechanismNote::probe(Mechanism::IoUring);
        let copied = |had_avoided| ZeroCopyFinding::Ended {
            had_avoided,
            refusal: None,
        };
        assert_eq!(note.words(), "io_uring");
        note.found(&copied(false));
        assert_eq!(note.words(), "io_uring");
        note.found(&ZeroCopyFinding::Ended {
            had_avoided: false,
            refusal: Some(io::Error::from_raw_os_error(libc::ENOMEM)),
        });
        let refused = format!(
            "io_uring (zero-copy: {})",
            io::Error::from_raw_os_error(libc::ENOMEM)
        );
        assert_eq!(note.words(), refused);
        note.found(&ZeroCopyFinding::Avoided);
        note.found(&ZeroCopyFinding::Avoided);
        note.found(&copied(true));
        assert_eq!(note.words(), "io_uring, zero-copy");
        note.found(&copied(true));
        assert_eq!(note.words(), refused);
        note.found(&ZeroCopyFinding::Copied);
        assert_eq!(note.words(), "io_uring, zero-copy (the kernel copies)");
    }
}
