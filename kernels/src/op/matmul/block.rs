//! One task's block of `C` from packed panels.

use std::ops::Range;

use crate::op::matmul::Epilogue;
use crate::primitive::simd::{Level, Simd, level, prefetch, simd};
use crate::primitive::tile::{self, Operands};

/// The result, of which each task writes its own tile.
pub(super) struct Out {
    pub(super) c: *mut f32,
    pub(super) row_c: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
}

// SAFETY: tasks write disjoint tiles, and the borrow of `C` outlives the run.
unsafe impl Sync for Out {}

/// A block of the product: panels of `A` for `rows`, panels of `B` for `columns`.
pub(super) struct Block<'a> {
    pub(super) a: &'a [f32],
    pub(super) b: &'a [f32],
    pub(super) steps: usize,
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
    pub(super) out: &'a Out,
    /// Whether the products are added to what `C` holds.
    pub(super) add: bool,
    /// What follows when the last block of `k` is done.
    pub(super) epilogue: Option<&'a Epilogue<'a>>,
}

/// Rows and columns of the register tile: as many as the registers hold beside the operands.
pub(super) fn tile_size() -> (usize, usize) {
    match level() {
        Level::Avx512 | Level::Avx512Bf16 => (14, 32),
        Level::Avx2 => (6, 16),
        Level::Portable => (4, 8),
    }
}

simd! {
    /// Computes a block.
    pub(super) fn multiply[S, const PAIRS: bool](block: Block<'_>) {
        match S::LANES {
            16 => tiles::<S, PAIRS, 14>(&block),
            8 => tiles::<S, PAIRS, 6>(&block),
            _ => tiles::<S, PAIRS, 4>(&block),
        }
    }
}

/// Panels whose epilogue runs at once: wide enough that the second matrix is read in long runs,
/// narrow enough that the products are still in the second-level cache.
const EPILOGUE_PANELS: usize = 8;

/// Vectors in a row of the tile.
const N: usize = 2;
/// The largest tile, for results that do not fit into `C`.
const TILE_MAX: usize = 14 * 32;

#[inline(always)]
fn tiles<S: Simd, const PAIRS: bool, const M: usize>(block: &Block<'_>) {
    let width = N * S::LANES;
    let Block { steps, out, .. } = *block;
    assert!(block.rows.end <= out.rows && block.columns.end <= out.columns);
    let a_panels = block.rows.len().div_ceil(M);
    let b_panels = block.columns.len().div_ceil(width);
    assert!(block.a.len() >= a_panels * M * steps && block.b.len() >= b_panels * width * steps);
    let mut spare = [0.0; TILE_MAX];
    for j in 0..b_panels {
        let column = block.columns.start + j * width;
        let columns = width.min(block.columns.end - column);
        for i in 0..a_panels {
            let row = block.rows.start + i * M;
            let rows = M.min(block.rows.end - row);
            // SAFETY: panels `i` and `j` lie inside the packed operands by the assertion above. The
            // tile is written to `C` only where it lies inside, else to `spare`, and only this task
            // has these rows and columns.
            unsafe {
                let operands = Operands {
                    a: block.a.as_ptr().add(i * M * steps),
                    row_a: 1,
                    step_a: M,
                    b: block.b.as_ptr().add(j * width * steps),
                    step_b: width,
                    steps,
                };
                let c = out.c.add(row * out.row_c + column);
                for i in 0..M {
                    for j in 0..N {
                        prefetch(c.wrapping_add(i * out.row_c + j * S::LANES));
                    }
                }
                let product = tile::product::<S, PAIRS, M, N>(operands);
                if rows == M && columns == width {
                    tile::write::<S, M, N>(&product, c, out.row_c, block.add);
                } else {
                    tile::write::<S, M, N>(&product, spare.as_mut_ptr(), width, false);
                    for i in 0..rows {
                        for j in 0..columns {
                            let value = spare[i * width + j];
                            let c = c.add(i * out.row_c + j);
                            *c = if block.add { *c + value } else { value };
                        }
                    }
                }
            }
        }
        let last = j + 1 == b_panels;
        if last || (j + 1).is_multiple_of(EPILOGUE_PANELS) {
            let begin = block.columns.start + j / EPILOGUE_PANELS * EPILOGUE_PANELS * width;
            let end = (column + width).min(block.columns.end);
            finish(block, begin..end);
        }
    }
}

/// Applies what follows the product to columns of all rows of the block.
#[inline(always)]
fn finish(block: &Block<'_>, columns: Range<usize>) {
    let out = block.out;
    let Some(epilogue) = block.epilogue else { return };
    if matches!(epilogue, Epilogue::Set | Epilogue::Add) {
        return;
    }
    for row in block.rows.clone() {
        // SAFETY: inside `C`, and only this task has these rows and columns.
        let c = unsafe {
            let start = out.c.add(row * out.row_c + columns.start);
            std::slice::from_raw_parts_mut(start, columns.len())
        };
        epilogue.apply(c, row, columns.start, out.row_c);
    }
}
