//! What is trained: parameters and optimizer state, read by the computation and by joiners, written
//! at each commit.

use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use p2ptrain_kernels::exec::Params;
use p2ptrain_protocol::id::{Digest, Step};

/// Parameters and optimizer state after `step` commits. The three parts have the same layout: one
/// flat buffer a block.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainState {
    /// Committed steps.
    pub step: Step,
    /// Parameters (f32 master weights).
    pub params: Params,
    /// First moment, or momentum.
    pub m: Vec<Vec<f32>>,
    /// Second moment; zeros with SGD.
    pub v: Vec<Vec<f32>>,
}

impl TrainState {
    /// Fresh optimizer state for `params`.
    pub fn new(params: Params) -> Self {
        let zeros = || params.blocks.iter().map(|block| vec![0.0; block.len()]).collect();
        let (m, v) = (zeros(), zeros());
        Self { step: Step(0), params, m, v }
    }

    /// blake3 of each block's parameters.
    pub fn block_digests(&self) -> Vec<Digest> {
        let digest = |block: &Vec<f32>| Digest::from(blake3::hash(bytemuck::cast_slice(block)));
        self.params.blocks.iter().map(digest).collect()
    }
}

/// The state, shared between the worker and those who serve it to joiners.
#[derive(Clone, Debug)]
pub struct SharedState(Arc<RwLock<TrainState>>);

impl SharedState {
    /// Shares `state`.
    pub fn new(state: TrainState) -> Self {
        Self(Arc::new(RwLock::new(state)))
    }

    /// The state, which does not change while the guard lives.
    pub fn read(&self) -> RwLockReadGuard<'_, TrainState> {
        self.0.read().expect("the worker aborts the process rather than leave a torn state")
    }

    /// The state, for the commit.
    pub fn write(&self) -> RwLockWriteGuard<'_, TrainState> {
        self.0.write().expect("the worker aborts the process rather than leave a torn state")
    }
}
