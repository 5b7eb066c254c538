use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::CommandFactory as _;
use serde_json::json;

use super::{
    Cli, CompletionsArgs, DoctorArgs, ExitKind, Global, Hint as _, LeaveArgs, Output, SubmitArgs,
    UsageError, WatchArgs,
};
use crate::dashboard::{Dashboard, Mode, summary};
use crate::doctor;
use crate::ipc::{self, IpcError};
use crate::status::{NodeStatus, Phase};

/// Bytes of a job file.
const JOB_BYTES_MAX: u64 = 256 << 10;
/// Time between two pictures while nothing changes, so that a resized terminal is drawn anew.
const REDRAW: Duration = Duration::from_millis(500);

/// `p2ptrain status`.
///
/// # Errors
/// Where no node answers.
pub async fn status(global: &Global) -> anyhow::Result<ExitKind> {
    let dir = global.node_dir();
    let status = ipc::status(&dir).await.or_else(|error| advise(error, &dir))?;
    Output::new(global).result(&summary(&status), &status)?;
    Ok(ExitKind::Success)
}

/// `p2ptrain watch`: until the node ends (exit status 0, or 1 where it failed) or Ctrl-C.
///
/// # Errors
/// Where no node answers.
pub async fn watch(global: &Global, args: &WatchArgs) -> anyhow::Result<ExitKind> {
    let dir = global.node_dir();
    let interval = Duration::from_millis(args.interval.into());
    let mut feed = ipc::watch(&dir, interval).await.or_else(|error| advise(error, &dir))?;
    let mut display = Dashboard::new(Mode::of(&Output::new(global)));
    let result = follow(&mut feed, &mut display).await;
    display.finish()?;
    result
}

async fn follow(feed: &mut ipc::Watch, display: &mut Dashboard) -> anyhow::Result<ExitKind> {
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    let mut latest: Option<NodeStatus> = None;
    loop {
        // A status may arrive in parts, so its reading is not started anew at each redraw.
        let mut next = std::pin::pin!(feed.next());
        let received = loop {
            tokio::select! {
                _ = &mut interrupt => return Ok(ExitKind::Interrupted),
                received = &mut next => break received?,
                () = tokio::time::sleep(REDRAW) => {
                    if let Some(status) = &latest {
                        display.draw(status, "")?;
                    }
                }
            }
        };
        let Some(status) = received else { break };
        display.draw(&status, "")?;
        latest = Some(status);
    }
    let failed = latest.is_some_and(|status| status.phase == Phase::Failed);
    Ok(if failed { ExitKind::Failure } else { ExitKind::Success })
}

/// `p2ptrain leave`.
///
/// # Errors
/// Where no node answers, or it refuses.
pub async fn leave(global: &Global, args: &LeaveArgs) -> anyhow::Result<ExitKind> {
    let dir = global.node_dir();
    let left = if args.now { ipc::stop(&dir).await } else { ipc::leave(&dir).await };
    let message = left.or_else(|error| advise(error, &dir))?;
    Output::new(global).result(&message, &json!({ "message": message }))?;
    Ok(ExitKind::Success)
}

/// `p2ptrain submit`. `check` gets the file's path and its text, and refuses what is no job.
///
/// # Errors
/// Where the file cannot be read or is no job, no node answers, or the node refuses.
pub async fn submit(
    global: &Global,
    args: &SubmitArgs,
    check: impl FnOnce(&Path, &str) -> anyhow::Result<()>,
) -> anyhow::Result<ExitKind> {
    let dir = global.node_dir();
    let (path, text) = read_job(&args.job)?;
    check(&path, &text)?;
    let base = path.parent().unwrap_or(Path::new("/")).to_owned();
    let message = ipc::submit(&dir, text, base).await.or_else(|error| advise(error, &dir))?;
    Output::new(global).result(&message, &json!({ "message": message }))?;
    Ok(ExitKind::Success)
}

/// `p2ptrain doctor`: exit status 1 where something must be fixed before a node can run.
///
/// # Errors
/// Where stdout cannot be written to.
pub fn doctor(global: &Global, args: &DoctorArgs) -> anyhow::Result<ExitKind> {
    let output = Output::new(global);
    let report = doctor::examine(&doctor::Question {
        dir: global.node_dir(),
        port: args.port,
        bulk_port: args.bulk_port,
    });
    output.result(&report.text(output.colour), &report)?;
    Ok(if report.sound() { ExitKind::Success } else { ExitKind::Failure })
}

/// `p2ptrain completions SHELL`.
///
/// # Errors
/// Where stdout cannot be written to.
pub fn completions(global: &Global, args: &CompletionsArgs) -> anyhow::Result<ExitKind> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "p2ptrain", &mut script);
    let script = String::from_utf8(script).context("the completions are not UTF-8")?;
    Output::new(global).text(script.trim_end())?;
    Ok(ExitKind::Success)
}

/// The job file's absolute path and its text.
fn read_job(path: &Path) -> anyhow::Result<(PathBuf, String)> {
    let read = || format!("cannot read the job file {}", path.display());
    let full = path.canonicalize().with_context(read).hint("name an existing job file")?;
    let bytes = full.metadata().with_context(read)?.len();
    if bytes > JOB_BYTES_MAX {
        let text =
            format!("{} has {bytes} bytes; a job file has at most {JOB_BYTES_MAX}", path.display());
        return Err(UsageError(text).into());
    }
    let text = std::fs::read_to_string(&full).with_context(read)?;
    Ok((full, text))
}

/// Names the nodes that do run on this machine where the one asked for does not.
fn advise<T>(error: IpcError, dir: &Path) -> anyhow::Result<T> {
    if matches!(error, IpcError::NotRunning { .. }) {
        let mut others = running_beside(dir);
        if let Some(first) = others.pop() {
            let mut advice = format!("--dir {}, where a node runs", first.display());
            for other in others.iter().take(4) {
                advice += &format!("\nor --dir {}", other.display());
            }
            return Err(error).hint(advice);
        }
    }
    Err(error.into())
}

fn running_beside(dir: &Path) -> Vec<PathBuf> {
    let Some(entries) = dir.parent().and_then(|parent| std::fs::read_dir(parent).ok()) else {
        return Vec::new();
    };
    let mut found: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| UnixStream::connect(ipc::socket_path(path)).is_ok())
        .collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    found
}
