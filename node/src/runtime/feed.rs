//! Samples for the worker: from the local store, which is filled from peers where it has gaps.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use p2ptrain_protocol::id::{Digest, JobId, PeerId, Step};
use p2ptrain_protocol::order;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::data::{self, ChunkSource, DataError, FETCH_CHUNKS_MAX, FetchError, Fetched, Store};
use crate::job::JobSpec;
use crate::net::NetHandle;
use crate::request::{Request, Response};
use crate::worker;

/// Largest answer to a request for chunks, with room for the envelope.
const ANSWER_BYTES_MAX: usize = FETCH_CHUNKS_MAX * data::CHUNK_BYTES + (64 << 10);
/// Pause before peers are asked again for chunks that none of them had.
const RETRY: Duration = Duration::from_millis(200);

/// Asks connected peers for chunks.
#[derive(Clone)]
pub(super) struct PeerChunks {
    net: NetHandle,
    job: JobId,
    /// Turns the assignment of chunks to peers with each round, as it is not known who has what.
    turn: usize,
}

impl PeerChunks {
    pub(super) fn new(net: NetHandle, job: JobId) -> Self {
        Self { net, job, turn: 0 }
    }
}

impl ChunkSource for PeerChunks {
    async fn fetch(
        &mut self,
        _root: Digest,
        chunks: &[u32],
        avoid: &BTreeSet<PeerId>,
    ) -> Result<Vec<Fetched>, FetchError> {
        let peers: Vec<PeerId> =
            self.net.links().iter().map(|link| link.peer).filter(|p| !avoid.contains(p)).collect();
        if peers.is_empty() {
            return Err(FetchError("no peer is connected".to_owned()));
        }
        // Each peer is asked for its part, so that all links work at once.
        self.turn += 1;
        let turn = self.turn;
        let mut requests = JoinSet::new();
        for (index, part) in chunks.chunks(chunks.len().div_ceil(peers.len())).enumerate() {
            let peer = peers[(index + turn) % peers.len()];
            let net = self.net.clone();
            let request = Request::DataChunks { job: self.job, indices: part.to_vec() };
            requests.spawn(async move {
                let answer = net.request(peer, request.to_bytes().into(), ANSWER_BYTES_MAX).await;
                (peer, answer)
            });
        }
        let mut fetched = Vec::new();
        while let Some(done) = requests.join_next().await {
            // A peer that is gone or refuses brings nothing; others are asked in the next round.
            let Ok((from, Ok(answer))) = done else { continue };
            if let Ok(Response::Chunks(chunks)) = Response::from_bytes(&answer) {
                let of = |(chunk, bytes)| Fetched { chunk, bytes: Bytes::from(bytes), from };
                fetched.extend(chunks.into_iter().map(of));
            }
        }
        Ok(fetched)
    }
}

/// Fetches all that the store lacks, in the background, so that the data survives whoever brought
/// it. Returns when the store is complete or `stop` is set.
pub(super) async fn fill_all(store: Arc<Store>, mut source: PeerChunks, stop: Arc<AtomicBool>) {
    let mut at = 0;
    while store.missing_count() > 0 && !stop.load(Ordering::Relaxed) {
        let chunks = store.manifest().chunk_count();
        let window: Vec<u32> =
            (0..chunks).map(|i| (i + at) % chunks).filter(|c| !store.has(*c)).take(256).collect();
        at = window.last().copied().unwrap_or(0);
        match data::fill(&store, &mut source, &window).await {
            Ok(report) => {
                for refusal in report.refused {
                    tracing::warn!("data: {refusal}");
                }
            }
            Err(error) => {
                tracing::debug!("data: {error}");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// The worker's samples.
pub(super) struct Feed {
    samples: data::Samples,
    job: JobSpec,
    source: PeerChunks,
    runtime: Handle,
    stop: Arc<AtomicBool>,
}

impl Feed {
    pub(super) fn new(
        samples: data::Samples,
        job: &JobSpec,
        source: PeerChunks,
        runtime: Handle,
        stop: Arc<AtomicBool>,
    ) -> Self {
        Self { samples, job: job.clone(), source, runtime, stop }
    }

    /// Reads, and fetches what is missing until it is there.
    fn read(
        &mut self,
        chunks: impl Fn(&data::Samples) -> Vec<u32>,
        mut read: impl FnMut(&data::Samples) -> Result<(), DataError>,
    ) -> Result<(), String> {
        loop {
            match read(&self.samples) {
                Ok(()) => return Ok(()),
                Err(error) if error.missing_chunk().is_none() => return Err(error.to_string()),
                Err(_) if self.stop.load(Ordering::Relaxed) => {
                    return Err("the job ended while data was on its way".to_owned());
                }
                Err(_) => {}
            }
            let needed = chunks(&self.samples);
            let store = self.samples.store();
            if let Err(error) = self.runtime.block_on(data::fill(store, &mut self.source, &needed))
            {
                tracing::warn!("waiting for data: {error}");
                std::thread::sleep(RETRY);
            }
        }
    }
}

impl worker::Samples for Feed {
    fn train(
        &mut self,
        step: Step,
        micro_batch: u32,
        tokens: &mut [i32],
        targets: &mut [i32],
    ) -> Result<(), String> {
        let batch = &self.job.batch;
        let positions =
            order::item_positions(step, batch.micro_batches(), batch.micro, micro_batch)
                .ok_or_else(|| format!("{step} is beyond the last sample position"))?;
        self.read(
            |samples| samples.chunks_needed(positions.clone()),
            |samples| samples.samples(positions.clone(), tokens, targets),
        )
    }

    fn held_out(
        &mut self,
        batch: u32,
        tokens: &mut [i32],
        targets: &mut [i32],
    ) -> Result<(), String> {
        let rows = self.job.batch.micro as usize;
        self.read(
            |samples| samples.held_out_chunks(u64::from(batch), rows),
            |samples| samples.held_out(u64::from(batch), tokens, targets),
        )
    }
}
