//! Layer normalization over the last axis.

use crate::op::reduce::Partials;
use crate::op::rows_per_task;
use crate::primitive::lanes;
use crate::primitive::pool::{Chunks, Pool};
use crate::primitive::simd::simd;

/// `y = (x - mean) * rstd * gamma + beta` for each of the rows of `x`.
///
/// `gamma` and `beta` have one element a column, `mean` and `rstd` (outputs that the backward pass
/// reads) one a row. The variance is the biased one, as in PyTorch.
#[allow(clippy::too_many_arguments)]
pub fn fwd(
    pool: &Pool,
    x: &[f32],
    gamma: &[f32],
    beta: Option<&[f32]>,
    eps: f32,
    y: &mut [f32],
    mean: &mut [f32],
    rstd: &mut [f32],
) {
    let (rows, columns) = (mean.len(), gamma.len());
    assert!(x.len() == rows * columns && y.len() == x.len() && rstd.len() == rows);
    assert!(beta.is_none_or(|beta| beta.len() == columns));
    if x.is_empty() {
        return;
    }
    let rows = rows_per_task(rows, columns);
    let mean = Chunks::new(mean, rows);
    let parts = (Chunks::new(y, rows * columns), Chunks::new(rstd, rows));
    pool.for_parts(mean.count(), (mean, parts.0, parts.1), |task, (mean, y, rstd)| {
        fwd_rows(&x[task * rows * columns..][..y.len()], gamma, beta, eps, y, mean, rstd);
    });
}

/// Gradients: `dx` is overwritten (or added to, if `add`), `dgamma` and `dbeta` are added to.
#[allow(clippy::too_many_arguments)]
pub fn bwd(
    pool: &Pool,
    x: &[f32],
    gamma: &[f32],
    mean: &[f32],
    rstd: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    add: bool,
    dgamma: &mut [f32],
    dbeta: Option<&mut [f32]>,
) {
    let (rows, columns) = (mean.len(), gamma.len());
    assert!(x.len() == rows * columns && dy.len() == x.len() && dx.len() == x.len());
    assert!(rstd.len() == rows && dgamma.len() == columns);
    assert!(dbeta.as_ref().is_none_or(|dbeta| dbeta.len() == columns));
    if x.is_empty() {
        return;
    }
    let rows = rows_per_task(rows, columns);
    let dx = Chunks::new(dx, rows * columns);
    let count = dx.count();
    let partials = Partials { count, columns, sums: 2 };
    let outputs = (Some(dgamma), dbeta);
    partials.run(pool, dx, [outputs.0, outputs.1], |task, dx, sums| {
        let range = task * rows * columns..task * rows * columns + dx.len();
        let (dgamma, dbeta) = sums.split_at_mut(columns);
        let first = task * rows;
        bwd_rows(
            &x[range.clone()],
            gamma,
            &mean[first..],
            &rstd[first..],
            &dy[range],
            dx,
            add,
            dgamma,
            dbeta,
        );
    });
}

simd! {
    fn fwd_rows[S](
        x: &[f32], gamma: &[f32], beta: Option<&[f32]>, eps: f32, y: &mut [f32], mean: &mut [f32],
        rstd: &mut [f32],
    ) {
        let columns = gamma.len();
        let scale = 1.0 / columns as f32;
        let rows = x.chunks_exact(columns).zip(y.chunks_exact_mut(columns));
        for (((x, y), mean), rstd) in rows.zip(mean).zip(rstd) {
            let center = lanes::sum::<S>(x) * scale;
            let square = |sum, x: f32| S::mul_add(x - center, x - center, sum);
            let variance = S::sum(lanes::fold(x, 0.0, square)) * scale;
            let inverse = 1.0 / (variance + eps).sqrt();
            if let Some(beta) = beta {
                for (((y, &x), &gamma), &beta) in y.iter_mut().zip(x).zip(gamma).zip(beta) {
                    *y = S::mul_add((x - center) * inverse, gamma, beta);
                }
            } else {
                for ((y, &x), &gamma) in y.iter_mut().zip(x).zip(gamma) {
                    *y = (x - center) * inverse * gamma;
                }
            }
            *mean = center;
            *rstd = inverse;
        }
    }

    fn bwd_rows[S](
        x: &[f32], gamma: &[f32], mean: &[f32], rstd: &[f32], dy: &[f32], dx: &mut [f32],
        add: bool, dgamma: &mut [f32], dbeta: &mut [f32],
    ) {
        let columns = gamma.len();
        let scale = 1.0 / columns as f32;
        let (dgamma, dbeta) = (&mut dgamma[..columns], &mut dbeta[..columns]);
        let rows = x.chunks_exact(columns).zip(dy.chunks_exact(columns));
        for ((((x, dy), dx), &mean), &rstd) in
            rows.zip(dx.chunks_exact_mut(columns)).zip(mean).zip(rstd)
        {
            let sum = lanes::dot::<S>(dy, gamma) * scale;
            let product = lanes::fold_all([x, dy, gamma], |sum, [x, dy, gamma]| {
                S::mul_add(dy * gamma, (x - mean) * rstd, sum)
            });
            let product = S::sum(product) * scale;
            for j in 0..columns {
                let normal = (x[j] - mean) * rstd;
                dgamma[j] = S::mul_add(dy[j], normal, dgamma[j]);
                dbeta[j] += dy[j];
                let inner = S::mul_add(dy[j], gamma[j], -S::mul_add(normal, product, sum));
                let value = inner * rstd;
                dx[j] = if add { dx[j] + value } else { value };
            }
        }
    }
}
