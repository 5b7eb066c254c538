//! What the data is: its length and the digest of each chunk.

use std::ops::Range;

use p2ptrain_protocol::id::Digest;
use thiserror::Error;

/// Bytes of one chunk; the last one of the data may be shorter.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// Chunks of one data set: 64 GiB, whose manifest has 32 MiB.
pub const CHUNKS_MAX: u32 = 1 << 20;

const MAGIC: [u8; 4] = *b"p2pd";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 4 + 2 + 1 + 4 + 8 + 4;

/// How tokens are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenWidth {
    /// One byte a token.
    U8,
    /// Two bytes a token, little-endian.
    U16,
}

impl TokenWidth {
    /// Bytes of one token.
    pub const fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::U16 => 2,
        }
    }

    /// Tokens of a whole chunk.
    pub const fn per_chunk(self) -> u64 {
        (CHUNK_BYTES / self.bytes()) as u64
    }

    /// Tokens that can be told apart.
    pub const fn vocab_max(self) -> u32 {
        1 << (8 * self.bytes())
    }
}

/// Length and digests of a data set. Its [root](Self::root) names the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    width: TokenWidth,
    vocab: u32,
    tokens: u64,
    chunks: Vec<Digest>,
}

/// Why bytes are no manifest.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ManifestError {
    /// The bytes do not begin like a manifest.
    #[error("it is no data manifest")]
    NotAManifest,
    /// Made by another version of the program.
    #[error("it has format version {found}, this program reads {supported}")]
    Version {
        /// Version in the bytes.
        found: u16,
        /// Version of this program.
        supported: u16,
    },
    /// A field is out of bounds or contradicts another one.
    #[error("its {field} is wrong")]
    Field {
        /// The field.
        field: &'static str,
    },
    /// Too few or too many bytes.
    #[error("it has {bytes} bytes instead of {expected}")]
    Length {
        /// Bytes there are.
        bytes: usize,
        /// Bytes there should be.
        expected: usize,
    },
    /// It is not the manifest that was asked for.
    #[error("its root is {found} instead of {expected}")]
    Root {
        /// Root of these bytes.
        found: Digest,
        /// Root asked for.
        expected: Digest,
    },
}

impl Manifest {
    /// A manifest of chunks that were stored here.
    pub(super) fn new(width: TokenWidth, vocab: u32, tokens: u64, chunks: Vec<Digest>) -> Self {
        Self { width, vocab, tokens, chunks }
    }

    /// How tokens are stored.
    pub fn width(&self) -> TokenWidth {
        self.width
    }

    /// One more than the highest token that may occur.
    pub fn vocab(&self) -> u32 {
        self.vocab
    }

    /// Tokens of the data.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Bytes of the data.
    pub fn bytes(&self) -> u64 {
        self.tokens * self.width.bytes() as u64
    }

    /// Number of chunks.
    pub fn chunk_count(&self) -> u32 {
        self.chunks.len() as u32
    }

    /// Digest of one chunk.
    pub fn chunk_digest(&self, chunk: u32) -> Option<Digest> {
        self.chunks.get(chunk as usize).copied()
    }

    /// Bytes of one chunk: a whole one, or what is left for the last.
    pub fn chunk_len(&self, chunk: u32) -> usize {
        let start = u64::from(chunk) * CHUNK_BYTES as u64;
        self.bytes().saturating_sub(start).min(CHUNK_BYTES as u64) as usize
    }

    /// The chunks that hold these tokens.
    pub fn chunks_of(&self, tokens: Range<u64>) -> Range<u32> {
        if tokens.is_empty() {
            return 0..0;
        }
        let per_chunk = self.width.per_chunk();
        (tokens.start / per_chunk) as u32..((tokens.end - 1) / per_chunk + 1) as u32
    }

    /// The id of the data: a digest of the manifest, and so of every byte of the data.
    pub fn root(&self) -> Digest {
        Digest::of_bytes("p2ptrain data manifest v1", &self.encode())
    }

    /// The digest by which a chunk is named.
    pub fn digest_of(bytes: &[u8]) -> Digest {
        Digest::of_bytes("p2ptrain data chunk v1", bytes)
    }

    /// The bytes that travel and are stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + 32 * self.chunks.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.push(self.width.bytes() as u8);
        bytes.extend_from_slice(&self.vocab.to_le_bytes());
        bytes.extend_from_slice(&self.tokens.to_le_bytes());
        bytes.extend_from_slice(&self.chunk_count().to_le_bytes());
        for chunk in &self.chunks {
            bytes.extend_from_slice(chunk.as_bytes());
        }
        bytes
    }

    /// Reads a manifest whose root is known; nothing in it is believed before the root fits.
    pub fn decode(bytes: &[u8], root: Digest) -> Result<Self, ManifestError> {
        let manifest = Self::parse(bytes)?;
        let found = manifest.root();
        if found != root {
            return Err(ManifestError::Root { found, expected: root });
        }
        Ok(manifest)
    }

    fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let mut fields = Fields(bytes);
        if fields.take()? != MAGIC {
            return Err(ManifestError::NotAManifest);
        }
        let version = u16::from_le_bytes(fields.take()?);
        if version != VERSION {
            return Err(ManifestError::Version { found: version, supported: VERSION });
        }
        let width = match fields.take()? {
            [1] => TokenWidth::U8,
            [2] => TokenWidth::U16,
            _ => return Err(ManifestError::Field { field: "token width" }),
        };
        let vocab = u32::from_le_bytes(fields.take()?);
        if vocab == 0 || vocab > width.vocab_max() {
            return Err(ManifestError::Field { field: "vocabulary" });
        }
        let tokens = u64::from_le_bytes(fields.take()?);
        let count = u32::from_le_bytes(fields.take()?);
        if count > CHUNKS_MAX
            || tokens == 0
            || tokens.div_ceil(width.per_chunk()) != u64::from(count)
        {
            return Err(ManifestError::Field { field: "number of tokens or chunks" });
        }
        let rest = fields.0;
        if rest.len() != 32 * count as usize {
            let expected = HEADER_BYTES + 32 * count as usize;
            return Err(ManifestError::Length { bytes: bytes.len(), expected });
        }
        let (digests, _) = rest.as_chunks::<32>();
        let chunks = digests.iter().map(|digest| Digest::from_bytes(*digest)).collect();
        Ok(Self { width, vocab, tokens, chunks })
    }
}

struct Fields<'b>(&'b [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], ManifestError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(ManifestError::NotAManifest)?;
        self.0 = rest;
        Ok(*head)
    }
}
