//! Reductions of a slice in a fixed order.
//!
//! Element `i` belongs to lane `i % 16`; lanes are combined by halving. The order does not depend
//! on the processor, so a sum differs between processors only where products are fused.

use super::simd::Simd;

/// Lanes of a reduction.
pub(crate) const LANES: usize = 16;

/// Reduces `f` of each element by `combine`, starting from `init` in each lane.
#[inline(always)]
pub(crate) fn fold<T: Copy>(
    x: &[f32],
    init: T,
    step: impl Fn(T, f32) -> T,
    combine: impl Fn(T, T) -> T,
) -> T {
    let mut lanes = [init; LANES];
    let (blocks, tail) = x.as_chunks::<LANES>();
    for block in blocks {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane = step(*lane, x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(tail) {
        *lane = step(*lane, x);
    }
    halve(lanes, combine)
}

/// The same over two slices of equal length.
#[inline(always)]
pub(crate) fn fold2<T: Copy>(
    x: &[f32],
    y: &[f32],
    init: T,
    step: impl Fn(T, f32, f32) -> T,
    combine: impl Fn(T, T) -> T,
) -> T {
    let mut lanes = [init; LANES];
    let (x_blocks, x_tail) = x.as_chunks::<LANES>();
    let (y_blocks, y_tail) = y.as_chunks::<LANES>();
    for (x, y) in x_blocks.iter().zip(y_blocks) {
        for lane in 0..LANES {
            lanes[lane] = step(lanes[lane], x[lane], y[lane]);
        }
    }
    for ((lane, &x), &y) in lanes.iter_mut().zip(x_tail).zip(y_tail) {
        *lane = step(*lane, x, y);
    }
    halve(lanes, combine)
}

/// Combines lanes pairwise: 16 to 8 to 4 to 2 to 1.
#[inline(always)]
pub(crate) fn halve<T: Copy>(mut lanes: [T; LANES], combine: impl Fn(T, T) -> T) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = combine(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Sum.
#[inline(always)]
pub(crate) fn sum(x: &[f32]) -> f32 {
    fold(x, 0.0, |sum, x| sum + x, |a, b| a + b)
}

/// Sum of products.
#[inline(always)]
pub(crate) fn dot<S: Simd>(x: &[f32], y: &[f32]) -> f32 {
    fold2(x, y, 0.0, |sum, x, y| S::mul_add(x, y, sum), |a, b| a + b)
}

/// The larger of two, or a NaN if there is one.
#[inline(always)]
pub(crate) fn larger(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

/// Maximum, negative infinity if empty, a NaN if there is one.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    fold(x, f32::NEG_INFINITY, larger, larger)
}
