//! Names of things: peers, their incarnations, jobs, steps and digests.

use std::fmt;
use std::str::FromStr;

use bincode::{Decode, Encode};
use ed25519_dalek::{SigningKey, VerifyingKey};
use thiserror::Error;

use crate::wire;

/// Why a text is no 32-byte id in hex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HexError {
    /// The text has the wrong number of characters.
    #[error("expected {expected} hex characters, got {got}")]
    Length {
        /// Characters that the id has.
        expected: usize,
        /// Bytes that the text has.
        got: usize,
    },
    /// A character is none of `0-9a-fA-F`.
    #[error("byte {at} is {got:#04x}, expected one of 0-9, a-f")]
    Character {
        /// Place in the text, from 0.
        at: usize,
        /// The byte found there.
        got: u8,
    },
}

/// 32 bytes shown as hex: eight characters by `{}`, all 64 by `{:#}`.
macro_rules! bytes32 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// `{}` prints the first eight hex characters, `{:#}` all 64; parsing takes all 64.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
        pub struct $name([u8; 32]);

        impl $name {
            /// The id of these bytes.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The bytes of the id.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// All 64 hex characters.
            pub fn to_hex(&self) -> String {
                format!("{self:#}")
            }

            /// The first eight hex characters, for people.
            pub fn short(&self) -> String {
                format!("{self}")
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let shown = if f.alternate() { &self.0[..] } else { &self.0[..4] };
                shown.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = HexError;

            fn from_str(text: &str) -> Result<Self, HexError> {
                parse_hex(text).map(Self)
            }
        }
    };
}

bytes32! {
    /// A peer: its ed25519 public key.
    PeerId
}

bytes32! {
    /// A blake3 hash.
    Digest
}

bytes32! {
    /// A job: the blake3 hash of its description.
    JobId
}

impl PeerId {
    /// The peer that holds `key`.
    pub fn of_key(key: &SigningKey) -> Self {
        Self(key.verifying_key().to_bytes())
    }

    /// The key that verifies the peer's signatures; `None` where the bytes are no point of the curve.
    pub fn verifying_key(&self) -> Option<VerifyingKey> {
        VerifyingKey::from_bytes(&self.0).ok()
    }
}

impl Digest {
    /// Hash of raw bytes within a domain. A domain is a constant of the program, one for each use.
    pub fn of_bytes(domain: &'static str, bytes: &[u8]) -> Self {
        Self(*blake3::Hasher::new_derive_key(domain).update(bytes).finalize().as_bytes())
    }

    /// Hash of the wire form of a value within a domain: equal on every machine.
    ///
    /// ```
    /// use p2ptrain_protocol::id::Digest;
    ///
    /// let digest = Digest::of("example, of two numbers", &(1_u32, 2_u32));
    /// assert_ne!(digest, Digest::of("example, of another domain", &(1_u32, 2_u32)));
    /// ```
    pub fn of<T: Encode>(domain: &'static str, value: &T) -> Self {
        Self::of_bytes(domain, &wire::to_bytes(value))
    }
}

impl JobId {
    /// The id of a job's description.
    pub fn of_job(bytes: &[u8]) -> Self {
        Self(*Digest::of_bytes("p2ptrain job v1", bytes).as_bytes())
    }
}

/// A run of a peer's process: a restarted peer has a higher one. Whoever knows an incarnation to be dead
/// refuses it and everything older ("fenced").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Incarnation(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A global step of a job, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Step(pub u64);

impl Step {
    /// The step after this one; the last step has none after it and stays.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn parse_hex(text: &str) -> Result<[u8; 32], HexError> {
    if text.len() != 64 {
        return Err(HexError::Length { expected: 64, got: text.len() });
    }
    let mut bytes = [0; 32];
    for (at, got) in text.bytes().enumerate() {
        let digit = match got {
            b'0'..=b'9' => got - b'0',
            b'a'..=b'f' => got - b'a' + 10,
            b'A'..=b'F' => got - b'A' + 10,
            _ => return Err(HexError::Character { at, got }),
        };
        bytes[at / 2] = bytes[at / 2] << 4 | digit;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_short_and_full_and_parse_back() {
        let peer = PeerId::from_bytes(std::array::from_fn(|i| i as u8 * 7));
        assert_eq!(peer.to_string(), "00070e15");
        assert_eq!(peer.to_hex().len(), 64);
        assert_eq!(peer.to_hex().parse(), Ok(peer));
        assert_eq!(peer.to_hex().to_uppercase().parse(), Ok(peer));
        assert_eq!(format!("{peer:?}"), "PeerId(00070e15)");
    }

    #[test]
    fn wrong_hex_is_refused_with_the_place() {
        assert_eq!("ab".parse::<Digest>(), Err(HexError::Length { expected: 64, got: 2 }));
        let text = "0".repeat(63) + "g";
        assert_eq!(text.parse::<Digest>(), Err(HexError::Character { at: 63, got: b'g' }));
        assert!("\u{e9}".repeat(32).parse::<Digest>().is_err());
    }

    #[test]
    fn digests_of_two_domains_differ() {
        assert_ne!(Digest::of_bytes("a", b"x"), Digest::of_bytes("b", b"x"));
        assert_eq!(Digest::of("a", &7_u64), Digest::of_bytes("a", &7_u64.to_le_bytes()));
    }

    #[test]
    fn a_peer_is_its_public_key() {
        let key = SigningKey::from_bytes(&[3; 32]);
        let peer = PeerId::of_key(&key);
        assert_eq!(peer.verifying_key(), Some(key.verifying_key()));
    }
}
