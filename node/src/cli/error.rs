use std::error::Error;
use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;

use crate::ipc::IpcError;

/// How a command ended. The numbers are part of the interface that `--help` promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitKind {
    /// 0: what was asked for is done.
    Success,
    /// 1: it failed.
    Failure,
    /// 2: the command line or the job file is wrong; nothing was started.
    Usage,
    /// 130: ended by Ctrl-C.
    Interrupted,
}

impl ExitKind {
    /// The exit status.
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Usage => 2,
            Self::Interrupted => 130,
        }
    }
}

impl From<ExitKind> for ExitCode {
    fn from(kind: ExitKind) -> Self {
        Self::from(kind.code())
    }
}

/// An error in what the user wrote, found after the command line was parsed. It ends the command
/// with exit status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Adds advice to an error: what the user can do, in words, shown after `try:`.
pub trait Hint<T> {
    /// Adds `advice` in the error case.
    ///
    /// # Errors
    /// The same as before.
    fn hint(self, advice: impl Into<String>) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> Hint<T> for Result<T, E> {
    fn hint(self, advice: impl Into<String>) -> anyhow::Result<T> {
        self.map_err(|error| {
            anyhow::Error::new(WithHint { inner: error.into(), advice: advice.into() })
        })
    }
}

/// Reads as the error it wraps, so that the chain of causes stays as it was.
#[derive(Debug)]
struct WithHint {
    inner: anyhow::Error,
    advice: String,
}

impl fmt::Display for WithHint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl Error for WithHint {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.inner.source()
    }
}

/// Ends a command: shows the error on stderr, as text or, with `--json`, as one JSON object, and
/// gives the exit status.
pub fn finish(result: anyhow::Result<ExitKind>, json: bool) -> ExitCode {
    match result {
        Ok(kind) => kind.into(),
        Err(error) => {
            let report = if json { render_json(&error) + "\n" } else { render_text(&error) };
            // Nothing is left to tell where stderr is closed.
            let _ = std::io::stderr().lock().write_all(report.as_bytes());
            exit_kind(&error).into()
        }
    }
}

/// An error for people:
///
/// ```text
/// error: cannot open the job file
///   caused by: No such file or directory (os error 2)
///   try: name an existing file
/// ```
pub fn render_text(error: &anyhow::Error) -> String {
    let mut messages = messages(error).into_iter();
    let mut out = format!("error: {}\n", indent(&messages.next().unwrap_or_default()));
    for cause in messages {
        out.push_str(&format!("  caused by: {}\n", indent(&cause)));
    }
    if let Some(advice) = advice(error) {
        out.push_str(&format!("  try: {}\n", indent(&advice)));
    }
    out
}

/// An error for programs: `{"error": "...", "causes": ["..."], "try": "..." or null}`.
pub fn render_json(error: &anyhow::Error) -> String {
    let messages = messages(error);
    let (first, causes) = messages.split_first().expect("an error chain has at least one error");
    serde_json::json!({ "error": first, "causes": causes, "try": advice(error) }).to_string()
}

fn exit_kind(error: &anyhow::Error) -> ExitKind {
    if links(error).any(|e| e.is::<UsageError>()) { ExitKind::Usage } else { ExitKind::Failure }
}

/// The chain without repetitions: some libraries print their cause as a part of their own message.
fn messages(error: &anyhow::Error) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for link in error.chain() {
        let text = link.to_string();
        if !text.is_empty() && !out.last().is_some_and(|last| last.ends_with(&text)) {
            out.push(text);
        }
    }
    if out.is_empty() {
        out.push("failed without a message".to_owned());
    }
    out
}

/// The outermost advice in the chain: it knows most about what the user wanted.
fn advice(error: &anyhow::Error) -> Option<String> {
    links(error).find_map(|link| {
        if let Some(with) = link.downcast_ref::<WithHint>() {
            return Some(with.advice.clone());
        }
        link.downcast_ref::<IpcError>().and_then(IpcError::hint)
    })
}

/// All errors of the chain, also those inside a [`WithHint`].
fn links(error: &anyhow::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    error.chain().flat_map(|link| {
        let mut all = vec![link];
        let mut outer = link;
        while let Some(with) = outer.downcast_ref::<WithHint>() {
            outer = with.inner.as_ref();
            all.push(outer);
        }
        all
    })
}

fn indent(text: &str) -> String {
    text.trim_end().replace('\n', "\n    ")
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    fn missing_file() -> Result<(), std::io::Error> {
        Err(std::io::Error::new(std::io::ErrorKind::NotFound, "no such file"))
    }

    #[test]
    fn an_error_shows_its_causes_and_what_to_try() {
        let error = missing_file()
            .context("cannot read job.toml")
            .hint("name an existing file")
            .context("the job cannot start")
            .unwrap_err();
        assert_eq!(
            render_text(&error),
            "error: the job cannot start\n  caused by: cannot read job.toml\n  caused by: no such file\n  try: name an existing file\n"
        );
        assert_eq!(
            render_json(&error),
            r#"{"causes":["cannot read job.toml","no such file"],"error":"the job cannot start","try":"name an existing file"}"#
        );
        assert_eq!(exit_kind(&error), ExitKind::Failure);
    }

    #[test]
    fn the_outermost_advice_wins() {
        let error = missing_file().hint("inner").context("more").hint("outer").unwrap_err();
        assert!(render_text(&error).ends_with("  try: outer\n"));
    }

    #[test]
    fn a_usage_error_is_found_under_context_and_advice() {
        let error = Err::<(), _>(UsageError("--peers must be at least 2".into()))
            .hint("leave it out")
            .context("the demo cannot start")
            .unwrap_err();
        assert_eq!(exit_kind(&error), ExitKind::Usage);
        assert_eq!(ExitKind::Usage.code(), 2);
    }

    #[test]
    fn a_missing_node_comes_with_advice_of_its_own() {
        let error = anyhow::Error::new(IpcError::NotRunning { dir: "/x".into() });
        let text = render_text(&error);
        assert!(text.starts_with("error: no node runs in /x\n  try: start one"), "{text}");
    }
}
