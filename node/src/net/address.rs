//! Addresses: what users write, what a node tells others about itself, and what it dials.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
};

use libp2p::{Multiaddr, multiaddr::Protocol};

use super::limits;
use crate::identity::{self, PeerId};

/// Where a peer's control plane listens, as a user writes it: `host:port`, or a multiaddr such as
/// `/ip4/10.0.0.7/tcp/4120/p2p/12D3...`. The host may be a DNS name, which is looked up again at each
/// attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAddr {
    host: String,
    port: u16,
    quic: bool,
    peer: Option<PeerId>,
}

/// Why a text isn't the address of a peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a peer's address ({reason}); expected host:port or /ip4/ADDRESS/tcp/PORT")]
pub struct PeerAddrError {
    text: String,
    reason: &'static str,
}

impl PeerAddr {
    /// The peer that must answer there, if the address names it.
    pub fn peer(&self) -> Option<PeerId> {
        self.peer
    }

    /// What to dial now. DNS names are looked up.
    pub(crate) async fn resolve(&self) -> io::Result<Vec<Multiaddr>> {
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await?;
        Ok(found.take(limits::ADDRS_MAX).map(|addr| multiaddr(addr, self.quic)).collect())
    }
}

impl FromStr for PeerAddr {
    type Err = PeerAddrError;

    fn from_str(text: &str) -> Result<Self, PeerAddrError> {
        let text = text.trim();
        let wrong = |reason| PeerAddrError { text: text.to_owned(), reason };
        if text.starts_with('/') {
            let addr = text.parse::<Multiaddr>().map_err(|_| wrong("malformed multiaddr"))?;
            return from_multiaddr(&addr).map_err(wrong);
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong("it has no port"))?;
        let port = port.parse().map_err(|_| wrong("its port is not a number up to 65535"))?;
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host = bracketed.unwrap_or(host);
        if bracketed.is_none() && host.contains(':') {
            return Err(wrong("an IPv6 address needs brackets"));
        }
        if port == 0 {
            return Err(wrong("port 0 can't be dialled"));
        }
        if host.is_empty() || host.len() > 253 || host.contains(char::is_whitespace) {
            return Err(wrong("its host is empty or malformed"));
        }
        Ok(Self { host: host.to_owned(), port, quic: false, peer: None })
    }
}

impl fmt::Display for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, quic, .. } = self;
        let transport = if *quic { " (QUIC)" } else { "" };
        if host.contains(':') {
            write!(f, "[{host}]:{port}{transport}")
        } else {
            write!(f, "{host}:{port}{transport}")
        }
    }
}

fn from_multiaddr(addr: &Multiaddr) -> Result<PeerAddr, &'static str> {
    let mut parts = addr.iter();
    let host = match parts.next() {
        Some(Protocol::Ip4(ip)) => ip.to_string(),
        Some(Protocol::Ip6(ip)) => ip.to_string(),
        Some(Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name)) => name.to_string(),
        _ => return Err("it doesn't start with an address or DNS name"),
    };
    let (port, quic) = match parts.next() {
        Some(Protocol::Tcp(port)) => (port, false),
        Some(Protocol::Udp(port)) => match parts.next() {
            Some(Protocol::QuicV1) => (port, true),
            _ => return Err("a UDP address must continue with /quic-v1"),
        },
        _ => return Err("it has no /tcp/PORT"),
    };
    if port == 0 {
        return Err("port 0 can't be dialled");
    }
    let peer = match parts.next() {
        None => None,
        Some(Protocol::P2p(peer)) => {
            Some(identity::from_libp2p(&peer).ok_or("its peer id is not an ed25519 key")?)
        }
        Some(_) => return Err("it goes on after the port with something other than /p2p"),
    };
    if parts.next().is_some() {
        return Err("it goes on after the peer id");
    }
    Ok(PeerAddr { host, port, quic, peer })
}

/// The multiaddr of a control listener.
pub(crate) fn multiaddr(addr: SocketAddr, quic: bool) -> Multiaddr {
    let base = Multiaddr::from(addr.ip());
    if quic {
        base.with(Protocol::Udp(addr.port())).with(Protocol::QuicV1)
    } else {
        base.with(Protocol::Tcp(addr.port()))
    }
}

/// Address and port of a control connection's end, and whether it is TCP.
pub(crate) fn socket_addr(addr: &Multiaddr) -> Option<(SocketAddr, bool)> {
    let mut parts = addr.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => IpAddr::V4(ip),
        Protocol::Ip6(ip) => IpAddr::V6(ip),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some((SocketAddr::new(ip, port), true)),
        Protocol::Udp(port) => Some((SocketAddr::new(ip, port), false)),
        _ => None,
    }
}

/// The addresses under which a node listening on `listen` can be reached from other machines; only
/// if there is none, the loopback address, which serves peers on the same machine.
pub(crate) fn advertised_ips(listen: IpAddr) -> Vec<IpAddr> {
    if !listen.is_unspecified() {
        return vec![listen];
    }
    let mut ips: Vec<IpAddr> = if_addrs::get_if_addrs()
        .unwrap_or_default()
        .into_iter()
        .filter(|interface| !interface.is_loopback() && !interface.is_link_local())
        .map(|interface| interface.ip())
        .filter(|ip| listen.is_ipv6() || ip.is_ipv4())
        .collect();
    ips.truncate(limits::ADDRS_MAX / 2);
    if ips.is_empty() {
        ips.push(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    ips
}

/// Whether packets to `ip` stay inside this machine: the system sends those to its own addresses
/// through the loopback device too.
pub(crate) fn is_this_machine(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    ip.is_loopback()
        || if_addrs::get_if_addrs().unwrap_or_default().iter().any(|interface| interface.ip() == ip)
}

/// Names the network stack of this machine: loopback addresses mean the same to all processes that
/// agree on it.
///
/// It covers the boot and the network namespace, since containers share the first but not the
/// loopback device.
pub(crate) fn host_id() -> [u8; 16] {
    let mut hasher = blake3::Hasher::new_derive_key("p2ptrain host id v1");
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = std::fs::read_link("/proc/self/ns/net").unwrap_or_default();
    hasher.update(&boot);
    hasher.update(namespace.as_os_str().as_encoded_bytes());
    if boot.is_empty() || namespace.as_os_str().is_empty() {
        // Unknown: agree with nobody rather than dial a stranger's loopback.
        hasher.update(&rand::random::<[u8; 16]>());
    }
    let mut id = [0; 16];
    hasher.finalize_xof().fill(&mut id);
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, host: &str, port: u16, quic: bool) {
        let expected = PeerAddr { host: host.to_owned(), port, quic, peer: None };
        assert_eq!(text.parse(), Ok(expected), "{text}");
    }

    #[test]
    fn both_notations_parse() {
        check("lab-7:4120", "lab-7", 4120, false);
        check(" 10.0.0.7:4120 ", "10.0.0.7", 4120, false);
        check("[::1]:4120", "::1", 4120, false);
        check("/ip4/10.0.0.7/tcp/4120", "10.0.0.7", 4120, false);
        check("/ip6/::1/tcp/4120", "::1", 4120, false);
        check("/dns4/lab-7/tcp/4120", "lab-7", 4120, false);
        check("/ip4/10.0.0.7/udp/4120/quic-v1", "10.0.0.7", 4120, true);
    }

    #[test]
    fn address_may_name_the_peer() {
        let peer = identity::Identity::generate().peer_id();
        let theirs = identity::to_libp2p(peer).expect("a real key");
        let addr: PeerAddr = format!("/ip4/10.0.0.7/tcp/1/p2p/{theirs}").parse().expect("parses");
        assert_eq!(addr.peer(), Some(peer));
    }

    #[test]
    fn wrong_addresses_say_why() {
        for text in [
            "",
            "lab-7",
            ":4120",
            "lab-7:0",
            "lab-7:70000",
            "lab 7:1",
            "::1:4120",
            "/ip4/10.0.0.7",
            "/ip4/10.0.0.7/tcp/0",
            "/ip4/10.0.0.7/udp/4120",
            "/ip4/10.0.0.7/tcp/1/ws",
            "/ip4/999.0.0.7/tcp/1",
            "/tcp/1",
        ] {
            let error = text.parse::<PeerAddr>().expect_err(text);
            assert!(error.to_string().contains("expected host:port"), "{error}");
        }
    }

    #[test]
    fn loopback_is_never_advertised_beside_other_addresses() {
        let ips = advertised_ips(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        assert!(!ips.is_empty());
        assert!(ips.len() == 1 || ips.iter().all(|ip| !ip.is_loopback()), "{ips:?}");
    }

    #[test]
    fn own_addresses_are_this_machine() {
        for ip in advertised_ips(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) {
            assert!(is_this_machine(ip), "{ip}");
        }
        assert!(is_this_machine(IpAddr::from([127, 1, 2, 3])));
        assert!(is_this_machine(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into()));
        assert!(!is_this_machine(IpAddr::from([203, 0, 113, 77])));
    }

    #[test]
    fn processes_of_one_machine_agree_on_the_host() {
        assert_eq!(host_id(), host_id());
    }
}
