//! Normalization by the root of the mean square over the last axis.

use crate::op::reduce::Partials;
use crate::op::rows_per_task;
use crate::primitive::lanes;
use crate::primitive::pool::{Chunks, Pool};
use crate::primitive::simd::simd;

/// `y = x * rstd * gamma` for each of the rows of `x`, with `rstd = 1 / sqrt(mean(x²) + eps)`.
///
/// `gamma` has one element a column, `rstd` (an output that the backward pass reads) one a row.
pub fn fwd(pool: &Pool, x: &[f32], gamma: &[f32], eps: f32, y: &mut [f32], rstd: &mut [f32]) {
    let (rows, columns) = (rstd.len(), gamma.len());
    assert!(x.len() == rows * columns && y.len() == x.len());
    if x.is_empty() {
        return;
    }
    let rows = rows_per_task(rows, columns);
    let rstd = Chunks::new(rstd, rows);
    let y = Chunks::new(y, rows * columns);
    pool.for_parts(rstd.count(), (y, rstd), |task, (y, rstd)| {
        fwd_rows(&x[task * rows * columns..][..y.len()], gamma, eps, y, rstd);
    });
}

/// Gradients: `dx` is overwritten (or added to, if `add`), `dgamma` is added to.
#[allow(clippy::too_many_arguments)]
pub fn bwd(
    pool: &Pool,
    x: &[f32],
    gamma: &[f32],
    rstd: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    add: bool,
    dgamma: &mut [f32],
) {
    let (rows, columns) = (rstd.len(), gamma.len());
    assert!(x.len() == rows * columns && dy.len() == x.len() && dx.len() == x.len());
    assert!(dgamma.len() == columns);
    if x.is_empty() {
        return;
    }
    let rows = rows_per_task(rows, columns);
    let dx = Chunks::new(dx, rows * columns);
    let partials = Partials { count: dx.count(), columns, sums: 1 };
    partials.run(pool, dx, [Some(dgamma)], |task, dx, dgamma| {
        let range = task * rows * columns..task * rows * columns + dx.len();
        let rstd = &rstd[task * rows..];
        bwd_rows(&x[range.clone()], gamma, rstd, &dy[range], dx, add, dgamma);
    });
}

simd! {
    fn fwd_rows[S](x: &[f32], gamma: &[f32], eps: f32, y: &mut [f32], rstd: &mut [f32]) {
        let columns = gamma.len();
        let rows = x.chunks_exact(columns).zip(y.chunks_exact_mut(columns));
        for ((x, y), rstd) in rows.zip(rstd) {
            let inverse = 1.0 / (lanes::dot::<S>(x, x) / columns as f32 + eps).sqrt();
            for ((y, &x), &gamma) in y.iter_mut().zip(x).zip(gamma) {
                *y = x * inverse * gamma;
            }
            *rstd = inverse;
        }
    }

    fn bwd_rows[S](
        x: &[f32], gamma: &[f32], rstd: &[f32], dy: &[f32], dx: &mut [f32], add: bool,
        dgamma: &mut [f32],
    ) {
        let columns = gamma.len();
        let rows = x.chunks_exact(columns).zip(dy.chunks_exact(columns));
        for (((x, dy), dx), &rstd) in rows.zip(dx.chunks_exact_mut(columns)).zip(rstd) {
            let product = lanes::fold_all([x, dy, gamma], |sum, [x, dy, gamma]| {
                S::mul_add(dy * gamma, x, sum)
            });
            let product = S::sum(product);
            let product = product * rstd * rstd / columns as f32;
            for j in 0..columns {
                dgamma[j] = S::mul_add(dy[j], x[j] * rstd, dgamma[j]);
                let value = rstd * S::mul_add(-product, x[j], dy[j] * gamma[j]);
                dx[j] = if add { dx[j] + value } else { value };
            }
        }
    }
}
