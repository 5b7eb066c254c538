//! The demo as a user runs it.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// Enough real text for a few epochs of a short demo: this crate's own sources.
fn text(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("text.txt");
    let source = include_str!("../../src/runtime.rs").repeat(8);
    std::fs::write(&path, source).expect("the temporary folder is writable");
    path
}

fn demo(folder: &Path, options: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_p2ptrain"))
        .args(["demo", "--json", "--seconds", "6", "--data"])
        .arg(text(folder))
        .arg("--dir")
        .arg(folder.join("demo"))
        .args(options)
        .env_remove("P2PTRAIN_DIR")
        .env_remove("P2PTRAIN_SWARM")
        .stdin(Stdio::null())
        .output()
        .expect("the binary was built with this test")
}

/// The last line of the output: the demo's result.
fn result(output: &Output) -> Value {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let last = stdout.lines().last().unwrap_or_default();
    let value: Value = serde_json::from_str(last).unwrap_or_default();
    assert!(value["demo"].is_object(), "no result:\n{stdout}\n{stderr}");
    assert!(output.status.success(), "{value:#}\n{stdout}\n{stderr}");
    value["demo"].clone()
}

#[test]
fn a_killed_node_costs_no_sample_and_all_nodes_end_with_the_same_parameters() {
    let temp = tempfile::tempdir().expect("a temporary folder");
    let demo = result(&demo(temp.path(), &["--threads-per-peer", "1"]));
    assert_eq!(demo["failures"], serde_json::json!([]));
    let (before, after) = (&demo["untrained_loss"], &demo["held_out_loss"]);
    assert!(after.as_f64() < before.as_f64(), "{demo:#}");
    let account = &demo["account"];
    assert_eq!((&account["lost"], &account["doubled"]), (&0.into(), &0.into()));
    assert_eq!(account["steps"], demo["steps"]);
    assert_eq!(demo["kill"]["node"], "alice");
    assert!(demo["kill"]["next_commit_s"].is_number(), "{demo:#}");
    assert_eq!(demo["replicas"]["equal"], true);
    let checkpoint = demo["checkpoint"].as_str().expect("a path");
    assert!(Path::new(checkpoint).is_file(), "{checkpoint}");
    assert!(demo["sample"].as_str().is_some_and(|sample| sample.len() > 10));
}

#[test]
fn one_node_alone_trains_as_well() {
    let temp = tempfile::tempdir().expect("a temporary folder");
    let demo = result(&demo(temp.path(), &["--peers", "1"]));
    assert_eq!(demo["kill"], Value::Null);
    assert_eq!(demo["account"]["lost"], 0);
}

#[test]
fn a_folder_of_other_files_and_text_that_is_missing_are_clear_errors() {
    let temp = tempfile::tempdir().expect("a temporary folder");
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_p2ptrain"))
            .arg("demo")
            .args(arguments)
            .env_remove("P2PTRAIN_DIR")
            .stdin(Stdio::null())
            .output()
            .expect("the binary was built with this test");
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let folder = temp.path().to_string_lossy();
    text(temp.path());
    let error = run(&["--dir", &folder]);
    assert!(error.contains("not a demo's folder") && error.contains("try:"), "{error}");
    let own = temp.path().join("demo");
    let error = run(&["--dir", &own.to_string_lossy(), "--data", "/does/not/exist"]);
    assert!(error.contains("/does/not/exist") && error.contains("try:"), "{error}");
}
