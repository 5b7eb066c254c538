//! Reductions of a slice in a fixed order.
//!
//! Element `i` belongs to lane `i % 16`; lanes are combined by halving. The order does not depend
//! on the processor, so a sum differs between processors only where products are fused.

use super::simd::Simd;
pub(crate) use super::simd::halve;

/// Lanes of a reduction.
pub(crate) const LANES: usize = 16;

/// The lanes of a reduction of `x`: `step` takes in an element, starting from `init`.
#[inline(always)]
pub(crate) fn fold<T: Copy>(x: &[f32], init: T, step: impl Fn(T, f32) -> T) -> [T; LANES] {
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
    lanes
}

/// The same over several slices of equal length.
#[inline(always)]
pub(crate) fn fold_all<const N: usize>(
    x: [&[f32]; N],
    step: impl Fn(f32, [f32; N]) -> f32,
) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    let parts = x.map(|x| x.as_chunks::<LANES>());
    for block in 0..parts[0].0.len() {
        let blocks: [&[f32; LANES]; N] = parts.map(|(blocks, _)| &blocks[block]);
        for (index, lane) in lanes.iter_mut().enumerate() {
            *lane = step(*lane, blocks.map(|block| block[index]));
        }
    }
    for (index, lane) in lanes.iter_mut().enumerate().take(parts[0].1.len()) {
        *lane = step(*lane, parts.map(|(_, tail)| tail[index]));
    }
    lanes
}

/// Sum.
#[inline(always)]
pub(crate) fn sum<S: Simd>(x: &[f32]) -> f32 {
    S::sum(fold(x, 0.0, |sum, x| sum + x))
}

/// Sum of products.
#[inline(always)]
pub(crate) fn dot<S: Simd>(x: &[f32], y: &[f32]) -> f32 {
    S::sum(fold_all([x, y], |sum, [x, y]| S::mul_add(x, y, sum)))
}

/// The larger of two, or a NaN if there is one.
#[inline(always)]
pub(crate) fn larger(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

/// Maximum, negative infinity if empty, a NaN if there is one.
#[inline(always)]
pub(crate) fn max_or_nan(x: &[f32]) -> f32 {
    halve(fold(x, f32::NEG_INFINITY, larger), larger)
}

/// Maximum, negative infinity if empty. A NaN is lost or not: for a softmax, whose exponentials
/// are NaN where their argument is.
#[inline(always)]
pub(crate) fn max<S: Simd>(x: &[f32]) -> f32 {
    S::max(fold(x, f32::NEG_INFINITY, |max, x| if x > max { x } else { max }))
}
