//! What a joiner fetches: the job, and the state of the step at which it is admitted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use p2ptrain_protocol::checkpoint::{StateLayout, StateManifest};
use p2ptrain_protocol::id::{Digest, JobId, PeerId, Step};
use p2ptrain_protocol::limits;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::checkpoint::State;
use crate::net::NetHandle;
use crate::request::{Package, Request, Response};
use crate::state::TrainState;

/// Chunks that are under way from one peer at once: enough to cover the round trip.
const CHUNKS_PER_PEER: usize = 4;
const CHUNK_ANSWER_MAX: usize = limits::STATE_CHUNK_BYTES + 1024;

/// Why something could not be fetched, for people.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchFailed {
    #[error("no peer has the job {0}")]
    NoPackage(JobId),
    #[error("no peer that was asked has the state of {step}: {}", reasons.join("; "))]
    NoManifest { step: Step, reasons: Vec<String> },
    #[error("the state of {step} stopped coming: {missing} of {chunks} chunks are missing")]
    Incomplete { step: Step, missing: usize, chunks: usize },
}

/// Fetches job, program and data manifest from the first peer that gives them.
pub(super) async fn package(
    net: &NetHandle,
    job: JobId,
    peers: &[PeerId],
) -> Result<Package, FetchFailed> {
    for peer in peers {
        let request = Request::Package(job).to_bytes().into();
        let Ok(answer) = net.request(*peer, request, limits::MESSAGE_BYTES_MAX).await else {
            continue;
        };
        match Response::from_bytes(&answer) {
            Ok(Response::Package(package)) if JobId::of_job(&package.job) == job => {
                return Ok(package);
            }
            Ok(Response::Package(_)) => tracing::warn!(%peer, "sent another job than asked for"),
            Ok(other) => tracing::debug!(%peer, ?other, "no package"),
            Err(error) => tracing::warn!(%peer, "package: {error}"),
        }
    }
    Err(FetchFailed::NoPackage(job))
}

/// Fetches the state of `step` from all of `peers` at once. Every chunk is verified against a
/// manifest on which the largest number of them agrees.
pub(super) async fn state(
    net: &NetHandle,
    job: JobId,
    step: Step,
    layout: &StateLayout,
    peers: &[PeerId],
) -> Result<TrainState, FetchFailed> {
    let (manifest, sources) = agreed_manifest(net, job, step, layout, peers).await?;
    let chunks = manifest.chunks.len();
    let queue: VecDeque<u32> = (0..chunks as u32).collect();
    let queue = Arc::new(Mutex::new(queue));
    let mut state = State::zeros(layout);
    let mut missing = chunks;
    let mut sources = sources;
    while missing > 0 && !sources.is_empty() {
        let (sender, mut received) = mpsc::channel(2 * CHUNKS_PER_PEER);
        let mut readers = JoinSet::new();
        for peer in sources.iter().copied().flat_map(|p| std::iter::repeat_n(p, CHUNKS_PER_PEER)) {
            let reader = Reader { net: net.clone(), peer, manifest: Arc::clone(&manifest) };
            readers.spawn(reader.run(Arc::clone(&queue), sender.clone()));
        }
        drop(sender);
        while let Some((index, bytes)) = received.recv().await {
            let place = layout.place(index).expect("verified chunks have a place");
            state.write_chunk(&place, &bytes);
            missing -= 1;
        }
        // A peer that failed is not asked again; what it left is asked of the others.
        while let Some(done) = readers.join_next().await {
            if let Ok(Err(peer)) = done {
                sources.retain(|source| *source != peer);
            }
        }
    }
    if missing > 0 {
        return Err(FetchFailed::Incomplete { step, missing, chunks });
    }
    Ok(TrainState::restore(step, state))
}

/// Takes chunks off the queue and asks one peer for them, one at a time.
struct Reader {
    net: NetHandle,
    peer: PeerId,
    manifest: Arc<StateManifest>,
}

impl Reader {
    /// Ends when the queue is empty, or with the peer's id when the peer fails.
    async fn run(
        self,
        queue: Arc<Mutex<VecDeque<u32>>>,
        chunks: mpsc::Sender<(u32, Vec<u8>)>,
    ) -> Result<(), PeerId> {
        loop {
            // Not in the loop's condition: its guard would live across the request.
            let next = lock(&queue).pop_front();
            let Some(index) = next else { return Ok(()) };
            match self.chunk(index).await {
                Ok(bytes) => {
                    if chunks.send((index, bytes)).await.is_err() {
                        return Ok(());
                    }
                }
                Err(reason) => {
                    tracing::warn!(peer = %self.peer, "state chunk {index}: {reason}");
                    lock(&queue).push_front(index);
                    return Err(self.peer);
                }
            }
        }
    }

    async fn chunk(&self, index: u32) -> Result<Vec<u8>, String> {
        let StateManifest { job, step, .. } = *self.manifest;
        let request = Request::StateChunk { job, step, index }.to_bytes().into();
        let answer = self.net.request(self.peer, request, CHUNK_ANSWER_MAX).await;
        match Response::from_bytes(&answer.map_err(|error| error.to_string())?) {
            Ok(Response::Chunk(bytes)) => {
                let place = self.manifest.verify_chunk(index, &bytes);
                place.map(|_| bytes).map_err(|error| error.to_string())
            }
            Ok(Response::Refused(reason)) => Err(reason),
            Ok(_) => Err("not a chunk".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

fn lock(queue: &Mutex<VecDeque<u32>>) -> std::sync::MutexGuard<'_, VecDeque<u32>> {
    queue.lock().expect("no holder of the lock panics")
}

async fn agreed_manifest(
    net: &NetHandle,
    job: JobId,
    step: Step,
    layout: &StateLayout,
    peers: &[PeerId],
) -> Result<(Arc<StateManifest>, Vec<PeerId>), FetchFailed> {
    let mut requests = JoinSet::new();
    for peer in peers.iter().copied() {
        let net = net.clone();
        let request = Request::StateManifest { job, step }.to_bytes().into();
        requests.spawn(async move {
            (peer, net.request(peer, request, limits::MESSAGE_BYTES_MAX).await)
        });
    }
    let mut camps: BTreeMap<Digest, (StateManifest, Vec<PeerId>)> = BTreeMap::new();
    let mut reasons = Vec::new();
    while let Some(done) = requests.join_next().await {
        let Ok((peer, answer)) = done else { continue };
        let manifest = match answer.map(|bytes| Response::from_bytes(&bytes)) {
            Ok(Ok(Response::Manifest(manifest))) => manifest,
            Ok(Ok(Response::Refused(reason))) => {
                reasons.push(format!("{peer}: {reason}"));
                continue;
            }
            Ok(Ok(_)) => {
                reasons.push(format!("{peer}: not a manifest"));
                continue;
            }
            Ok(Err(error)) => {
                reasons.push(format!("{peer}: {error}"));
                continue;
            }
            Err(error) => {
                reasons.push(format!("{peer}: {error}"));
                continue;
            }
        };
        if let Err(error) = manifest.verify_for(job, layout) {
            reasons.push(format!("{peer}: {error}"));
        } else if manifest.step == step {
            camps.entry(manifest.root).or_insert_with(|| (manifest, Vec::new())).1.push(peer);
        }
    }
    if camps.len() > 1 {
        let peers: Vec<String> = camps.values().map(|(_, peers)| format!("{peers:?}")).collect();
        tracing::warn!("peers hold different states of {step}: {}", peers.join(" against "));
    }
    camps
        .into_values()
        .max_by_key(|(_, peers)| (peers.len(), std::cmp::Reverse(peers.iter().min().copied())))
        .map(|(manifest, peers)| (Arc::new(manifest), peers))
        .ok_or(FetchFailed::NoManifest { step, reasons })
}
