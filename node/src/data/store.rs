//! The data on this machine: one file of tokens, one bit for each chunk that is here.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use p2ptrain_protocol::id::Digest;

use self::bitmap::Bitmap;
use self::build::Builder;
use super::disk::DiskError;
use super::error::{ChunkRefused, DataError};
use super::manifest::{CHUNK_BYTES, Manifest, ManifestError, TokenWidth};
use super::source::Source;

mod bitmap;
mod build;

const TOKENS: &str = "tokens";
const MANIFEST: &str = "manifest";
const HAVE: &str = "have";
/// A manifest of the most chunks has about this many bytes.
const MANIFEST_BYTES_MAX: u64 = 40 << 20;

/// The chunks of one data set on this machine, complete or filled on demand.
///
/// All methods take `&self`; one store serves the computing thread and the network at once. A chunk
/// is compared with its digest before its first use in this process, so neither a crash nor a bad
/// disk puts wrong tokens into a batch.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    manifest: Manifest,
    root: Digest,
    tokens: File,
    have_file: File,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Chunks that were stored at some time.
    have: Bitmap,
    /// Chunks of those whose digest was compared in this process.
    verified: Bitmap,
}

/// How far the building of a store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of text read.
    pub bytes_done: u64,
    /// Bytes of all files.
    pub bytes_total: u64,
    /// Files read.
    pub files_done: usize,
    /// All files.
    pub files_total: usize,
}

impl Store {
    /// Reads all text of the source into a complete store `parent/<root>`.
    ///
    /// The store appears under its name only when it is complete on the disk. `progress` is called
    /// about once for each chunk.
    pub fn build(
        parent: &Path,
        source: &Source,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, DataError> {
        let mut builder = Builder::start(parent)?;
        let mut now = Progress {
            bytes_done: 0,
            bytes_total: source.bytes(),
            files_done: 0,
            files_total: source.len(),
        };
        let mut reported = 0;
        source.read(&mut |files_done, text| {
            now.bytes_done += text.len() as u64;
            now.files_done = files_done;
            if now.bytes_done - reported >= CHUNK_BYTES as u64 {
                reported = now.bytes_done;
                progress(now);
            }
            builder.push(text)
        })?;
        progress(Progress { bytes_done: now.bytes_total, files_done: now.files_total, ..now });
        let places: Vec<String> = source.paths().take(3).map(|p| p.display().to_string()).collect();
        let root = builder.finish(parent, || DataError::Empty {
            places: places.join(", "),
            skipped: source.skipped().clone(),
        })?;
        Self::open(parent, root)
    }

    /// An empty store `parent/<root>` for this manifest, or what is already there of it.
    pub fn create(parent: &Path, manifest: &Manifest) -> Result<Self, DataError> {
        let root = manifest.root();
        let folder = parent.join(root.to_hex());
        let at = DiskError::at(&folder);
        fs::create_dir_all(&folder).map_err(at)?;
        match Self::open(parent, root) {
            Err(DataError::Disk(error)) if error.is_full() => return Err(error.into()),
            // Neither files nor a whole manifest yet: this is a first or an interrupted start.
            Err(DataError::Manifest { .. } | DataError::Disk(_)) => {}
            opened => return opened,
        }
        build::write_new(&folder.join(HAVE), &Bitmap::new(manifest.chunk_count()).to_bytes())?;
        let tokens = folder.join(TOKENS);
        let at = DiskError::at(&tokens);
        let file = File::create(&tokens).map_err(at)?;
        file.set_len(manifest.bytes()).map_err(at)?;
        // Last, because a store without a manifest is none.
        build::write_new(&folder.join(MANIFEST), &manifest.encode())?;
        super::disk::sync_folder(&folder)?;
        Self::open(parent, root)
    }

    /// The store `parent/<root>`, as it was left.
    pub fn open(parent: &Path, root: Digest) -> Result<Self, DataError> {
        let folder = parent.join(root.to_hex());
        let path = folder.join(MANIFEST);
        let damaged = |source| DataError::Manifest { path: path.clone(), source };
        let at = DiskError::at(&path);
        if fs::metadata(&path).map_err(at)?.len() > MANIFEST_BYTES_MAX {
            return Err(damaged(ManifestError::NotAManifest));
        }
        let manifest = Manifest::decode(&fs::read(&path).map_err(at)?, root).map_err(damaged)?;
        let open = |name: &str| {
            let path = folder.join(name);
            let at = DiskError::at(&path);
            let file = OpenOptions::new().read(true).write(true).open(&path).map_err(at)?;
            Ok::<_, DiskError>((file, path))
        };
        let (tokens, tokens_path) = open(TOKENS)?;
        if tokens.metadata().map_err(DiskError::at(&tokens_path))?.len() < manifest.bytes() {
            // Cut off by somebody: what is missing reads as zeros, fails its digest and is fetched.
            tokens.set_len(manifest.bytes()).map_err(DiskError::at(&tokens_path))?;
        }
        let (have_file, have_path) = open(HAVE)?;
        let bytes = fs::read(&have_path).map_err(DiskError::at(&have_path))?;
        let have = Bitmap::from_bytes(&bytes, manifest.chunk_count());
        let verified = Bitmap::new(manifest.chunk_count());
        let state = Mutex::new(State { have, verified });
        Ok(Self { folder, manifest, root, tokens, have_file, state })
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The id of the data.
    pub fn root(&self) -> Digest {
        self.root
    }

    /// The store's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether a chunk is here.
    pub fn has(&self, chunk: u32) -> bool {
        self.state().have.contains(chunk)
    }

    /// Number of chunks that are not here.
    pub fn missing_count(&self) -> u32 {
        self.manifest.chunk_count() - self.state().have.count()
    }

    /// Those of the given chunks that are not here.
    pub fn missing(&self, chunks: impl IntoIterator<Item = u32>) -> Vec<u32> {
        let state = self.state();
        chunks.into_iter().filter(|chunk| !state.have.contains(*chunk)).collect()
    }

    /// The bytes of a chunk, to give to a peer. They have been compared with the digest.
    pub fn chunk(&self, chunk: u32) -> Result<Bytes, DataError> {
        self.read_chunk(chunk).map(Bytes::from)
    }

    /// Takes a chunk from a peer if its content is right, and stores it.
    pub fn accept(&self, chunk: u32, bytes: &[u8]) -> Result<(), ChunkRefused> {
        let Some(expected) = self.manifest.chunk_digest(chunk) else {
            let chunks = self.manifest.chunk_count();
            return Err(ChunkRefused::NoSuchChunk { chunk, chunks });
        };
        let length = self.manifest.chunk_len(chunk);
        if bytes.len() != length {
            return Err(ChunkRefused::Length { chunk, bytes: bytes.len(), expected: length });
        }
        let found = Manifest::digest_of(bytes);
        if found != expected {
            return Err(ChunkRefused::Digest { chunk, found, expected });
        }
        let vocab = self.manifest.vocab();
        if let Some(token) = highest_token(self.manifest.width(), bytes).filter(|t| *t >= vocab) {
            return Err(ChunkRefused::Token { chunk, token, vocab });
        }
        let path = self.folder.join(TOKENS);
        self.tokens
            .write_all_at(bytes, u64::from(chunk) * CHUNK_BYTES as u64)
            .map_err(DiskError::at(&path))?;
        let mut state = self.state();
        state.have.set(chunk, true);
        state.verified.set(chunk, true);
        self.save_bit(&state, chunk)?;
        Ok(())
    }

    /// Reads tokens from position `start` on.
    ///
    /// # Panics
    /// If they go beyond the end of the data.
    pub fn read_tokens(&self, start: u64, out: &mut [i32]) -> Result<(), DataError> {
        let end = start + out.len() as u64;
        assert!(end <= self.manifest.tokens(), "tokens {start}..{end}");
        for chunk in self.manifest.chunks_of(start..end) {
            self.make_sure(chunk)?;
        }
        let width = self.manifest.width().bytes();
        let mut bytes = [0; 4096];
        let mut at = start * width as u64;
        for part in out.chunks_mut(bytes.len() / width) {
            let bytes = &mut bytes[..part.len() * width];
            let path = self.folder.join(TOKENS);
            self.tokens.read_exact_at(bytes, at).map_err(DiskError::at(&path))?;
            at += bytes.len() as u64;
            match self.manifest.width() {
                TokenWidth::U8 => {
                    part.iter_mut()
                        .zip(bytes.iter())
                        .for_each(|(out, byte)| *out = i32::from(*byte));
                }
                TokenWidth::U16 => {
                    let (pairs, _) = bytes.as_chunks::<2>();
                    for (out, pair) in part.iter_mut().zip(pairs) {
                        *out = i32::from(u16::from_le_bytes(*pair));
                    }
                }
            }
        }
        Ok(())
    }

    /// Compares a chunk with its digest unless that was done before.
    fn make_sure(&self, chunk: u32) -> Result<(), DataError> {
        let state = self.state();
        if state.verified.contains(chunk) {
            return Ok(());
        }
        drop(state);
        self.read_chunk(chunk).map(drop)
    }

    fn read_chunk(&self, chunk: u32) -> Result<Vec<u8>, DataError> {
        let Some(expected) = self.manifest.chunk_digest(chunk).filter(|_| self.has(chunk)) else {
            return Err(DataError::NotHere { chunk });
        };
        let mut bytes = vec![0; self.manifest.chunk_len(chunk)];
        let path = self.folder.join(TOKENS);
        let start = u64::from(chunk) * CHUNK_BYTES as u64;
        // A bad sector or a cut file is the same to the caller as changed bytes: fetch it again.
        let read = self.tokens.read_exact_at(&mut bytes, start);
        let good = read.is_ok() && Manifest::digest_of(&bytes) == expected;
        let mut state = self.state();
        state.verified.set(chunk, good);
        if !good {
            state.have.set(chunk, false);
            self.save_bit(&state, chunk)?;
            return Err(DataError::Corrupt { path, chunk });
        }
        Ok(bytes)
    }

    fn save_bit(&self, state: &State, chunk: u32) -> Result<(), DiskError> {
        let (at, byte) = state.have.byte_of(chunk);
        let path = self.folder.join(HAVE);
        self.have_file.write_all_at(&[byte], at).map_err(DiskError::at(&path))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Both bitmaps are valid after every single write, so a panic elsewhere leaves them usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn highest_token(width: TokenWidth, bytes: &[u8]) -> Option<u32> {
    match width {
        TokenWidth::U8 => bytes.iter().copied().max().map(u32::from),
        TokenWidth::U16 => {
            let (pairs, _) = bytes.as_chunks::<2>();
            pairs.iter().map(|pair| u32::from(u16::from_le_bytes(*pair))).max()
        }
    }
}
