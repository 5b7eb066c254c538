//! Packing: an operand is copied into panels that the register tile reads from front to back.
//!
//! A panel holds `width` lanes (rows of `A` or columns of `B`): for each step of `k`, `width`
//! elements, with zeros for lanes beyond the end. In pairs, an element is two bfloat16 of
//! neighbouring `k` in one word, the lower one first.

use std::ops::Range;

use crate::op::matmul::Plan;
use crate::primitive::pool::{Chunks, Pool};
use crate::primitive::simd::{Simd, bf16_pair, prefetch, simd};

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

/// Floats of a cache line.
const LINE: usize = 16;

/// Packs a whole operand, block after block of `k`, on all threads.
pub(super) fn all<const PAIRS: bool>(
    pool: &Pool,
    source: Source<'_>,
    plan: &Plan,
    width: usize,
    packed: &mut [f32],
) {
    let padded = source.lanes.next_multiple_of(width);
    let mut rest = packed;
    for steps in plan.blocks() {
        let (block, tail) = rest.split_at_mut(steps.len() * padded);
        rest = tail;
        // Several panels a task, so that a task is worth claiming and reads long runs of memory.
        let lanes_per_task = (64 * 1024 / steps.len()).next_multiple_of(width);
        let chunks = Chunks::new(block, lanes_per_task * steps.len());
        pool.for_parts(chunks.count(), chunks, |task, part| {
            let lanes = task * lanes_per_task..((task + 1) * lanes_per_task).min(source.lanes);
            panels::<PAIRS>(source, lanes, steps.clone(), width, part);
        });
    }
}

/// Steps that are packed for all panels before the next ones: few enough that the lines they
/// write stay in the first-level cache, enough that each panel gets a run of lines.
const STRIP: usize = 16;

simd! {
    /// Packs the panels of `lanes` (beginning at a panel) for `steps` of one block.
    pub(super) fn panels[S, const PAIRS: bool](
        source: Source<'_>, lanes: Range<usize>, steps: Range<usize>, width: usize,
        packed: &mut [f32],
    ) {
        // Where lanes lie together, rows are read from left to right, strip by strip; where steps
        // do, panel by panel.
        let strip = if source.by_step { STRIP } else { steps.len().max(1) };
        for begin in steps.clone().step_by(strip) {
            let strip = begin..(begin + strip).min(steps.end);
            for (panel, lane) in lanes.clone().step_by(width).enumerate() {
                let used = width.min(lanes.end - lane);
                let at = panel * steps.len() * width + (begin - steps.start) * width;
                let part = &mut packed[at..at + strip.len() * width];
                if source.by_step {
                    by_step::<S, PAIRS>(source, lane, used, strip.start, width, part);
                } else {
                    by_lane::<S, PAIRS>(source, lane, used, strip.start, width, part);
                }
            }
        }
    }
}

/// Part of a panel where the lanes of a step lie together: rows are copied.
#[inline(always)]
fn by_step<S: Simd, const PAIRS: bool>(
    source: Source<'_>,
    lane: usize,
    used: usize,
    start: usize,
    width: usize,
    panel: &mut [f32],
) {
    let per_step = if PAIRS { 2 } else { 1 };
    let steps = panel.len() / width;
    let whole = (source.steps.saturating_sub(per_step * start) / per_step).min(steps);
    let (panel, tail) = panel.split_at_mut(whole * width);
    if used == width {
        // The width is a constant of the level, so that the copies are a few instructions.
        match (S::LANES, width) {
            (16, 14) => rows::<S, PAIRS, 14>(source, lane, start, panel),
            (16, 32) => rows::<S, PAIRS, 32>(source, lane, start, panel),
            (8, 6) => rows::<S, PAIRS, 6>(source, lane, start, panel),
            (8, 16) => rows::<S, PAIRS, 16>(source, lane, start, panel),
            (_, 4) => rows::<S, PAIRS, 4>(source, lane, start, panel),
            _ => rows::<S, PAIRS, 8>(source, lane, start, panel),
        }
    } else {
        for (step, out) in panel.chunks_exact_mut(width).enumerate() {
            let row = per_step * (start + step) * source.lanes + lane;
            let low = &source.data[row..][..used];
            out[used..].fill(0.0);
            if PAIRS {
                let high = &source.data[row + source.lanes..][..used];
                for ((out, &low), &high) in out.iter_mut().zip(low).zip(high) {
                    *out = bf16_pair(low, high);
                }
            } else {
                out[..used].copy_from_slice(low);
            }
        }
    }
    tail.fill(0.0);
    let odd = per_step * (start + whole);
    if PAIRS && whole < steps && odd < source.steps {
        // The last element of an odd number has no neighbour.
        let row = &source.data[odd * source.lanes + lane..][..used];
        tail.iter_mut().zip(row).for_each(|(out, &low)| *out = bf16_pair(low, 0.0));
    }
}

/// Part of a panel where the steps of a lane lie together: a transposition.
#[inline(always)]
fn by_lane<S: Simd, const PAIRS: bool>(
    source: Source<'_>,
    lane: usize,
    used: usize,
    start: usize,
    width: usize,
    panel: &mut [f32],
) {
    let per_step = if PAIRS { 2 } else { 1 };
    let steps = panel.len() / width;
    let whole = (source.steps.saturating_sub(per_step * start) / per_step).min(steps);
    if used < width || whole < steps {
        panel.fill(0.0);
    }
    let blocks = whole / S::LANES * S::LANES;
    for step in (0..blocks).step_by(S::LANES) {
        for i in (0..used).step_by(S::LANES) {
            let lanes = S::LANES.min(used - i);
            let from = &source.data[(lane + i) * source.steps + per_step * (start + step)..];
            let to = &mut panel[step * width + i..];
            assert!(from.len() >= (lanes - 1) * source.steps + per_step * S::LANES);
            assert!(to.len() >= (S::LANES - 1) * width + lanes);
            // SAFETY: the rows lie inside `from` and the columns inside `to`, as asserted.
            unsafe {
                let (from, to) = (from.as_ptr(), to.as_mut_ptr());
                S::transpose::<PAIRS>(from, source.steps, lanes, to, width);
            }
        }
    }
    for i in 0..used {
        let row = &source.data[(lane + i) * source.steps..][..source.steps];
        for step in blocks..steps {
            let at = per_step * (start + step);
            let element = |at: usize| row.get(at).copied().unwrap_or(0.0);
            panel[step * width + i] =
                if PAIRS { bf16_pair(element(at), element(at + 1)) } else { element(at) };
        }
    }
}

/// Whole steps of a full panel of `W` lanes.
#[inline(always)]
fn rows<S: Simd, const PAIRS: bool, const W: usize>(
    source: Source<'_>,
    lane: usize,
    start: usize,
    panel: &mut [f32],
) {
    let row = |k: usize| -> &[f32; W] {
        source.data[k * source.lanes + lane..].first_chunk().expect("the panel's lanes exist")
    };
    let (panel, _) = panel.as_chunks_mut::<W>();
    let per_step = if PAIRS { 2 } else { 1 };
    for (step, out) in panel.iter_mut().enumerate() {
        // The rows lie far apart, which processors do not foresee: fetch those of the next strip.
        for k in 0..per_step {
            let ahead = per_step * (start + step + STRIP) + k;
            for at in (0..W).step_by(LINE) {
                let next = ahead * source.lanes + lane + at;
                prefetch(source.data.as_ptr().wrapping_add(next));
            }
        }
        if PAIRS {
            let k = 2 * (start + step);
            let (low, high) = (row(k), row(k + 1));
            for at in (0..W).step_by(S::LANES) {
                let count = S::LANES.min(W - at);
                // SAFETY: `at + count <= W`.
                unsafe {
                    let load = |row: &[f32; W]| S::load_first(row.as_ptr().add(at), count);
                    let pairs = S::round_pairs(load(low), load(high));
                    S::store_first(out.as_mut_ptr().add(at), pairs, count);
                }
            }
        } else {
            *out = *row(start + step);
        }
    }
}
