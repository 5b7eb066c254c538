//! Axes in another order.

use crate::op::ELEMENTS_PER_TASK;
use crate::primitive::pool::{Chunks, Pool};

/// The most axes of a tensor.
pub const AXES_MAX: usize = 8;

/// Copies `x` of `shape` to `y`, whose axis `i` is axis `axes[i]` of `x`.
///
/// # Panics
/// If `axes` is not a permutation of the axes, or a slice does not fit `shape`.
pub fn permute(pool: &Pool, shape: &[usize], axes: &[usize], x: &[f32], y: &mut [f32]) {
    assert!(shape.len() == axes.len() && shape.len() <= AXES_MAX, "axes of {shape:?}");
    let len: usize = shape.iter().product();
    assert!(x.len() == len && y.len() == len, "elements of {shape:?}");
    let mut used = [false; AXES_MAX];
    axes.iter().for_each(|&axis| used[axis] = true);
    assert!(used[..shape.len()].iter().all(|&used| used), "{axes:?} is no permutation");
    if len == 0 {
        return;
    }
    let plan = Walk::new(shape, axes);
    let y = Chunks::new(y, ELEMENTS_PER_TASK);
    pool.for_parts(y.count(), y, |task, y| plan.copy(task * ELEMENTS_PER_TASK, x, y));
}

/// The axes of the result, outermost first: their lengths, and their strides in the input.
struct Walk {
    axes: usize,
    len: [usize; AXES_MAX],
    stride: [usize; AXES_MAX],
}

impl Walk {
    fn new(shape: &[usize], axes: &[usize]) -> Self {
        let stride = |axis: usize| shape[axis + 1..].iter().product::<usize>();
        let mut walk = Self { axes: 0, len: [1; AXES_MAX], stride: [0; AXES_MAX] };
        for &axis in axes {
            let last = walk.axes.wrapping_sub(1);
            // Axes that stay neighbours are one.
            if walk.axes > 0 && walk.stride[last] == shape[axis] * stride(axis) {
                walk.len[last] *= shape[axis];
                walk.stride[last] = stride(axis);
            } else {
                walk.len[walk.axes] = shape[axis];
                walk.stride[walk.axes] = stride(axis);
                walk.axes += 1;
            }
        }
        walk.axes = walk.axes.max(1);
        walk
    }

    /// Fills `y`, which begins at element `begin` of the result.
    fn copy(&self, begin: usize, x: &[f32], y: &mut [f32]) {
        let inner = self.axes - 1;
        let mut place = [0; AXES_MAX];
        let mut rest = begin;
        for axis in (0..self.axes).rev() {
            place[axis] = rest % self.len[axis];
            rest /= self.len[axis];
        }
        let mut y = y;
        while !y.is_empty() {
            let from: usize = (0..self.axes).map(|axis| place[axis] * self.stride[axis]).sum();
            let count = y.len().min(self.len[inner] - place[inner]);
            let (run, later) = y.split_at_mut(count);
            if self.stride[inner] == 1 {
                run.copy_from_slice(&x[from..from + count]);
            } else {
                let stride = self.stride[inner].max(1);
                run.iter_mut().zip(x[from..].iter().step_by(stride)).for_each(|(y, &x)| *y = x);
            }
            y = later;
            place[inner] = 0;
            for axis in (0..inner).rev() {
                place[axis] += 1;
                if place[axis] < self.len[axis] {
                    break;
                }
                place[axis] = 0;
            }
        }
    }
}
