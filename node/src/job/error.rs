//! Errors of job files and of jobs received from peers.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

use super::check::Violation;

/// Why a `job.toml` is refused.
#[derive(Debug, Error)]
pub enum JobError {
    /// The file cannot be read.
    #[error("cannot read the job file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is far larger than any job.
    #[error("{} is too long for a job file, which has at most {bytes_max} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound.
        bytes_max: u64,
    },
    /// The file is not text.
    #[error("{} is not UTF-8 text: the first wrong byte is at offset {offset}", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Offset of the first wrong byte.
        offset: usize,
    },
    /// Fields are wrong. All of them are listed.
    #[error("{}", list(problems))]
    Invalid {
        /// What is wrong, in the order of the file.
        problems: Vec<Problem>,
    },
}

/// One wrong place in a job file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file as the user named it.
    pub file: String,
    /// Line from 1; 0 where something is missing altogether.
    pub line: usize,
    /// Column from 1, in characters.
    pub column: usize,
    /// The field's full name, such as `optimizer.lr`; empty for wrong TOML.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What is allowed.
    pub allowed: String,
    /// A field or value that was probably meant.
    pub did_you_mean: Option<String>,
    /// The line's text.
    pub source_line: String,
    /// How many characters are wrong, from `column` on.
    pub width: usize,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        write!(f, ": ")?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "{}", self.message)?;
        if self.line > 0 {
            let number = self.line.to_string();
            let gutter = " ".repeat(number.len());
            // Tabs stay tabs, so that the caret stands below its character in any terminal.
            let indent: String = (self.source_line.chars())
                .take(self.column - 1)
                .map(|c| if c == '\t' { '\t' } else { ' ' })
                .collect();
            write!(f, "\n  {number} | {}", self.source_line)?;
            write!(f, "\n  {gutter} | {indent}{}", "^".repeat(self.width.max(1)))?;
        }
        if !self.allowed.is_empty() {
            write!(f, "\n    allowed: {}", self.allowed)?;
        }
        if let Some(meant) = &self.did_you_mean {
            write!(f, "\n    did you mean `{meant}`?")?;
        }
        Ok(())
    }
}

/// Why a job that came from a peer or a checkpoint is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SpecError {
    /// The bytes do not begin like a job.
    #[error("these bytes are no job")]
    NotASpec,
    /// Made by another version of the program.
    #[error(
        "the job has format version {found}, this program reads {supported}: \
         use the same p2ptrain version on all peers"
    )]
    Version {
        /// Version in the bytes.
        found: u16,
        /// Version of this program.
        supported: u16,
    },
    /// Larger than any job.
    #[error("the job has {bytes} bytes; at most {bytes_max} are allowed")]
    TooLarge {
        /// Bytes received.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
    /// The bytes do not decode.
    #[error("the job does not decode: {reason}")]
    Malformed {
        /// What the decoder said.
        reason: String,
    },
    /// Bytes follow the job.
    #[error("{bytes} bytes follow the job")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// Fields are out of bounds or contradict each other.
    #[error("the job is refused: {}", list(violations))]
    Refused {
        /// All that is wrong.
        violations: Vec<Violation>,
    },
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join("\n")
}
