//! The wire between two software devices on a veth pair: taken down, and mended.
//!
//! When a network interface goes down, the kernel forgets its IPv6 addresses and all routes over
//! it, and does not bring back what a person had added. So a wire remembers what there was. And
//! while it is down, what would go over it vanishes without a word, as behind a switch: both ends
//! are on one host, so their packets would find another way.
//!
//! An rxe device whose link went down under connections may let nobody connect any more once it is
//! up again (seen with Linux 6.1: requests leave one device, and the other one never answers). So
//! such devices are made anew before the next scenario, while nobody uses them.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::host::is_root;
use crate::program::{Output, Running};

/// An interface that swallows what it is given.
const HOLE: &str = "dunlin-hole";

/// The network interface below a device, which goes down and up. Up again with this value's end, and
/// if it was ever down, with devices made anew: nobody may use them by then.
#[derive(Debug)]
pub struct Wire {
    interface: String,
    was_cut: AtomicBool,
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
        let listed = ip(&["-j", "address", "show", "to", &address.to_string()])?.json()?;
        // It lists an empty object for each other interface.
        let entries = listed.as_array().cloned().unwrap_or_default();
        let interface = entries.iter().find_map(|entry| entry["ifname"].as_str());
        let Some(interface) = interface.filter(|_| is_root()) else {
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
            was_cut: AtomicBool::new(false),
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
            self.was_cut.store(true, Ordering::Relaxed);
            // Of an earlier wire, perhaps.
            if !Path::new("/sys/class/net").join(HOLE).exists() {
                ip(&["link", "add", HOLE, "type", "dummy"])?;
            }
            ip(&["link", "set", HOLE, "up"])?;
            // With IPv6 the address goes too, and nothing can be sent from it.
            self.lead_routes(&["-4"], HOLE)?;
            ip(&["link", "set", dev, "down"])?;
            return Ok(());
        }
        ip(&["link", "set", dev, "up"])?;
        for address in &self.addresses {
            ip(&["address", "replace", address, "dev", dev])?;
        }
        self.lead_routes(&["-4", "-6"], dev)
    }

    fn lead_routes(&self, families: &[&str], interface: &str) -> Result<()> {
        for (family, route) in &self.routes {
            if !families.contains(family) {
                continue;
            }
            let mut words = vec![*family, "route", "replace"];
            words.extend(route.split_whitespace());
            words.extend(["dev", interface]);
            ip(&words)?;
        }
        Ok(())
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if !self.was_cut.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.set_up(true).and_then(|()| renew_devices()) {
            // It is seen by who comes next, who can't know why.
            println!("the wire is not as it was: {error:#}");
        }
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

/// How long the last users of a device may take to be gone.
const UNUSED_TIME_MAX: Duration = Duration::from_secs(20);

/// Makes all rxe devices of virtual interfaces anew, under their names.
///
/// # Errors
///
/// When one is in use (Linux 6.1 hangs when it is removed then), or can't be made again.
pub fn renew_devices() -> Result<()> {
    let devices = std::fs::read_dir("/sys/class/infiniband").context("there is no device")?;
    for device in devices.flatten() {
        // Only rxe has it: the interface that it is made of.
        let Ok(interface) = std::fs::read_to_string(device.path().join("parent")) else {
            continue;
        };
        let (device, interface) = (device.file_name(), interface.trim().to_owned());
        let device = device.to_string_lossy().into_owned();
        if Path::new("/sys/class/net")
            .join(&interface)
            .join("device")
            .exists()
        {
            continue;
        }
        let end = Instant::now() + UNUSED_TIME_MAX;
        while !users(&device)?.is_empty() {
            if Instant::now() >= end {
                bail!("{device} is in use: {:?}", users(&device)?);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        rdma(&["link", "delete", &device])?;
        rdma(&["link", "add", &device, "type", "rxe", "netdev", &interface])?;
    }
    Ok(())
}

/// The processes that have a device open.
fn users(device: &str) -> Result<Vec<Value>> {
    let listed = rdma(&["-j", "resource", "show", "ctx", "dev", device])?;
    if listed.stdout.trim().is_empty() {
        return Ok(Vec::new());
    }
    Ok(listed.json()?.as_array().cloned().unwrap_or_default())
}

fn rdma(arguments: &[&str]) -> Result<Output> {
    run("rdma", arguments)
}

fn ip(arguments: &[&str]) -> Result<Output> {
    run("ip", arguments)
}

fn run(program: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(program);
    command.args(arguments);
    let output = Running::start(command)?.wait()?;
    if output.code != 0 {
        bail!("{program} {arguments:?}: {}", output.stderr);
    }
    Ok(output)
}
