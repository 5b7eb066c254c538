//! Errors of writing files, sorted by what the user can do about them.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why a file or folder cannot be written or read.
#[derive(Debug, Error)]
pub enum DiskError {
    /// No space, or a quota or size limit is reached.
    #[error("no space left for {}: {source}; free some space or choose another folder", path.display())]
    Full {
        /// The file that did not fit.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The folder or file must not be written.
    #[error("not allowed to write {}: {source}; check its owner and mode", path.display())]
    Denied {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Anything else.
    #[error("cannot access {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl DiskError {
    /// Sorts an error that occurred at this path.
    pub(crate) fn at(path: &Path) -> impl Fn(io::Error) -> Self + Copy + '_ {
        move |source| {
            let path = path.to_owned();
            match source.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                    Self::Full { path, source }
                }
                ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                    Self::Denied { path, source }
                }
                _ => Self::Io { path, source },
            }
        }
    }

    /// Whether the disk is full.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }
}

/// Makes renames within the folder survive a power failure.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), DiskError> {
    let at = DiskError::at(folder);
    File::open(folder).map_err(at)?.sync_all().map_err(at)
}
