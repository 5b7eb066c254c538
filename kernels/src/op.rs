//! Operators: kernels on slices, one module an operator.
//!
//! Matrices are row-major. Each function computes on the threads of the given
//! [`Pool`](crate::primitive::pool::Pool), with results that do not depend on how many there are.
//! The executor gives slices of the verified program's shapes, so a slice of the wrong length is a
//! broken invariant and panics. Values that come from data, such as token ids, are checked and
//! refused with [`IndexError`].

pub mod attention;
pub mod conv2d;
pub mod dropout;
pub mod elementwise;
pub mod embedding;
pub mod gelu;
pub mod layer_norm;
pub mod matmul;
pub mod pool2d;
pub mod reduce;
pub mod rms_norm;
pub mod softmax;
pub mod softmax_xent;
pub mod transpose;

/// An index in the data that no row or class answers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("index {index} at position {position} is not in 0..{bound}")]
pub struct IndexError {
    /// Where in the input.
    pub position: usize,
    /// The value.
    pub index: i32,
    /// The first value that is too large.
    pub bound: usize,
}

/// Checks that all of `indices` are below `bound`, or equal to `ignored` if there is such a value.
pub fn check_indices(
    indices: &[i32],
    bound: usize,
    ignored: Option<i32>,
) -> Result<(), IndexError> {
    let wrong = |&index: &i32| {
        usize::try_from(index).map_or(true, |index| index >= bound) && Some(index) != ignored
    };
    match indices.iter().position(wrong) {
        Some(position) => Err(IndexError { position, index: indices[position], bound }),
        None => Ok(()),
    }
}

/// Rows that one task takes of `rows` rows with `columns` elements: about 32 Ki elements, so that
/// claiming costs nothing, and at least four tasks for each of many threads. A function of the shape alone.
pub(crate) fn rows_per_task(rows: usize, columns: usize) -> usize {
    let by_size = (32 * 1024_usize).div_ceil(columns.max(1));
    by_size.min(rows.div_ceil(32)).max(1)
}

/// Elements that one task of an elementwise operator takes.
pub(crate) const ELEMENTS_PER_TASK: usize = 32 * 1024;
