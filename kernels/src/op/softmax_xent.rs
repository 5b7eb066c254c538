//! Cross-entropy of softmax, fused with its gradient: one pass over the logits.

use crate::op::{IndexError, check_indices};
use crate::primitive::lanes;
use crate::primitive::math;
use crate::primitive::pool::{Chunks, Pool};
use crate::primitive::simd::{Simd, simd};

/// A target that counts for nothing.
pub const IGNORED: i32 = -1;

/// `losses[r] = ln(sum(exp(logits[r]))) - logits[r, target]`, and zero for an ignored row.
///
/// # Errors
/// A target that is no class and not [`IGNORED`].
pub fn fwd(
    pool: &Pool,
    logits: &[f32],
    targets: &[i32],
    losses: &mut [f32],
) -> Result<(), IndexError> {
    let Some(classes) = classes(logits, targets, losses)? else { return Ok(()) };
    let rows = rows_per_task(targets.len());
    let losses = Chunks::new(losses, rows);
    pool.for_parts(losses.count(), losses, |task, losses| {
        let logits = &logits[task * rows * classes..];
        for ((row, loss), &target) in
            logits.chunks_exact(classes).zip(losses).zip(&targets[task * rows..])
        {
            *loss = if target == IGNORED { 0.0 } else { loss_of_row(row, target as usize) };
        }
    });
    Ok(())
}

/// The same, and `logits[r] = scale * (softmax(logits[r]) - onehot(target))`, zero for an ignored
/// row. For the mean over the rows that count, `scale` is one divided by their number.
///
/// # Errors
/// A target that is no class and not [`IGNORED`]; then nothing is written.
pub fn fwd_bwd(
    pool: &Pool,
    logits: &mut [f32],
    targets: &[i32],
    scale: f32,
    losses: &mut [f32],
) -> Result<(), IndexError> {
    let Some(classes) = classes(logits, targets, losses)? else { return Ok(()) };
    let rows = rows_per_task(targets.len());
    let losses = Chunks::new(losses, rows);
    let logits = Chunks::new(logits, rows * classes);
    pool.for_parts(losses.count(), (logits, losses), |task, (logits, losses)| {
        for ((row, loss), &target) in
            logits.chunks_exact_mut(classes).zip(losses).zip(&targets[task * rows..])
        {
            if target == IGNORED {
                row.fill(0.0);
                *loss = 0.0;
            } else {
                *loss = loss_and_gradient_of_row(row, target as usize, scale);
            }
        }
    });
    Ok(())
}

/// Rows of a task: a row has thousands of elements.
fn rows_per_task(rows: usize) -> usize {
    rows.div_ceil(64).clamp(1, 16)
}

fn classes(logits: &[f32], targets: &[i32], losses: &[f32]) -> Result<Option<usize>, IndexError> {
    assert_eq!(targets.len(), losses.len());
    if targets.is_empty() {
        return Ok(None);
    }
    let classes = logits.len() / targets.len();
    assert_eq!(logits.len(), classes * targets.len());
    check_indices(targets, classes, Some(IGNORED))?;
    // Without classes all targets are ignored; each chunk of a row needs one element at least.
    Ok((classes > 0).then_some(classes))
}

/// Sum of `exp(x - max)`.
#[inline(always)]
fn exp_sum<S: Simd>(x: &[f32], max: f32) -> f32 {
    S::sum(lanes::fold(x, 0.0, |sum, x| sum + math::exp_small::<S>(x - max)))
}

simd! {
    fn loss_of_row[S](x: &[f32], target: usize) -> f32 {
        let max = lanes::max::<S>(x);
        math::ln::<S>(exp_sum::<S>(x, max)) + (max - x[target])
    }

    fn loss_and_gradient_of_row[S](x: &mut [f32], target: usize, scale: f32) -> f32 {
        let max = lanes::max::<S>(x);
        let logit = x[target];
        let mut sums = [0.0f32; lanes::LANES];
        let (blocks, tail) = x.as_chunks_mut::<{ lanes::LANES }>();
        for block in blocks {
            for (x, sum) in block.iter_mut().zip(&mut sums) {
                *x = math::exp_small::<S>(*x - max);
                *sum += *x;
            }
        }
        for (x, sum) in tail.iter_mut().zip(&mut sums) {
            *x = math::exp_small::<S>(*x - max);
            *sum += *x;
        }
        let sum = S::sum(sums);
        let factor = scale / sum;
        x.iter_mut().for_each(|x| *x *= factor);
        x[target] -= scale;
        math::ln::<S>(sum) + (max - logit)
    }
}
