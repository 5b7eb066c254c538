//! The backward pass of one head.

use super::parts::{BLOCK, COLUMNS, In, OutRows, exp_row, scores_row, visible};
use super::{Attention, simd};
use crate::primitive::lanes;
use crate::primitive::tile::{Operands, rows_times_columns};

pub(super) struct Task<'a> {
    pub(super) shape: Attention,
    pub(super) q: In<'a>,
    pub(super) k: In<'a>,
    pub(super) v: In<'a>,
    pub(super) y: In<'a>,
    pub(super) dy: In<'a>,
    pub(super) lse: &'a [f32],
    pub(super) dq: OutRows<'a>,
    pub(super) dk: OutRows<'a>,
    pub(super) dv: OutRows<'a>,
    pub(super) scratch: &'a mut [f32],
}

pub(super) fn scratch_len(shape: &Attention) -> usize {
    let Attention { tokens, head_dim: dim, .. } = *shape;
    let padded = dim.next_multiple_of(COLUMNS);
    tokens * (1 + 4 * padded) + 2 * BLOCK * (dim + BLOCK + padded)
}

simd! {
    /// Computes `dq`, `dk` and `dv` of one head.
    pub(super) fn head[S](task: Task<'_>) {
        let Attention { tokens, head_dim: dim, causal, scale, .. } = task.shape;
        let padded = dim.next_multiple_of(COLUMNS);
        let mut rest = task.scratch;
        let mut take = |len: usize| {
            let (buffer, others) = std::mem::take(&mut rest).split_at_mut(len);
            rest = others;
            buffer
        };
        let (keys, values) = (take(BLOCK * dim), take(BLOCK * dim));
        let (scores, dscores) = (take(BLOCK * BLOCK), take(BLOCK * BLOCK));
        let (dk, dv) = (take(BLOCK * padded), take(BLOCK * padded));
        let delta = take(tokens);
        let q = task.q.padded(tokens, dim, take(tokens * padded));
        let k = task.k.padded(tokens, dim, take(tokens * padded));
        let dy = task.dy.padded(tokens, dim, take(tokens * padded));
        let dq = if padded == dim {
            task.dq
        } else {
            OutRows::new(take(tokens * padded), 0, padded)
        };
        for (row, delta) in delta.iter_mut().enumerate() {
            *delta = lanes::dot::<S>(task.y.row(row, dim), task.dy.row(row, dim));
        }
        for j in (0..tokens).step_by(BLOCK) {
            let count = BLOCK.min(tokens - j);
            task.k.transpose::<S>(j, count, dim, keys);
            task.v.transpose::<S>(j, count, dim, values);
            let first = if causal { j } else { 0 };
            for i in (first..tokens).step_by(BLOCK) {
                let rows = BLOCK.min(tokens - i);
                let by_key = |a: *const f32, b: *const f32, step_b| Operands {
                    a,
                    row_a: 1,
                    step_a: BLOCK,
                    b,
                    step_b,
                    steps: rows,
                };
                let by_query = |a: *const f32, row_a, b: *const f32, step_b, steps| Operands {
                    a,
                    row_a,
                    step_a: 1,
                    b,
                    step_b,
                    steps,
                };
                // SAFETY: blocks of `rows` queries and `count` keys lie inside the inputs, with
                // `padded` columns where they are read as columns, `dim` rows of `BLOCK` elements
                // inside `keys` and `values`, and the results inside their buffers.
                unsafe {
                    let s = scores.as_mut_ptr();
                    let operands = by_query(q.at(i), q.stride, keys.as_ptr(), BLOCK, dim);
                    rows_times_columns::<S>(operands, rows, BLOCK, s, BLOCK, false);
                    let ds = dscores.as_mut_ptr();
                    let operands = by_query(dy.at(i), dy.stride, values.as_ptr(), BLOCK, dim);
                    rows_times_columns::<S>(operands, rows, BLOCK, ds, BLOCK, false);
                    for row in 0..rows {
                        let valid = visible(causal, i + row, j, count);
                        let scores = scores_row(scores, row, valid);
                        let dscores = &mut dscores[row * BLOCK..][..BLOCK];
                        exp_row::<S>(scores, scale, task.lse[i + row]);
                        for (ds, &p) in dscores.iter_mut().zip(&*scores) {
                            *ds = p * (*ds - delta[i + row]) * scale;
                        }
                    }
                    let add = i > first;
                    let operands = by_key(s, dy.at(i), dy.stride);
                    rows_times_columns::<S>(operands, count, padded, dv.as_mut_ptr(), padded, add);
                    let operands = by_key(ds, q.at(i), q.stride);
                    rows_times_columns::<S>(operands, count, padded, dk.as_mut_ptr(), padded, add);
                    let operands = by_query(ds, BLOCK, k.at(j), k.stride, count);
                    let out = dq.row(i, padded).as_mut_ptr();
                    rows_times_columns::<S>(operands, rows, padded, out, dq.stride(), j > 0);
                }
            }
            for row in 0..count {
                // SAFETY: this task alone has this head's rows.
                let (out_k, out_v) =
                    unsafe { (task.dk.row(j + row, dim), task.dv.row(j + row, dim)) };
                out_k.copy_from_slice(&dk[row * padded..][..dim]);
                out_v.copy_from_slice(&dv[row * padded..][..dim]);
            }
        }
        if padded != dim {
            for row in 0..tokens {
                // SAFETY: this task alone has this head's rows, and `dq` is its own buffer.
                let (out, copy) = unsafe { (task.dq.row(row, dim), dq.row(row, dim)) };
                out.copy_from_slice(copy);
            }
        }
    }
}
