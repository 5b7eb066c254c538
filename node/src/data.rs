//! Training data: from files to the samples of a step, on the machine that has the text and on the
//! others.
//!
//! ```text
//! files ─Source─▶ bytes ─Store::build─▶ chunks + manifest ─▶ Samples ─▶ tokens, targets
//!                                            │ (manifest travels)          ▲
//!                    another machine: Store::create ─fill(ChunkSource)─▶ chunks, verified
//! ```
//!
//! Tokens are bytes. The store keeps them in chunks of [`CHUNK_BYTES`], each named by its blake3
//! digest in the [`Manifest`]; whoever holds the manifest needs to trust nobody for the chunks.
//! Files are read and written by position, not mapped into memory: a file that another program
//! truncates must be an error here, not a signal.

mod corpus;
mod disk;
mod error;
mod fill;
mod jsonl;
mod manifest;
mod samples;
mod source;
mod split;
mod store;

pub use self::corpus::{CORPUS_BYTES_MAX, default_corpus, rust_sources};
pub use self::disk::DiskError;
pub(crate) use self::disk::sync_folder;
pub use self::error::{ChunkRefused, DataError};
pub use self::fill::{
    ChunkSource, FETCH_CHUNKS_MAX, FetchError, Fetched, FillError, FillReport, Refusal, fill,
};
pub use self::manifest::{CHUNK_BYTES, CHUNKS_MAX, Manifest, ManifestError, TokenWidth};
pub use self::samples::Samples;
pub use self::source::{SEPARATOR, Skipped, Source, TextSink};
pub use self::split::Split;
pub use self::store::{Progress, Store};
