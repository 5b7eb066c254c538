//! Softmax over the last axis.

use crate::op::rows_per_task;
use crate::primitive::lanes;
use crate::primitive::math;
use crate::primitive::pool::{Chunks, Pool};
use crate::primitive::simd::simd;

/// `y[r, c] = exp(x[r, c]) / sum(exp(x[r]))` for rows of `columns` elements.
pub fn fwd(pool: &Pool, columns: usize, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    if x.is_empty() {
        return;
    }
    let rows = rows_per_task(x.len() / columns, columns);
    let y = Chunks::new(y, rows * columns);
    pool.for_parts(y.count(), y, |task, y| {
        fwd_rows(columns, &x[task * rows * columns..][..y.len()], y);
    });
}

/// `dx = y * (dy - sum(y * dy))` in each row, overwriting `dx`.
pub fn bwd(pool: &Pool, columns: usize, y: &[f32], dy: &[f32], dx: &mut [f32]) {
    assert!(y.len() == dy.len() && y.len() == dx.len());
    if y.is_empty() {
        return;
    }
    let rows = rows_per_task(y.len() / columns, columns);
    let dx = Chunks::new(dx, rows * columns);
    pool.for_parts(dx.count(), dx, |task, dx| {
        let range = task * rows * columns..task * rows * columns + dx.len();
        bwd_rows(columns, &y[range.clone()], &dy[range], dx);
    });
}

simd! {
    fn fwd_rows[S](columns: usize, x: &[f32], y: &mut [f32]) {
        for (x, y) in x.chunks_exact(columns).zip(y.chunks_exact_mut(columns)) {
            let max = lanes::max::<S>(x);
            for (y, &x) in y.iter_mut().zip(x) {
                *y = math::exp_small::<S>(x - max);
            }
            let factor = 1.0 / lanes::sum::<S>(y);
            y.iter_mut().for_each(|y| *y *= factor);
        }
    }

    fn bwd_rows[S](columns: usize, y: &[f32], dy: &[f32], dx: &mut [f32]) {
        let rows = y.chunks_exact(columns).zip(dy.chunks_exact(columns));
        for ((y, dy), dx) in rows.zip(dx.chunks_exact_mut(columns)) {
            let product = lanes::dot::<S>(y, dy);
            for ((dx, &y), &dy) in dx.iter_mut().zip(y).zip(dy) {
                *dx = y * (dy - product);
            }
        }
    }
}
