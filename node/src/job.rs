//! What is trained: the user's `job.toml`, and the part of it that travels to other peers.
//!
//! ```text
//! job.toml ──parse──▶ JobFile { local: where the data lies, where checkpoints go
//!                               spec: JobSpec ──encode──▶ bytes ──decode + check──▶ JobSpec }
//! ```
//!
//! [`JobSpec`] never holds a path: a path chosen by one machine must not decide where another one
//! reads or writes. Its canonical bytes identify the job ([`JobSpec::id`]), and every peer that
//! receives them checks them by the same rules as the file ([`JobSpec::check`]).

mod check;
mod error;
mod parse;
mod render;
mod schedule;
mod spec;

pub use self::check::{Violation, limits};
pub use self::error::{JobError, Problem, SpecError};
pub use self::parse::{parse, parse_str};
pub use self::spec::{
    BatchSpec, CheckpointSpec, DataFormat, DataSpec, DecayRule, EvalSpec, GptSpec, JobFile,
    JobSpec, ModelSpec, OptimizerKind, OptimizerSpec, Precision, ScheduleKind, ScheduleSpec,
};
