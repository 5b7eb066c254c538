//! The state as the trainer holds it, and as chunks.

use p2ptrain_protocol::checkpoint::{
    ChunkPlace, ManifestError, StateLayout, StateManifest, StatePart, chunk_digest,
};
use p2ptrain_protocol::id::{JobId, Step};

/// Parameters and optimizer state: one flat list for each block of the model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Parameters.
    pub params: Vec<Vec<f32>>,
    /// First moments; empty where the optimizer has none.
    pub m: Vec<Vec<f32>>,
    /// Second moments; empty where the optimizer has none.
    pub v: Vec<Vec<f32>>,
}

/// A borrowed [`State`].
#[derive(Clone, Copy, Debug)]
pub struct StateRef<'s> {
    /// Parameters.
    pub params: &'s [Vec<f32>],
    /// First moments; empty where the optimizer has none.
    pub m: &'s [Vec<f32>],
    /// Second moments; empty where the optimizer has none.
    pub v: &'s [Vec<f32>],
}

impl State {
    /// A state of this layout, all zero.
    pub fn zeros(layout: &StateLayout) -> Self {
        let mut state = Self::default();
        for part in layout.parts() {
            *state.part_mut(*part) =
                layout.block_lens().iter().map(|len| vec![0.0; *len as usize]).collect();
        }
        state
    }

    /// The state, borrowed.
    pub fn borrow(&self) -> StateRef<'_> {
        StateRef { params: &self.params, m: &self.m, v: &self.v }
    }

    /// Puts a chunk, which the manifest has verified, into its place.
    ///
    /// # Panics
    /// If the state has no such place, or the bytes are not of its length.
    pub fn write_chunk(&mut self, place: &ChunkPlace, bytes: &[u8]) {
        assert_eq!(bytes.len(), place.bytes(), "a verified chunk has its length");
        let block = &mut self.part_mut(place.part)[place.block];
        let elements = &mut block[place.elements.start as usize..place.elements.end as usize];
        let (quads, _) = bytes.as_chunks::<4>();
        for (element, quad) in elements.iter_mut().zip(quads) {
            *element = f32::from_le_bytes(*quad);
        }
    }

    fn part_mut(&mut self, part: StatePart) -> &mut Vec<Vec<f32>> {
        match part {
            StatePart::Params => &mut self.params,
            StatePart::M => &mut self.m,
            StatePart::V => &mut self.v,
        }
    }
}

impl<'s> StateRef<'s> {
    /// The shape of the state.
    ///
    /// # Panics
    /// If the moments have other shapes than the parameters.
    pub fn layout(&self) -> Result<StateLayout, ManifestError> {
        let mut parts = 1;
        for moments in [self.m, self.v] {
            if moments.is_empty() {
                break;
            }
            parts += 1;
            let same = moments.len() == self.params.len()
                && moments.iter().zip(self.params).all(|(a, b)| a.len() == b.len());
            assert!(same, "moments have the shape of the parameters");
        }
        StateLayout::new(parts, self.params.iter().map(|block| block.len() as u64).collect())
    }

    /// The digests of the state: what a joining peer verifies chunks by. Reads the whole state.
    pub fn manifest(&self, job: JobId, step: Step) -> Result<StateManifest, ManifestError> {
        let layout = self.layout()?;
        let mut buffer = Vec::new();
        let digest = |place| {
            self.read_chunk(&place, &mut buffer);
            chunk_digest(&buffer)
        };
        let chunks = layout.places().map(digest).collect();
        StateManifest::new(job, step, layout, chunks)
    }

    /// Writes the bytes of a chunk into `buffer`, replacing what was in it.
    ///
    /// # Panics
    /// If the state has no such place.
    pub fn read_chunk(&self, place: &ChunkPlace, buffer: &mut Vec<u8>) {
        let part: &'s [Vec<f32>] = match place.part {
            StatePart::Params => self.params,
            StatePart::M => self.m,
            StatePart::V => self.v,
        };
        let elements = place.elements.start as usize..place.elements.end as usize;
        to_bytes(&part[place.block][elements], buffer);
    }
}

/// Writes the elements as little-endian bytes into `buffer`, replacing what was in it.
pub(super) fn to_bytes(elements: &[f32], buffer: &mut Vec<u8>) {
    buffer.resize(4 * elements.len(), 0);
    let (quads, _) = buffer.as_chunks_mut::<4>();
    for (quad, element) in quads.iter_mut().zip(elements) {
        *quad = element.to_le_bytes();
    }
}
