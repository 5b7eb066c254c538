//! Element types of values.

use std::fmt;
use std::str::FromStr;

use bincode::{Decode, Encode};

/// Element type of a value. Indices (tokens, targets) are `I32`; everything that is computed is
/// `F32`. Lower precision is the executor's choice (see [`crate::exec::Precision`]), so that one
/// program runs at any precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// Signed 32-bit integer, used for indices only.
    I32,
}

impl DType {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::I32 => "i32",
        })
    }
}

impl FromStr for DType {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "f32" => Ok(Self::F32),
            "i32" => Ok(Self::I32),
            _ => Err(()),
        }
    }
}
