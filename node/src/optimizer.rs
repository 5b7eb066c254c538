//! The update of a committed step. Bit-identical on all replicas: the reduced gradient is the same
//! everywhere, and what follows is arithmetic in a fixed order (see `p2ptrain_kernels::optim`).

use std::ops::Range;
use std::time::Instant;

use p2ptrain_kernels::optim::{self, AdamW};
use p2ptrain_kernels::primitive::pool::Pool;
use p2ptrain_kernels::program::Program;
use p2ptrain_protocol::id::Step;

use crate::job::{JobSpec, OptimizerKind};
use crate::state::TrainState;

/// Applies a job's optimizer.
pub struct Optimizer {
    job: JobSpec,
    pool: Pool,
    /// By block: runs of elements with the same decay.
    groups: Vec<Vec<Group>>,
}

struct Group {
    elements: Range<usize>,
    decays: bool,
}

/// Facts of an applied update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Applied {
    /// The learning rate.
    pub lr: f64,
    /// Global norm of the mean gradient, before clipping.
    pub grad_norm: f64,
    /// Whether the update was left out, since the gradient is not finite. All replicas leave it out.
    pub skipped: bool,
    /// Time in microseconds.
    pub us: u64,
}

impl Optimizer {
    /// The optimizer of `job` for the parameters of `program`.
    pub fn new(job: &JobSpec, program: &Program, threads: usize) -> Self {
        let mut groups: Vec<Vec<Group>> = program.blocks().iter().map(|_| Vec::new()).collect();
        for param in program.params() {
            let decays = job.optimizer.decays(&param.name, param.shape.len());
            let range = param.range();
            match groups[param.block].last_mut() {
                Some(last) if last.decays == decays && last.elements.end == range.start => {
                    last.elements.end = range.end;
                }
                _ => groups[param.block].push(Group { elements: range, decays }),
            }
        }
        Self { job: job.clone(), pool: Pool::new(threads), groups }
    }

    /// Whether the optimizer keeps a second moment.
    pub fn has_second_moment(job: &JobSpec) -> bool {
        matches!(job.optimizer.kind, OptimizerKind::AdamW { .. })
    }

    /// Updates `state` by the sum of gradients times `scale`.
    pub fn apply(&self, state: &mut TrainState, gradients: &[Vec<f32>], scale: f32) -> Applied {
        let started = Instant::now();
        let slices: Vec<&[f32]> = gradients.iter().map(Vec::as_slice).collect();
        let norm = optim::grad_norm_sq(&self.pool, &slices).sqrt() * f64::from(scale);
        let clip = self.job.clip.filter(|clip| norm > *clip).map_or(1.0, |clip| clip / norm);
        let step = state.step.0;
        let lr = self.job.lr_at(step);
        let skipped = !norm.is_finite();
        if !skipped {
            let grad_scale = (f64::from(scale) * clip) as f32;
            for (block, gradient) in gradients.iter().enumerate() {
                for group in &self.groups[block] {
                    self.update(state, block, group, gradient, grad_scale, lr as f32);
                }
            }
        }
        state.step = Step(step + 1);
        Applied { lr, grad_norm: norm, skipped, us: started.elapsed().as_micros() as u64 }
    }

    fn update(
        &self,
        state: &mut TrainState,
        block: usize,
        group: &Group,
        gradient: &[f32],
        grad_scale: f32,
        lr: f32,
    ) {
        let range = group.elements.clone();
        let params = &mut state.params.blocks[block][range.clone()];
        let m = &mut state.m[block][range.clone()];
        let gradient = &gradient[range.clone()];
        let decays = group.decays;
        let weight_decay = self.job.optimizer.weight_decay as f32;
        match self.job.optimizer.kind {
            OptimizerKind::AdamW { beta1, beta2, eps } => {
                let adam = AdamW {
                    beta1: beta1 as f32,
                    beta2: beta2 as f32,
                    eps: eps as f32,
                    weight_decay,
                };
                let v = &mut state.v[block][range];
                let step = state.step.0 + 1;
                optim::adamw(
                    &self.pool, params, gradient, m, v, grad_scale, lr, decays, step, &adam,
                );
            }
            OptimizerKind::Sgd { momentum, nesterov } => optim::sgd_momentum(
                &self.pool,
                params,
                gradient,
                m,
                grad_scale,
                lr,
                momentum as f32,
                nesterov,
                weight_decay,
                decays,
            ),
        }
    }
}
