//! The two ends of a link: the loopback interface, a wire that is there already, or a veth pair
//! between two network namespaces that are made for it.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;

use anyhow::Context;

use crate::program::output_of;

/// One end.
#[derive(Clone, Debug)]
pub struct End {
    /// Its address.
    pub address: IpAddr,
    /// The network namespace that it is in, if it is in one of its own.
    pub namespace: Option<String>,
}

impl End {
    /// A command that is carried out at this end. It is the program's own process: nothing stands
    /// between.
    pub fn command(&self, program: &Path) -> Command {
        match &self.namespace {
            None => Command::new(program),
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(program);
                command
            }
        }
    }
}

/// Both.
#[derive(Debug)]
pub struct Ends {
    /// Where bytes come from.
    pub source: End,
    /// Where they go to.
    pub destination: End,
    /// Namespaces that go with this value.
    made: Vec<String>,
}

impl Ends {
    /// The loopback interface.
    pub fn loopback() -> Self {
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Self::existing(local, local)
    }

    /// Two addresses that this machine has, and that reach each other.
    pub fn existing(source: IpAddr, destination: IpAddr) -> Self {
        let end = |address| End {
            address,
            namespace: None,
        };
        Self {
            source: end(source),
            destination: end(destination),
            made: Vec::new(),
        }
    }

    /// A veth pair between two network namespaces. `name` is the beginning of their names, so that
    /// several can be there at once.
    ///
    /// # Errors
    ///
    /// When they can't be made: it takes root and the program `ip`.
    pub fn veth(name: &str) -> anyhow::Result<Self> {
        let names = [format!("{name}-a"), format!("{name}-b")];
        // 198.18.0.0/15 is for benchmarks (RFC 2544), so nobody's network has it.
        let addresses = [Ipv4Addr::new(198, 18, 0, 1), Ipv4Addr::new(198, 18, 0, 2)];
        let mut ends = Self::existing(IpAddr::V4(addresses[0]), IpAddr::V4(addresses[1]));
        for namespace in &names {
            ip(&["netns", "add", namespace]).context("a network namespace can't be made")?;
            ends.made.push(namespace.clone());
        }
        let [a, b] = &names;
        ip(&[
            "-n", a, "link", "add", "v0", "type", "veth", "peer", "name", "v0", "netns", b,
        ])?;
        for (namespace, address) in names.iter().zip(addresses) {
            ip(&[
                "-n",
                namespace,
                "addr",
                "add",
                &format!("{address}/30"),
                "dev",
                "v0",
            ])?;
            for device in ["lo", "v0"] {
                ip(&["-n", namespace, "link", "set", device, "up"])?;
            }
        }
        ends.source.namespace = Some(names[0].clone());
        ends.destination.namespace = Some(names[1].clone());
        Ok(ends)
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        for namespace in &self.made {
            // Without anyone to tell. The pair goes with its namespaces.
            let _ = ip(&["netns", "del", namespace]);
        }
    }
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    output_of(Command::new("ip").args(arguments)).map(drop)
}
