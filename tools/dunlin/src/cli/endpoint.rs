//! Endpoints: `tcp://host:port`, `auto://host:port`, `rdma://host:port`; `host:port` alone is `auto`.
//! IPv6 in brackets.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use dunlin_transports::tcp::DEFAULT_PORT;

/// The longest host name, RFC 1035.
const HOST_BYTES_MAX: usize = 253;

/// Which transport an endpoint asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// TCP.
    Tcp,
    /// RDMA for the lanes; control is TCP all the same.
    Rdma,
    /// The best that both sides have.
    Auto,
}

/// Where a destination listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Which transport.
    pub(crate) scheme: Scheme,
    /// A host name or an address, without brackets.
    pub(crate) host: String,
    /// The port.
    pub(crate) port: u16,
}

impl Endpoint {
    /// A TCP endpoint at an address.
    pub(crate) fn tcp(address: SocketAddr) -> Self {
        Self {
            scheme: Scheme::Tcp,
            host: address.ip().to_string(),
            port: address.port(),
        }
    }

    /// `host:port`, as sockets take it: IPv6 in brackets.
    pub(crate) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Tcp => "tcp",
            Scheme::Rdma => "rdma",
            Scheme::Auto => "auto",
        };
        write!(formatter, "{scheme}://{}", self.authority())
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str =
            "an endpoint looks like host, tcp://host:7471, or rdma://[2001:db8::1]:7471";
        let (scheme, rest) = text.split_once("://").unwrap_or(("auto", text));
        let scheme = match scheme {
            "tcp" => Scheme::Tcp,
            "auto" => Scheme::Auto,
            "rdma" => Scheme::Rdma,
            other => {
                return Err(format!(
                    "'{other}' is not a transport: rdma, tcp and auto are; {FORM}"
                ));
            }
        };
        let (host, port) = split_host(rest).map_err(|reason| format!("{reason}; {FORM}"))?;
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => port
                .parse()
                .map_err(|_| format!("'{port}' is not a port (0 to 65535); {FORM}"))?,
        };
        Ok(Self {
            scheme,
            host: host.to_owned(),
            port,
        })
    }
}

/// Splits `host[:port]`, where an IPv6 address stands in brackets.
fn split_host(text: &str) -> Result<(&str, Option<&str>), String> {
    if let Some(inner) = text.strip_prefix('[') {
        let Some((address, behind)) = inner.split_once(']') else {
            return Err("the bracket of an IPv6 address is not closed".to_owned());
        };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(format!("'{address}' is not an IPv6 address"));
        }
        return match behind.strip_prefix(':') {
            Some(port) => Ok((address, Some(port))),
            None if behind.is_empty() => Ok((address, None)),
            None => Err(format!("'{behind}' behind the bracket is not ':port'")),
        };
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    if port.is_some_and(|port| port.contains(':')) {
        return Err("an IPv6 address stands in brackets".to_owned());
    }
    if host.is_empty() {
        return Err("no host is named".to_owned());
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if host.len() > HOST_BYTES_MAX || !host.bytes().all(allowed) {
        return Err(format!("'{host}' is not a host name or address"));
    }
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> String {
        text.parse::<Endpoint>().unwrap().to_string()
    }

    fn reason(text: &str) -> String {
        text.parse::<Endpoint>().unwrap_err()
    }

    #[test]
    fn endpoints_print_as_they_are_read() {
        assert_eq!(parsed("tcp://host"), "tcp://host:7471");
        assert_eq!(parsed("tcp://10.0.0.1:80"), "tcp://10.0.0.1:80");
        assert_eq!(parsed("auto://[::1]"), "auto://[::1]:7471");
        assert_eq!(parsed("rdma://host:9"), "rdma://host:9");
        // Which transport is left to the program where none is named.
        assert_eq!(parsed("host"), "auto://host:7471");
        assert_eq!(parsed("10.0.0.1:80"), "auto://10.0.0.1:80");
        assert_eq!(parsed("[2001:db8::1]:9"), "auto://[2001:db8::1]:9");
        assert_eq!(parsed("tcp://[2001:db8::1]:0"), "tcp://[2001:db8::1]:0");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("", "no host is named"),
            ("host:port", "'port' is not a port"),
            ("::1", "stands in brackets"),
            ("auto:/host", "'/host' is not a port"),
            ("host/path", "'host/path' is not a host name"),
            ("udp://host", "'udp' is not a transport"),
            ("tcp://", "no host is named"),
            ("tcp://:80", "no host is named"),
            ("tcp://::1", "stands in brackets"),
            ("tcp://[::1", "not closed"),
            ("tcp://[host]:1", "'host' is not an IPv6 address"),
            ("tcp://[::1]x", "'x' behind the bracket"),
            ("tcp://host:99999", "'99999' is not a port"),
            ("tcp://host:", "'' is not a port"),
            ("tcp://ho st", "'ho st' is not a host name"),
            ("tcp://host/path", "'host/path' is not a host name"),
        ] {
            let reason = reason(text);
            assert!(reason.contains(named), "{text}: {reason}");
        }
    }

    #[test]
    fn an_address_becomes_an_endpoint() {
        let endpoint = Endpoint::tcp("[::1]:9".parse().unwrap());
        assert_eq!(endpoint.to_string(), "tcp://[::1]:9");
        assert_eq!(endpoint.authority(), "[::1]:9");
    }
}
