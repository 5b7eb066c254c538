use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use super::{Finding, Verdict};
use crate::cli::human_bytes;

/// Receive buffer that a fast connection needs so that bursts survive a busy moment.
const UDP_BUFFER_BYTES: usize = 4 << 20;
const MDNS_GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const MDNS_PORT: u16 = 5353;

pub(super) fn ports(port: u16, bulk_port: u16) -> Finding {
    let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let checks = [
        ("TCP", port, TcpListener::bind(any(port)).map(drop)),
        ("UDP", port, UdpSocket::bind(any(port)).map(drop)),
        ("UDP", bulk_port, UdpSocket::bind(any(bulk_port)).map(drop)),
    ];
    let data = json!({ "port": port, "bulk_port": bulk_port });
    for (protocol, port, result) in checks {
        let Err(error) = result else { continue };
        let text = format!("{protocol} port {port} cannot be opened: {error}");
        let advice = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "end the program that has it (`ss -lntup` names it), or choose another port; 0 takes any"
            }
            io::ErrorKind::PermissionDenied => "choose a port from 1024 on, or 0 for any",
            _ => "choose another port; 0 takes any",
        };
        return Finding::new("ports", Verdict::Bad, text).advice(advice).data(data);
    }
    let name = |port: u16| if port == 0 { "any".to_owned() } else { port.to_string() };
    let text = if port == 0 && bulk_port == 0 {
        "TCP and UDP ports can be opened; behind a firewall fix them with --port and --bulk-port"
            .to_owned()
    } else {
        format!("TCP and UDP port {}, UDP port {} are free", name(port), name(bulk_port))
    };
    Finding::new("ports", Verdict::Good, text).data(data)
}

pub(super) fn addresses() -> Finding {
    let interfaces = match if_addrs::get_if_addrs() {
        Ok(interfaces) => interfaces,
        Err(error) => {
            let text = format!("the network interfaces cannot be listed: {error}");
            return Finding::new("addresses", Verdict::Warn, text)
                .advice("others join by an address that you give them with --peer");
        }
    };
    let up: Vec<_> = interfaces.iter().filter(|interface| interface.is_oper_up()).collect();
    let told: Vec<_> = up
        .iter()
        .filter(|interface| advertised(interface.ip()))
        .map(|interface| (interface.name.as_str(), interface.ip()))
        .collect();
    let data = json!({
        "advertised": told.iter().map(|(_, ip)| ip).collect::<Vec<_>>(),
        "interfaces": up.iter().map(|i| json!({ "name": i.name, "ip": i.ip() })).collect::<Vec<_>>(),
    });
    if told.is_empty() {
        return Finding::new(
            "addresses",
            Verdict::Warn,
            "no address that another machine could reach; nodes on this machine find each other",
        )
        .advice("connect a network, or check it with `ip address`")
        .data(data);
    }
    let list: Vec<_> = told.iter().map(|(name, ip)| format!("{ip} ({name})")).collect();
    let text = format!("others would be told {}", list.join(", "));
    let only_virtual = told.iter().all(|(name, _)| is_virtual(name));
    let finding = if only_virtual {
        Finding::new("addresses", Verdict::Warn, text)
            .advice("these belong to containers or tunnels; other machines may not reach them")
    } else {
        Finding::new("addresses", Verdict::Good, text)
    };
    finding.data(data)
}

/// Whether an address is worth telling others: loopback and link-local ones only mislead them.
fn advertised(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !(ip.is_loopback() || ip.is_link_local() || ip.is_unspecified()),
        IpAddr::V6(ip) => !(ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified()),
    }
}

fn is_virtual(name: &str) -> bool {
    ["docker", "br-", "veth", "virbr", "tun", "tap", "wg", "tailscale", "cni", "podman"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

pub(super) fn buffers() -> Finding {
    let granted = || -> io::Result<usize> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_recv_buffer_size(UDP_BUFFER_BYTES)?;
        // Linux doubles the value for its own bookkeeping and tells the doubled one.
        socket.recv_buffer_size().map(|bytes| bytes / 2)
    };
    let granted = match granted() {
        Ok(granted) => granted,
        Err(error) => {
            let text = format!("a UDP socket cannot be opened: {error}");
            return Finding::new("buffers", Verdict::Bad, text)
                .advice("allow UDP for this user or container");
        }
    };
    let data = json!({ "udp_receive_bytes": granted, "wanted_bytes": UDP_BUFFER_BYTES });
    let text = format!("UDP sockets get {} of receive buffer", human_bytes(granted as u64));
    if granted < UDP_BUFFER_BYTES {
        let advice = format!(
            "for links from 1 Gbit/s on: sudo sysctl -w net.core.rmem_max={UDP_BUFFER_BYTES} net.core.wmem_max={UDP_BUFFER_BYTES}"
        );
        let verdict = if granted < 200 << 10 { Verdict::Warn } else { Verdict::Note };
        Finding::new("buffers", verdict, text).advice(advice)
    } else {
        Finding::new("buffers", Verdict::Good, text)
    }
    .data(data)
}

pub(super) fn segmentation() -> Finding {
    let segments = || -> io::Result<(usize, usize)> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let state = quinn::udp::UdpSocketState::new((&socket).into())?;
        Ok((state.max_gso_segments(), state.gro_segments()))
    };
    let (gso, gro) = segments().unwrap_or((1, 1));
    let data = json!({ "gso_segments": gso, "gro_segments": gro });
    if gso > 1 && gro > 1 {
        let text = format!("the system sends {gso} and receives {gro} UDP packets in one call");
        Finding::new("UDP offload", Verdict::Good, text).data(data)
    } else {
        let what = if gso > 1 { "receive (GRO)" } else { "send (GSO)" };
        let text = format!("the system does not {what} several UDP packets in one call");
        Finding::new("UDP offload", Verdict::Warn, text)
            .advice("use Linux 5.0 or later outside of restricted containers; gradients cost more CPU time here")
            .data(data)
    }
}

pub(super) fn discovery() -> Finding {
    let join = || -> io::Result<()> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, MDNS_PORT)).into())?;
        socket.join_multicast_v4(&MDNS_GROUP, &Ipv4Addr::UNSPECIFIED)
    };
    let joined = join();
    let multicast = has_multicast_interface();
    let data = json!({ "joined": joined.is_ok(), "multicast_interface": multicast });
    let advice = "join with `p2ptrain join --peer ADDR`; --no-mdns silences the search";
    match joined {
        Ok(()) if multicast => {
            let text = "nodes on the local network can find each other (mDNS)";
            Finding::new("discovery", Verdict::Good, text)
        }
        Ok(()) => Finding::new("discovery", Verdict::Note, "no interface for multicast (mDNS)")
            .advice(advice),
        Err(error) => {
            let text = format!("mDNS is not possible: {error}");
            Finding::new("discovery", Verdict::Note, text).advice(advice)
        }
    }
    .data(data)
}

/// An interface that is up, does multicast, and is not loopback.
fn has_multicast_interface() -> bool {
    const UP: u32 = 0x1;
    const LOOPBACK: u32 = 0x8;
    const MULTICAST: u32 = 0x1000;
    let Ok(entries) = fs::read_dir(Path::new("/sys/class/net")) else { return false };
    entries.flatten().any(|entry| {
        let text = fs::read_to_string(entry.path().join("flags")).unwrap_or_default();
        let flags = u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).unwrap_or(0);
        flags & UP != 0 && flags & MULTICAST != 0 && flags & LOOPBACK == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_named_with_what_to_do() {
        let taken = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("some port is free");
        let port = taken.local_addr().expect("bound").port();
        let finding = ports(port, 0);
        assert_eq!(finding.verdict, Verdict::Bad, "{finding:?}");
        assert!(finding.text.contains(&port.to_string()), "{finding:?}");
        assert_eq!(ports(0, 0).verdict, Verdict::Good);
    }

    #[test]
    fn only_addresses_that_others_can_use_are_told() {
        for (ip, told) in [
            ("127.0.0.1", false),
            ("169.254.1.1", false),
            ("192.168.1.2", true),
            ("8.8.8.8", true),
            ("::1", false),
            ("fe80::1", false),
            ("2001:db8::1", true),
        ] {
            assert_eq!(advertised(ip.parse().expect("an address")), told, "{ip}");
        }
    }
}
