//! The forward pass of one head.

use super::parts::{BLOCK, COLUMNS, In, OutRows, Scores, exp_row, scores_row, visible};
use super::{Attention, Simd, simd};
use crate::primitive::lanes;
use crate::primitive::math;
use crate::primitive::tile::{Operands, rows_times_columns};

pub(super) struct Task<'a> {
    pub(super) shape: Attention,
    pub(super) q: In<'a>,
    pub(super) k: In<'a>,
    pub(super) v: In<'a>,
    pub(super) y: OutRows<'a>,
    pub(super) lse: &'a mut [f32],
    pub(super) scratch: &'a mut [f32],
}

pub(super) fn scratch_len(shape: &Attention) -> usize {
    let padded = shape.head_dim.next_multiple_of(COLUMNS);
    let tokens = shape.tokens.next_multiple_of(BLOCK);
    tokens * (shape.head_dim + padded) + BLOCK * (BLOCK + padded)
}

simd! {
    /// Computes `y` and `lse` of one head.
    pub(super) fn head[S](task: Task<'_>) {
        let Attention { tokens, head_dim: dim, causal, scale, .. } = task.shape;
        let padded = dim.next_multiple_of(COLUMNS);
        let blocks = tokens.div_ceil(BLOCK);
        let (keys, rest) = task.scratch.split_at_mut(blocks * BLOCK * dim);
        let (scores, rest) = rest.split_at_mut(BLOCK * BLOCK);
        let (sums, rest) = rest.split_at_mut(BLOCK * padded);
        let v = task.v.padded(tokens, dim, rest);
        for (block, keys) in keys.chunks_exact_mut(BLOCK * dim).enumerate() {
            let begin = block * BLOCK;
            task.k.transpose::<S>(begin, BLOCK.min(tokens - begin), dim, keys);
        }
        for i in (0..tokens).step_by(BLOCK) {
            let rows = BLOCK.min(tokens - i);
            let mut online = Online { max: [f32::NEG_INFINITY; BLOCK], sum: [0.0; BLOCK] };
            let end = if causal { i + rows } else { tokens };
            for j in (0..end).step_by(BLOCK) {
                let count = BLOCK.min(tokens - j);
                // SAFETY: `rows` queries and `dim` steps lie inside `q`, `dim` rows of `BLOCK` keys
                // inside `keys`, `count` values of `padded` columns inside `v`, and the results
                // inside their buffers.
                unsafe {
                    let operands = Operands {
                        a: task.q.at(i),
                        row_a: task.q.stride,
                        step_a: 1,
                        b: keys[j * dim..].as_ptr(),
                        step_b: BLOCK,
                        steps: dim,
                    };
                    let out = scores.as_mut_ptr();
                    rows_times_columns::<S>(operands, rows, BLOCK, out, BLOCK, false);
                    for row in 0..rows {
                        let valid = visible(causal, i + row, j, count);
                        let scores = scores_row(scores, row, valid);
                        let sums = &mut sums[row * padded..][..padded];
                        online.step::<S>(row, scores, scale, sums);
                    }
                    let operands = Operands {
                        a: scores.as_ptr(),
                        row_a: BLOCK,
                        step_a: 1,
                        b: v.at(j),
                        step_b: v.stride,
                        steps: count,
                    };
                    let out = sums.as_mut_ptr();
                    rows_times_columns::<S>(operands, rows, padded, out, padded, j > 0);
                }
            }
            for row in 0..rows {
                // SAFETY: this task alone has this head's rows.
                let y = unsafe { task.y.row(i + row, dim) };
                let factor = 1.0 / online.sum[row];
                y.iter_mut().zip(&sums[row * padded..]).for_each(|(y, &sum)| *y = sum * factor);
                task.lse[i + row] = online.max[row] + math::ln::<S>(online.sum[row]);
            }
        }
    }
}

/// The running maximum of each query's scores, and the sum of exponentials relative to it.
struct Online {
    max: [f32; BLOCK],
    sum: [f32; BLOCK],
}

impl Online {
    /// Turns a row of scores into exponentials, and adapts what has been summed to a new maximum.
    #[inline(always)]
    fn step<S: Simd>(&mut self, row: usize, scores: &mut Scores, scale: f32, sums: &mut [f32]) {
        let largest = lanes::max::<S>(scores);
        let old = self.max[row];
        let max = lanes::larger(largest * scale, old);
        if max > old && old > f32::NEG_INFINITY {
            let factor = math::exp_small::<S>(old - max);
            self.sum[row] *= factor;
            sums.iter_mut().for_each(|x| *x *= factor);
        }
        exp_row::<S>(scores, scale, max);
        self.max[row] = max;
        self.sum[row] += lanes::sum::<S>(scores);
    }
}
