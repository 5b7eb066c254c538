//! A killed process is noticed at once.

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use p2ptrain_node::net::LossCause;

use super::{Node, config, pair, start};

/// Holds the control address that the child process joins.
const CHILD_JOINS: &str = "P2PTRAIN_TEST_CHILD_JOINS";

/// A process that joins `node` and stays until it is killed.
fn spawn_child(node: &Node) -> Child {
    Command::new(std::env::current_exe().expect("this test has a path"))
        .args(["--exact", "net::death::child_process", "--nocapture"])
        .env(CHILD_JOINS, node.control().to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts")
}

/// Not a test by itself: the body of [`spawn_child`]'s process.
#[tokio::test(flavor = "multi_thread")]
async fn child_process() {
    let Ok(addr) = std::env::var(CHILD_JOINS) else { return };
    let mut joining = config(1, &[]);
    joining.bootstrap = vec![addr.parse().expect("an address")];
    let mut node = start(joining).await;
    loop {
        node.connected().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_is_dead_within_a_fraction_of_a_second() {
    let mut ann = start(config(1, &[])).await;
    for _ in 0..3 {
        let mut child = spawn_child(&ann);
        let peer = ann.connected().await;
        // The pair's TCP connection is there already: the child came through it.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let killed = Instant::now();
        child.kill().expect("SIGKILL");
        assert_eq!(ann.lost().await, (peer, LossCause::Dead));
        let took = killed.elapsed();
        child.wait().expect("is gone");
        println!("noticed after {took:?}");
        // It takes a millisecond; a busy machine gets the rest.
        assert!(took < Duration::from_millis(500), "noticed after {took:?}");
    }
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_process_is_unreachable_after_silence_and_comes_back_when_continued() {
    let mut ann = start(config(1, &[])).await;
    let mut child = spawn_child(&ann);
    let peer = ann.connected().await;
    signal(&child, "-STOP");
    // Ten seconds of silence; nothing shorter tells a stopped process from a slow one.
    assert_eq!(ann.lost().await, (peer, LossCause::Unreachable));
    signal(&child, "-CONT");
    assert_eq!(ann.connected().await, peer);
    child.kill().expect("SIGKILL");
    assert_eq!(ann.lost().await, (peer, LossCause::Dead));
    child.wait().expect("is gone");
}

#[cfg(unix)]
fn signal(child: &Child, signal: &str) {
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status();
    assert!(sent.expect("there is a kill command").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_peer_connects_anew_after_its_loss() {
    let (mut ann, bob) = pair().await;
    let mut again = config(1, &[&ann]);
    bob.handle.shutdown().await;
    assert_eq!(ann.lost().await, (bob.id(), LossCause::Closed));
    again.incarnation = p2ptrain_protocol::id::Incarnation(2);
    let back = start(again).await;
    assert_eq!(ann.connected().await, back.id());
}
