//! Rows of a table by index, and the gradient of the table.

use crate::op::{IndexError, check_indices, rows_per_task};
use crate::primitive::pool::{Chunks, Pool, Shared};

/// `y[r] = table[ids[r]]`, plus `positions[r % P]` for a table of `P` positions.
///
/// Rows have `columns` elements.
///
/// # Errors
/// An id without a row.
pub fn fwd(
    pool: &Pool,
    columns: usize,
    table: &[f32],
    positions: Option<&[f32]>,
    ids: &[i32],
    y: &mut [f32],
) -> Result<(), IndexError> {
    assert_eq!(y.len(), ids.len() * columns);
    if y.is_empty() {
        return Ok(());
    }
    check_indices(ids, table.len() / columns, None)?;
    let rows = rows_per_task(ids.len(), columns);
    let y = Chunks::new(y, rows * columns);
    pool.for_parts(y.count(), y, |task, y| {
        for (index, y) in y.chunks_exact_mut(columns).enumerate() {
            let row = task * rows + index;
            let x = &table[ids[row] as usize * columns..][..columns];
            match positions {
                Some(positions) => {
                    let place = row % (positions.len() / columns);
                    let position = &positions[place * columns..][..columns];
                    for ((y, x), position) in y.iter_mut().zip(x).zip(position) {
                        *y = x + position;
                    }
                }
                None => y.copy_from_slice(x),
            }
        }
    });
    Ok(())
}

/// `dtable[ids[r]] += dy[r]`, rows added in the order of `r`.
///
/// # Errors
/// An id without a row; then nothing is written.
pub fn bwd(
    pool: &Pool,
    columns: usize,
    dy: &[f32],
    ids: &[i32],
    dtable: &mut [f32],
) -> Result<(), IndexError> {
    assert_eq!(dy.len(), ids.len() * columns);
    if dy.is_empty() {
        return Ok(());
    }
    check_indices(ids, dtable.len() / columns, None)?;
    // Each task owns columns of all rows, so that the order of a sum is that of the ids.
    let stripe = 64;
    let table = Shared::new(dtable);
    pool.run(columns.div_ceil(stripe), &|task| {
        let begin = task * stripe;
        let end = (begin + stripe).min(columns);
        for (&id, dy) in ids.iter().zip(dy.chunks_exact(columns)) {
            // SAFETY: the run of columns lies inside the row, this task alone touches these
            // columns, and the slice is dropped before the next one is made.
            let out = unsafe { table.run(id as usize * columns + begin, end - begin) };
            out.iter_mut().zip(&dy[begin..end]).for_each(|(out, &dy)| *out += dy);
        }
    });
    Ok(())
}

/// `dpositions[r % P] += dy[r]` for a table of `P` positions, rows added in the order of `r`.
pub fn bwd_positions(pool: &Pool, columns: usize, dy: &[f32], dpositions: &mut [f32]) {
    if dy.is_empty() || dpositions.is_empty() {
        return;
    }
    let positions = dpositions.len() / columns;
    let rows = rows_per_task(positions, columns);
    let chunks = Chunks::new(dpositions, rows * columns);
    pool.for_parts(chunks.count(), chunks, |task, out| {
        let begin = task * rows * columns;
        for dy in dy.chunks(positions * columns) {
            let dy = &dy[begin.min(dy.len())..];
            out.iter_mut().zip(dy).for_each(|(out, &dy)| *out += dy);
        }
    });
}
