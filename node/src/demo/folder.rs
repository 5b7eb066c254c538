//! The demo's folder.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::cli::Hint as _;
use crate::ipc;

/// Marks the folder as a demo's, and is locked while one runs.
const LOCK_NAME: &str = "demo.lock";
/// How long nodes of an earlier demo may take to end.
const STOP_MAX: Duration = Duration::from_secs(10);

/// The folder, held for this process.
#[derive(Debug)]
pub(super) struct DemoFolder {
    path: PathBuf,
    _lock: File,
}

impl DemoFolder {
    /// Takes the folder and removes what an earlier demo has left in it.
    pub(super) async fn claim(path: &Path) -> anyhow::Result<Self> {
        let at = || format!("cannot use the demo's folder {}", path.display());
        let another = || format!("name another folder with --dir, or empty {}", path.display());
        fs::create_dir_all(path).with_context(at)?;
        let path = path.canonicalize().with_context(at)?;
        let lock = path.join(LOCK_NAME);
        let foreign = !lock.exists() && fs::read_dir(&path).with_context(at)?.next().is_some();
        if foreign {
            let error = anyhow::anyhow!("{} is not a demo's folder and not empty", path.display());
            return Err(error).hint(another());
        }
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock)
            .with_context(at)?;
        match file.try_lock() {
            // Some network file systems have no locks; there two demos are the user's affair.
            Ok(()) | Err(TryLockError::Error(_)) => {}
            Err(TryLockError::WouldBlock) => {
                let error = anyhow::anyhow!("another demo runs in {}", path.display());
                return Err(error).hint("wait for its end, or name another folder with --dir");
            }
        }
        clear(&path).await.with_context(at)?;
        Ok(Self { path, _lock: file })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of a node.
    pub(super) fn node(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// Ends nodes that a killed demo has left behind, and removes everything but the lock.
async fn clear(path: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name() == LOCK_NAME {
            continue;
        }
        let path = entry.path();
        if !entry.file_type()?.is_dir() {
            fs::remove_file(&path)?;
            continue;
        }
        let started = Instant::now();
        while ipc::stop(&path).await.is_ok() || ipc::status(&path).await.is_ok() {
            anyhow::ensure!(started.elapsed() < STOP_MAX, "the node in {} goes on", path.display());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        fs::remove_dir_all(&path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn leftovers_are_replaced_and_a_foreign_folder_is_left_alone() {
        let temp = tempfile::tempdir().expect("temporary folder is writable");
        let path = temp.path().join("demo");
        let first = DemoFolder::claim(&path).await.expect("a new folder");
        fs::create_dir_all(first.node("alice")).expect("writable");
        fs::write(first.path().join("job.toml"), "x").expect("writable");
        let error = DemoFolder::claim(&path).await.expect_err("held");
        assert!(error.to_string().starts_with("another demo runs in"), "{error}");
        drop(first);
        let second = DemoFolder::claim(&path).await.expect("free again");
        assert!(!second.node("alice").exists() && !path.join("job.toml").exists());

        let foreign = temp.path().join("foreign");
        fs::create_dir_all(&foreign).expect("writable");
        fs::write(foreign.join("thesis.tex"), "x").expect("writable");
        let error = DemoFolder::claim(&foreign).await.expect_err("not a demo's");
        assert!(error.to_string().contains("not a demo's folder"), "{error}");
        assert!(foreign.join("thesis.tex").exists() && !foreign.join(LOCK_NAME).exists());
    }
}
