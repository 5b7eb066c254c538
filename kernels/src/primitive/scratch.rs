//! Memory of a thread that grows once and is used again, so that a steady step allocates nothing.

use std::cell::Cell;

/// A cache line, so that buffers begin where vector loads are fastest.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

const LINE: usize = 16;

/// A growing buffer aligned to cache lines.
#[derive(Default)]
pub(crate) struct Buffer(Vec<Line>);

impl Buffer {
    /// The first `len` elements, with whatever they held before.
    pub(crate) fn take(&mut self, len: usize) -> &mut [f32] {
        let lines = len.div_ceil(LINE);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0.0; LINE]));
        }
        // SAFETY: `Line` is `repr(C)` with exactly 16 floats and no padding, so the lines are
        // `lines * 16 >= len` floats back to back.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast::<f32>(), len) }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.0.capacity() * size_of::<Line>()
    }
}

thread_local! {
    static BUFFER: Cell<Buffer> = const { Cell::new(Buffer(Vec::new())) };
    static DOUBLES: Cell<Vec<f64>> = const { Cell::new(Vec::new()) };
}

/// Calls `f` with `len` elements of this thread's buffer, aligned to 64 bytes, contents arbitrary.
/// A call inside `f` gets a buffer of its own.
pub(crate) fn with<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut buffer = BUFFER.take();
    let result = f(buffer.take(len));
    // Keep the larger one, where a nested call left its own.
    let other = BUFFER.take();
    BUFFER.set(if other.bytes() > buffer.bytes() { other } else { buffer });
    result
}

/// The same for doubles, zeroed.
pub(crate) fn with_doubles<R>(len: usize, f: impl FnOnce(&mut [f64]) -> R) -> R {
    let mut buffer = DOUBLES.take();
    buffer.clear();
    buffer.resize(len, 0.0);
    let result = f(&mut buffer);
    DOUBLES.set(buffer);
    result
}
