//! Lets only members keep a control connection.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    multiaddr::Protocol,
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm, dummy,
    },
};

use crate::net::limits;

/// A behaviour without a protocol: it only refuses.
pub(crate) struct Gate {
    allowed: Option<BTreeSet<PeerId>>,
    proven: BTreeSet<PeerId>,
}

#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0} is not on the allow-list")]
    NotAllowed(PeerId),
    #[error("{0} has not proven yet that it is a member; QUIC is for those who have")]
    NotProven(PeerId),
}

impl Gate {
    /// With a list, admits those on it. Without, admits whoever the TCP handshake admits, and to
    /// QUIC those proven.
    pub(crate) fn new(allowed: Option<BTreeSet<PeerId>>) -> Self {
        Self { allowed, proven: BTreeSet::new() }
    }

    /// The peer has shown that it knows the swarm's secret.
    pub(crate) fn prove(&mut self, peer: PeerId) {
        if self.proven.len() >= 4 * limits::PEERS_MAX {
            // Members prove themselves again with their next connection.
            self.proven.clear();
        }
        self.proven.insert(peer);
    }

    fn check(&self, peer: PeerId, remote: &Multiaddr) -> Result<(), ConnectionDenied> {
        let refused = match &self.allowed {
            Some(allowed) if allowed.contains(&peer) => return Ok(()),
            Some(_) => Refusal::NotAllowed(peer),
            None => {
                let quic = remote.iter().any(|part| part == Protocol::QuicV1);
                if !quic || self.proven.contains(&peer) {
                    return Ok(());
                }
                Refusal::NotProven(peer)
            }
        };
        Err(ConnectionDenied::new(refused))
    }
}

impl NetworkBehaviour for Gate {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.check(peer, remote).map(|()| dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        remote: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.check(peer, remote).map(|()| dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quic_is_for_proven_members_and_a_list_for_those_on_it() {
        let tcp: Multiaddr = "/ip4/10.0.0.7/tcp/1".parse().expect("an address");
        let quic: Multiaddr = "/ip4/10.0.0.7/udp/1/quic-v1".parse().expect("an address");
        let (ann, bob) = (PeerId::random(), PeerId::random());

        let mut gate = Gate::new(None);
        assert!(gate.check(ann, &tcp).is_ok());
        assert!(gate.check(ann, &quic).is_err());
        gate.prove(ann);
        assert!(gate.check(ann, &quic).is_ok());

        let gate = Gate::new(Some(BTreeSet::from([ann])));
        assert!(gate.check(ann, &tcp).is_ok() && gate.check(ann, &quic).is_ok());
        assert!(gate.check(bob, &tcp).is_err() && gate.check(bob, &quic).is_err());
    }
}
