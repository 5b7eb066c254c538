//! Sums, means and maxima over an axis or over everything, in an order fixed by the shape.

use crate::op::{ELEMENTS_PER_TASK, rows_per_task};
use crate::primitive::lanes;
use crate::primitive::pool::{Chunks, Parts, Pool};
use crate::primitive::scratch;
use crate::primitive::simd::simd;

/// What is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The sum; zero of nothing.
    Sum,
    /// The sum divided by the number of elements; NaN of nothing.
    Mean,
    /// The largest element, NaN if there is one; negative infinity of nothing.
    Max,
}

/// Reduces each row of `x`: `out[r]` from `columns = x.len() / out.len()` elements.
pub fn last_axis(pool: &Pool, kind: Kind, x: &[f32], out: &mut [f32]) {
    if out.is_empty() {
        return;
    }
    let columns = x.len() / out.len();
    assert_eq!(x.len(), columns * out.len());
    let rows = rows_per_task(out.len(), columns);
    let out = Chunks::new(out, rows);
    pool.for_parts(out.count(), out, |task, out| {
        let x = &x[task * rows * columns..][..out.len() * columns];
        for (row, out) in out.iter_mut().enumerate() {
            *out = finish(kind, row_value(kind, &x[row * columns..][..columns]), columns);
        }
    });
}

/// Reduces the rows of `x` to one: `out[c]` from the `x.len() / out.len()` elements of column `c`.
/// With `add` the result is added to `out`, as for the gradient of a bias.
pub fn first_axis(pool: &Pool, kind: Kind, x: &[f32], out: &mut [f32], add: bool) {
    let columns = out.len();
    if columns == 0 {
        return;
    }
    let rows = x.len() / columns;
    assert_eq!(x.len(), rows * columns);
    let rows_each = rows_per_task(rows, columns);
    let count = rows.div_ceil(rows_each);
    scratch::with(count * columns, |partials| {
        let chunks = Chunks::new(partials, columns);
        pool.for_parts(count, chunks, |task, partial| {
            let range = task * rows_each * columns..((task + 1) * rows_each * columns).min(x.len());
            partial.fill(start(kind));
            column_values(kind, &x[range], partial);
        });
        for (column, out) in out.iter_mut().enumerate() {
            let column = partials.iter().skip(column).step_by(columns);
            let value = column.fold(start(kind), |a, &b| combine(kind, a, b));
            let value = finish(kind, value, rows);
            *out = if add { *out + value } else { value };
        }
    });
}

/// Reduces all of `x` to one number.
pub fn all(pool: &Pool, kind: Kind, x: &[f32]) -> f32 {
    let count = x.len().div_ceil(ELEMENTS_PER_TASK);
    scratch::with(count, |partials| {
        let chunks = Chunks::new(partials, 1);
        pool.for_parts(count, chunks, |task, partial| {
            let begin = task * ELEMENTS_PER_TASK;
            partial[0] = row_value(kind, &x[begin..(begin + ELEMENTS_PER_TASK).min(x.len())]);
        });
        let value = partials.iter().fold(start(kind), |a, &b| combine(kind, a, b));
        finish(kind, value, x.len())
    })
}

/// Sums over rows that are by-products of an operator: each task sums its rows into an own part,
/// and the parts are added in the order of the tasks.
pub(crate) struct Partials {
    /// Tasks.
    pub(crate) count: usize,
    /// Elements of a sum.
    pub(crate) columns: usize,
    /// Sums that a task makes.
    pub(crate) sums: usize,
}

impl Partials {
    /// Calls `f(task, part, sums)` with zeroed `sums` (one after the other), and adds the totals
    /// to the `outputs` that are there.
    pub(crate) fn run<P: Parts, const N: usize>(
        &self,
        pool: &Pool,
        parts: P,
        outputs: [Option<&mut [f32]>; N],
        f: impl Fn(usize, P::Part, &mut [f32]) + Sync,
    ) {
        debug_assert_eq!(N, self.sums);
        let len = self.sums * self.columns;
        scratch::with(self.count * len, |partials| {
            let chunks = Chunks::new(partials, len);
            pool.for_parts(self.count, (parts, chunks), |task, (part, sums)| {
                sums.fill(0.0);
                f(task, part, sums);
            });
            for (index, output) in outputs.into_iter().enumerate() {
                if let Some(output) = output {
                    for partial in partials.chunks_exact(len) {
                        let partial = &partial[index * self.columns..][..self.columns];
                        output.iter_mut().zip(partial).for_each(|(out, x)| *out += x);
                    }
                }
            }
        });
    }
}

fn start(kind: Kind) -> f32 {
    match kind {
        Kind::Sum | Kind::Mean => 0.0,
        Kind::Max => f32::NEG_INFINITY,
    }
}

fn combine(kind: Kind, a: f32, b: f32) -> f32 {
    match kind {
        Kind::Sum | Kind::Mean => a + b,
        Kind::Max => lanes::larger(a, b),
    }
}

fn finish(kind: Kind, value: f32, count: usize) -> f32 {
    match kind {
        Kind::Mean => value / count as f32,
        Kind::Sum | Kind::Max => value,
    }
}

simd! {
    fn row_value[S](kind: Kind, x: &[f32]) -> f32 {
        match kind {
            Kind::Sum | Kind::Mean => lanes::sum::<S>(x),
            Kind::Max => lanes::max_or_nan(x),
        }
    }

    fn column_values[S](kind: Kind, x: &[f32], out: &mut [f32]) {
        for row in x.chunks_exact(out.len()) {
            match kind {
                Kind::Sum | Kind::Mean => {
                    out.iter_mut().zip(row).for_each(|(out, &x)| *out += x);
                }
                Kind::Max => {
                    out.iter_mut().zip(row).for_each(|(out, &x)| *out = lanes::larger(*out, x));
                }
            }
        }
    }
}
