//! Writing a complete store from a stream of bytes.

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use p2ptrain_protocol::id::Digest;

use super::bitmap::Bitmap;
use super::{HAVE, MANIFEST, TOKENS};
use crate::data::disk::{DiskError, sync_folder};
use crate::data::error::DataError;
use crate::data::manifest::{CHUNK_BYTES, CHUNKS_MAX, Manifest, TokenWidth};

const PREFIX: &str = ".building-";

/// A store in the making, in a folder of its own that is removed if it is not finished.
pub(super) struct Builder {
    folder: PathBuf,
    file: File,
    chunk: Vec<u8>,
    digests: Vec<Digest>,
    bytes: u64,
}

impl Builder {
    pub(super) fn start(parent: &Path) -> Result<Self, DataError> {
        // Two jobs of one process may be built at once.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        fs::create_dir_all(parent).map_err(DiskError::at(parent))?;
        remove_stale(parent);
        let folder = parent.join(format!("{PREFIX}{}-{number}", std::process::id()));
        let at = DiskError::at(&folder);
        fs::create_dir(&folder).map_err(at)?;
        let path = folder.join(TOKENS);
        let file = File::create(&path).map_err(DiskError::at(&path))?;
        // The lock tells other processes that this folder is in use; without it (on some network
        // file systems) they only miss that.
        let _ = file.try_lock();
        let chunk = Vec::with_capacity(CHUNK_BYTES);
        Ok(Self { folder, file, chunk, digests: Vec::new(), bytes: 0 })
    }

    pub(super) fn push(&mut self, mut text: &[u8]) -> Result<(), DataError> {
        while !text.is_empty() {
            let (now, later) = text.split_at(text.len().min(CHUNK_BYTES - self.chunk.len()));
            self.chunk.extend_from_slice(now);
            text = later;
            if self.chunk.len() == CHUNK_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Makes the store appear under its name. `empty` is the error where nothing was pushed.
    pub(super) fn finish(
        mut self,
        parent: &Path,
        empty: impl FnOnce() -> DataError,
    ) -> Result<Digest, DataError> {
        if !self.chunk.is_empty() {
            self.flush()?;
        }
        if self.digests.is_empty() {
            return Err(empty());
        }
        let width = TokenWidth::U8;
        let digests = std::mem::take(&mut self.digests);
        let manifest = Manifest::new(width, width.vocab_max(), self.bytes, digests);
        self.file.sync_all().map_err(DiskError::at(&self.folder.join(TOKENS)))?;
        let have = Bitmap::full(manifest.chunk_count()).to_bytes();
        write_new(&self.folder.join(HAVE), &have)?;
        write_new(&self.folder.join(MANIFEST), &manifest.encode())?;
        sync_folder(&self.folder)?;

        let root = manifest.root();
        let target = parent.join(root.to_hex());
        let at = DiskError::at(&target);
        if let Err(error) = fs::rename(&self.folder, &target) {
            if !matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) {
                return Err(at(error).into());
            }
            // The same data from before, perhaps incomplete. Whoever reads it keeps its open files.
            fs::remove_dir_all(&target).map_err(at)?;
            fs::rename(&self.folder, &target).map_err(at)?;
        }
        sync_folder(parent)?;
        Ok(root)
    }

    fn flush(&mut self) -> Result<(), DataError> {
        if self.digests.len() == CHUNKS_MAX as usize {
            let bytes_max = u64::from(CHUNKS_MAX) * CHUNK_BYTES as u64;
            return Err(DataError::TooLarge { bytes_max });
        }
        self.digests.push(Manifest::digest_of(&self.chunk));
        let path = self.folder.join(TOKENS);
        self.file.write_all(&self.chunk).map_err(DiskError::at(&path))?;
        self.bytes += self.chunk.len() as u64;
        self.chunk.clear();
        Ok(())
    }
}

impl Drop for Builder {
    fn drop(&mut self) {
        // After a success the folder has another name, and there is nothing to remove.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Writes a whole new file and waits until it is on the disk.
pub(super) fn write_new(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    let at = DiskError::at(path);
    let mut file = File::create(path).map_err(at)?;
    file.write_all(bytes).map_err(at)?;
    file.sync_all().map_err(at)
}

/// Removes what processes that died while building have left. What cannot be removed stays: it is
/// only space.
fn remove_stale(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if !entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        let in_use = File::open(entry.path().join(TOKENS))
            .is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)));
        if !in_use {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
