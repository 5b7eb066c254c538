//! Files that appear whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::data::{DiskError, sync_folder};

const SUFFIX: &str = ".tmp";

/// A file being written beside its target. Without a [`commit`](Self::commit) it is removed.
pub(super) struct AtomicFile {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
}

impl AtomicFile {
    pub(super) fn create(target: &Path) -> Result<Self, DiskError> {
        // Several nodes of one machine may write the same name.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut name = OsString::from(".");
        name.push(target.file_name().unwrap_or_default());
        name.push(format!(".{}-{number}{SUFFIX}", std::process::id()));
        let temporary = target.with_file_name(name);
        let at = DiskError::at(&temporary);
        let options = OpenOptions::new().write(true).create(true).truncate(true).to_owned();
        let file = options.open(&temporary).map_err(at)?;
        // Tells `remove_stale` of other processes that the file is in use.
        let _ = file.try_lock();
        Ok(Self { file, temporary, target: target.to_owned() })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        self.file.write_all(bytes).map_err(DiskError::at(&self.target))
    }

    pub(super) fn write_at(&mut self, bytes: &[u8], offset: u64) -> Result<(), DiskError> {
        self.file.write_all_at(bytes, offset).map_err(DiskError::at(&self.target))
    }

    /// Puts the file under its name, durably: data first, then the name.
    pub(super) fn commit(self) -> Result<(), DiskError> {
        let at = DiskError::at(&self.target);
        self.file.sync_all().map_err(at)?;
        fs::rename(&self.temporary, &self.target).map_err(at)?;
        match self.target.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => sync_folder(folder),
            _ => sync_folder(Path::new(".")),
        }
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        // After a commit there is no file of this name.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Removes what processes that died while writing have left in the folder.
pub(super) fn remove_stale(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let bytes = name.as_encoded_bytes();
        let ours = bytes.starts_with(b".")
            && bytes.ends_with(SUFFIX.as_bytes())
            && bytes.windows(5).any(|window| window == b".ckpt");
        if !ours {
            continue;
        }
        let in_use = File::open(entry.path())
            .is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)));
        if !in_use {
            let _ = fs::remove_file(entry.path());
        }
    }
}
