//! The bulk plane: one quinn endpoint, one proven connection with each member.
//!
//! A connection passes three gates before anything else is read from it: TLS 1.3 with the peer's
//! own certificate on both sides, the expected peer id, and the proof of membership
//! ([`handshake`]).

pub(crate) mod frame;
pub(crate) mod handshake;
pub(crate) mod link;
pub(crate) mod tls;
pub(crate) mod tuning;

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
};

use quinn::{AsyncUdpSocket, Connection, Endpoint, Runtime, TokioRuntime, VarInt};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};

use self::{handshake::Proven, tuning::Tuning};
use super::{address, limits};
use crate::identity::{Identity, PeerId};

/// Why a connection was closed, as told to the peer. The numbers are part of the protocol.
pub(crate) mod close {
    /// The node leaves.
    pub(crate) const GOODBYE: u32 = 1;
    /// There is a connection for this pair already.
    pub(crate) const DUPLICATE: u32 = 2;
    /// The peer broke the format.
    pub(crate) const VIOLATION: u32 = 3;
    /// The peer is no member, or could not prove it.
    pub(crate) const STRANGER: u32 = 4;
    /// Another process of the peer took its place, or the peer is believed dead.
    pub(crate) const SUPERSEDED: u32 = 5;
}

/// The endpoint and all that a handshake needs.
pub(crate) struct Bulk {
    endpoint: Endpoint,
    socket: Arc<dyn AsyncUdpSocket>,
    credentials: tls::Credentials,
    tuning: Tuning,
    member: handshake::Member,
    server: (quinn::ServerConfig, quinn::ServerConfig),
}

/// Why no connection with a peer came about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("no address of the peer is known")]
    NoAddress,
    #[error(transparent)]
    Connect(#[from] quinn::ConnectError),
    #[error(transparent)]
    Connection(#[from] quinn::ConnectionError),
    #[error(transparent)]
    Handshake(#[from] handshake::HandshakeError),
    #[error("no answer")]
    Timeout,
}

impl Bulk {
    /// Takes over the bound socket. Must run inside a tokio runtime.
    pub(crate) fn new(
        socket: UdpSocket,
        identity: &Identity,
        member: handshake::Member,
        tuning: Tuning,
    ) -> io::Result<Self> {
        tuning::keep_freed_memory();
        let runtime = Arc::new(TokioRuntime);
        let socket = runtime.wrap_udp_socket(socket)?;
        let credentials = tls::Credentials::new(identity).map_err(io::Error::other)?;
        let server = |loopback| {
            let mut config = quinn::ServerConfig::with_crypto(credentials.server_config());
            config.transport_config(Arc::new(tuning.transport(loopback)));
            config.max_incoming(limits::HANDSHAKES_MAX);
            config
        };
        let server = (server(false), server(true));
        let endpoint = Endpoint::new_with_abstract_socket(
            tuning.endpoint(),
            Some(server.0.clone()),
            Arc::clone(&socket),
            runtime,
        )?;
        Ok(Self { endpoint, socket, credentials, tuning, member, server })
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Whether the system splits large sends into datagrams for us (generic segmentation offload).
    pub(crate) fn segmentation_offload(&self) -> bool {
        self.tuning.segmentation_offload && self.socket.max_transmit_segments() > 1
    }

    pub(crate) fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// Accepts connections and reports those whose peers are members, until the endpoint is closed.
    pub(crate) async fn accept(self: Arc<Self>, proven: mpsc::Sender<Proven>) {
        let pending = Arc::new(Semaphore::new(limits::HANDSHAKES_MAX));
        while let Some(incoming) = self.endpoint.accept().await {
            let Ok(permit) = Arc::clone(&pending).try_acquire_owned() else {
                incoming.refuse();
                continue;
            };
            // With many handshakes at once, senders first show that they receive at their address.
            if pending.available_permits() < limits::HANDSHAKES_MAX / 2
                && !incoming.remote_address_validated()
            {
                // It fails only for validated addresses, which were excluded.
                let _ = incoming.retry();
                continue;
            }
            let (bulk, proven) = (Arc::clone(&self), proven.clone());
            tokio::spawn(async move {
                let _permit = permit;
                let remote = incoming.remote_address();
                match tokio::time::timeout(limits::HANDSHAKE_TIME_MAX, bulk.answer(incoming)).await
                {
                    // A full hub means a node that shuts down; the connection closes when dropped.
                    Ok(Ok(peer)) => drop(proven.send(peer).await),
                    Ok(Err(e)) if e.is_routine() => tracing::debug!("bulk from {remote}: {e}"),
                    Ok(Err(e)) => tracing::warn!("bulk connection from {remote} refused: {e}"),
                    Err(_) => tracing::warn!("bulk connection from {remote} refused: no proof"),
                }
            });
        }
    }

    /// Connects to `peer` at whichever address answers first.
    pub(crate) async fn dial(
        &self,
        peer: PeerId,
        addrs: &[SocketAddr],
    ) -> Result<Proven, DialError> {
        let attempt = async {
            let connection = self.connect(peer, addrs).await?;
            Ok(handshake::dial(connection, peer, &self.member).await?)
        };
        tokio::time::timeout(limits::HANDSHAKE_TIME_MAX, attempt)
            .await
            .unwrap_or(Err(DialError::Timeout))
    }

    /// Tells all peers goodbye and stops accepting.
    pub(crate) async fn close(&self) {
        self.endpoint.close(VarInt::from_u32(close::GOODBYE), b"goodbye");
        let _ = tokio::time::timeout(limits::GOODBYE_TIME_MAX, self.endpoint.wait_idle()).await;
    }

    async fn answer(&self, incoming: quinn::Incoming) -> Result<Proven, DialError> {
        let (wide, loopback) = &self.server;
        let config =
            if address::is_this_machine(incoming.remote_address().ip()) { loopback } else { wide };
        let connection = incoming.accept_with(Arc::new(config.clone()))?.await?;
        Ok(handshake::answer(connection, &self.member).await?)
    }

    /// A connection that passed TLS only. All addresses are tried at once; the first that answers
    /// wins.
    pub(crate) async fn connect(
        &self,
        peer: PeerId,
        addrs: &[SocketAddr],
    ) -> Result<Connection, DialError> {
        let mut attempts = JoinSet::new();
        let mut error = DialError::NoAddress;
        for addr in addrs.iter().take(limits::ADDRS_MAX) {
            let mut config = quinn::ClientConfig::new(self.credentials.client_config(peer));
            config.transport_config(Arc::new(
                self.tuning.transport(address::is_this_machine(addr.ip())),
            ));
            match self.endpoint.connect_with(config, self.usable(*addr), tls::SERVER_NAME) {
                Ok(connecting) => drop(attempts.spawn(connecting)),
                Err(e) => error = e.into(),
            }
        }
        while let Some(attempt) = attempts.join_next().await {
            match attempt.expect("a connection attempt neither panics nor is aborted") {
                // Dropping the set ends the other attempts.
                Ok(connection) => return Ok(connection),
                Err(e) => error = e.into(),
            }
        }
        Err(error)
    }

    /// A dual-stack socket sends to IPv4 addresses in their mapped form.
    fn usable(&self, addr: SocketAddr) -> SocketAddr {
        match (self.endpoint.local_addr(), addr.ip()) {
            (Ok(SocketAddr::V6(_)), IpAddr::V4(ip)) => {
                SocketAddr::new(ip.to_ipv6_mapped().into(), addr.port())
            }
            _ => addr,
        }
    }
}

impl DialError {
    /// Happens in a healthy swarm, as when both sides dial at once.
    pub(crate) fn is_routine(&self) -> bool {
        let closed = |e: &quinn::ConnectionError| {
            matches!(e, quinn::ConnectionError::ApplicationClosed(c)
                if c.error_code == VarInt::from_u32(close::DUPLICATE)
                    || c.error_code == VarInt::from_u32(close::GOODBYE))
        };
        match self {
            Self::Connection(e) | Self::Handshake(handshake::HandshakeError::Connection(e)) => {
                closed(e)
            }
            _ => false,
        }
    }
}
