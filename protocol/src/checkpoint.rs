//! The manifest of a training state: what a joiner fetches in chunks from several peers, and a resumed job
//! reads from files, each chunk verified by itself.
//!
//! The state is up to three parts (parameters, and the optimizer's first and second moments) of the model's
//! blocks, each a flat list of f32. Part by part and block by block it is cut into chunks of
//! [`limits::STATE_CHUNK_BYTES`]; no chunk crosses a block's end. A chunk's bytes are its elements as
//! little-endian f32.

use std::fmt;
use std::ops::Range;

use bincode::{Decode, Encode};
use thiserror::Error;

use crate::id::{Digest, JobId, Step};
use crate::limits;

/// Elements of a full chunk.
pub const CHUNK_ELEMENTS: u64 = (limits::STATE_CHUNK_BYTES / limits::ELEMENT_BYTES) as u64;

/// A part of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum StatePart {
    /// The parameters.
    Params,
    /// The optimizer's first moments (momentum).
    M,
    /// The optimizer's second moments.
    V,
}

impl StatePart {
    /// All parts, in the order of the state.
    pub const ALL: [Self; 3] = [Self::Params, Self::M, Self::V];
}

impl fmt::Display for StatePart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Params => "parameters",
            Self::M => "first moments",
            Self::V => "second moments",
        })
    }
}

/// The shape of a state.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct StateLayout {
    parts: u8,
    block_lens: Vec<u64>,
}

/// Where a chunk belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkPlace {
    /// The part.
    pub part: StatePart,
    /// The block.
    pub block: usize,
    /// Elements of the block.
    pub elements: Range<u64>,
}

impl ChunkPlace {
    /// Bytes of the chunk.
    pub fn bytes(&self) -> usize {
        // At most STATE_CHUNK_BYTES.
        (self.elements.end - self.elements.start) as usize * limits::ELEMENT_BYTES
    }
}

/// A state as digests: hold this, and every chunk can be checked whoever sends it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct StateManifest {
    /// The job.
    pub job: JobId,
    /// The next step: the state is the one before it.
    pub step: Step,
    /// The shape of the state.
    pub layout: StateLayout,
    /// Bytes of a full chunk.
    pub chunk_bytes: u32,
    /// The chunks' digests, in the order of the state.
    pub chunks: Vec<Digest>,
    /// Hash of all that is above.
    pub root: Digest,
}

/// Why a manifest or a chunk is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ManifestError {
    /// There are no or too many parts.
    #[error("state of {got} parts, allowed are 1 to 3")]
    Parts {
        /// Parts there.
        got: u8,
    },
    /// There are too many blocks.
    #[error("state of {got} blocks, at most {limit} are allowed")]
    Blocks {
        /// Blocks allowed.
        limit: usize,
        /// Blocks there.
        got: usize,
    },
    /// The state has too many chunks.
    #[error("state of {got} chunks, at most {limit} are allowed")]
    TooLarge {
        /// Chunks allowed.
        limit: u64,
        /// Chunks of the layout.
        got: u64,
    },
    /// Chunks have another size than here.
    #[error("chunks of {got} bytes, expected {expected}")]
    ChunkBytes {
        /// Bytes of a chunk here.
        expected: u32,
        /// Bytes of a chunk there.
        got: u32,
    },
    /// The layout has another number of chunks than there are digests.
    #[error("manifest has {got} chunk digests, its layout has {expected} chunks")]
    ChunkCount {
        /// Chunks of the layout.
        expected: u64,
        /// Digests there.
        got: usize,
    },
    /// The root is not the hash of the rest.
    #[error("manifest is corrupt: expected root {expected:#}, got {got:#}")]
    Root {
        /// Hash of the rest.
        expected: Digest,
        /// The root there.
        got: Digest,
    },
    /// The manifest is of another job or step, or of a state of another shape.
    #[error("manifest is of another {field}: expected {expected}, got {got}")]
    Other {
        /// What differs.
        field: &'static str,
        /// What is wanted.
        expected: String,
        /// What is there.
        got: String,
    },
    /// There is no such chunk.
    #[error("chunk {index} does not exist, the state has {chunks}")]
    NoChunk {
        /// The chunk asked for.
        index: u32,
        /// Chunks of the state.
        chunks: u64,
    },
    /// A chunk has the wrong length.
    #[error("chunk {index} ({part} of block {block}) has {got} bytes, expected {expected}")]
    ChunkLength {
        /// The chunk.
        index: u32,
        /// Its part.
        part: StatePart,
        /// Its block.
        block: usize,
        /// Bytes of the chunk.
        expected: usize,
        /// Bytes there.
        got: usize,
    },
    /// A chunk has other bytes than the manifest says.
    #[error(
        "chunk {index} ({part} of block {block}) is corrupt: expected {expected:#}, got {got:#}"
    )]
    ChunkDigest {
        /// The chunk.
        index: u32,
        /// Its part.
        part: StatePart,
        /// Its block.
        block: usize,
        /// The manifest's digest.
        expected: Digest,
        /// Digest of the bytes there.
        got: Digest,
    },
}

impl StateLayout {
    /// The layout of the first `parts` parts of blocks with these numbers of elements.
    pub fn new(parts: u8, block_lens: Vec<u64>) -> Result<Self, ManifestError> {
        let layout = Self { parts, block_lens };
        layout.verify()?;
        Ok(layout)
    }

    /// Checks a layout that a peer sent.
    pub fn verify(&self) -> Result<(), ManifestError> {
        if !(1..=3).contains(&self.parts) {
            return Err(ManifestError::Parts { got: self.parts });
        }
        if self.block_lens.len() > limits::BLOCKS_MAX {
            let (limit, got) = (limits::BLOCKS_MAX, self.block_lens.len());
            return Err(ManifestError::Blocks { limit, got });
        }
        let (limit, got) = (limits::STATE_CHUNKS_MAX as u64, self.chunk_count());
        if got > limit {
            return Err(ManifestError::TooLarge { limit, got });
        }
        Ok(())
    }

    /// The parts of the state.
    pub fn parts(&self) -> &'static [StatePart] {
        &StatePart::ALL[..usize::from(self.parts).min(3)]
    }

    /// Elements of each block.
    pub fn block_lens(&self) -> &[u64] {
        &self.block_lens
    }

    /// Number of chunks.
    pub fn chunk_count(&self) -> u64 {
        self.part_chunks().saturating_mul(self.parts().len() as u64)
    }

    /// Where a chunk belongs; `None` if there is no such chunk.
    pub fn place(&self, index: u32) -> Option<ChunkPlace> {
        let per_part = self.part_chunks();
        let part = *self.parts().get(u64::from(index).checked_div(per_part)? as usize)?;
        let mut rest = u64::from(index) % per_part;
        for (block, &len) in self.block_lens.iter().enumerate() {
            let chunks = len.div_ceil(CHUNK_ELEMENTS);
            if rest < chunks {
                let start = rest * CHUNK_ELEMENTS;
                let elements = start..len.min(start.saturating_add(CHUNK_ELEMENTS));
                return Some(ChunkPlace { part, block, elements });
            }
            rest -= chunks;
        }
        None
    }

    /// The chunk that holds an element; `None` if there is no such element.
    pub fn index_of(&self, part: StatePart, block: usize, element: u64) -> Option<u32> {
        if element >= *self.block_lens.get(block)? {
            return None;
        }
        let part = self.parts().iter().position(|&p| p == part)? as u64;
        let before: u64 = chunks_of(&self.block_lens[..block]);
        let in_part = before.checked_add(element / CHUNK_ELEMENTS)?;
        part.checked_mul(self.part_chunks())?.checked_add(in_part)?.try_into().ok()
    }

    /// All chunks in order.
    pub fn places(&self) -> impl Iterator<Item = ChunkPlace> + '_ {
        let places = move |(part, block, len): (StatePart, usize, u64)| {
            let chunk = move |i: u64| ChunkPlace {
                part,
                block,
                elements: i * CHUNK_ELEMENTS..len.min((i + 1).saturating_mul(CHUNK_ELEMENTS)),
            };
            (0..len.div_ceil(CHUNK_ELEMENTS)).map(chunk)
        };
        let blocks = move |part| (0..).zip(&self.block_lens).map(move |(b, &len)| (part, b, len));
        self.parts().iter().copied().flat_map(blocks).flat_map(places)
    }

    fn part_chunks(&self) -> u64 {
        chunks_of(&self.block_lens)
    }
}

fn chunks_of(block_lens: &[u64]) -> u64 {
    let chunks = block_lens.iter().map(|len| len.div_ceil(CHUNK_ELEMENTS));
    chunks.fold(0, u64::saturating_add)
}

/// The digest of a chunk's bytes.
pub fn chunk_digest(bytes: &[u8]) -> Digest {
    Digest::of_bytes("p2ptrain state chunk v1", bytes)
}

impl StateManifest {
    /// The manifest of a state with these chunk digests, in the order of [`StateLayout::places`].
    pub fn new(
        job: JobId,
        step: Step,
        layout: StateLayout,
        chunks: Vec<Digest>,
    ) -> Result<Self, ManifestError> {
        let chunk_bytes = limits::STATE_CHUNK_BYTES as u32;
        let root = Digest::from_bytes([0; 32]);
        let mut manifest = Self { job, step, layout, chunk_bytes, chunks, root };
        manifest.root = manifest.computed_root();
        manifest.verify()?;
        Ok(manifest)
    }

    /// Checks a manifest that came from a peer or a file: bounds first, then the root.
    pub fn verify(&self) -> Result<(), ManifestError> {
        let expected = limits::STATE_CHUNK_BYTES as u32;
        if self.chunk_bytes != expected {
            return Err(ManifestError::ChunkBytes { expected, got: self.chunk_bytes });
        }
        self.layout.verify()?;
        let (expected, got) = (self.layout.chunk_count(), self.chunks.len());
        if expected != got as u64 {
            return Err(ManifestError::ChunkCount { expected, got });
        }
        let (expected, got) = (self.computed_root(), self.root);
        if expected != got {
            return Err(ManifestError::Root { expected, got });
        }
        Ok(())
    }

    /// Verifies the manifest, and that it is of this job and of a state of this shape.
    pub fn verify_for(&self, job: JobId, layout: &StateLayout) -> Result<(), ManifestError> {
        self.verify()?;
        if self.job != job {
            let (expected, got) = (job.to_hex(), self.job.to_hex());
            return Err(ManifestError::Other { field: "job", expected, got });
        }
        if self.layout != *layout {
            let text = |layout: &StateLayout| {
                let elements =
                    layout.block_lens.iter().fold(0_u64, |sum, len| sum.saturating_add(*len));
                let (parts, blocks) = (layout.parts().len(), layout.block_lens.len());
                format!("{parts} parts of {blocks} blocks with {elements} elements")
            };
            let (expected, got) = (text(layout), text(&self.layout));
            return Err(ManifestError::Other { field: "shape", expected, got });
        }
        Ok(())
    }

    /// Checks the bytes of a chunk; returns where they belong.
    pub fn verify_chunk(&self, index: u32, bytes: &[u8]) -> Result<ChunkPlace, ManifestError> {
        let place = self.layout.place(index).zip(self.chunks.get(index as usize));
        let Some((place, &expected)) = place else {
            return Err(ManifestError::NoChunk { index, chunks: self.layout.chunk_count() });
        };
        let ChunkPlace { part, block, .. } = place;
        if bytes.len() != place.bytes() {
            let (expected, got) = (place.bytes(), bytes.len());
            return Err(ManifestError::ChunkLength { index, part, block, expected, got });
        }
        let got = chunk_digest(bytes);
        if got != expected {
            return Err(ManifestError::ChunkDigest { index, part, block, expected, got });
        }
        Ok(place)
    }

    fn computed_root(&self) -> Digest {
        let Self { job, step, layout, chunk_bytes, chunks, root: _ } = self;
        Digest::of("p2ptrain state manifest v1", &(job, step, layout, chunk_bytes, chunks))
    }
}
