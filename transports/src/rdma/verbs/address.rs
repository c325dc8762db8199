//! IP addresses as the system's calls take and give them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use super::check;

/// A socket address in the system's shape, big enough for either version of IP.
pub(super) struct RawAddress(libc::sockaddr_storage);

impl RawAddress {
    pub(super) fn new(address: SocketAddr) -> Self {
        // SAFETY: all zero is a valid `sockaddr_storage`, one of family AF_UNSPEC.
        let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        let place = &raw mut storage;
        match address {
            SocketAddr::V4(v4) => {
                let raw = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from_ne_bytes(v4.ip().octets()),
                    },
                    sin_zero: [0; 8],
                };
                // SAFETY: a `sockaddr_storage` is at least as large and as aligned as each kind of
                // socket address; POSIX says so of it.
                unsafe { place.cast::<libc::sockaddr_in>().write(raw) };
            }
            SocketAddr::V6(v6) => {
                let raw = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr {
                        s6_addr: v6.ip().octets(),
                    },
                    sin6_scope_id: v6.scope_id(),
                };
                // SAFETY: as above.
                unsafe { place.cast::<libc::sockaddr_in6>().write(raw) };
            }
        }
        Self(storage)
    }

    /// What the system wrote at `place`; `None` when it is of neither version of IP.
    ///
    /// # Safety
    ///
    /// `place` points to a readable, initialised address that is as long as its family says, and
    /// aligned for it.
    pub(super) unsafe fn read(place: *const libc::sockaddr) -> Option<SocketAddr> {
        // SAFETY: the caller vouches for `place`, and its family says which kind of address it is.
        unsafe {
            match i32::from((*place).sa_family) {
                libc::AF_INET => {
                    let raw = place.cast::<libc::sockaddr_in>().read();
                    let address = Ipv4Addr::from(raw.sin_addr.s_addr.to_ne_bytes());
                    Some(SocketAddr::V4(SocketAddrV4::new(
                        address,
                        u16::from_be(raw.sin_port),
                    )))
                }
                libc::AF_INET6 => {
                    let raw = place.cast::<libc::sockaddr_in6>().read();
                    let address = Ipv6Addr::from(raw.sin6_addr.s6_addr);
                    Some(SocketAddr::V6(SocketAddrV6::new(
                        address,
                        u16::from_be(raw.sin6_port),
                        raw.sin6_flowinfo,
                        raw.sin6_scope_id,
                    )))
                }
                _ => None,
            }
        }
    }

    /// For a call that takes a `struct sockaddr *`, reads it during the call, and finds the true
    /// length by the family.
    pub(super) fn as_mut_ptr(&mut self) -> *mut libc::sockaddr {
        (&raw mut self.0).cast()
    }
}

/// The IP addresses of this host's interfaces, each once. Link-local ones are left out.
///
/// # Errors
///
/// The system's.
pub(in crate::rdma) fn local_addresses() -> io::Result<Vec<IpAddr>> {
    let mut first = std::ptr::null_mut();
    // SAFETY: `first` is a place for the answer.
    check(unsafe { libc::getifaddrs(&raw mut first) })?;
    let mut addresses = Vec::new();
    let mut entry = first;
    // SAFETY: an entry of the list, or its null end; the list is there until it is freed below.
    while let Some(found) = unsafe { entry.as_ref() } {
        entry = found.ifa_next;
        if found.ifa_addr.is_null() {
            continue;
        }
        // SAFETY: an entry's address is null or one of its family, of the C library's making.
        let Some(address) = (unsafe { RawAddress::read(found.ifa_addr) }) else {
            continue;
        };
        let ip = address.ip();
        let is_link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if !is_link_local && !addresses.contains(&ip) {
            addresses.push(ip);
        }
    }
    // SAFETY: the list came from `getifaddrs`, and nothing refers to it any more.
    unsafe { libc::freeifaddrs(first) };
    Ok(addresses)
}

/// An address without a port, as a socket address.
pub(super) fn any_port(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_way_through_the_systems_shape() {
        for text in ["10.1.2.3:65000", "[fe80::1%7]:7471", "[::1]:1"] {
            let address: SocketAddr = text.parse().unwrap();
            let raw = RawAddress::new(address);
            // SAFETY: the storage is the value's own.
            let back = unsafe { RawAddress::read((&raw const raw.0).cast()) };
            assert_eq!(back, Some(address));
        }
    }

    #[test]
    fn this_hosts_addresses_are_listed_each_once() {
        let all = local_addresses().unwrap();
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert_eq!(
            all.iter().filter(|address| **address == loopback).count(),
            1
        );
    }
}
