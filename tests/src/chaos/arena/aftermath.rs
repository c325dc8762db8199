//! Settling what a killed process left open, ending it all, and what is left then.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Arena, GUEST, There, look};
use crate::chaos::fault::Victim;
use crate::host::kernel_messages;

/// How long everything may take to end when it is told to.
const TEAR_DOWN_MAX: Duration = Duration::from_secs(30);

/// The exit code of a command whose guest is not there.
const NO_GUEST: i32 = 3;

impl Arena {
    /// Where the source's process is gone and has left a record of a handover, asks the destination
    /// in its place. Returns what was said.
    ///
    /// # Errors
    ///
    /// When a command can't be run.
    pub fn settle(&mut self) -> Result<Vec<String>> {
        // A process of several threads may be a zombie and still hold its files for a while.
        let end = Instant::now() + TEAR_DOWN_MAX;
        while !self.is_alive(Victim::Run) && self.guest.ended().is_none() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
        let is_gone = self.guest.ended().is_some();
        let mut told = Vec::new();
        for (place, _) in self.records_in_doubt()? {
            if place == 0 && is_gone {
                let output = self.here.run(&["settle", GUEST])?;
                let said = format!("{}{}", output.stdout.trim(), output.stderr.trim());
                told.push(format!("'settle' (exit code {}): {said}", output.code));
            }
        }
        Ok(told)
    }

    /// The records, by place, that nobody can settle by them alone and that no process looks after.
    ///
    /// # Errors
    ///
    /// When 'status' does not tell.
    pub fn records_in_doubt(&self) -> Result<Vec<(usize, Value)>> {
        let mut found = Vec::new();
        for (place, site) in [&self.here, &self.there].into_iter().enumerate() {
            let status = site.run(&["status", "--json"])?.expect_code(0)?.json()?;
            let records = status["in_doubt"].as_array().cloned();
            let records = records.context("'status' says nothing of records")?;
            found.extend(records.into_iter().map(|record| (place, record)));
        }
        Ok(found)
    }

    /// Writes down what each process waits for, where nothing goes on.
    pub fn tell_waits(&mut self) {
        for pid in [self.here.processes(), self.there.processes()].concat() {
            let tasks = fs::read_dir(format!("/proc/{pid}/task"));
            for task in tasks.into_iter().flatten().flatten() {
                let read = |file: &str| {
                    let text = fs::read_to_string(task.path().join(file)).unwrap_or_default();
                    text.trim().to_owned()
                };
                let (name, waits, call) = (read("comm"), read("wchan"), read("syscall"));
                self.tell(&format!("process {pid}, thread '{name}': {waits} ({call})"));
            }
        }
    }

    /// Ends the guest wherever it is, then the receiver, as a person would. Returns what did not
    /// end, or was left behind.
    ///
    /// # Errors
    ///
    /// When a command can't be run.
    pub fn tear_down(&mut self) -> Result<Vec<String>> {
        let mut complaints = Vec::new();
        for (place, victim) in [Victim::Run, Victim::Incoming].into_iter().enumerate() {
            // Its process may be busy for a moment, with nothing to say.
            let end = Instant::now() + TEAR_DOWN_MAX;
            while self.is_alive(victim) && Instant::now() < end {
                let site = if place == 0 { &self.here } else { &self.there };
                if matches!(look(site, None), There::Says(_)) {
                    let output = site.run(&["stop", GUEST, "--force"])?;
                    // It may have ended by itself.
                    if output.code != 0 && output.code != NO_GUEST {
                        complaints
                            .push(format!("'stop' at place {place}: {}", output.stderr.trim()));
                    }
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        if let Some(receiver) = &self.receiver {
            receiver.process.signal(libc::SIGTERM);
        }
        let end = Instant::now() + TEAR_DOWN_MAX;
        loop {
            // Children are to be waited for, else they stay as zombies.
            self.guest.ended();
            if let Some(receiver) = &mut self.receiver {
                receiver.process.ended();
            }
            let left = [self.here.processes(), self.there.processes()].concat();
            if left.is_empty() {
                break;
            }
            if Instant::now() >= end {
                complaints.extend(left.iter().map(|pid| left_over(*pid)));
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.is_over = complaints.is_empty();
        Ok(complaints)
    }

    /// All that is known of what went wrong: what each process said, how the guest is on both sides
    /// and why, and what the kernel said.
    pub fn testimony(&mut self) -> Vec<String> {
        let mut all = self.here.tell("status at the source");
        all.extend(self.there.tell("status at the destination"));
        all.extend(self.guest.said_so_far("run"));
        let heard = self.heard.iter();
        all.extend(heard.map(|line| format!("an earlier receive: {}", line.text)));
        if let Some(receiver) = &mut self.receiver {
            all.extend(receiver.process.said_so_far("receive"));
        }
        if let Some(send) = &mut self.send {
            all.extend(send.said_so_far("send"));
        }
        all.extend(kernel_messages());
        all
    }

    /// Control sockets that are still there. A VMM that is killed leaves its own, which the next one
    /// of that name removes.
    pub fn sockets_left(&self, killed: Option<Victim>) -> Vec<String> {
        let places = [(&self.here, Victim::Run), (&self.there, Victim::Incoming)];
        let whole = places.into_iter().filter(|(_, vmm)| killed != Some(*vmm));
        whole
            .filter_map(|(site, _)| {
                let socket = site.directory().join(format!("{GUEST}.sock"));
                let left = fs::symlink_metadata(&socket).is_ok();
                left.then(|| format!("left over: {}", socket.display()))
            })
            .collect()
    }

    /// Keeps the directory, with the story in it, and tells where it is.
    pub fn keep(&mut self, epilogue: &str) -> PathBuf {
        self.is_over = true;
        for site in [&mut self.here, &mut self.there] {
            site.keep();
        }
        self.directory.disable_cleanup(true);
        let mut text = self.story.join("\n");
        if let Some(receiver) = &mut self.receiver {
            let lines = receiver.process.lines_so_far();
            self.heard.extend_from_slice(lines);
        }
        for line in &self.heard {
            let at = line.at.saturating_duration_since(self.began).as_millis();
            text.push_str(&format!("\n{at:>6} ms  receive: {}", line.text));
        }
        if let Some(send) = &mut self.send {
            for line in send.lines_so_far() {
                text.push_str(&format!("\nsend: {}", line.text));
            }
        }
        text.push_str(&format!("\n{epilogue}\n"));
        // The verdict is told on the terminal too.
        let _ = fs::write(self.directory.path().join("story.txt"), text);
        self.directory.path().to_owned()
    }
}

fn left_over(pid: u32) -> String {
    let bytes = fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline"));
    let text = String::from_utf8_lossy(&bytes.unwrap_or_default()).replace('\0', " ");
    format!("left over: process {pid}: {text}")
}
