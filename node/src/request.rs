//! What peers ask each other for besides the steps: the job, its data, and the state to start from.

use bincode::{Decode, Encode};
use p2ptrain_protocol::id::{Digest, JobId, Step};
use p2ptrain_protocol::wire::{self, Kind, WireError};

/// A question to one peer.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Request {
    /// The job's description, program and data manifest.
    Package(JobId),
    /// One chunk of the job's tokens.
    DataChunk {
        /// The job.
        job: JobId,
        /// Chunk of the manifest.
        index: u32,
    },
    /// The manifest of parameters and optimizer state as they are before `step`.
    StateManifest {
        /// The job.
        job: JobId,
        /// Committed steps of the state.
        step: Step,
    },
    /// One chunk of that state.
    StateChunk {
        /// The job.
        job: JobId,
        /// Committed steps of the state.
        step: Step,
        /// Chunk of the manifest.
        index: u32,
    },
    /// blake3 of each parameter after `step` commits, to name what differs.
    ParameterDigests {
        /// The job.
        job: JobId,
        /// Committed steps.
        step: Step,
    },
}

/// Everything that a peer needs to take part in a job, apart from data and state.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Package {
    /// The job's canonical bytes; its id is their hash.
    pub job: Vec<u8>,
    /// The program's canonical bytes.
    pub program: Vec<u8>,
    /// The data manifest's canonical bytes.
    pub data: Vec<u8>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Response {
    /// To [`Request::Package`].
    Package(Package),
    /// A chunk, or a manifest in canonical bytes.
    Bytes(Vec<u8>),
    /// To [`Request::ParameterDigests`].
    Digests(Vec<Digest>),
    /// The peer does not have it; why, for people.
    Refused(String),
}

impl Request {
    /// The request as it travels.
    pub fn to_bytes(&self) -> Vec<u8> {
        wire::encode(Kind::Request, self)
    }

    /// Reads a request.
    ///
    /// # Errors
    /// The bytes are not a request of this version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        wire::decode(Kind::Request, bytes)
    }
}

impl Response {
    /// The response as it travels.
    pub fn to_bytes(&self) -> Vec<u8> {
        wire::encode(Kind::Response, self)
    }

    /// Reads a response.
    ///
    /// # Errors
    /// The bytes are not a response of this version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        wire::decode(Kind::Response, bytes)
    }
}
