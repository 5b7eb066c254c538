//! The backward pass of one head.

use super::parts::{BLOCK, COLUMNS, In, OutRows, exp_row, scores_row, visible};
use super::{Attention, Simd, simd};
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
        let Attention { tokens, head_dim: dim, causal, .. } = task.shape;
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
        for (row, delta) in delta.iter_mut().enumerate() {
            *delta = lanes::dot::<S>(task.y.row(row, dim), task.dy.row(row, dim));
        }
        let q = task.q.padded(tokens, dim, take(tokens * padded));
        let k = task.k.padded(tokens, dim, take(tokens * padded));
        let dy = task.dy.padded(tokens, dim, take(tokens * padded));
        let dq =
            if padded == dim { task.dq } else { OutRows::new(take(tokens * padded), 0, padded) };
        let shape = task.shape;
        let mut tile = Tile { shape, padded, keys, values, scores, dscores, dk, dv, q, k, dy, dq };
        for j in (0..tokens).step_by(BLOCK) {
            let count = BLOCK.min(tokens - j);
            task.k.transpose::<S>(j, count, dim, tile.keys);
            task.v.transpose::<S>(j, count, dim, tile.values);
            let first = if causal { j } else { 0 };
            for i in (first..tokens).step_by(BLOCK) {
                tile.compute::<S>(i, j, i > first, task.lse, delta);
            }
            for row in 0..count {
                // SAFETY: this task alone has this head's rows.
                let (dk, dv) = unsafe { (task.dk.row(j + row, dim), task.dv.row(j + row, dim)) };
                dk.copy_from_slice(&tile.dk[row * padded..][..dim]);
                dv.copy_from_slice(&tile.dv[row * padded..][..dim]);
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

/// What the tiles of one head read and write. Rows have `padded` elements.
struct Tile<'a> {
    shape: Attention,
    padded: usize,
    /// A block of keys, and of values, transposed.
    keys: &'a mut [f32],
    values: &'a mut [f32],
    scores: &'a mut [f32],
    dscores: &'a mut [f32],
    /// Sums of a block of keys.
    dk: &'a mut [f32],
    dv: &'a mut [f32],
    q: In<'a>,
    k: In<'a>,
    dy: In<'a>,
    dq: OutRows<'a>,
}

impl Tile<'_> {
    /// Adds what queries from `i` and keys from `j` contribute to the gradients. `add` says whether
    /// `dk` and `dv` hold sums already.
    #[inline(always)]
    fn compute<S: Simd>(&mut self, i: usize, j: usize, add: bool, lse: &[f32], delta: &[f32]) {
        let Attention { tokens, head_dim: dim, causal, scale, .. } = self.shape;
        let padded = self.padded;
        let (rows, count) = (BLOCK.min(tokens - i), BLOCK.min(tokens - j));
        let (s, ds) = (self.scores.as_mut_ptr(), self.dscores.as_mut_ptr());
        // A row of the left operand is a query, or a column of a tile, which is a key.
        let by_query =
            |a, row_a, b, step_b, steps| Operands { a, row_a, step_a: 1, b, step_b, steps };
        let by_key = |a, b, step_b| Operands { a, row_a: 1, step_a: BLOCK, b, step_b, steps: rows };
        // SAFETY: blocks of `rows` queries and `count` keys lie inside the inputs, with `padded`
        // columns where they are read as columns, `dim` rows of `BLOCK` elements inside `keys` and
        // `values`, and the results inside their buffers.
        unsafe {
            let x = by_query(self.q.at(i), self.q.stride, self.keys.as_ptr(), BLOCK, dim);
            rows_times_columns::<S>(x, rows, BLOCK, s, BLOCK, false);
            let x = by_query(self.dy.at(i), self.dy.stride, self.values.as_ptr(), BLOCK, dim);
            rows_times_columns::<S>(x, rows, BLOCK, ds, BLOCK, false);
        }
        for row in 0..rows {
            let valid = visible(causal, i + row, j, count);
            let scores = scores_row(self.scores, row, valid);
            exp_row::<S>(scores, scale, lse[i + row]);
            let dscores = &mut self.dscores[row * BLOCK..][..BLOCK];
            for (ds, &p) in dscores.iter_mut().zip(&*scores) {
                *ds = p * (*ds - delta[i + row]) * scale;
            }
        }
        let (s, ds) = (self.scores.as_ptr(), self.dscores.as_ptr());
        // SAFETY: as above.
        unsafe {
            let x = by_key(s, self.dy.at(i), self.dy.stride);
            rows_times_columns::<S>(x, count, padded, self.dv.as_mut_ptr(), padded, add);
            let x = by_key(ds, self.q.at(i), self.q.stride);
            rows_times_columns::<S>(x, count, padded, self.dk.as_mut_ptr(), padded, add);
            let x = by_query(ds, BLOCK, self.k.at(j), self.k.stride, count);
            let dq = self.dq.row(i, padded).as_mut_ptr();
            rows_times_columns::<S>(x, rows, padded, dq, self.dq.stride(), j > 0);
        }
    }
}
