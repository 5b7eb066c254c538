//! What is trained: parameters and optimizer state, read by the computation and by joiners, written
//! at each commit.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use p2ptrain_kernels::Params;
use p2ptrain_protocol::id::{Digest, Step};

use crate::checkpoint::{State, StateRef};

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
    /// Second moment; empty for an optimizer without one.
    pub v: Vec<Vec<f32>>,
}

impl TrainState {
    /// Fresh optimizer state for `params`, with or without a second moment.
    pub fn new(params: Params, second_moment: bool) -> Self {
        let zeros = || params.blocks.iter().map(|block| vec![0.0; block.len()]).collect();
        let m = zeros();
        let v = if second_moment { zeros() } else { Vec::new() };
        Self { step: Step(0), params, m, v }
    }

    /// State from a checkpoint or from peers.
    pub fn restore(step: Step, state: State) -> Self {
        let State { params, m, v } = state;
        Self { step, params: Params { blocks: params }, m, v }
    }

    /// The state for checkpoints and manifests.
    pub fn borrow(&self) -> StateRef<'_> {
        StateRef { params: &self.params.blocks, m: &self.m, v: &self.v }
    }

    /// blake3 of each block's parameters.
    pub fn block_digests(&self) -> Vec<Digest> {
        let digest = |block: &Vec<f32>| {
            Digest::from_bytes(*blake3::hash(bytemuck::cast_slice(block)).as_bytes())
        };
        self.params.blocks.iter().map(digest).collect()
    }
}

/// The state, shared between the worker and those who serve it to joiners.
#[derive(Clone, Debug)]
pub struct SharedState(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: RwLock<TrainState>,
    /// The state's step, to be read without waiting for the lock.
    step: AtomicU64,
}

impl SharedState {
    /// Shares `state`.
    pub fn new(state: TrainState) -> Self {
        let step = AtomicU64::new(state.step.0);
        Self(Arc::new(Shared { state: RwLock::new(state), step }))
    }

    /// Committed steps of the state.
    pub fn step(&self) -> Step {
        Step(self.0.step.load(Ordering::Acquire))
    }

    /// The state, which does not change while the guard lives.
    pub fn read(&self) -> RwLockReadGuard<'_, TrainState> {
        self.0.state.read().expect(NOT_TORN)
    }

    /// The state, for a commit.
    pub fn write(&self) -> StateWriter<'_> {
        StateWriter { guard: self.0.state.write().expect(NOT_TORN), step: &self.0.step }
    }
}

const NOT_TORN: &str = "a worker that panics ends the process, so nobody sees a torn state";

/// Write access to the state. Its step becomes visible when this is dropped.
#[derive(Debug)]
pub struct StateWriter<'s> {
    guard: RwLockWriteGuard<'s, TrainState>,
    step: &'s AtomicU64,
}

impl Deref for StateWriter<'_> {
    type Target = TrainState;

    fn deref(&self) -> &TrainState {
        &self.guard
    }
}

impl DerefMut for StateWriter<'_> {
    fn deref_mut(&mut self) -> &mut TrainState {
        &mut self.guard
    }
}

impl Drop for StateWriter<'_> {
    fn drop(&mut self) {
        self.step.store(self.guard.step.0, Ordering::Release);
    }
}
