use std::fs::{self, File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{IpcError, LOCK_NAME, SOCKET_NAME, SocketAddress};

/// Holds a node's folder for this process. The system lets go of it when the process ends, however
/// it ends.
#[derive(Debug)]
pub(super) struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Creates the folder, for its user alone, and takes the lock in it.
    pub(super) fn take(dir: &Path) -> Result<Self, IpcError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| IpcError::Io { action, path, source }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(io("create the node's folder", dir))?;
        let path = dir.join(LOCK_NAME);
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io("open the lock", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(IpcError::AlreadyRuns { dir: dir.to_owned(), pid: holder(&file) });
            }
            // Some network file systems have no locks: there the socket decides.
            Err(TryLockError::Error(_)) => {
                if answers(dir) {
                    let pid = holder(&file);
                    return Err(IpcError::AlreadyRuns { dir: dir.to_owned(), pid });
                }
            }
        }
        let pid = std::process::id().to_string();
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(pid.as_bytes()))
            .map_err(io("write the lock", &path))?;
        Ok(Self { _file: file })
    }
}

/// The process that wrote the lock, if it can be read.
fn holder(file: &File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn answers(dir: &Path) -> bool {
    SocketAddress::of(dir, SOCKET_NAME)
        .is_ok_and(|address| UnixStream::connect(&address.path).is_ok())
}
