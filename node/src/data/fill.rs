//! Fetching the chunks that a machine lacks from those that have them.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

use bytes::Bytes;
use p2ptrain_protocol::id::{Digest, PeerId};
use thiserror::Error;

use super::disk::DiskError;
use super::error::ChunkRefused;
use super::store::Store;

/// Chunks asked for at once: 2 MiB, which fits into one message.
pub const FETCH_CHUNKS_MAX: usize = 32;
/// Rounds in a row that may bring nothing before a fill gives up.
const BARREN_ROUNDS_MAX: u32 = 3;

/// Where chunks come from: the network, or anything that can be tested.
pub trait ChunkSource {
    /// Brings some of these chunks, in any order, from any peers. At most [`FETCH_CHUNKS_MAX`] are
    /// asked for at once. `avoid` names peers that have sent a wrong chunk before. Bringing only a
    /// part, or nothing, is no error.
    fn fetch(
        &mut self,
        root: Digest,
        chunks: &[u32],
        avoid: &BTreeSet<PeerId>,
    ) -> impl Future<Output = Result<Vec<Fetched>, FetchError>> + Send;
}

/// One chunk from a peer, not yet verified.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The chunk.
    pub chunk: u32,
    /// Its bytes as they came.
    pub bytes: Bytes,
    /// Who sent them.
    pub from: PeerId,
}

/// No peer can be asked at all.
#[derive(Clone, Debug, Error)]
#[error("{0}")]
pub struct FetchError(pub String);

/// A chunk that a peer sent and that was refused.
#[derive(Debug, Error)]
#[error("peer {peer}: {reason}")]
pub struct Refusal {
    /// Who sent it.
    pub peer: PeerId,
    /// What is wrong with it; names the chunk.
    pub reason: ChunkRefused,
}

/// What a fill has done.
#[derive(Debug, Default)]
pub struct FillReport {
    /// Chunks and bytes from each peer.
    pub fetched: BTreeMap<PeerId, (u32, u64)>,
    /// Chunks that were refused; others have brought them since.
    pub refused: Vec<Refusal>,
}

/// Why a fill ends without all chunks. Those that came are stored; a later fill goes on from there.
#[derive(Debug, Error)]
pub enum FillError {
    /// Nobody brings them.
    #[error(
        "{} chunks of the data are on no peer that answers, the first is {}{}",
        missing.len(), missing.first().copied().unwrap_or_default(), refusals(refused)
    )]
    Exhausted {
        /// The chunks that are missing.
        missing: Vec<u32>,
        /// Chunks that came and were wrong.
        refused: Vec<Refusal>,
    },
    /// There is nobody to ask.
    #[error("{} chunks of the data are missing: {source}", missing.len())]
    Source {
        /// The chunks that are missing.
        missing: Vec<u32>,
        /// What the source said.
        source: FetchError,
    },
    /// This machine cannot store them.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Brings those of the given chunks that are missing into the store.
///
/// A wrong chunk is refused, its sender is avoided from then on in this fill, and the chunk is asked
/// for again. Chunks are fetched in the given order, so the ones needed first come first.
///
/// Verifying and writing happen in the calling task, a few milliseconds for each round.
pub async fn fill(
    store: &Store,
    source: &mut impl ChunkSource,
    chunks: &[u32],
) -> Result<FillReport, FillError> {
    let mut report = FillReport::default();
    let mut avoid = BTreeSet::new();
    let mut barren = 0;
    loop {
        let missing = store.missing(chunks.iter().copied());
        if missing.is_empty() {
            return Ok(report);
        }
        if barren == BARREN_ROUNDS_MAX {
            return Err(FillError::Exhausted { missing, refused: report.refused });
        }
        let wanted = &missing[..missing.len().min(FETCH_CHUNKS_MAX)];
        let fetched = match source.fetch(store.root(), wanted, &avoid).await {
            Ok(fetched) => fetched,
            Err(source) => return Err(FillError::Source { missing, source }),
        };
        let before = missing.len();
        // A source that brings more than was asked for is broken; the rest is not even looked at.
        for Fetched { chunk, bytes, from } in fetched.into_iter().take(2 * FETCH_CHUNKS_MAX) {
            let stored = if wanted.contains(&chunk) {
                store.accept(chunk, &bytes)
            } else {
                Err(ChunkRefused::NotAsked { chunk })
            };
            match stored {
                Ok(()) => {
                    let (count, total) = report.fetched.entry(from).or_default();
                    *count += 1;
                    *total += bytes.len() as u64;
                }
                Err(ChunkRefused::Disk(error)) => return Err(error.into()),
                Err(reason) => {
                    avoid.insert(from);
                    report.refused.push(Refusal { peer: from, reason });
                }
            }
        }
        let after = store.missing(chunks.iter().copied()).len();
        barren = if after < before { 0 } else { barren + 1 };
    }
}

fn refusals(refused: &[Refusal]) -> String {
    let shown: Vec<String> = refused.iter().take(3).map(Refusal::to_string).collect();
    if shown.is_empty() { String::new() } else { format!("; refused: {}", shown.join("; ")) }
}
