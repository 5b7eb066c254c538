//! The local socket as a client sees it, over real sockets.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use p2ptrain_node::ipc::{self, IpcCommand, IpcError, Refusal, socket_path};
use p2ptrain_node::status::{NodeStatus, Phase, StatusHub};
use tempfile::TempDir;

fn folder() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("temporary folder is writable");
    let node = dir.path().join("node");
    (dir, node)
}

fn hub(name: &str) -> StatusHub {
    StatusHub::new(NodeStatus { name: name.into(), ..NodeStatus::default() })
}

/// Sends raw bytes and reads all that comes back until the node closes, or nothing for a second.
fn raw(dir: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket_path(dir)).expect("the node serves");
    stream.set_read_timeout(Some(Duration::from_secs(1))).expect("a valid time");
    // The node may close before it has read all: that is its right.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).expect("answers are UTF-8")
}

#[tokio::test]
async fn a_client_reads_the_status() {
    let (_guard, dir) = folder();
    let (_server, _commands) = ipc::serve(&dir, hub("alice")).expect("folder is free");
    assert_eq!(ipc::status(&dir).await.expect("served").name, "alice");
    let mode = |path: &Path| fs::metadata(path).expect("exists").permissions().mode() & 0o777;
    assert_eq!(mode(&socket_path(&dir)), 0o600);
    assert_eq!(mode(&dir), 0o700);
}

#[tokio::test]
async fn commands_reach_the_driver_and_its_answer_the_client() {
    let (_guard, dir) = folder();
    let (_server, mut commands) = ipc::serve(&dir, hub("alice")).expect("folder is free");
    let driver = tokio::spawn(async move {
        while let Some(command) = commands.recv().await {
            match command {
                IpcCommand::Submit { job, base, reply } => {
                    assert_eq!((job.as_str(), base.as_path()), ("a = 1\n", Path::new("/base")));
                    reply.refuse(Refusal::new("busy").hint("wait"));
                }
                IpcCommand::Stop { reply } => drop(reply),
                IpcCommand::Leave { reply } => {
                    reply.done("left after step 7");
                    return;
                }
            }
        }
    });
    let error = ipc::submit(&dir, "a = 1\n".into(), "/base".into()).await.unwrap_err();
    assert_eq!((error.to_string().as_str(), error.hint().as_deref()), ("busy", Some("wait")));
    let error = ipc::stop(&dir).await.unwrap_err();
    assert!(error.to_string().contains("ended before"), "{error}");
    assert_eq!(ipc::leave(&dir).await.expect("answered"), "left after step 7");
    driver.await.expect("the driver saw what it should");
    let error = ipc::leave(&dir).await.unwrap_err();
    assert!(error.to_string().contains("ending"), "{error}");
}

#[tokio::test]
async fn a_watcher_gets_changes_and_the_last_status() {
    let (_guard, dir) = folder();
    let hub = hub("alice");
    let (server, _commands) = ipc::serve(&dir, hub.clone()).expect("folder is free");
    let mut watch = ipc::watch(&dir, Duration::from_millis(50)).await.expect("served");
    assert_eq!(watch.next().await.expect("a status").expect("running").phase, Phase::Starting);
    hub.update(|status| status.phase = Phase::Training);
    assert_eq!(watch.next().await.expect("a status").expect("running").phase, Phase::Training);
    hub.update(|status| status.phase = Phase::Done);
    server.shutdown().await;
    let mut last = None;
    while let Some(status) = watch.next().await.expect("a status or the end") {
        last = Some(status.phase);
    }
    assert_eq!(last, Some(Phase::Done));
}

#[tokio::test]
async fn a_second_node_in_the_folder_is_refused_and_a_dead_one_is_replaced() {
    let (_guard, dir) = folder();
    let (server, _commands) = ipc::serve(&dir, hub("first")).expect("folder is free");
    let error = ipc::serve(&dir, hub("second")).expect_err("the folder is taken");
    assert!(matches!(error, IpcError::AlreadyRuns { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("already runs in") && text.contains(&std::process::id().to_string()));
    assert_eq!(ipc::status(&dir).await.expect("undisturbed").name, "first");
    drop(server);
    assert!(matches!(ipc::status(&dir).await, Err(IpcError::NotRunning { .. })));

    // What a killed process leaves behind: its socket and its lock file, both without an owner.
    drop(std::os::unix::net::UnixListener::bind(socket_path(&dir)).expect("folder is writable"));
    fs::write(dir.join("node.lock"), "999999").expect("folder is writable");
    assert!(matches!(ipc::status(&dir).await, Err(IpcError::NotRunning { .. })));
    let (_server, _commands) = ipc::serve(&dir, hub("third")).expect("nobody has the folder");
    assert_eq!(ipc::status(&dir).await.expect("served").name, "third");
}

#[tokio::test]
async fn no_node_at_all_is_a_clear_error() {
    let (_guard, dir) = folder();
    let error = ipc::status(&dir).await.unwrap_err();
    assert_eq!(error.to_string(), format!("no node runs in {}", dir.display()));
    assert!(error.hint().is_some_and(|hint| hint.contains("p2ptrain run")));
}

#[tokio::test]
async fn a_folder_with_a_long_path_works() {
    let (_guard, dir) = folder();
    let dir = dir.join("x".repeat(90)).join("y".repeat(90));
    let (_server, _commands) = ipc::serve(&dir, hub("far")).expect("folder is free");
    assert_eq!(ipc::status(&dir).await.expect("served").name, "far");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_and_the_node_goes_on() {
    let (_guard, dir) = folder();
    let (_server, _commands) = ipc::serve(&dir, hub("alice")).expect("folder is free");
    let long = vec![b'x'; ipc::REQUEST_BYTES_MAX + 2];
    let cases: [(&[u8], &str); 8] = [
        (b"\n", "not understood"),
        (b"hello\n", "not understood"),
        (b"{\"version\":1}\n", "not understood"),
        (b"{\"version\":1,\"body\":{\"op\":\"explode\"}}\n", "explode"),
        (b"{\"version\":1,\"body\":{\"op\":\"watch\",\"interval_ms\":-1}}\n", "not understood"),
        (b"{\"version\":77,\"body\":{}}\n", "version 77"),
        (b"\xff\xfe\x00\x01\n", "not understood"),
        (&long, "longer than"),
    ];
    for (bytes, part) in cases {
        let bytes = bytes.to_vec();
        let asked = dir.clone();
        let answer = tokio::task::spawn_blocking(move || raw(&asked, &bytes))
            .await
            .expect("the client does not panic");
        assert!(answer.contains(part), "{part:?} is not in {answer:?}");
        assert!(answer.contains("\"error\""), "{answer:?}");
    }
    assert_eq!(ipc::status(&dir).await.expect("still served").name, "alice");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_only_connect_do_not_lock_others_out_for_good() {
    let (_guard, dir) = folder();
    let (_server, _commands) = ipc::serve(&dir, hub("alice")).expect("folder is free");
    let mut idle: Vec<_> = (0..ipc::CLIENTS_MAX)
        .map(|_| UnixStream::connect(socket_path(&dir)).expect("the node serves"))
        .collect();
    let waiting = tokio::spawn({
        let dir = dir.clone();
        async move { ipc::status(&dir).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished(), "the limit holds");
    idle.pop();
    let status = waiting.await.expect("no panic").expect("served when a place is free");
    assert_eq!(status.name, "alice");
}
