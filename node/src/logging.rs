//! The log: a file in the node's folder, bounded in size, and warnings on stderr.
//!
//! While the live display holds the terminal, warnings are kept for it instead of being printed
//! into the middle of it.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt as subscriber_fmt};

use crate::cli::LogLevel;
use crate::status::{EVENT_CHARS_MAX, clean};

/// Bytes of the log file before it is renamed to `node.log.1`, replacing the one before.
pub const LOG_BYTES_MAX: u64 = 16 << 20;
const LOG_NAME: &str = "node.log";
/// Warnings kept while the display holds the terminal.
const HELD_LINES_MAX: usize = 32;

/// Why the log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The log file cannot be opened.
    #[error("cannot open the log file {}", .path.display())]
    File {
        /// The log file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// `P2PTRAIN_LOG` is no filter.
    #[error("P2PTRAIN_LOG is not a log filter")]
    Filter(#[source] tracing_subscriber::filter::ParseError),
    /// The process logs already.
    #[error("the log is already open")]
    AlreadyOpen,
}

/// Opens the log for the rest of the process: `node.log` in `dir` at `level` (or as `P2PTRAIN_LOG`
/// says), warnings on stderr. Without a `dir`, for commands that run no node, stderr alone.
/// Returns the log file's path.
///
/// # Errors
/// See [`LoggingError`].
pub fn init(dir: Option<&Path>, level: LogLevel) -> Result<Option<PathBuf>, LoggingError> {
    let path = dir.map(|dir| dir.join(LOG_NAME));
    let file = match &path {
        Some(path) => {
            let file = RotatingFile::open(path, LOG_BYTES_MAX)
                .map_err(|source| LoggingError::File { path: path.clone(), source })?;
            let layer = subscriber_fmt::layer().with_ansi(false).with_writer(file);
            Some(layer.with_filter(filter(level)?))
        }
        None => None,
    };
    let stderr = subscriber_fmt::layer()
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .with_writer(|| StderrLine(Vec::new()))
        .with_filter(LevelFilter::WARN);
    tracing_subscriber::registry()
        .with(file)
        .with(stderr)
        .try_init()
        .map_err(|_| LoggingError::AlreadyOpen)?;
    Ok(path)
}

/// Keeps warnings from stderr until the guard is dropped; the display shows them.
pub(crate) fn hold_stderr() -> StderrHold {
    lock(&HELD).get_or_insert_default();
    StderrHold(())
}

/// The warnings kept so far, oldest first.
pub(crate) fn take_held() -> Vec<String> {
    lock(&HELD).as_mut().map(|lines| lines.drain(..).collect()).unwrap_or_default()
}

/// See [`hold_stderr`].
#[derive(Debug)]
pub(crate) struct StderrHold(());

impl Drop for StderrHold {
    fn drop(&mut self) {
        let lines = lock(&HELD).take().unwrap_or_default();
        for line in lines {
            let _ = writeln!(io::stderr(), "{line}");
        }
    }
}

static HELD: Mutex<Option<VecDeque<String>>> = Mutex::new(None);

fn filter(level: LogLevel) -> Result<EnvFilter, LoggingError> {
    if let Ok(text) = std::env::var("P2PTRAIN_LOG") {
        return EnvFilter::try_new(text).map_err(LoggingError::Filter);
    }
    // The networking libraries say at info what belongs to debug here.
    let text = match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "warn,p2ptrain=info,p2ptrain_node=info,p2ptrain_protocol=info",
        LogLevel::Debug => "info,p2ptrain=debug,p2ptrain_node=debug,p2ptrain_protocol=debug",
        LogLevel::Trace => "debug,p2ptrain=trace,p2ptrain_node=trace,p2ptrain_protocol=trace",
    };
    EnvFilter::try_new(text).map_err(LoggingError::Filter)
}

/// One event for stderr: printed, or held while a display has the terminal.
struct StderrLine(Vec<u8>);

impl Write for StderrLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for StderrLine {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.0);
        let text = clean(text.trim(), EVENT_CHARS_MAX);
        if text.is_empty() {
            return;
        }
        match lock(&HELD).as_mut() {
            Some(held) => {
                if held.len() >= HELD_LINES_MAX {
                    held.pop_front();
                }
                held.push_back(text);
            }
            None => {
                let _ = writeln!(io::stderr(), "{text}");
            }
        }
    }
}

/// A log file that renames itself to `NAME.1` when it is full, so that two files bound the disk.
#[derive(Clone, Debug)]
struct RotatingFile(Arc<Mutex<Rotation>>);

#[derive(Debug)]
struct Rotation {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
}

impl RotatingFile {
    fn open(path: &Path, bytes_max: u64) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let file = append(path)?;
        let bytes = file.metadata()?.len();
        let rotation = Rotation { path: path.to_owned(), file, bytes, bytes_max };
        Ok(Self(Arc::new(Mutex::new(rotation))))
    }
}

impl<'a> MakeWriter<'a> for RotatingFile {
    type Writer = RotatingWriter<'a>;

    fn make_writer(&'a self) -> RotatingWriter<'a> {
        RotatingWriter(lock(&self.0))
    }
}

struct RotatingWriter<'a>(MutexGuard<'a, Rotation>);

impl Write for RotatingWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let rotation = &mut *self.0;
        if rotation.bytes > 0 && rotation.bytes + bytes.len() as u64 > rotation.bytes_max {
            let old = rotation.path.with_extension("log.1");
            fs::rename(&rotation.path, old)?;
            rotation.file = append(&rotation.path)?;
            rotation.bytes = 0;
        }
        let written = rotation.file.write(bytes)?;
        rotation.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.file.flush()
    }
}

fn append(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

/// A panic in a logging thread leaves at most a line half written: the log goes on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_is_renamed_once_and_bounds_the_disk() {
        let dir = tempfile::tempdir().expect("temporary folder is writable");
        let path = dir.path().join(LOG_NAME);
        let log = RotatingFile::open(&path, 1000).expect("folder is writable");
        for line in 0..100 {
            writeln!(log.make_writer(), "line {line:03} of some length").expect("disk has space");
        }
        let names: Vec<_> = fs::read_dir(dir.path())
            .expect("folder exists")
            .map(|entry| entry.expect("readable").file_name().into_string().expect("ascii"))
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
        let newest = fs::read_to_string(&path).expect("exists");
        let older = fs::read_to_string(path.with_extension("log.1")).expect("exists");
        assert!(newest.len() <= 1000 && older.len() <= 1000);
        assert!((older + &newest).ends_with("line 099 of some length\n"));
    }

    #[test]
    fn warnings_wait_while_a_display_holds_the_terminal() {
        let hold = hold_stderr();
        for i in 0..HELD_LINES_MAX + 2 {
            StderrLine(format!(" WARN trouble {i}\n").into_bytes());
        }
        let held = take_held();
        assert_eq!(held.len(), HELD_LINES_MAX);
        assert_eq!(held.last().map(String::as_str), Some("WARN trouble 33"));
        assert!(take_held().is_empty());
        drop(hold);
    }
}
