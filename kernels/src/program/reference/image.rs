//! Convolution and pooling in their plainest form.

use super::{Operand, Real};
use crate::program::op::{Op, PoolKind, Window};
use crate::shape::Shape;

pub(super) fn evaluate<T: Real>(
    op: &Op,
    inputs: &[Operand<'_, T>],
    shape: &Shape,
    outputs: &mut [&mut [T]],
) {
    let (output, rest) = outputs.split_first_mut().expect("image operators have an output");
    let real = |place: usize| inputs[place].real();
    let of = |place: usize| inputs[place].shape;
    match op {
        Op::Conv2d(window) => {
            let bias = inputs.get(2).map(Operand::real);
            let (x, w) = (real(0), real(1));
            let area = shape[2] * shape[3];
            for (place, y) in output.iter_mut().enumerate() {
                *y = bias.map_or(T::ZERO, |bias| bias[place / area % shape[1]]);
            }
            taps(window, of(0), of(1), |at, kernel, to| {
                output[to] = output[to] + x[at] * w[kernel];
            });
        }
        Op::Conv2dGrad(window) => {
            let (x, w, dy) = (real(0), real(1), real(2));
            let [dw, dbias] = rest else { unreachable!("has three outputs") };
            output.fill(T::ZERO);
            dw.fill(T::ZERO);
            dbias.fill(T::ZERO);
            taps(window, of(0), of(1), |at, kernel, to| {
                output[at] = output[at] + dy[to] * w[kernel];
                dw[kernel] = dw[kernel] + dy[to] * x[at];
            });
            let area = of(2)[2] * of(2)[3];
            for (place, &dy) in dy.iter().enumerate() {
                let filter = place / area % dbias.len();
                dbias[filter] = dbias[filter] + dy;
            }
        }
        Op::Pool2d { kind, kernel, window } => {
            let x = real(0);
            let count = T::of((kernel * kernel) as f64);
            for (to, y) in output.iter_mut().enumerate() {
                *y = match kind {
                    PoolKind::Max => x[first_maximum(window, *kernel, of(0), shape, x, to)],
                    PoolKind::Mean => {
                        let mut sum = T::ZERO;
                        pooled(window, *kernel, of(0), shape, to, |at| sum = sum + x[at]);
                        sum / count
                    }
                };
            }
        }
        Op::Pool2dGrad { kind, kernel, window } => {
            let (x, dy) = (real(0), real(1));
            let count = T::of((kernel * kernel) as f64);
            output.fill(T::ZERO);
            for (to, &dy) in dy.iter().enumerate() {
                match kind {
                    PoolKind::Max => {
                        let at = first_maximum(window, *kernel, of(0), of(1), x, to);
                        output[at] = output[at] + dy;
                    }
                    PoolKind::Mean => pooled(window, *kernel, of(0), of(1), to, |at| {
                        output[at] = output[at] + dy / count;
                    }),
                }
            }
        }
        _ => unreachable!("called for image operators only"),
    }
}

/// Calls `f(place in x, place in w, place in y)` for each product of a convolution.
fn taps(window: &Window, x: &Shape, w: &Shape, mut f: impl FnMut(usize, usize, usize)) {
    let count = |len, kernel| window.count(len, kernel).expect("the specification checked it");
    let (rows, columns) = (count(x[2], w[2]), count(x[3], w[3]));
    for n in 0..x[0] {
        for o in 0..w[0] {
            for row in 0..rows {
                for column in 0..columns {
                    let to = ((n * w[0] + o) * rows + row) * columns + column;
                    for c in 0..x[1] {
                        for i in 0..w[2] {
                            for j in 0..w[3] {
                                let (Some(h), Some(v)) =
                                    (inside(window, row, i, x[2]), inside(window, column, j, x[3]))
                                else {
                                    continue;
                                };
                                let at = ((n * x[1] + c) * x[2] + h) * x[3] + v;
                                f(at, ((o * w[1] + c) * w[2] + i) * w[3] + j, to);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Place in the image of tap `tap` of window `place`, unless it is padding.
fn inside(window: &Window, place: usize, tap: usize, len: usize) -> Option<usize> {
    (place * window.stride + tap).checked_sub(window.padding).filter(|&at| at < len)
}

/// Calls `f(place in x)` for each image element under pooling window `to`.
fn pooled(
    window: &Window,
    kernel: usize,
    x: &Shape,
    y: &Shape,
    to: usize,
    mut f: impl FnMut(usize),
) {
    let (plane, row, column) = (to / (y[2] * y[3]), to / y[3] % y[2], to % y[3]);
    for i in 0..kernel {
        for j in 0..kernel {
            if let (Some(h), Some(v)) =
                (inside(window, row, i, x[2]), inside(window, column, j, x[3]))
            {
                f((plane * x[2] + h) * x[3] + v);
            }
        }
    }
}

fn first_maximum<T: Real>(
    window: &Window,
    kernel: usize,
    x_shape: &Shape,
    y_shape: &Shape,
    x: &[T],
    to: usize,
) -> usize {
    let mut best = None;
    pooled(window, kernel, x_shape, y_shape, to, |at| {
        if best.is_none_or(|best: usize| x[at] > x[best]) {
            best = Some(at);
        }
    });
    best.expect("padding is at most half the kernel, so that each window holds an element")
}
