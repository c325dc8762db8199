//! Hooks: commands that acquire and release what a guest holds outside of this host.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use dunlin_engine::guest::GuestError;
use dunlin_engine::outside::{Outside, ReleaseReason};
use dunlin_engine::records::Subject;
use dunlin_transports::deadline::Deadline;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::cli::HookChoices;

/// The hooks of one guest, for one move or for its end.
#[derive(Clone, Debug)]
pub(crate) struct Hooks {
    /// The commands.
    pub(crate) choices: HookChoices,
    /// What the commands are told.
    pub(crate) subject: Subject,
    /// The epoch under which the guest is, was, or would be here.
    pub(crate) epoch: u64,
}

impl Hooks {
    fn run(
        &self,
        hook: &str,
        command: &str,
        reason: &str,
        limit: Duration,
    ) -> Result<(), GuestError> {
        let doing = |what: &str| format!("the {hook} hook '{command}' {what}");
        let child = Command::new("/bin/sh")
            .args(["-c", command])
            .env("DUNLIN_HOOK", hook)
            .env("DUNLIN_GUEST", &self.subject.name)
            .env("DUNLIN_UUID", self.subject.uuid.to_string())
            .env("DUNLIN_EPOCH", self.epoch.to_string())
            .env("DUNLIN_SESSION", self.subject.session.to_string())
            .env("DUNLIN_ROLE", self.subject.role.name())
            .env("DUNLIN_PEER", &self.subject.peer)
            .env("DUNLIN_REASON", reason)
            .stdin(Stdio::null())
            // A group of its own, so that what it started ends with it.
            .process_group(0)
            .spawn()
            .map_err(|error| GuestError::new(doing("can't be started"), error))?;
        match wait(child, limit) {
            Ok(Some(status)) if status.success() => Ok(()),
            Ok(Some(status)) => Err(GuestError::message(doing(&format!("failed: {status}")))),
            Ok(None) => Err(GuestError::message(doing(&format!(
                "was not done within {} ms and was ended",
                limit.as_millis()
            )))),
            Err(error) => Err(GuestError::new(doing("can't be waited for"), error)),
        }
    }
}

impl Outside for Hooks {
    fn acquire(&mut self, deadline: Deadline) -> Result<(), GuestError> {
        let Some(command) = &self.choices.hook_acquire else {
            return Ok(());
        };
        let limit = deadline.remaining().min(self.choices.hook_timeout);
        self.run("acquire", command, "", limit)
    }

    fn release(&mut self, reason: ReleaseReason) -> Result<(), GuestError> {
        let Some(command) = &self.choices.hook_release else {
            return Ok(());
        };
        let limit = self.choices.hook_timeout;
        self.run("release", command, reason.name(), limit)
    }
}

/// Waits for a process; one that is not done in time is killed with all that it started. `None`:
/// that was so.
fn wait(mut child: Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let (sender, ended) = channel();
    // It may outlive this call by what the kernel takes to end a killed process.
    thread::Builder::new()
        .name("hook".to_owned())
        .spawn(move || {
            let _ = sender.send(child.wait());
        })?;
    match ended.recv_timeout(limit) {
        Ok(status) => status.map(Some),
        Err(_) => {
            if let Some(group) = group {
                // It may have ended in this very moment.
                let _ = kill_process_group(group, Signal::KILL);
            }
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use dunlin_engine::records::Role;
    use dunlin_transports::lane::SessionId;
    use uuid::Uuid;

    use super::*;

    fn hooks(acquire: &str, release: &str) -> Hooks {
        Hooks {
            choices: HookChoices {
                hook_acquire: Some(acquire.to_owned()),
                hook_release: Some(release.to_owned()),
                hook_timeout: Duration::from_millis(300),
            },
            subject: Subject {
                uuid: Uuid::from_u128(1),
                name: "vm1".to_owned(),
                epoch: 1,
                session: SessionId([2; 16]),
                role: Role::Destination,
                peer: "10.0.0.1:5".to_owned(),
            },
            epoch: 2,
        }
    }

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(5))
    }

    #[test]
    fn a_hook_is_told_what_it_is_about() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("told");
        let write = format!(
            "echo $DUNLIN_HOOK $DUNLIN_GUEST $DUNLIN_EPOCH $DUNLIN_ROLE $DUNLIN_REASON >> {}",
            file.display()
        );
        let mut hooks = hooks(&write, &write);
        hooks.acquire(soon()).unwrap();
        hooks.release(ReleaseReason::NotCome).unwrap();
        let told = std::fs::read_to_string(file).unwrap();
        assert_eq!(
            told,
            "acquire vm1 2 destination\nrelease vm1 2 destination not-come\n"
        );
    }

    #[test]
    fn a_hook_that_fails_says_how() {
        let error = hooks("exit 3", "").acquire(soon()).unwrap_err();
        assert!(error.to_string().contains("exit status: 3"), "{error}");
    }

    /// What it started goes with it, so the file is never written.
    #[test]
    fn a_hook_that_takes_too_long_is_ended_with_all_that_it_started() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("late");
        let late = format!("(sleep 1; touch {}) & wait", file.display());
        let error = hooks(&late, "").acquire(soon()).unwrap_err();
        assert!(error.to_string().contains("300 ms"), "{error}");
        thread::sleep(Duration::from_millis(1200));
        assert!(!file.exists());
    }
}
