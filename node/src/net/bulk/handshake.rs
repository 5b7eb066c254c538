//! Proof of membership on a bulk connection, before anything else is read from it.
//!
//! Each side sends a keyed hash over the TLS exporter (which both ends of this connection share
//! with nobody else), the two ids in order and its incarnation. The dialler speaks first, so that a
//! listening member tells a stranger nothing.
//!
//! Of a pair, the peer with the lower id decides: a connection counts once that peer has sent the
//! byte [`CHOSEN`]. So both sides use the same one, however many they have dialled.

use std::collections::BTreeSet;

use p2ptrain_protocol::id::Incarnation;
use quinn::{Connection, RecvStream, SendStream, VarInt};

use super::{close, tls};
use crate::{
    identity::PeerId,
    net::{SwarmAccess, bulk::frame},
};

const MAGIC: [u8; 4] = *b"p2pb";
const VERSION: u16 = 1;
pub(crate) const HELLO_BYTES: usize = 4 + 2 + 8 + 32;
/// Sent by the lower peer on the connection that the pair shall use.
const CHOSEN: u8 = 0xc1;
const EXPORTER_LABEL: &[u8] = b"EXPORTER-p2ptrain-membership-v1";

/// What this node proves, and whom it admits.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) peer: PeerId,
    pub(crate) incarnation: Incarnation,
    key: [u8; 32],
    allowed: Option<BTreeSet<PeerId>>,
}

/// A connection whose peer is known and a member; the pair's choice is still open.
pub(crate) struct Proven {
    pub(crate) peer: PeerId,
    pub(crate) incarnation: Incarnation,
    pub(crate) connection: Connection,
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
}

/// Why a connection's peer isn't admitted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error(transparent)]
    Connection(#[from] quinn::ConnectionError),
    #[error("its certificate names no peer")]
    Anonymous,
    #[error("the certificate belongs to {found}, expected {expected}")]
    WrongPeer { expected: PeerId, found: PeerId },
    #[error("it is this node itself")]
    Myself,
    #[error("{peer} is not on the allow-list")]
    NotAllowed { peer: PeerId },
    #[error("{peer} speaks version {found} of the protocol, this node {VERSION}")]
    Version { peer: PeerId, found: u16 },
    #[error("{peer} does not know the swarm's secret")]
    Stranger { peer: PeerId },
    #[error("{peer} ended the handshake early: {error}")]
    Io { peer: PeerId, error: String },
}

impl Member {
    pub(crate) fn new(access: &SwarmAccess, peer: PeerId, incarnation: Incarnation) -> Self {
        match access {
            SwarmAccess::Secret(secret) => {
                Self { peer, incarnation, key: secret.membership_key(), allowed: None }
            }
            // The list says who is a member, and TLS has proven who it is.
            SwarmAccess::AllowList(peers) => Self {
                peer,
                incarnation,
                key: blake3::derive_key("p2ptrain bulk membership by allow-list v1", &[]),
                allowed: Some(peers.iter().copied().collect()),
            },
        }
    }

    fn admit(&self, connection: &Connection) -> Result<PeerId, HandshakeError> {
        let peer = tls::remote_peer(connection).ok_or(HandshakeError::Anonymous)?;
        if peer == self.peer {
            return Err(HandshakeError::Myself);
        }
        match &self.allowed {
            Some(allowed) if !allowed.contains(&peer) => Err(HandshakeError::NotAllowed { peer }),
            _ => Ok(peer),
        }
    }

    pub(crate) fn hello(&self, connection: &Connection, to: PeerId) -> [u8; HELLO_BYTES] {
        let mut hello = [0; HELLO_BYTES];
        hello[..4].copy_from_slice(&MAGIC);
        hello[4..6].copy_from_slice(&VERSION.to_le_bytes());
        hello[6..14].copy_from_slice(&self.incarnation.0.to_le_bytes());
        let proof = self.proof(connection, self.peer, to, self.incarnation);
        hello[14..].copy_from_slice(proof.as_bytes());
        hello
    }

    fn check(
        &self,
        connection: &Connection,
        from: PeerId,
        hello: &[u8; HELLO_BYTES],
    ) -> Result<Incarnation, HandshakeError> {
        if hello[..4] != MAGIC {
            return Err(HandshakeError::Stranger { peer: from });
        }
        let found = u16::from_le_bytes([hello[4], hello[5]]);
        if found != VERSION {
            return Err(HandshakeError::Version { peer: from, found });
        }
        let incarnation: [u8; 8] = hello[6..14].try_into().expect("eight bytes");
        let incarnation = Incarnation(u64::from_le_bytes(incarnation));
        let proof: [u8; 32] = hello[14..].try_into().expect("thirty-two bytes");
        // Comparison of two blake3 hashes takes the same time wherever they differ.
        if self.proof(connection, from, self.peer, incarnation) != blake3::Hash::from_bytes(proof) {
            return Err(HandshakeError::Stranger { peer: from });
        }
        Ok(incarnation)
    }

    fn proof(
        &self,
        connection: &Connection,
        from: PeerId,
        to: PeerId,
        incarnation: Incarnation,
    ) -> blake3::Hash {
        let mut shared = [0; 32];
        connection
            .export_keying_material(&mut shared, EXPORTER_LABEL, &[])
            .expect("thirty-two bytes are far below the exporter's limit");
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&shared);
        hasher.update(from.as_bytes());
        hasher.update(to.as_bytes());
        hasher.update(&incarnation.0.to_le_bytes());
        hasher.finalize()
    }
}

impl Proven {
    /// Whether this side decides which connection the pair uses.
    pub(crate) fn decides(&self, own: PeerId) -> bool {
        own < self.peer
    }

    /// Tells the peer that the pair uses this connection.
    pub(crate) async fn choose(&mut self) -> Result<(), HandshakeError> {
        let peer = self.peer;
        self.send.write_all(&[CHOSEN]).await.map_err(|e| io_error(peer, e))
    }

    /// Waits until the peer has chosen this connection; it closes the others.
    pub(crate) async fn chosen(&mut self) -> Result<(), HandshakeError> {
        let mut byte = [0];
        let peer = self.peer;
        match self.recv.read_exact(&mut byte).await {
            Ok(()) if byte == [CHOSEN] => Ok(()),
            Ok(()) => Err(io_error(peer, "unexpected byte")),
            Err(e) => match self.connection.close_reason() {
                Some(reason) => Err(reason.into()),
                None => Err(io_error(peer, e)),
            },
        }
    }

    pub(crate) fn close(&self, code: u32, reason: &str) {
        self.connection.close(VarInt::from_u32(code), reason.as_bytes());
    }
}

/// The dialler's half.
pub(crate) async fn dial(
    connection: Connection,
    expected: PeerId,
    member: &Member,
) -> Result<Proven, HandshakeError> {
    let found = refuse_by_closing(&connection, member.admit(&connection))?;
    if found != expected {
        // TLS has checked it; this is the second lock.
        let wrong = Err(HandshakeError::WrongPeer { expected, found });
        return refuse_by_closing(&connection, wrong);
    }
    let (mut send, mut recv) = connection.open_bi().await?;
    // Messages must not wait behind chunks.
    let _ = send.set_priority(frame::MESSAGE_PRIORITY);
    let hello = member.hello(&connection, found);
    send.write_all(&hello).await.map_err(|e| io_error(found, e))?;
    let incarnation = receive(&connection, &mut recv, found, member).await?;
    Ok(Proven { peer: found, incarnation, connection, send, recv })
}

/// The listener's half.
pub(crate) async fn answer(
    connection: Connection,
    member: &Member,
) -> Result<Proven, HandshakeError> {
    let peer = refuse_by_closing(&connection, member.admit(&connection))?;
    let (mut send, mut recv) = connection.accept_bi().await?;
    let _ = send.set_priority(frame::MESSAGE_PRIORITY);
    let incarnation = receive(&connection, &mut recv, peer, member).await?;
    let hello = member.hello(&connection, peer);
    send.write_all(&hello).await.map_err(|e| io_error(peer, e))?;
    Ok(Proven { peer, incarnation, connection, send, recv })
}

async fn receive(
    connection: &Connection,
    recv: &mut RecvStream,
    peer: PeerId,
    member: &Member,
) -> Result<Incarnation, HandshakeError> {
    let mut hello = [0; HELLO_BYTES];
    if let Err(e) = recv.read_exact(&mut hello).await {
        return Err(match connection.close_reason() {
            Some(reason) => reason.into(),
            None => io_error(peer, e),
        });
    }
    refuse_by_closing(connection, member.check(connection, peer, &hello))
}

fn refuse_by_closing<T>(
    connection: &Connection,
    result: Result<T, HandshakeError>,
) -> Result<T, HandshakeError> {
    if result.is_err() {
        connection.close(VarInt::from_u32(close::STRANGER), b"not a member");
    }
    result
}

fn io_error(peer: PeerId, error: impl std::fmt::Display) -> HandshakeError {
    HandshakeError::Io { peer, error: error.to_string() }
}
