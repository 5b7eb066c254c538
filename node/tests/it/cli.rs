//! The commands as a shell sees them: output, error output and exit status.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use clap::Parser as _;
use p2ptrain_node::cli::{self, Cli, Command as CliCommand, UsageError};
use p2ptrain_node::ipc::{self, IpcCommand};
use p2ptrain_node::status::{EventLevel, JobStatus, NodeStatus, Phase, StatusHub, StepReport};
use serde_json::Value;

fn command(dir: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_p2ptrain"));
    command.args(line.split_whitespace()).env("P2PTRAIN_DIR", dir).stdin(Stdio::null());
    command.env_remove("P2PTRAIN_SWARM");
    command
}

fn run(dir: &Path, line: &str) -> Output {
    command(dir, line).output().expect("cargo built the binary")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("output is UTF-8")
}

fn status() -> NodeStatus {
    let mut job = JobStatus { name: "tiny".into(), steps: 100, ..JobStatus::default() };
    job.record_step(&StepReport { step: 40, samples: 64, loss: 2.5, ..StepReport::default() });
    let mut status =
        NodeStatus { name: "alice".into(), phase: Phase::Training, ..NodeStatus::default() };
    status.job = Some(job);
    status.events.push(EventLevel::Info, "bob joined");
    status
}

#[test]
fn help_is_a_manual_and_its_short_form_is_short() {
    let dir = Path::new("/nonexistent");
    let short = run(dir, "join -h");
    let long = run(dir, "join --help");
    assert!(short.status.success() && long.status.success());
    assert!(text(&long.stdout).contains("Exit status:"));
    assert!(long.stdout.len() > short.stdout.len());
    assert!(long.stderr.is_empty());
}

#[test]
fn a_wrong_command_line_ends_with_status_2_and_says_what_is_allowed() {
    let dir = Path::new("/nonexistent");
    let output = run(dir, "demo --peers 99");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("1..=16"), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty());
    let output = run(dir, "demo --peers 99 --json");
    assert_eq!(output.status.code(), Some(2));
    let error: Value = serde_json::from_slice(&output.stderr).expect("one JSON object");
    assert!(error["error"].as_str().is_some_and(|e| e.contains("99")), "{error}");
}

#[test]
fn without_a_node_the_error_says_what_to_do() {
    let dir = tempfile::tempdir().expect("temporary folder is writable");
    for line in ["status", "watch", "leave", "leave --now"] {
        let output = run(&dir.path().join("node"), line);
        assert_eq!(output.status.code(), Some(1), "{line}");
        let errors = text(&output.stderr);
        assert!(errors.starts_with("error: no node runs in "), "{errors}");
        assert!(errors.contains("\n  try: "), "{errors}");
    }
    let output = run(&dir.path().join("node"), "status --json");
    let error: Value = serde_json::from_slice(&output.stderr).expect("one JSON object");
    assert!(error["try"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn status_watch_and_leave_work_on_a_running_node() {
    let dir = tempfile::tempdir().expect("temporary folder is writable");
    let node = dir.path().join("node");
    let hub = StatusHub::new(status());
    let (server, mut commands) = ipc::serve(&node, hub.clone()).expect("folder is free");
    let ask = |line: &'static str| {
        let node = node.clone();
        tokio::task::spawn_blocking(move || run(&node, line))
    };

    let output = ask("status").await.expect("no panic");
    let shown = text(&output.stdout);
    assert!(output.status.success() && shown.contains("step 40/100"), "{shown}");
    assert!(!shown.contains('\x1b'), "no escape codes on a pipe");
    let output = ask("status --json").await.expect("no panic");
    let value: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!((&value["job"]["step"], &value["job"]["loss"]), (&40.into(), &2.5.into()));

    // A node beside the one asked for is named.
    let other = dir.path().join("other");
    let output =
        tokio::task::spawn_blocking(move || run(&other, "status")).await.expect("no panic");
    let advice = format!("try: --dir {}, where a node runs", node.display());
    assert!(text(&output.stderr).contains(&advice), "{}", text(&output.stderr));

    let watching = ask("watch --json");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let leaving = ask("leave");
    match commands.recv().await {
        Some(IpcCommand::Leave { reply }) => {
            hub.update(|status| status.phase = Phase::Done);
            reply.done("left after step 40");
        }
        other => panic!("leave was asked for, not {other:?}"),
    }
    server.shutdown().await;
    let output = leaving.await.expect("no panic");
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "left after step 40\n"));
    let output = watching.await.expect("no panic");
    assert!(output.status.success());
    let lines: Vec<Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("one JSON object a line"))
        .collect();
    assert!(lines.iter().any(|line| line["event"]["text"] == "bob joined"), "{lines:?}");
    assert_eq!(lines.last().expect("a status")["status"]["phase"], "done");
}

#[tokio::test]
async fn submit_checks_the_file_and_sends_its_text_and_folder() {
    let dir = tempfile::tempdir().expect("temporary folder is writable");
    let file = dir.path().join("job.toml");
    std::fs::write(&file, "steps = 1\n").expect("folder is writable");
    let line =
        format!("p2ptrain submit {} --quiet --dir {}/node", file.display(), dir.path().display());
    let cli = Cli::try_parse_from(line.split_whitespace()).expect("valid");
    let CliCommand::Submit(args) = &cli.command else { panic!("submit was asked for") };

    let refuse = |_: &Path, _: &str| Err(UsageError("line 1: no".into()).into());
    let error = cli::submit(&cli.global, args, refuse).await.unwrap_err();
    assert_eq!(error.to_string(), "line 1: no");
    let error = cli::submit(&cli.global, args, |_, _| Ok(())).await.unwrap_err();
    assert!(error.to_string().starts_with("no node runs"), "{error}");

    let (_server, mut commands) =
        ipc::serve(&dir.path().join("node"), StatusHub::new(status())).expect("folder is free");
    let base = dir.path().canonicalize().expect("exists");
    let node = tokio::spawn(async move {
        match commands.recv().await {
            Some(IpcCommand::Submit { job, base: sent, reply }) => {
                assert_eq!((job.as_str(), sent), ("steps = 1\n", base));
                reply.done("accepted");
            }
            other => panic!("submit was asked for, not {other:?}"),
        }
    });
    cli::submit(&cli.global, args, |_, _| Ok(())).await.expect("accepted");
    node.await.expect("the node saw what it should");
}

#[test]
fn doctor_reports_in_text_and_json() {
    let dir = tempfile::tempdir().expect("temporary folder is writable");
    let output = run(dir.path(), "doctor");
    assert!(text(&output.stdout).contains("processor"), "{}", text(&output.stdout));
    let output = run(dir.path(), "doctor --json");
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert!(report["findings"].as_array().is_some_and(|findings| findings.len() >= 10));
}

#[test]
fn completions_know_the_commands_and_a_closed_pipe_is_no_error() {
    let dir = Path::new("/nonexistent");
    for shell in ["bash", "zsh", "fish"] {
        let output = run(dir, &format!("completions {shell}"));
        assert!(output.status.success() && text(&output.stdout).contains("swarm-key"), "{shell}");
    }
    let mut child = command(dir, "completions bash")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("cargo built the binary");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
}
