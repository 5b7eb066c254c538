//! What both passes share: rows of one head, where they come from and where they go.

use std::marker::PhantomData;

use crate::primitive::math;
use crate::primitive::simd::Simd;

/// Queries, and keys, in a tile of scores.
pub(super) const BLOCK: usize = 64;
/// Heads are computed in columns of this multiple; others are copied and filled up with zeros. It
/// is a multiple of two vectors of every level.
pub(super) const COLUMNS: usize = 32;

/// The rows of one head: `dim` elements every `stride`.
#[derive(Clone, Copy)]
pub(super) struct In<'a> {
    pub(super) data: &'a [f32],
    pub(super) stride: usize,
}

impl<'a> In<'a> {
    pub(super) fn row(&self, index: usize, dim: usize) -> &'a [f32] {
        &self.data[index * self.stride..][..dim]
    }

    /// A pointer to the row.
    pub(super) fn at(&self, index: usize) -> *const f32 {
        self.data[index * self.stride..].as_ptr()
    }

    /// The same rows with a multiple of [`COLUMNS`] elements: themselves, or a copy in `buffer`.
    pub(super) fn padded<'b>(self, tokens: usize, dim: usize, buffer: &'b mut [f32]) -> In<'b>
    where
        'a: 'b,
    {
        let padded = dim.next_multiple_of(COLUMNS);
        if padded == dim {
            return self;
        }
        for (index, out) in buffer.chunks_exact_mut(padded).take(tokens).enumerate() {
            out[..dim].copy_from_slice(self.row(index, dim));
            out[dim..].fill(0.0);
        }
        In { data: buffer, stride: padded }
    }

    /// Rows `begin..begin + count` as columns of `out`, which has `dim` rows of [`BLOCK`] elements;
    /// columns beyond `count` are zero.
    #[inline(always)]
    pub(super) fn transpose<S: Simd>(
        &self,
        begin: usize,
        count: usize,
        dim: usize,
        out: &mut [f32],
    ) {
        if count < BLOCK {
            out.fill(0.0);
        }
        let whole = dim / S::LANES * S::LANES;
        for column in (0..count).step_by(S::LANES) {
            let lanes = S::LANES.min(count - column);
            for step in (0..whole).step_by(S::LANES) {
                let from = &self.data[(begin + column) * self.stride + step..];
                let to = &mut out[step * BLOCK + column..];
                assert!(from.len() >= (lanes - 1) * self.stride + S::LANES);
                assert!(to.len() >= (S::LANES - 1) * BLOCK + lanes);
                // SAFETY: the rows lie inside `from` and the columns inside `to`, as asserted.
                unsafe {
                    let (from, to) = (from.as_ptr(), to.as_mut_ptr());
                    S::transpose::<false>(from, self.stride, lanes, to, BLOCK);
                }
            }
        }
        for column in 0..count {
            let row = self.row(begin + column, dim);
            for step in whole..dim {
                out[step * BLOCK + column] = row[step];
            }
        }
    }
}

/// Rows of an output of which each task writes its own.
#[derive(Clone, Copy)]
pub(super) struct OutRows<'a> {
    start: *mut f32,
    len: usize,
    stride: usize,
    output: PhantomData<&'a mut [f32]>,
}

// SAFETY: tasks write disjoint rows or columns, and the borrow of the output outlives the run.
unsafe impl Sync for OutRows<'_> {}
// SAFETY: as above.
unsafe impl Send for OutRows<'_> {}

impl<'a> OutRows<'a> {
    pub(super) fn new(output: &'a mut [f32], offset: usize, stride: usize) -> Self {
        let (start, len) = (output.as_mut_ptr(), output.len());
        Self { start, len, stride, output: PhantomData }.at(offset)
    }

    /// The rows that begin `offset` elements later.
    pub(super) fn at(&self, offset: usize) -> Self {
        assert!(offset <= self.len);
        // SAFETY: inside the output, or at its end.
        let start = unsafe { self.start.add(offset) };
        Self { start, len: self.len - offset, ..*self }
    }

    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// `len` elements from `begin`.
    ///
    /// # Safety
    /// No other slice of these elements is alive.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn slice(&self, begin: usize, len: usize) -> &'a mut [f32] {
        assert!(begin + len <= self.len);
        // SAFETY: inside the output, and exclusive as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(begin), len) }
    }

    /// The first `dim` elements of a row.
    ///
    /// # Safety
    /// As [`slice`](Self::slice).
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn row(&self, index: usize, dim: usize) -> &'a mut [f32] {
        // SAFETY: as the caller promises.
        unsafe { self.slice(index * self.stride, dim) }
    }
}

/// A row of a tile of scores.
pub(super) type Scores = [f32; BLOCK];

/// Row `index` of a tile, whose scores beyond the first `valid` are hidden.
#[inline(always)]
pub(super) fn scores_row(tile: &mut [f32], index: usize, valid: usize) -> &mut Scores {
    let row = tile[index * BLOCK..].first_chunk_mut::<BLOCK>().expect("a tile has whole rows");
    row[valid..].fill(f32::NEG_INFINITY);
    row
}

/// `x = exp(scale * x - shift)`, so zero for hidden scores.
#[inline(always)]
pub(super) fn exp_row<S: Simd>(x: &mut Scores, scale: f32, shift: f32) {
    for x in x {
        *x = math::exp_small::<S>(S::mul_add(*x, scale, -shift));
    }
}

/// How many keys of the block at `j` the query `i` sees.
#[inline(always)]
pub(super) fn visible(causal: bool, i: usize, j: usize, keys: usize) -> usize {
    if causal { (i + 1).saturating_sub(j).min(keys) } else { keys }
}
