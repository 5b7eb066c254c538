//! One bit a chunk, as on the disk.

/// A set of chunk numbers below a bound.
#[derive(Clone, Debug)]
pub(super) struct Bitmap {
    bytes: Vec<u8>,
    count: u32,
}

impl Bitmap {
    pub(super) fn new(len: u32) -> Self {
        Self { bytes: vec![0; len.div_ceil(8) as usize], count: 0 }
    }

    pub(super) fn full(len: u32) -> Self {
        let mut bitmap = Self::new(len);
        (0..len).for_each(|bit| bitmap.set(bit, true));
        bitmap
    }

    /// Reads what was stored. Missing bytes are zeros and bits beyond the bound are ignored: a
    /// wrong bit costs one comparison or one fetch, never a wrong token.
    pub(super) fn from_bytes(bytes: &[u8], len: u32) -> Self {
        let mut bitmap = Self::new(len);
        for bit in 0..len {
            let byte = bytes.get(bit as usize / 8).copied().unwrap_or(0);
            bitmap.set(bit, byte >> (bit % 8) & 1 == 1);
        }
        bitmap
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        self.bytes.clone()
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    pub(super) fn contains(&self, bit: u32) -> bool {
        self.bytes.get(bit as usize / 8).is_some_and(|byte| byte >> (bit % 8) & 1 == 1)
    }

    pub(super) fn set(&mut self, bit: u32, on: bool) {
        let before = self.contains(bit);
        let byte = &mut self.bytes[bit as usize / 8];
        *byte = *byte & !(1 << (bit % 8)) | u8::from(on) << (bit % 8);
        self.count = self.count + u32::from(on) - u32::from(before);
    }

    /// The byte that holds this bit, and where it stands.
    pub(super) fn byte_of(&self, bit: u32) -> (u64, u8) {
        let at = bit as usize / 8;
        (at as u64, self.bytes[at])
    }
}
