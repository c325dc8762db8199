//! A guest that moves there and back between two sites of this machine.

use std::path::Path;

use anyhow::Context;
use tempfile::TempDir;

use crate::ends::Ends;
use crate::moved::Move;
use crate::program::{Program, wait_until_ended};
use crate::site::{Receiver, Site};

/// The guest's name.
const GUEST: &str = "moving";

/// Two sites with a receiver each, and a guest at one of them. All of it ends with this value.
#[derive(Debug)]
pub struct Shuttle {
    /// The guest's first process.
    _guest: Program,
    /// The process that it is in.
    process: u32,
    /// The site where the guest is comes first.
    sites: [(Site, Receiver); 2],
    scheme: String,
    /// Behind the sites, so that it goes last.
    _directory: TempDir,
}

impl Shuttle {
    /// Starts both receivers, with programs that may be different ones, and a guest; it moves over
    /// `scheme`.
    ///
    /// # Errors
    ///
    /// When one of them does not start.
    pub fn start(
        programs: [&Path; 2],
        ends: &Ends,
        scheme: &str,
        guest: &[&str],
        receive: &[&str],
    ) -> anyhow::Result<Self> {
        let directory = TempDir::with_prefix("dunlin-shuttle-")?;
        let site = |name: &str, program, end| -> anyhow::Result<(Site, Receiver)> {
            let site = Site::new(program, directory.path().join(name), end)?;
            let receiver = site.receiver(receive)?;
            Ok((site, receiver))
        };
        let [here, there] = programs;
        let here = site("here", here, ends.source.clone())?;
        let there = site("there", there, ends.destination.clone())?;
        let guest = here.0.guest(GUEST, guest)?;
        Ok(Self {
            process: guest.id(),
            _guest: guest,
            sites: [here, there],
            scheme: scheme.to_owned(),
            _directory: directory,
        })
    }

    /// Moves the guest to where it is not, and waits until its old process is gone: what that frees
    /// is no part of the next move.
    ///
    /// # Errors
    ///
    /// When it does not move.
    pub fn cross(&mut self, arguments: &[&str]) -> anyhow::Result<Move> {
        let [(from, _), (to, receiver)] = &self.sites;
        let made = from.send(GUEST, &self.scheme, receiver, arguments)?;
        wait_until_ended(self.process, "the guest's process")?;
        self.process = to.process_of(GUEST).context("behind the move")?;
        self.sites.swap(0, 1);
        Ok(made)
    }

    /// The process that the guest is in.
    pub fn process(&self) -> u32 {
        self.process
    }
}
