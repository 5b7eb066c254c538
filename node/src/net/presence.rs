//! What members tell each other about where members are.
//!
//! Each tells a new neighbour about itself and about those it is linked with, so that whoever
//! reaches one member soon reaches all. A presence needs no signature: a wrong one leads to a dial
//! whose handshake fails.

use std::net::{IpAddr, SocketAddr};

use p2ptrain_protocol::id::Incarnation;

use super::limits;
use crate::identity::PeerId;

/// Where one member can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Presence {
    pub(crate) peer: PeerId,
    pub(crate) incarnation: Incarnation,
    /// Equal for peers that share a loopback device.
    pub(crate) host: [u8; 16],
    pub(crate) control_port: u16,
    pub(crate) bulk_port: u16,
    pub(crate) ips: Vec<IpAddr>,
}

/// A presence message that doesn't follow the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed presence message")]
pub(crate) struct PresenceError;

impl Presence {
    /// Where to dial the peer from a node on `host`, most direct first; the port is that of either
    /// plane.
    pub(crate) fn candidates(&self, host: &[u8; 16], port: u16) -> Vec<SocketAddr> {
        let same_host = self.host == *host;
        let listens_wide = self.ips.iter().all(|ip| !ip.is_loopback());
        let mut ips = Vec::new();
        if same_host && listens_wide {
            ips.push(IpAddr::from([127, 0, 0, 1]));
        }
        ips.extend(self.ips.iter().copied().filter(|ip| same_host || !ip.is_loopback()));
        ips.truncate(limits::ADDRS_MAX);
        ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.peer.as_bytes());
        out.extend_from_slice(&self.incarnation.0.to_le_bytes());
        out.extend_from_slice(&self.host);
        out.extend_from_slice(&self.control_port.to_le_bytes());
        out.extend_from_slice(&self.bulk_port.to_le_bytes());
        let count = self.ips.len().min(limits::ADDRS_MAX);
        out.push(count as u8);
        for ip in &self.ips[..count] {
            match ip {
                IpAddr::V4(ip) => {
                    out.push(4);
                    out.extend_from_slice(&ip.octets());
                }
                IpAddr::V6(ip) => {
                    out.push(6);
                    out.extend_from_slice(&ip.octets());
                }
            }
        }
    }

    fn decode(input: &mut &[u8]) -> Result<Self, PresenceError> {
        let peer = PeerId::from_bytes(take(input)?);
        let incarnation = Incarnation(u64::from_le_bytes(take(input)?));
        let host = take(input)?;
        let control_port = u16::from_le_bytes(take(input)?);
        let bulk_port = u16::from_le_bytes(take(input)?);
        let [count] = take(input)?;
        if usize::from(count) > limits::ADDRS_MAX {
            return Err(PresenceError);
        }
        let ips = (0..count)
            .map(|_| match take(input)? {
                [4] => Ok(IpAddr::from(take::<4>(input)?)),
                [6] => Ok(IpAddr::from(take::<16>(input)?)),
                [_] => Err(PresenceError),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { peer, incarnation, host, control_port, bulk_port, ips })
    }
}

/// The body of a presence message.
pub(crate) fn encode<'a>(presences: impl IntoIterator<Item = &'a Presence>) -> Vec<u8> {
    let mut out = Vec::new();
    for presence in presences.into_iter().take(limits::PEERS_MAX) {
        presence.encode(&mut out);
    }
    out
}

/// Parses the body of a presence message.
pub(crate) fn decode(mut input: &[u8]) -> Result<Vec<Presence>, PresenceError> {
    let mut presences = Vec::new();
    while !input.is_empty() {
        if presences.len() == limits::PEERS_MAX {
            return Err(PresenceError);
        }
        presences.push(Presence::decode(&mut input)?);
    }
    Ok(presences)
}

fn take<const N: usize>(input: &mut &[u8]) -> Result<[u8; N], PresenceError> {
    let (head, rest) = input.split_first_chunk::<N>().ok_or(PresenceError)?;
    *input = rest;
    Ok(*head)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn presence(ips: &[&str]) -> Presence {
        Presence {
            peer: PeerId::from_bytes([1; 32]),
            incarnation: Incarnation(2),
            host: [3; 16],
            control_port: 4,
            bulk_port: 5,
            ips: ips.iter().map(|ip| ip.parse().expect("an address")).collect(),
        }
    }

    fn candidates(ips: &[&str], host: [u8; 16]) -> Vec<String> {
        presence(ips).candidates(&host, 9).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn loopback_is_dialled_on_the_same_host_only() {
        assert_eq!(candidates(&["127.0.0.1"], [3; 16]), ["127.0.0.1:9"]);
        assert!(candidates(&["127.0.0.1"], [4; 16]).is_empty());
        assert_eq!(candidates(&["10.0.0.7"], [3; 16]), ["127.0.0.1:9", "10.0.0.7:9"]);
        assert_eq!(candidates(&["10.0.0.7", "fd00::1"], [4; 16]), ["10.0.0.7:9", "[fd00::1]:9"]);
    }

    #[test]
    fn presences_survive_the_wire() {
        let sent = [presence(&["10.0.0.7", "fd00::1"]), presence(&[])];
        assert_eq!(decode(&encode(&sent)), Ok(sent.to_vec()));
        let bytes = encode(&sent[..1]);
        for end in 1..bytes.len() {
            assert_eq!(decode(&bytes[..end]), Err(PresenceError), "cut at {end}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(presences) = decode(&bytes) {
                prop_assert_eq!(encode(&presences), bytes);
            }
        }
    }
}
