//! Binary form and identity of programs.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use thiserror::Error;

use super::{Program, SpecError};

/// Most bytes of an encoded program.
pub const PROGRAM_BYTES_MAX: usize = 8 << 20;

/// Fixed-width little-endian integers: equal programs have equal bytes on every machine.
const CONFIG: Configuration<LittleEndian, Fixint, Limit<PROGRAM_BYTES_MAX>> =
    bincode::config::standard().with_fixed_int_encoding().with_limit::<PROGRAM_BYTES_MAX>();

/// First bytes of an encoded program: a magic number with the format's version.
const MAGIC: [u8; 8] = *b"p2pprog1";

/// Why bytes are not a program.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// More bytes than a program may have.
    #[error("a program has at most {PROGRAM_BYTES_MAX} bytes, these are {0}")]
    TooLong(usize),
    /// The bytes start otherwise than a program of this version.
    #[error("not a program of this version")]
    Magic,
    /// The bytes break off or hold an impossible field.
    #[error("malformed program: {0}")]
    Malformed(#[from] bincode::error::DecodeError),
    /// Bytes follow the program.
    #[error("{0} bytes follow the program")]
    Trailing(usize),
    /// The program breaks the specification.
    #[error("invalid program: {0}")]
    Spec(#[from] SpecError),
}

impl Program {
    /// Canonical bytes: equal programs have equal bytes.
    ///
    /// # Panics
    /// If the program exceeds [`PROGRAM_BYTES_MAX`], which the bounds on nodes, parameters and
    /// names keep out of reach of any real model.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        let body = bincode::encode_to_vec(self, CONFIG);
        bytes.extend(body.expect("plain data encodes into memory"));
        assert!(bytes.len() <= PROGRAM_BYTES_MAX, "the program has {} bytes", bytes.len());
        bytes
    }

    /// The program of these bytes, verified. Total: any bytes yield a program or an error, and
    /// memory is bounded by [`PROGRAM_BYTES_MAX`] before it is allocated.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > PROGRAM_BYTES_MAX {
            return Err(DecodeError::TooLong(bytes.len()));
        }
        let body = bytes.strip_prefix(&MAGIC).ok_or(DecodeError::Magic)?;
        let (program, read) = bincode::decode_from_slice::<Self, _>(body, CONFIG)?;
        if read != body.len() {
            return Err(DecodeError::Trailing(body.len() - read));
        }
        program.verify()?;
        Ok(program)
    }

    /// Identity: blake3 of the canonical bytes.
    pub fn id(&self) -> blake3::Hash {
        blake3::hash(&self.encode())
    }
}
