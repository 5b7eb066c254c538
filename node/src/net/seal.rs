//! Sealing of gossip, so that who carries it without being a member learns nothing and can change
//! nothing.

use std::collections::BTreeMap;

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use p2ptrain_protocol::id::Incarnation;

use super::limits;
use crate::identity::PeerId;

/// Nonces of 192 bits can be random for any number of messages under one key.
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;
const HEAD_BYTES: usize = 16;
/// What sealing adds to a message.
pub(crate) const OVERHEAD_BYTES: usize = NONCE_BYTES + TAG_BYTES + HEAD_BYTES;
/// Messages of one source that may overtake each other.
const WINDOW: u64 = 64;

/// Seals this node's messages and opens those of others.
pub(crate) struct Sealer {
    cipher: XChaCha20Poly1305,
    own: PeerId,
    incarnation: Incarnation,
    sent: u64,
    sources: BTreeMap<PeerId, Window>,
}

/// Why a gossip message was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SealError {
    /// Not sealed with the swarm's key, for this topic and by this source.
    #[error("it is not sealed by a member of this swarm")]
    Forged,
    /// Delivered before, or older than what its source has said since.
    #[error("it is a replay")]
    Replay,
    /// The table of sources is full.
    #[error("too many sources")]
    Crowded,
}

/// The messages of one source that were seen: a bitmap below the latest.
struct Window {
    incarnation: Incarnation,
    /// Linked with this incarnation: no other one can be alive.
    linked: bool,
    latest: u64,
    seen: u64,
}

impl Sealer {
    pub(crate) fn new(key: &[u8; 32], own: PeerId, incarnation: Incarnation) -> Self {
        let cipher = XChaCha20Poly1305::new(key.into());
        Self { cipher, own, incarnation, sent: 0, sources: BTreeMap::new() }
    }

    /// nonce ‖ AEAD(incarnation ‖ number ‖ message), bound to topic and source.
    pub(crate) fn seal(&mut self, topic: &str, message: &[u8]) -> Vec<u8> {
        self.sent += 1;
        let mut plain = Vec::with_capacity(HEAD_BYTES + message.len());
        plain.extend_from_slice(&self.incarnation.0.to_le_bytes());
        plain.extend_from_slice(&self.sent.to_le_bytes());
        plain.extend_from_slice(message);
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let aad = associated(topic, &self.own);
        let sealed = self
            .cipher
            .encrypt(&XNonce::from(nonce), Payload { msg: &plain, aad: &aad })
            .expect("messages are far shorter than the cipher's limit");
        let mut out = nonce.to_vec();
        out.extend_from_slice(&sealed);
        out
    }

    /// Opens a message that `source` published.
    pub(crate) fn open(
        &mut self,
        topic: &str,
        source: PeerId,
        sealed: &[u8],
    ) -> Result<Vec<u8>, SealError> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or(SealError::Forged)?;
        let aad = associated(topic, &source);
        let mut plain = self
            .cipher
            .decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: &aad })
            .map_err(|_| SealError::Forged)?;
        let head = plain.first_chunk::<HEAD_BYTES>().ok_or(SealError::Forged)?;
        let (incarnation, number) = head.split_at(8);
        let incarnation = u64::from_le_bytes(incarnation.try_into().expect("eight of sixteen"));
        let number = u64::from_le_bytes(number.try_into().expect("eight of sixteen"));
        self.admit(source, Incarnation(incarnation), number)?;
        plain.drain(..HEAD_BYTES);
        Ok(plain)
    }

    /// A fresh handshake told which incarnation of `peer` is alive. Messages of all others are
    /// replays, even if a clock set back made the living one the smaller.
    pub(crate) fn met(&mut self, peer: PeerId, incarnation: Incarnation) {
        match self.sources.get_mut(&peer) {
            Some(window) if window.incarnation == incarnation => window.linked = true,
            Some(window) => *window = Window { incarnation, linked: true, latest: 0, seen: 0 },
            None => {
                // A full table refuses this peer's gossip, which is said where that arrives.
                let _ = self.insert(peer, Window { incarnation, linked: true, latest: 0, seen: 0 });
            }
        }
    }

    /// The link with `peer` is gone: a later incarnation may be heard before it is met.
    pub(crate) fn parted(&mut self, peer: PeerId) {
        if let Some(window) = self.sources.get_mut(&peer) {
            window.linked = false;
        }
    }

    fn admit(
        &mut self,
        source: PeerId,
        incarnation: Incarnation,
        number: u64,
    ) -> Result<(), SealError> {
        match self.sources.get_mut(&source) {
            Some(window) if incarnation == window.incarnation => window.admit(number),
            Some(window) if window.linked || incarnation < window.incarnation => {
                Err(SealError::Replay)
            }
            Some(window) => {
                *window = Window { incarnation, linked: false, latest: number, seen: 1 };
                Ok(())
            }
            None => {
                self.insert(source, Window { incarnation, linked: false, latest: number, seen: 1 })
            }
        }
    }

    fn insert(&mut self, source: PeerId, window: Window) -> Result<(), SealError> {
        if self.sources.len() >= limits::PEERS_MAX * 2 {
            return Err(SealError::Crowded);
        }
        self.sources.insert(source, window);
        Ok(())
    }
}

impl Window {
    /// Bit `i` of `seen` stands for message `latest - i`.
    fn admit(&mut self, number: u64) -> Result<(), SealError> {
        if number > self.latest {
            let ahead = number - self.latest;
            self.seen = if ahead < WINDOW { self.seen << ahead | 1 } else { 1 };
            self.latest = number;
            return Ok(());
        }
        let behind = self.latest - number;
        if behind >= WINDOW || self.seen >> behind & 1 == 1 {
            return Err(SealError::Replay);
        }
        self.seen |= 1 << behind;
        Ok(())
    }
}

fn associated(topic: &str, source: &PeerId) -> Vec<u8> {
    let mut aad = source.as_bytes().to_vec();
    aad.extend_from_slice(topic.as_bytes());
    aad
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ANN: PeerId = PeerId::from_bytes([1; 32]);
    const BOB: PeerId = PeerId::from_bytes([2; 32]);

    fn sealer(key: u8, own: PeerId, incarnation: u64) -> Sealer {
        Sealer::new(&[key; 32], own, Incarnation(incarnation))
    }

    #[test]
    fn members_read_what_members_seal() {
        let (mut ann, mut bob) = (sealer(7, ANN, 1), sealer(7, BOB, 1));
        let sealed = ann.seal("t", b"hello");
        assert_eq!(sealed.len(), 5 + OVERHEAD_BYTES);
        assert_eq!(bob.open("t", ANN, &sealed), Ok(b"hello".to_vec()));
    }

    #[test]
    fn other_swarm_topic_or_source_is_a_forgery() {
        let (mut ann, mut bob) = (sealer(7, ANN, 1), sealer(7, BOB, 1));
        let sealed = ann.seal("t", b"hello");
        assert_eq!(sealer(8, BOB, 1).open("t", ANN, &sealed), Err(SealError::Forged));
        assert_eq!(bob.open("u", ANN, &sealed), Err(SealError::Forged));
        assert_eq!(bob.open("t", BOB, &sealed), Err(SealError::Forged));
        for at in 0..sealed.len() {
            let mut wrong = sealed.clone();
            wrong[at] ^= 1;
            assert_eq!(bob.open("t", ANN, &wrong), Err(SealError::Forged));
            assert_eq!(bob.open("t", ANN, &sealed[..at]), Err(SealError::Forged));
        }
    }

    #[test]
    fn each_message_is_accepted_once_in_any_order_within_the_window() {
        let (mut ann, mut bob) = (sealer(7, ANN, 1), sealer(7, BOB, 1));
        let sealed: Vec<_> = (0..10).map(|_| ann.seal("t", b"x")).collect();
        for at in [3, 1, 9, 0, 8] {
            assert!(bob.open("t", ANN, &sealed[at]).is_ok());
            assert_eq!(bob.open("t", ANN, &sealed[at]), Err(SealError::Replay));
        }
        let far = (0..100).map(|_| ann.seal("t", b"x")).last().expect("a hundred");
        assert!(bob.open("t", ANN, &far).is_ok());
        assert_eq!(bob.open("t", ANN, &sealed[2]), Err(SealError::Replay), "out of the window");
    }

    #[test]
    fn messages_of_an_earlier_incarnation_are_replays() {
        let (mut old, mut new) = (sealer(7, ANN, 1), sealer(7, ANN, 2));
        let mut bob = sealer(7, BOB, 1);
        let before = [old.seal("t", b"x"), old.seal("t", b"x")];
        assert!(bob.open("t", ANN, &before[0]).is_ok());
        assert!(bob.open("t", ANN, &new.seal("t", b"y")).is_ok());
        assert_eq!(bob.open("t", ANN, &before[1]), Err(SealError::Replay));
    }

    #[test]
    fn a_handshake_decides_which_incarnation_lives() {
        let (mut old, mut back) = (sealer(7, ANN, 9), sealer(7, ANN, 5));
        let mut bob = sealer(7, BOB, 1);
        assert!(bob.open("t", ANN, &old.seal("t", b"x")).is_ok());
        assert_eq!(bob.open("t", ANN, &back.seal("t", b"y")), Err(SealError::Replay));
        bob.met(ANN, Incarnation(5));
        assert!(bob.open("t", ANN, &back.seal("t", b"y")).is_ok());
        assert_eq!(bob.open("t", ANN, &old.seal("t", b"z")), Err(SealError::Replay));
        bob.parted(ANN);
        assert!(bob.open("t", ANN, &sealer(7, ANN, 10).seal("t", b"y")).is_ok());
    }

    proptest! {
        #[test]
        fn random_bytes_never_open(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(sealer(7, BOB, 1).open("t", ANN, &bytes), Err(SealError::Forged));
        }
    }
}
