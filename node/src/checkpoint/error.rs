//! Errors of checkpoints. Each says which file, what is wrong with it, and what to do.

use std::path::PathBuf;

use p2ptrain_protocol::checkpoint::ManifestError;
use p2ptrain_protocol::id::JobId;
use thiserror::Error;

use crate::data::DiskError;
use crate::job::SpecError;

/// Why a checkpoint was not saved. Those before it are untouched, and training can go on.
#[derive(Debug, Error)]
pub enum SaveError {
    /// The disk refuses.
    #[error("checkpoint not saved (earlier ones are intact): {0}")]
    Disk(#[from] DiskError),
    /// The state is larger than a manifest describes.
    #[error("checkpoint not saved: {0}")]
    State(#[from] ManifestError),
    /// The program or the list of members is too large for a header.
    #[error("checkpoint not saved: its header has {bytes} bytes, at most {bytes_max} are allowed")]
    Header {
        /// Bytes of the header.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
}

/// Why a checkpoint cannot be used.
#[derive(Debug, Error)]
pub enum LoadError {
    /// There is no such file.
    #[error("there is no checkpoint {}", path.display())]
    NotFound {
        /// The file.
        path: PathBuf,
    },
    /// Another kind of file.
    #[error("{} is no checkpoint of p2ptrain", path.display())]
    NotACheckpoint {
        /// The file.
        path: PathBuf,
    },
    /// Made by another version of the program.
    #[error(
        "{} has checkpoint version {found}, this program reads {supported}: \
         resume it with the version that wrote it", path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Version of the file.
        found: u32,
        /// Version of this program.
        supported: u32,
    },
    /// The end is missing.
    #[error(
        "{} is truncated: {bytes} of {expected} bytes; use an older checkpoint", path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes there are.
        bytes: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// Something follows the end.
    #[error(
        "{} has {bytes} bytes instead of {expected}: something was appended; \
         use an older checkpoint", path.display()
    )]
    Trailing {
        /// The file.
        path: PathBuf,
        /// Bytes there are.
        bytes: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// The header has changed since it was written.
    #[error("{} has a damaged header ({reason}); use an older checkpoint", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// A part of the state has changed since it was written.
    #[error("{} is damaged: {source}; use an older checkpoint", path.display())]
    Chunk {
        /// The file.
        path: PathBuf,
        /// Which part, and its digests.
        source: ManifestError,
    },
    /// The job in it is refused.
    #[error("{}: {source}", path.display())]
    Job {
        /// The file.
        path: PathBuf,
        /// What is wrong with the job.
        source: SpecError,
    },
    /// It belongs to another job.
    #[error(
        "{} belongs to job {found} ({name:?}), not to {expected}: \
         give the checkpoint or the folder of this job", path.display()
    )]
    WrongJob {
        /// The file.
        path: PathBuf,
        /// Job of the file.
        found: JobId,
        /// Name of that job.
        name: String,
        /// Job wanted.
        expected: JobId,
    },
    /// The file cannot be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Why a folder gives no checkpoint.
#[derive(Debug, Error)]
pub enum LatestError {
    /// There is none that can be used.
    #[error("{} has no good checkpoint{}", folder.display(), reasons(passed_over))]
    None {
        /// The folder.
        folder: PathBuf,
        /// Why each one there cannot be used.
        passed_over: Vec<LoadError>,
    },
    /// There are several jobs to choose from.
    #[error("{} has checkpoints of several jobs ({}): name one", folder.display(), jobs.join(", "))]
    SeveralJobs {
        /// The folder.
        folder: PathBuf,
        /// Id and name of each.
        jobs: Vec<String>,
    },
    /// The folder cannot be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

fn reasons(passed_over: &[LoadError]) -> String {
    let reasons: Vec<String> = passed_over.iter().take(5).map(LoadError::to_string).collect();
    if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join("; ")) }
}
