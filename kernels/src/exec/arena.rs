//! The memory in which a program's values live.

use std::ops::{Deref, DerefMut};

use super::ExecError;

/// Values begin at cache lines, so that vector loads do not cross them.
const LINE_BYTES: usize = 64;
const LINE: usize = LINE_BYTES / size_of::<f32>();

/// A slice of floats that begins at a cache line.
#[derive(Debug, Default)]
pub(super) struct Arena {
    memory: Vec<f32>,
    start: usize,
    len: usize,
}

impl Arena {
    /// Makes it at least so long. Contents are lost where it grows.
    pub(super) fn reserve(&mut self, len: usize) -> Result<(), ExecError> {
        if len <= self.len {
            return Ok(());
        }
        // Give the old memory back before asking for more.
        *self = Self::default();
        let (wanted, bytes) = (len.saturating_add(LINE), Self::bytes_for(len));
        let mut memory: Vec<f32> = Vec::new();
        memory.try_reserve_exact(wanted).map_err(|_| ExecError::OutOfMemory { bytes })?;
        memory.resize(wanted, 0.0);
        // The offset is less than a line by definition; anything else would only cost speed.
        let start = memory.as_ptr().align_offset(LINE_BYTES).min(LINE);
        *self = Self { memory, start, len };
        Ok(())
    }

    /// Bytes that so many elements take.
    pub(super) fn bytes_for(len: usize) -> usize {
        len.saturating_add(LINE).saturating_mul(size_of::<f32>())
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.memory.capacity() * size_of::<f32>()
    }
}

impl Deref for Arena {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for Arena {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_at_a_cache_line_and_grows() {
        let mut arena = Arena::default();
        for len in [1, 1000, 10, 100_000] {
            arena.reserve(len).unwrap();
            assert!(arena.len() >= len);
            assert!(arena.as_ptr().addr().is_multiple_of(LINE_BYTES));
        }
        let impossible = arena.reserve(usize::MAX / 2);
        assert!(matches!(impossible, Err(ExecError::OutOfMemory { .. })));
    }
}
