//! What this machine has. A scenario that needs what is missing says so on a line of its own.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Whether KVM guests can run here; says so if not.
pub fn has_kvm() -> bool {
    let usable = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok();
    if !usable {
        println!("skipped: /dev/kvm can't be opened");
    }
    usable
}

/// The last that the kernel said, for who looks into a scenario that failed; empty where it may not
/// be read.
pub fn kernel_messages() -> Vec<String> {
    const LAST: usize = 15;
    let output = Command::new("dmesg").output();
    let text = output.map(|output| output.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().map(|line| format!("kernel: {line}")).collect();
    lines[lines.len().saturating_sub(LAST)..].to_vec()
}

/// Whether this process is root's.
pub fn is_root() -> bool {
    // SAFETY: geteuid(2) takes nothing and can't fail.
    unsafe { libc::geteuid() == 0 }
}

/// Whether network namespaces can be made here; says so if not.
pub fn has_namespaces() -> bool {
    let is_root = is_root();
    let has_ip = Command::new("ip").arg("-V").output().is_ok();
    if !is_root || !has_ip {
        println!("skipped: network namespaces need root and the program 'ip'");
    }
    is_root && has_ip
}

/// Huge pages reserved for a scenario, and given back behind it.
pub struct HugePages {
    before: u64,
}

const NR_HUGEPAGES: &str = "/proc/sys/vm/nr_hugepages";

impl HugePages {
    /// Sees to it that so many huge pages of 2 MiB are free; `None`, and says so, if that can't be.
    pub fn reserve(pages: u64) -> Option<Self> {
        let before = fs::read_to_string(NR_HUGEPAGES).ok()?.trim().parse().ok()?;
        let reserved = Self { before };
        let free = || -> Option<u64> {
            let info = fs::read_to_string("/proc/meminfo").ok()?;
            let line = info
                .lines()
                .find_map(|line| line.strip_prefix("HugePages_Free:"))?;
            line.trim().parse().ok()
        };
        let missing = pages.saturating_sub(free()?);
        let raised = fs::write(NR_HUGEPAGES, (before + missing).to_string());
        if raised.is_err() || free()? < pages {
            println!("skipped: {pages} huge pages can't be reserved");
            return None;
        }
        Some(reserved)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        // Without the right to change it, nothing was changed.
        let _ = fs::write(NR_HUGEPAGES, self.before.to_string());
    }
}

/// Two network namespaces and a veth pair between them; gone with this value.
pub struct Link {
    /// The two namespaces.
    pub namespaces: [String; 2],
    /// The address of each.
    pub addresses: [&'static str; 2],
    interfaces: [String; 2],
}

impl Link {
    /// Makes them. `name` tells scenarios apart.
    ///
    /// # Errors
    ///
    /// When `ip` does not do as it is told.
    pub fn new(name: &str) -> Result<Self> {
        let pid = std::process::id();
        let namespaces = [
            format!("dunlin-{name}-a-{pid}"),
            format!("dunlin-{name}-b-{pid}"),
        ];
        let interfaces = [format!("dl{name}a"), format!("dl{name}b")];
        let addresses = ["10.213.77.1", "10.213.77.2"];
        let link = Self {
            namespaces,
            addresses,
            interfaces,
        };
        for namespace in &link.namespaces {
            ip(&["netns", "add", namespace])?;
            ip(&["-n", namespace, "link", "set", "lo", "up"])?;
        }
        let [a, b] = &link.namespaces;
        let [at_a, at_b] = &link.interfaces;
        let peer = ["type", "veth", "peer", "name", at_b, "netns", b];
        ip(&[&["-n", a, "link", "add", at_a], peer.as_slice()].concat())?;
        for side in 0..2 {
            let (namespace, interface) = (&link.namespaces[side], &link.interfaces[side]);
            let address = format!("{}/24", link.addresses[side]);
            ip(&["-n", namespace, "addr", "add", &address, "dev", interface])?;
            ip(&["-n", namespace, "link", "set", interface, "up"])?;
        }
        Ok(link)
    }

    /// Cuts the link, so that packets vanish without a word, or mends it.
    ///
    /// # Errors
    ///
    /// When `ip` does not do as it is told.
    pub fn set_up(&self, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        ip(&[
            "-n",
            &self.namespaces[1],
            "link",
            "set",
            &self.interfaces[1],
            state,
        ])
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            // What was not made can't be removed.
            let _ = ip(&["netns", "del", namespace]);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .context("running ip")?;
    if !output.status.success() {
        bail!(
            "ip {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
