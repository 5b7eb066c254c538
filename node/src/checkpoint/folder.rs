//! The checkpoints of a job in one folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use p2ptrain_protocol::id::{JobId, Step};

use super::atomic::remove_stale;
use super::error::{LatestError, LoadError, SaveError};
use super::file::{self, About, Checkpoint, Info};
use super::state::StateRef;
use crate::data::DiskError;

const SUFFIX: &str = ".ckpt";

/// A folder of checkpoints, of one job or several.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
}

/// A checkpoint in a folder; only its header was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The file.
    pub path: PathBuf,
    /// Its job.
    pub job: JobId,
    /// The job's name.
    pub name: String,
    /// The next step.
    pub step: Step,
    /// Counts the saves into this folder.
    pub sequence: u64,
    /// Length of the file.
    pub bytes: u64,
}

/// What a save has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The new checkpoint.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Older ones that were removed.
    pub removed: Vec<PathBuf>,
}

/// The latest good checkpoint of a folder.
#[derive(Debug)]
pub struct Latest {
    /// The file.
    pub path: PathBuf,
    /// Its content.
    pub checkpoint: Checkpoint,
    /// Later ones that cannot be used, to warn about.
    pub passed_over: Vec<LoadError>,
}

impl Folder {
    /// The folder of this path; it is made where it does not exist. Leftovers of interrupted saves
    /// are removed.
    pub fn open(path: &Path) -> Result<Self, DiskError> {
        fs::create_dir_all(path).map_err(DiskError::at(path))?;
        remove_stale(path);
        Ok(Self { path: path.to_owned() })
    }

    /// The folder's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Saves a checkpoint and then removes the oldest of the same job until `keep` are left.
    ///
    /// Nothing is removed before the new one is complete on the disk, and only checkpoints with a
    /// good header count: damaged files neither count nor are removed.
    pub fn save(&self, about: &About, state: StateRef<'_>, keep: u32) -> Result<Saved, SaveError> {
        let job = about.job.id();
        let (before, _) = self.list()?;
        let sequence = before.iter().map(|entry| entry.sequence).max().unwrap_or(0);
        let sequence = sequence.saturating_add(1);
        let path = self.path.join(format!("{job}-step-{:09}{SUFFIX}", about.step.0));
        let bytes = file::save(&path, sequence, about, state)?;
        let mut old: Vec<Entry> =
            before.into_iter().filter(|it| it.job == job && it.path != path).collect();
        old.sort_by_key(|entry| std::cmp::Reverse(entry.sequence));
        let surplus = old.into_iter().skip(keep.max(1) as usize - 1);
        // What cannot be removed is only space; the next save tries again.
        let removed = surplus.map(|it| it.path).filter(|path| fs::remove_file(path).is_ok());
        let removed = removed.collect();
        Ok(Saved { path, bytes, removed })
    }

    /// The checkpoints here, the latest first, and those whose header is damaged.
    pub fn list(&self) -> Result<(Vec<Entry>, Vec<LoadError>), DiskError> {
        let at = DiskError::at(&self.path);
        let (mut entries, mut damaged) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.path).map_err(at)? {
            let path = entry.map_err(at)?.path();
            let name = path.file_name().unwrap_or_default().as_encoded_bytes();
            if name.starts_with(b".") || !name.ends_with(SUFFIX.as_bytes()) {
                continue;
            }
            match file::inspect(&path) {
                Ok(Info { about, manifest, sequence, bytes }) => {
                    let (job, name, step) = (manifest.job, about.job.name, about.step);
                    entries.push(Entry { path, job, name, step, sequence, bytes });
                }
                // Another node of this machine may have removed it in between.
                Err(LoadError::NotFound { .. }) => {}
                Err(error) => damaged.push(error),
            }
        }
        entries.sort_by(|a, b| (b.sequence, &b.path).cmp(&(a.sequence, &a.path)));
        Ok((entries, damaged))
    }

    /// Loads the latest checkpoint of the job that is good to the last byte, or of the only job.
    pub fn latest_good(&self, job: Option<JobId>) -> Result<Latest, LatestError> {
        let (mut entries, mut passed_over) = self.list()?;
        match job {
            Some(job) => entries.retain(|entry| entry.job == job),
            None => {
                let jobs: BTreeMap<JobId, &str> =
                    entries.iter().map(|entry| (entry.job, entry.name.as_str())).collect();
                if jobs.len() > 1 {
                    let jobs = jobs.iter().map(|(job, name)| format!("{job} {name:?}")).collect();
                    return Err(LatestError::SeveralJobs { folder: self.path.clone(), jobs });
                }
            }
        }
        for entry in entries {
            match file::load(&entry.path, job) {
                Ok(checkpoint) => return Ok(Latest { path: entry.path, checkpoint, passed_over }),
                Err(error) => passed_over.push(error),
            }
        }
        Err(LatestError::None { folder: self.path.clone(), passed_over })
    }
}
