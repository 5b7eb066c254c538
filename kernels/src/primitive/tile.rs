//! The register-blocked product: a tile of `C` stays in registers while `k` runs.
//!
//! Matrix products call it on packed panels, attention on rows where they lie.

use super::simd::Simd;

/// Where the operands of a tile lie. Row `i`, step `k` of `A` is at `a + i * row_a + k * step_a`;
/// step `k` of `B` is a run of floats at `b + k * step_b`.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    pub(crate) a: *const f32,
    pub(crate) row_a: usize,
    pub(crate) step_a: usize,
    pub(crate) b: *const f32,
    pub(crate) step_b: usize,
    pub(crate) steps: usize,
}

/// The product of `M` rows and `N` vectors of columns. With `PAIRS`, each element is a pair of
/// bfloat16 and contributes two products.
///
/// # Safety
/// All elements that [`Operands`] describes for `M` rows and `N * LANES` columns are readable, and
/// the features of `S` are enabled in the function into which this is inlined.
#[inline(always)]
pub(crate) unsafe fn product<S: Simd, const PAIRS: bool, const M: usize, const N: usize>(
    x: Operands,
) -> [[S::V; N]; M] {
    let mut acc = [[S::splat(0.0); N]; M];
    let mut a = x.a;
    let mut b = x.b;
    for _ in 0..x.steps {
        // SAFETY: step `k < steps` of rows `< M` and columns `< N * LANES`, as the caller promises.
        // The pointers end one step behind the operands and are not read there.
        unsafe {
            let columns: [S::V; N] = std::array::from_fn(|j| S::load(b.add(j * S::LANES)));
            for (i, acc) in acc.iter_mut().enumerate() {
                let row = S::splat(*a.add(i * x.row_a));
                for (acc, &column) in acc.iter_mut().zip(&columns) {
                    *acc =
                        if PAIRS { S::dot2(row, column, *acc) } else { S::fma(row, column, *acc) };
                }
            }
            a = a.wrapping_add(x.step_a);
            b = b.wrapping_add(x.step_b);
        }
    }
    acc
}

/// Writes a tile to rows of `c`, adding to what is there if `add`.
///
/// # Safety
/// `c + i * row_c` is writable for `N * LANES` floats for each `i < M`; features as in [`product`].
#[inline(always)]
pub(crate) unsafe fn write<S: Simd, const M: usize, const N: usize>(
    tile: &[[S::V; N]; M],
    c: *mut f32,
    row_c: usize,
    add: bool,
) {
    for (i, row) in tile.iter().enumerate() {
        for (j, &value) in row.iter().enumerate() {
            // SAFETY: inside row `i`, as the caller promises.
            unsafe {
                let p = c.add(i * row_c + j * S::LANES);
                S::store(p, if add { S::add(S::load(p), value) } else { value });
            }
        }
    }
}

/// `C (+)= A B` for any number of rows, with columns in whole blocks of two vectors.
///
/// # Safety
/// As [`product`] and [`write`] for `rows` rows and `columns` columns; `columns` is a multiple of
/// `2 * LANES`. `C` overlaps neither operand.
#[inline(always)]
pub(crate) unsafe fn rows_times_columns<S: Simd>(
    x: Operands,
    rows: usize,
    columns: usize,
    c: *mut f32,
    row_c: usize,
    add: bool,
) {
    const M: usize = 8;
    let width = 2 * S::LANES;
    debug_assert_eq!(columns % width, 0);
    for j in (0..columns).step_by(width) {
        let mut i = 0;
        // SAFETY: rows `i..i + M` and columns `j..j + width` lie inside what the caller promises.
        unsafe {
            let at = |i: usize| Operands { a: x.a.add(i * x.row_a), b: x.b.add(j), ..x };
            while i + M <= rows {
                let tile = product::<S, false, M, 2>(at(i));
                write::<S, M, 2>(&tile, c.add(i * row_c + j), row_c, add);
                i += M;
            }
            while i < rows {
                let tile = product::<S, false, 1, 2>(at(i));
                write::<S, 1, 2>(&tile, c.add(i * row_c + j), row_c, add);
                i += 1;
            }
        }
    }
}
