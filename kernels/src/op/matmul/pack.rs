//! Packing: an operand is copied into panels that the register tile reads from front to back.
//!
//! A panel holds `width` lanes (rows of `A` or columns of `B`): for each step of `k`, `width`
//! elements, with zeros for lanes beyond the end. In pairs, an element is two bfloat16 of
//! neighbouring `k` in one word, the lower one first.

use std::ops::Range;

use crate::op::matmul::Plan;
use crate::primitive::pool::{Chunks, Pool};
use crate::primitive::simd::simd;

/// An operand, seen from the panels.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) data: &'a [f32],
    pub(super) lanes: usize,
    /// Elements of `k`, unpaired.
    pub(super) steps: usize,
    /// Whether the lanes of a step lie together (`data` is steps by lanes), or the steps of a
    /// lane do.
    pub(super) by_step: bool,
}

/// Packs a whole operand, block after block of `k`, on all threads.
pub(super) fn all<const PAIRS: bool>(
    pool: &Pool,
    source: Source<'_>,
    plan: &Plan,
    width: usize,
    packed: &mut [f32],
) {
    // Several panels a task, so that a task is worth claiming.
    let padded = source.lanes.next_multiple_of(width);
    let mut rest = packed;
    for steps in plan.blocks() {
        let (block, tail) = rest.split_at_mut(steps.len() * padded);
        rest = tail;
        let lanes_per_task = (32 * 1024 / steps.len()).next_multiple_of(width);
        let chunks = Chunks::new(block, lanes_per_task * steps.len());
        pool.for_parts(chunks.count(), chunks, |task, part| {
            let lanes = task * lanes_per_task..((task + 1) * lanes_per_task).min(source.lanes);
            panels::<PAIRS>(source, lanes, steps.clone(), width, part);
        });
    }
}

/// Packs the panels of `lanes` (beginning at a panel) for `steps` of one block.
pub(super) fn panels<const PAIRS: bool>(
    source: Source<'_>,
    lanes: Range<usize>,
    steps: Range<usize>,
    width: usize,
    packed: &mut [f32],
) {
    let (mut lane, mut at) = (lanes.start, 0);
    while lane < lanes.end {
        let used = width.min(lanes.end - lane);
        let len = steps.len() * width;
        let panel = &mut packed[at..at + len];
        if source.by_step {
            panel_by_step::<PAIRS>(source, lane, used, steps.start, width, panel);
        } else {
            panel_by_lane::<PAIRS>(source, lane, used, steps.start, width, panel);
        }
        (lane, at) = (lane + width, at + len);
    }
}

/// A float rounded to bfloat16 (to nearest, ties to even), in the upper half of the word.
#[inline(always)]
fn round(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    // A NaN must not round to infinity.
    (if x.is_nan() { bits | 0x0040_0000 } else { rounded }) & 0xffff_0000
}

/// Two floats as a pair of bfloat16 in one word.
#[inline(always)]
fn pair(low: f32, high: f32) -> f32 {
    f32::from_bits(round(high) | (round(low) >> 16))
}

simd! {
    /// One panel where the lanes of a step lie together: rows are copied.
    fn panel_by_step[S, const PAIRS: bool](
        source: Source<'_>, lane: usize, used: usize, start: usize, width: usize, panel: &mut [f32],
    ) {
        for (step, out) in panel.chunks_exact_mut(width).enumerate() {
            let row = |k: usize| &source.data[k * source.lanes + lane..][..used];
            let (out, padding) = out.split_at_mut(used);
            if PAIRS {
                let k = 2 * (start + step);
                if k + 1 < source.steps {
                    let (low, high) = (row(k), row(k + 1));
                    for ((out, &low), &high) in out.iter_mut().zip(low).zip(high) {
                        *out = pair(low, high);
                    }
                } else if k < source.steps {
                    for (out, &low) in out.iter_mut().zip(row(k)) {
                        *out = pair(low, 0.0);
                    }
                } else {
                    out.fill(0.0);
                }
            } else if start + step < source.steps {
                out.copy_from_slice(row(start + step));
            } else {
                out.fill(0.0);
            }
            padding.fill(0.0);
        }
    }

    /// One panel where the steps of a lane lie together: a transposition.
    fn panel_by_lane[S, const PAIRS: bool](
        source: Source<'_>, lane: usize, used: usize, start: usize, width: usize, panel: &mut [f32],
    ) {
        let steps = panel.len() / width;
        if used < width {
            panel.fill(0.0);
        }
        for i in 0..used {
            let row = &source.data[(lane + i) * source.steps..][..source.steps];
            if PAIRS {
                let row = &row[(2 * start).min(row.len())..];
                let row = &row[..row.len().min(2 * steps)];
                let (pairs, single) = row.as_chunks::<2>();
                for (step, &[low, high]) in pairs.iter().enumerate() {
                    panel[step * width + i] = pair(low, high);
                }
                let mut filled = pairs.len();
                if let &[low] = single {
                    panel[filled * width + i] = pair(low, 0.0);
                    filled += 1;
                }
                for step in filled..steps {
                    panel[step * width + i] = 0.0;
                }
            } else {
                let row = &row[start.min(row.len())..];
                for (step, &x) in row.iter().take(steps).enumerate() {
                    panel[step * width + i] = x;
                }
                for step in row.len().min(steps)..steps {
                    panel[step * width + i] = 0.0;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_the_half_crate() {
        let mut x = 1u32;
        for _ in 0..200_000 {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = f32::from_bits(x);
            let expected = half::bf16::from_f32(value);
            if value.is_nan() {
                assert!(f32::from_bits(round(value)).is_nan());
            } else {
                assert_eq!((round(value) >> 16) as u16, expected.to_bits(), "{value}");
            }
        }
    }
}
