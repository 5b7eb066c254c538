//! The form of small messages: an envelope, then bincode with fixed-width little-endian integers.
//!
//! | Bytes | Field |
//! |---|---|
//! | 4 | magic `p2pt` |
//! | 2 | version, [`VERSION`] |
//! | 1 | kind, [`Kind`] |
//! | 4 | length of the body in bytes |
//! | length | body |
//!
//! Decoding is total: any bytes give a value or a [`WireError`], never a panic, and no length prefix makes it
//! allocate more than [`DECODE_BYTES_MAX`](limits::DECODE_BYTES_MAX). Bytes after the body are refused.

use std::fmt;

use bincode::config::{Configuration, Fixint, Limit, LittleEndian, NoLimit};
use bincode::{Decode, Encode};
use thiserror::Error;

use crate::limits;

/// First bytes of every message.
pub const MAGIC: [u8; 4] = *b"p2pt";
/// Version of the protocol. Peers of two versions do not train together.
pub const VERSION: u16 = 1;
/// Bytes of the envelope before the body.
pub const ENVELOPE_BYTES: usize = 11;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// A [`SignedAdvert`](crate::view::SignedAdvert), gossiped.
    Advert = 1,
    /// A message of the step state machine to one peer.
    Step = 2,
    /// The header of a gradient piece; the payload travels beside it.
    Piece = 3,
    /// A request to one peer.
    Request = 4,
    /// The response to a request.
    Response = 5,
    /// A job's description and program.
    Job = 6,
    /// A [`StateManifest`](crate::checkpoint::StateManifest).
    Manifest = 7,
    /// A [`View`](crate::view::View).
    View = 8,
    /// A [`LedgerEntry`](crate::ledger::LedgerEntry).
    Ledger = 9,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 9] = [
        Self::Advert,
        Self::Step,
        Self::Piece,
        Self::Request,
        Self::Response,
        Self::Job,
        Self::Manifest,
        Self::View,
        Self::Ledger,
    ];

    /// The kind of a byte.
    pub fn from_u8(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|&kind| kind as u8 == byte)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Advert => "advert",
            Self::Step => "step message",
            Self::Piece => "gradient piece",
            Self::Request => "request",
            Self::Response => "response",
            Self::Job => "job",
            Self::Manifest => "state manifest",
            Self::View => "view",
            Self::Ledger => "ledger entry",
        })
    }
}

/// Why bytes are no message.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// There are fewer bytes than the envelope announces, or than it has.
    #[error("message is cut off: expected {expected} bytes, got {got}")]
    Truncated {
        /// Bytes needed.
        expected: usize,
        /// Bytes there.
        got: usize,
    },
    /// There are bytes after the message.
    #[error("message has trailing bytes: expected {expected} bytes, got {got}")]
    Trailing {
        /// Bytes of the message.
        expected: usize,
        /// Bytes there.
        got: usize,
    },
    /// The first bytes are not ours: this is no p2ptrain message.
    #[error("no p2ptrain message: expected magic {expected:02x?}, got {got:02x?}")]
    Magic {
        /// Our magic.
        expected: [u8; 4],
        /// The bytes found.
        got: [u8; 4],
    },
    /// The sender speaks another version.
    #[error("protocol version {got}, expected {expected}")]
    Version {
        /// Our version.
        expected: u16,
        /// The sender's.
        got: u16,
    },
    /// No kind has this byte.
    #[error("unknown message kind {got}")]
    UnknownKind {
        /// The byte found.
        got: u8,
    },
    /// The message is of another kind than the receiver waits for.
    #[error("expected a message of kind {expected}, got {got}")]
    Kind {
        /// The kind wanted.
        expected: Kind,
        /// The kind found.
        got: Kind,
    },
    /// The message is larger than any may be.
    #[error("message of {got} bytes, the limit is {limit}")]
    TooLarge {
        /// Bytes allowed.
        limit: usize,
        /// Bytes there or announced.
        got: usize,
    },
    /// The body is none of the type: a wrong discriminant, text that is no UTF-8, a length beyond the limit.
    #[error("{kind} has a malformed body: {cause}")]
    Body {
        /// The kind of the message.
        kind: Kind,
        /// What bincode says.
        cause: String,
    },
}

/// A message in its envelope.
///
/// # Panics
/// If the message exceeds [`limits::MESSAGE_BYTES_MAX`]. Every type that we send is bounded by `limits`, so
/// that would be a defect here; [`try_encode`] is for values whose size a user decides.
pub fn encode<T: Encode>(kind: Kind, value: &T) -> Vec<u8> {
    try_encode(kind, value).unwrap_or_else(|error| panic!("own {kind} exceeds its bounds: {error}"))
}

/// A message in its envelope, or the error that it is too large.
pub fn try_encode<T: Encode>(kind: Kind, value: &T) -> Result<Vec<u8>, WireError> {
    let body = to_bytes(value);
    let got = ENVELOPE_BYTES + body.len();
    if got > limits::MESSAGE_BYTES_MAX {
        return Err(WireError::TooLarge { limit: limits::MESSAGE_BYTES_MAX, got });
    }
    let mut bytes = Vec::with_capacity(got);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.push(kind as u8);
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// The value in a message of the given kind.
pub fn decode<T: Decode<()>>(kind: Kind, bytes: &[u8]) -> Result<T, WireError> {
    let (got, body) = open(bytes)?;
    if got != kind {
        return Err(WireError::Kind { expected: kind, got });
    }
    from_bytes(kind, body)
}

/// The kind of a message, its envelope checked; for receivers that take several kinds.
pub fn kind_of(bytes: &[u8]) -> Result<Kind, WireError> {
    open(bytes).map(|(kind, _)| kind)
}

/// The body's wire form without an envelope: for digests and signatures.
pub fn to_bytes<T: Encode>(value: &T) -> Vec<u8> {
    bincode::encode_to_vec(value, ENCODE_CONFIG)
        .expect("encoding into memory fails for no type here: none holds a lock, a path or a cell")
}

/// The value of a whole wire form without an envelope; `kind` names it in errors.
pub fn from_bytes<T: Decode<()>>(kind: Kind, body: &[u8]) -> Result<T, WireError> {
    if body.len() > limits::MESSAGE_BYTES_MAX {
        return Err(WireError::TooLarge { limit: limits::MESSAGE_BYTES_MAX, got: body.len() });
    }
    let decoded = if body.len() <= SMALL_BYTES_MAX {
        bincode::decode_from_slice(body, decode_config::<SMALL_CLAIM>())
    } else if body.len() <= MEDIUM_BYTES_MAX {
        bincode::decode_from_slice(body, decode_config::<MEDIUM_CLAIM>())
    } else {
        bincode::decode_from_slice(body, decode_config::<{ limits::DECODE_BYTES_MAX }>())
    };
    let (value, used) =
        decoded.map_err(|cause| WireError::Body { kind, cause: cause.to_string() })?;
    if used != body.len() {
        return Err(WireError::Trailing { expected: used, got: body.len() });
    }
    Ok(value)
}

type Config<L> = Configuration<LittleEndian, Fixint, L>;

const ENCODE_CONFIG: Config<NoLimit> =
    bincode::config::standard().with_little_endian().with_fixed_int_encoding();

// What a body may claim in memory grows with its size: a lie of a few bytes must not cost megabytes.
const SMALL_BYTES_MAX: usize = 4 << 10;
const SMALL_CLAIM: usize = 256 << 10;
const MEDIUM_BYTES_MAX: usize = 64 << 10;
const MEDIUM_CLAIM: usize = 2 << 20;

const fn decode_config<const CLAIM_BYTES_MAX: usize>() -> Config<Limit<CLAIM_BYTES_MAX>> {
    bincode::config::standard()
        .with_little_endian()
        .with_fixed_int_encoding()
        .with_limit::<CLAIM_BYTES_MAX>()
}

/// Checks the envelope and returns kind and body.
fn open(bytes: &[u8]) -> Result<(Kind, &[u8]), WireError> {
    let Some((envelope, body)) = bytes.split_first_chunk::<ENVELOPE_BYTES>() else {
        return Err(WireError::Truncated { expected: ENVELOPE_BYTES, got: bytes.len() });
    };
    let [m0, m1, m2, m3, v0, v1, kind, l0, l1, l2, l3] = *envelope;
    let magic = [m0, m1, m2, m3];
    if magic != MAGIC {
        return Err(WireError::Magic { expected: MAGIC, got: magic });
    }
    let version = u16::from_le_bytes([v0, v1]);
    if version != VERSION {
        return Err(WireError::Version { expected: VERSION, got: version });
    }
    let kind = Kind::from_u8(kind).ok_or(WireError::UnknownKind { got: kind })?;
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if length > limits::MESSAGE_BYTES_MAX - ENVELOPE_BYTES {
        let got = length.saturating_add(ENVELOPE_BYTES);
        return Err(WireError::TooLarge { limit: limits::MESSAGE_BYTES_MAX, got });
    }
    let expected = ENVELOPE_BYTES + length;
    match body.len().cmp(&length) {
        std::cmp::Ordering::Less => Err(WireError::Truncated { expected, got: bytes.len() }),
        std::cmp::Ordering::Equal => Ok((kind, body)),
        std::cmp::Ordering::Greater => Err(WireError::Trailing { expected, got: bytes.len() }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, PartialEq, Encode, Decode)]
    enum Sample {
        Text(String, Vec<u8>),
        Map(BTreeMap<u32, Vec<u64>>),
        Nothing,
    }

    fn sample() -> impl Strategy<Value = Sample> {
        prop_oneof![
            (".{0,9}", prop::collection::vec(any::<u8>(), 0..40))
                .prop_map(|(t, v)| Sample::Text(t, v)),
            prop::collection::btree_map(
                any::<u32>(),
                prop::collection::vec(any::<u64>(), 0..4),
                0..5
            )
            .prop_map(Sample::Map),
            Just(Sample::Nothing),
        ]
    }

    fn check_refused(change: impl FnOnce(&mut Vec<u8>), expected: WireError) {
        let mut bytes = encode(Kind::Step, &7_u32);
        change(&mut bytes);
        assert_eq!(decode::<u32>(Kind::Step, &bytes), Err(expected));
    }

    #[test]
    fn the_form_is_fixed() {
        let bytes = encode(Kind::Advert, &(0x0102_0304_u32, "hi".to_owned()));
        let expected = [
            b"p2pt\x01\x00\x01\x0e\x00\x00\x00\x04\x03\x02\x01\x02".as_slice(),
            b"\0\0\0\0\0\0\0hi",
        ];
        assert_eq!(bytes, expected.concat());
        assert_eq!(kind_of(&bytes), Ok(Kind::Advert));
    }

    #[test]
    fn what_is_wrong_with_an_envelope_is_named() {
        check_refused(|b| b.truncate(3), WireError::Truncated { expected: 11, got: 3 });
        check_refused(|b| b.truncate(14), WireError::Truncated { expected: 15, got: 14 });
        check_refused(|b| b.push(0), WireError::Trailing { expected: 15, got: 16 });
        check_refused(|b| b[0] = b'x', WireError::Magic { expected: MAGIC, got: *b"x2pt" });
        check_refused(|b| b[4] = 9, WireError::Version { expected: VERSION, got: 9 });
        check_refused(|b| b[6] = 0, WireError::UnknownKind { got: 0 });
        check_refused(|b| b[6] = 1, WireError::Kind { expected: Kind::Step, got: Kind::Advert });
        check_refused(
            |b| b[7..11].fill(0xff),
            WireError::TooLarge { limit: limits::MESSAGE_BYTES_MAX, got: u32::MAX as usize + 11 },
        );
    }

    #[test]
    fn a_body_longer_than_its_value_is_refused() {
        let bytes = encode(Kind::Step, &(1_u32, 2_u32));
        assert_eq!(
            decode::<u32>(Kind::Step, &bytes),
            Err(WireError::Trailing { expected: 4, got: 8 })
        );
    }

    #[test]
    fn a_huge_length_prefix_is_refused_before_it_is_allocated() {
        for length in [u64::MAX, u64::MAX / 8, 1 << 40, 1 << 20] {
            let bytes = encode(Kind::Step, &length);
            for error in [
                decode::<Vec<u64>>(Kind::Step, &bytes).unwrap_err(),
                decode::<Vec<Vec<u8>>>(Kind::Step, &bytes).unwrap_err(),
                decode::<BTreeMap<u64, u64>>(Kind::Step, &bytes).unwrap_err(),
                decode::<String>(Kind::Step, &bytes).map(|_| ()).unwrap_err(),
            ] {
                assert!(matches!(error, WireError::Body { kind: Kind::Step, .. }), "{error}");
            }
        }
    }

    #[test]
    fn a_value_over_the_limit_is_not_sent() {
        let value = vec![0_u8; limits::MESSAGE_BYTES_MAX];
        assert!(matches!(try_encode(Kind::Step, &value), Err(WireError::TooLarge { .. })));
        let value = vec![7_u8; limits::MESSAGE_BYTES_MAX - ENVELOPE_BYTES - 8];
        let bytes = try_encode(Kind::Step, &value).expect("just fits");
        assert_eq!(decode::<Vec<u8>>(Kind::Step, &bytes), Ok(value));
    }

    #[test]
    fn every_kind_has_its_byte_and_name() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_u8(kind as u8), Some(kind));
            assert!(!kind.to_string().is_empty());
        }
        assert_eq!(Kind::from_u8(0), None);
    }

    proptest! {
        #[test]
        fn values_come_back(value in sample()) {
            prop_assert_eq!(decode::<Sample>(Kind::Step, &encode(Kind::Step, &value)), Ok(value));
        }

        #[test]
        fn every_truncation_is_refused(value in sample(), cut in any::<prop::sample::Index>()) {
            let bytes = encode(Kind::Step, &value);
            let cut = cut.index(bytes.len());
            let refused =
                matches!(decode::<Sample>(Kind::Step, &bytes[..cut]), Err(WireError::Truncated { .. }));
            prop_assert!(refused);
            // A body cut off within a well-formed envelope.
            let body = to_bytes(&value);
            let cut = cut.min(body.len() - 1);
            prop_assert!(from_bytes::<Sample>(Kind::Step, &body[..cut]).is_err());
        }

        #[test]
        fn random_bytes_never_panic(
            body in prop::collection::vec(any::<u8>(), 0..200),
            framed in any::<bool>(),
        ) {
            let mut bytes = body.clone();
            if framed {
                bytes = encode(Kind::Step, &());
                bytes[7..11].copy_from_slice(&(body.len() as u32).to_le_bytes());
                bytes.extend_from_slice(&body);
            }
            if let Ok(value) = decode::<Sample>(Kind::Step, &bytes) {
                prop_assert_eq!(decode::<Sample>(Kind::Step, &encode(Kind::Step, &value)), Ok(value));
            }
        }
    }
}
