use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::{Finding, Verdict};
use crate::cli::human_bytes;

/// A small run with its data cache and checkpoints takes about this much.
const FREE_BYTES_MIN: u64 = 1 << 30;
/// 2026-01-01, before which this program did not exist.
const UNIX_S_MIN: u64 = 1_767_225_600;

pub(super) fn folder(dir: &Path) -> Finding {
    // The folder need not exist yet: then the nearest one that does must let it be created.
    let Some(existing) = dir.ancestors().find(|path| path.is_dir()) else {
        return Finding::new("folder", Verdict::Bad, format!("{} cannot exist", dir.display()))
            .advice("name another folder with --dir");
    };
    let free = rustix::fs::statvfs(existing).map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize));
    let data = json!({ "path": dir, "exists": existing == dir, "free_bytes": free });
    if let Err(error) = probe(existing) {
        let text = format!("{} cannot be written to: {error}", existing.display());
        return Finding::new("folder", Verdict::Bad, text)
            .advice("name another folder with --dir, or mend the rights of this one")
            .data(data);
    }
    let state = if existing == dir { "exists" } else { "can be created" };
    let text = format!("{} {state}; {} free", dir.display(), human_bytes(free));
    if free < FREE_BYTES_MIN {
        Finding::new("folder", Verdict::Warn, text)
            .advice("make room or name a folder on another disk with --dir: checkpoints need space")
    } else {
        Finding::new("folder", Verdict::Good, text)
    }
    .data(data)
}

/// Writes a file and removes it again.
fn probe(dir: &Path) -> std::io::Result<()> {
    let file = tempfile::Builder::new().prefix(".p2ptrain-doctor").tempfile_in(dir)?;
    fs::write(file.path(), b"probe")?;
    file.close()
}

pub(super) fn clock() -> Finding {
    let unix_s = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (wall_before, steady_before) = (unix_s(), Instant::now());
    std::thread::sleep(Duration::from_millis(50));
    let (wall, steady) = (unix_s(), steady_before.elapsed());
    let drift = wall.saturating_sub(wall_before).abs_diff(steady);
    let data = json!({ "unix_s": wall.as_secs(), "drift_ms_in_50_ms": drift.as_millis() as u64 });
    let finding = if wall.as_secs() < UNIX_S_MIN {
        Finding::new("clock", Verdict::Warn, "the clock is years behind")
            .advice("set it; training does not need it, the times in logs do")
    } else if drift > Duration::from_millis(25) {
        let text = format!("the clock moved by {} ms within 50 ms", drift.as_millis());
        Finding::new("clock", Verdict::Warn, text)
            .advice("something sets the clock; only the times in logs depend on it")
    } else {
        Finding::new("clock", Verdict::Good, "runs steadily; nothing but the log depends on it")
    };
    finding.data(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_can_be_created_is_good_and_a_file_is_bad() {
        let dir = tempfile::tempdir().expect("temporary folder is writable");
        let finding = folder(&dir.path().join("a/b"));
        assert!(finding.verdict < Verdict::Bad, "{finding:?}");
        assert!(finding.text.contains("can be created"), "{finding:?}");
        assert_eq!(fs::read_dir(dir.path()).expect("exists").count(), 0, "the probe is removed");
        // A kernel file system refuses even the superuser.
        let finding = folder(Path::new("/proc/p2ptrain"));
        assert_eq!(finding.verdict, Verdict::Bad, "{finding:?}");
        assert!(finding.advice.is_some_and(|advice| advice.contains("--dir")));
    }
}
