//! Optimizer steps, bit-identical on every processor.
//!
//! Replicas apply the same step to the same reduced gradient and must end with the same bits,
//! whatever processors they have. That holds because
//!
//! - every operation here is an IEEE 754 addition, multiplication, division or square root, each
//!   rounded once and written out in the order in which it happens. Rust neither fuses a product
//!   with a sum nor reorders sums, and the functions are compiled with wider vectors but without
//!   any that would fuse: a vector operation rounds each lane as the scalar one does;
//! - scalar factors are computed once in double precision, with `libm` for powers, which is
//!   portable code and not the system's library;
//! - sums run over fixed chunks with sixteen fixed lanes, and partial sums are added in order, so
//!   neither the vector width nor the number of threads takes part.
//!
//! Results are those of PyTorch's `AdamW` and `SGD` up to rounding.

use crate::primitive::lanes;
use crate::primitive::pool::{Chunks, Pool};
use crate::primitive::scratch;
use crate::primitive::simd::simd;

/// Elements of a chunk of [`grad_norm_sq`]. Part of its result: every peer must use the same.
pub const NORM_CHUNK: usize = 4096;

/// Elements that a task updates.
const TASK: usize = 16 * 1024;

/// The sum of squares of all elements of all blocks, in double precision.
pub fn grad_norm_sq(pool: &Pool, blocks: &[&[f32]]) -> f64 {
    let mut total = 0.0;
    for block in blocks {
        let count = block.len().div_ceil(NORM_CHUNK);
        // Several chunks a task; the partial sums stay those of single chunks.
        let together = 8;
        scratch::with_doubles(count, |partials| {
            let parts = Chunks::new(partials, together);
            pool.for_parts(parts.count(), parts, |task, partials| {
                for (index, partial) in partials.iter_mut().enumerate() {
                    let begin = (task * together + index) * NORM_CHUNK;
                    let end = (begin + NORM_CHUNK).min(block.len());
                    *partial = sum_of_squares(&block[begin..end]);
                }
            });
            for partial in partials {
                total += *partial;
            }
        });
    }
    total
}

/// AdamW: Adam with decoupled weight decay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the mean of gradients.
    pub beta1: f32,
    /// Decay of the mean of squared gradients.
    pub beta2: f32,
    /// Added to the denominator.
    pub eps: f32,
    /// Share of the parameter, times the learning rate, that is taken away in each step.
    pub weight_decay: f32,
}

/// One step of [`AdamW`] on parameters `p` with gradients `g` (multiplied by `grad_scale`) and
/// moments `m` and `v`, all of one length. `step` counts from 1; without `decay`, weights do not
/// decay.
#[allow(clippy::too_many_arguments)]
pub fn adamw(
    pool: &Pool,
    p: &mut [f32],
    g: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    grad_scale: f32,
    lr: f32,
    decay: bool,
    step: u64,
    adam: &AdamW,
) {
    assert!(p.len() == g.len() && p.len() == m.len() && p.len() == v.len());
    let correction = |beta: f32| 1.0 - libm::pow(f64::from(beta), step as f64);
    let weight_decay = if decay { f64::from(adam.weight_decay) } else { 0.0 };
    let factors = AdamFactors {
        grad_scale,
        keep: (1.0 - f64::from(lr) * weight_decay) as f32,
        one_minus_beta1: (1.0 - f64::from(adam.beta1)) as f32,
        beta2: adam.beta2,
        one_minus_beta2: (1.0 - f64::from(adam.beta2)) as f32,
        root_correction: libm::sqrt(correction(adam.beta2)) as f32,
        eps: adam.eps,
        step_size: (f64::from(lr) / correction(adam.beta1)) as f32,
    };
    let p = Chunks::new(p, TASK);
    let parts = (Chunks::new(m, TASK), Chunks::new(v, TASK));
    pool.for_parts(p.count(), (p, parts.0, parts.1), |task, (p, m, v)| {
        adamw_slice(p, &g[task * TASK..][..p.len()], m, v, factors);
    });
}

/// One step of SGD with momentum, as PyTorch's without dampening: the gradient (times
/// `grad_scale`) plus `weight_decay * p` (if `decay`) enters the momentum `m`.
///
/// `m` begins with zeros: PyTorch begins with the first gradient, which is the same.
#[allow(clippy::too_many_arguments)]
pub fn sgd_momentum(
    pool: &Pool,
    p: &mut [f32],
    g: &[f32],
    m: &mut [f32],
    grad_scale: f32,
    lr: f32,
    momentum: f32,
    nesterov: bool,
    weight_decay: f32,
    decay: bool,
) {
    assert!(p.len() == g.len() && p.len() == m.len());
    let weight_decay = if decay { weight_decay } else { 0.0 };
    let factors = SgdFactors { grad_scale, lr, momentum, nesterov, weight_decay };
    let p = Chunks::new(p, TASK);
    pool.for_parts(p.count(), (p, Chunks::new(m, TASK)), |task, (p, m)| {
        sgd_slice(p, &g[task * TASK..][..p.len()], m, factors);
    });
}

#[derive(Clone, Copy)]
struct AdamFactors {
    grad_scale: f32,
    keep: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    root_correction: f32,
    eps: f32,
    step_size: f32,
}

#[derive(Clone, Copy)]
struct SgdFactors {
    grad_scale: f32,
    lr: f32,
    momentum: f32,
    nesterov: bool,
    weight_decay: f32,
}

simd! {
    fn sum_of_squares[S](x: &[f32]) -> f64 {
        let step = |sum, x: f32| sum + f64::from(x) * f64::from(x);
        lanes::halve(lanes::fold(x, 0.0f64, step), |a, b| a + b)
    }

    fn adamw_slice[S](p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], f: AdamFactors) {
        for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * f.grad_scale;
            let kept = *p * f.keep;
            *m += (g - *m) * f.one_minus_beta1;
            *v = *v * f.beta2 + g * g * f.one_minus_beta2;
            let denominator = v.sqrt() / f.root_correction + f.eps;
            *p = kept - *m / denominator * f.step_size;
        }
    }

    fn sgd_slice[S](p: &mut [f32], g: &[f32], m: &mut [f32], f: SgdFactors) {
        for ((p, &g), m) in p.iter_mut().zip(g).zip(m) {
            let g = g * f.grad_scale + *p * f.weight_decay;
            *m = *m * f.momentum + g;
            let update = if f.nesterov { g + *m * f.momentum } else { *m };
            *p -= update * f.lr;
        }
    }
}
