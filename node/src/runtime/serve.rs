//! Answers to what peers ask for besides the steps.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use p2ptrain_protocol::checkpoint::StateManifest;
use p2ptrain_protocol::id::{JobId, Step};

use crate::data::{FETCH_CHUNKS_MAX, Store};
use crate::request::{Package, Request, Response};
use crate::state::SharedState;

/// How often a server looks whether its state has reached the step that a joiner asks for.
const POLL: Duration = Duration::from_millis(2);
/// How long it looks. A step's commit and apply take less; a joiner then asks others.
const POLLS_MAX: u32 = 5_000;

/// What a peer in a job can give to others.
pub(super) struct Served {
    pub(super) job: JobId,
    pub(super) package: Package,
    pub(super) store: Arc<Store>,
    pub(super) state: SharedState,
    /// The manifest of the last state that somebody asked for.
    pub(super) manifest: Mutex<Option<Arc<StateManifest>>>,
}

impl Served {
    /// Answers one request. Waits where a state is about to be there.
    pub(super) async fn answer(self: Arc<Self>, request: Request) -> Response {
        match request {
            Request::Package(job) if job == self.job => Response::Package(self.package.clone()),
            Request::DataChunks { job, indices } if job == self.job => self.chunks(&indices),
            Request::StateManifest { job, step } if job == self.job => {
                self.at_step(step, move |served| served.state_manifest(step)).await
            }
            Request::StateChunk { job, step, index } if job == self.job => {
                self.at_step(step, move |served| served.state_chunk(step, index)).await
            }
            Request::Package(_)
            | Request::DataChunks { .. }
            | Request::StateManifest { .. }
            | Request::StateChunk { .. } => {
                Response::Refused(format!("this peer runs job {}, not that one", self.job))
            }
        }
    }

    fn chunks(&self, indices: &[u32]) -> Response {
        if indices.len() > FETCH_CHUNKS_MAX {
            return Response::Refused(format!("at most {FETCH_CHUNKS_MAX} chunks at once"));
        }
        // What is missing or unreadable here is left out: the asker has other peers.
        let read = |index: &u32| {
            let has = *index < self.store.manifest().chunk_count() && self.store.has(*index);
            has.then(|| self.store.chunk(*index).ok()).flatten().map(|b| (*index, b.to_vec()))
        };
        Response::Chunks(indices.iter().filter_map(read).collect())
    }

    /// Answers on a blocking thread, as hashing and copying a state takes long, once the state has
    /// reached `step`.
    async fn at_step(
        self: Arc<Self>,
        step: Step,
        answer: impl FnOnce(&Self) -> Response + Send + 'static,
    ) -> Response {
        for _ in 0..POLLS_MAX {
            if self.state.step() >= step {
                break;
            }
            tokio::time::sleep(POLL).await;
        }
        tokio::task::spawn_blocking(move || answer(&self))
            .await
            .unwrap_or_else(|error| Response::Refused(format!("failed: {error}")))
    }

    fn state_manifest(&self, step: Step) -> Response {
        // The lock makes concurrent joiners wait for one computation instead of doing it again.
        let mut known = self.manifest.lock().expect("no holder of the lock panics");
        if let Some(manifest) = known.as_ref().filter(|manifest| manifest.step == step) {
            return Response::Manifest(StateManifest::clone(manifest));
        }
        let state = self.state.read();
        if state.step != step {
            return wrong_step(step, state.step);
        }
        match state.borrow().manifest(self.job, step) {
            Ok(manifest) => {
                let manifest = Arc::new(manifest);
                *known = Some(Arc::clone(&manifest));
                Response::Manifest(StateManifest::clone(&manifest))
            }
            Err(error) => Response::Refused(error.to_string()),
        }
    }

    fn state_chunk(&self, step: Step, index: u32) -> Response {
        let state = self.state.read();
        if state.step != step {
            return wrong_step(step, state.step);
        }
        let state = state.borrow();
        let place = state.layout().ok().and_then(|layout| layout.place(index));
        let Some(place) = place else {
            return Response::Refused(format!("the state has no chunk {index}"));
        };
        let mut bytes = Vec::new();
        state.read_chunk(&place, &mut bytes);
        Response::Chunk(bytes)
    }
}

fn wrong_step(asked: Step, have: Step) -> Response {
    Response::Refused(format!("this peer holds the state of {have}, not of {asked}"))
}
