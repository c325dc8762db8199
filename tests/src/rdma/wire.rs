//! The wire between two software devices on a veth pair: taken down, and mended.
//!
//! When a network interface goes down, the kernel forgets its IPv6 addresses and all routes over
//! it, and does not bring back what a person had added. So a wire remembers what there was.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::program::{Output, Running};

/// The network interface below a device, which goes down and up. Up again with this value's end.
#[derive(Debug)]
pub struct Wire {
    interface: String,
    /// Its addresses, as in `fd77::2/64`.
    addresses: Vec<String>,
    /// Routes over it that a person added: the family's flag, and the route in `ip`'s words.
    routes: Vec<(&'static str, String)>,
}

impl Wire {
    /// The wire at an address of this host. `None`, and says so, where that is no virtual interface
    /// (nobody's real link is cut by a test), or `ip` may not touch it.
    ///
    /// # Errors
    ///
    /// When `ip` does not tell.
    pub fn at(address: IpAddr) -> Result<Option<Self>> {
        // SAFETY: geteuid(2) takes nothing and can't fail.
        let is_root = unsafe { libc::geteuid() } == 0;
        let listed = ip(&["-j", "address", "show", "to", &address.to_string()])?.json()?;
        // It lists an empty object for each other interface.
        let entries = listed.as_array().cloned().unwrap_or_default();
        let interface = entries.iter().find_map(|entry| entry["ifname"].as_str());
        let Some(interface) = interface.filter(|_| is_root) else {
            println!("skipped: no wire at {address} that this process may cut");
            return Ok(None);
        };
        if Path::new("/sys/class/net")
            .join(interface)
            .join("device")
            .exists()
        {
            println!("skipped: {interface} with {address} is a real network interface");
            return Ok(None);
        }
        let mut routes = Vec::new();
        for family in ["-4", "-6"] {
            let text = ip(&[family, "route", "show", "table", "all", "dev", interface])?.stdout;
            let added = text.lines().filter(|line| {
                // The kernel makes these itself with the addresses.
                ![
                    "proto kernel",
                    "local ",
                    "multicast ",
                    "broadcast ",
                    "anycast ",
                ]
                .iter()
                .any(|word| line.contains(word))
            });
            routes.extend(added.map(|line| (family, line.trim().to_owned())));
        }
        Ok(Some(Self {
            addresses: addresses(interface)?,
            routes,
            interface: interface.to_owned(),
        }))
    }

    /// Takes the wire down or mends it.
    ///
    /// # Errors
    ///
    /// When `ip` does not do as it is told.
    pub fn set_up(&self, up: bool) -> Result<()> {
        let dev = self.interface.as_str();
        if !up {
            ip(&["link", "set", dev, "down"])?;
            return Ok(());
        }
        ip(&["link", "set", dev, "up"])?;
        for address in &self.addresses {
            ip(&["address", "replace", address, "dev", dev])?;
        }
        for (family, route) in &self.routes {
            let mut words = vec![*family, "route", "replace"];
            words.extend(route.split_whitespace());
            words.extend(["dev", dev]);
            ip(&words)?;
        }
        Ok(())
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // What can't be mended is seen by who comes next.
        let _ = self.set_up(true);
    }
}

/// The addresses of an interface, without those that the kernel makes by itself.
fn addresses(interface: &str) -> Result<Vec<String>> {
    let listed = ip(&["-j", "address", "show", "dev", interface, "scope", "global"])?.json()?;
    let all = listed[0]["addr_info"].as_array().cloned();
    let all = all.with_context(|| format!("{interface} has no addresses: {listed}"))?;
    let text = |address: &Value| {
        let local = address["local"].as_str()?;
        Some(format!("{local}/{}", address["prefixlen"].as_u64()?))
    };
    Ok(all.iter().filter_map(text).collect())
}

fn ip(arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new("ip");
    command.args(arguments);
    let output = Running::start(command)?.wait()?;
    if output.code != 0 {
        bail!("ip {arguments:?}: {}", output.stderr);
    }
    Ok(output)
}
