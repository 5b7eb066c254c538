//! What peers ask each other for besides the steps: the job, its data, and the state to start from.

use bincode::{Decode, Encode};
use p2ptrain_protocol::checkpoint::StateManifest;
use p2ptrain_protocol::id::{JobId, Step};
use p2ptrain_protocol::wire::{self, Kind, WireError};

/// A question to one peer.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Request {
    /// The job's description, program and data manifest.
    Package(JobId),
    /// Chunks of the job's tokens, at most [`FETCH_CHUNKS_MAX`](crate::data::FETCH_CHUNKS_MAX).
    DataChunks {
        /// The job.
        job: JobId,
        /// Chunks of the manifest.
        indices: Vec<u32>,
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
    /// To [`Request::StateManifest`].
    Manifest(StateManifest),
    /// To [`Request::StateChunk`].
    Chunk(Vec<u8>),
    /// To [`Request::DataChunks`]: those of them that the peer has.
    Chunks(Vec<(u32, Vec<u8>)>),
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
