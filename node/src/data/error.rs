//! Errors of data.

use std::io;
use std::path::PathBuf;

use p2ptrain_protocol::id::Digest;
use thiserror::Error;

use super::disk::DiskError;
use super::manifest::ManifestError;
use super::source::Skipped;

/// Why data cannot be read, stored or sampled.
#[derive(Debug, Error)]
pub enum DataError {
    /// A path of the job does not exist.
    #[error("the data path {} does not exist", path.display())]
    NotFound {
        /// The path or pattern.
        path: PathBuf,
    },
    /// A pattern is malformed.
    #[error("the data pattern {pattern:?} is malformed: {reason}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There are files, or none, but no text in them.
    #[error("there is no text to train on in {places}{}", skipped_note(skipped))]
    Empty {
        /// Where it was looked for.
        places: String,
        /// What was found and not read.
        skipped: Skipped,
    },
    /// The default corpus is not on this machine.
    #[error(
        "no Rust sources in {} to train on: give text with --data PATH, \
         or build something with cargo first", path.display()
    )]
    NoCorpus {
        /// Where cargo would keep them.
        path: PathBuf,
    },
    /// Far too many files.
    #[error("more than {files_max} data files: choose a smaller folder")]
    TooManyFiles {
        /// The bound.
        files_max: usize,
    },
    /// More text than a store takes.
    #[error("the data has more than {bytes_max} bytes; choose fewer files")]
    TooLarge {
        /// The bound.
        bytes_max: u64,
    },
    /// A file that could be read before fails now.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line of a JSONL file is wrong.
    #[error("{}:{line}: {reason}", path.display())]
    Jsonl {
        /// The file.
        path: PathBuf,
        /// The line from 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// Too little data for samples of this length.
    #[error(
        "{tokens} tokens of data give no {part} sample of {block_size} tokens: use more data, \
         a smaller model.block_size or another data.held_out (now {held_out})"
    )]
    TooSmall {
        /// Tokens there are.
        tokens: u64,
        /// `training` or `held-out`.
        part: &'static str,
        /// Tokens of one sample.
        block_size: u32,
        /// The held-out share.
        held_out: f64,
    },
    /// The data has tokens that the model does not know.
    #[error("the data has {data} different tokens, the model knows {model}: raise model.vocab")]
    Vocab {
        /// Tokens of the data.
        data: u32,
        /// Tokens of the model.
        model: u32,
    },
    /// The job names other data.
    #[error("the job asks for data {expected:#}, this is {found:#}: the files have changed")]
    WrongData {
        /// Root id in the job.
        expected: Digest,
        /// Root id of the store.
        found: Digest,
    },
    /// A chunk is not on this machine yet.
    #[error("chunk {chunk} of the data is not here yet")]
    NotHere {
        /// The chunk.
        chunk: u32,
    },
    /// A chunk on this disk has changed. It now counts as missing, so a fill repairs it.
    #[error(
        "chunk {chunk} of {} has changed on the disk; it is fetched again from peers, \
         or remove the folder and submit the job again", path.display()
    )]
    Corrupt {
        /// The token file.
        path: PathBuf,
        /// The chunk.
        chunk: u32,
    },
    /// There is no such store, or its manifest is damaged.
    #[error("the data in {} cannot be used: {source}", path.display())]
    Manifest {
        /// The store's manifest.
        path: PathBuf,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// The disk refuses.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl DataError {
    /// The chunk that a fill has to bring before the same call can work.
    pub fn missing_chunk(&self) -> Option<u32> {
        match self {
            Self::NotHere { chunk } | Self::Corrupt { chunk, .. } => Some(*chunk),
            _ => None,
        }
    }
}

/// Why a chunk from a peer is refused.
#[derive(Debug, Error)]
pub enum ChunkRefused {
    /// The manifest has no such chunk.
    #[error("there is no chunk {chunk}; the data has {chunks}")]
    NoSuchChunk {
        /// The chunk.
        chunk: u32,
        /// Chunks there are.
        chunks: u32,
    },
    /// Nobody asked for it.
    #[error("chunk {chunk} was not asked for")]
    NotAsked {
        /// The chunk.
        chunk: u32,
    },
    /// It has another length.
    #[error("chunk {chunk} has {bytes} bytes instead of {expected}")]
    Length {
        /// The chunk.
        chunk: u32,
        /// Bytes received.
        bytes: usize,
        /// Bytes it should have.
        expected: usize,
    },
    /// It has other content.
    #[error("chunk {chunk} has digest {found} instead of {expected}")]
    Digest {
        /// The chunk.
        chunk: u32,
        /// Digest of what came.
        found: Digest,
        /// Digest in the manifest.
        expected: Digest,
    },
    /// It has tokens beyond the manifest's vocabulary.
    #[error("chunk {chunk} has token {token}, the manifest's vocabulary is {vocab}")]
    Token {
        /// The chunk.
        chunk: u32,
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocab: u32,
    },
    /// It is good, but cannot be stored.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

fn skipped_note(skipped: &Skipped) -> String {
    if skipped.is_empty() { String::new() } else { format!(" ({skipped})") }
}
