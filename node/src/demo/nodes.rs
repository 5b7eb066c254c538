//! The nodes' processes, and what they tell.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::cli::Hint as _;
use crate::ipc;
use crate::status::{NodeStatus, Phase, unix_ms};
use crate::swarm_key::SwarmSecret;

/// Shortest time between two statuses of a node.
const STATUS_INTERVAL: Duration = Duration::from_millis(50);
/// How often a node's socket is tried while the node starts.
const CONNECT_INTERVAL: Duration = Duration::from_millis(50);
/// How long a node that joins may go on after all others have ended.
const STRAGGLER_MAX: Duration = Duration::from_secs(20);
/// Lines of a log that an error shows.
const TAIL_LINES: usize = 12;
/// Bytes of a log that are looked at for them.
const TAIL_BYTES: usize = 16 << 10;
const NAMES: [&str; 16] = [
    "alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy", "karl",
    "laura", "mike", "nina", "oscar", "peggy",
];

/// Names of so many nodes; the first starts the job.
pub(super) fn names(peers: usize) -> Vec<String> {
    NAMES.iter().take(peers).map(|name| (*name).to_owned()).collect()
}

/// What the nodes are started with.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) folder: PathBuf,
    pub(super) job: PathBuf,
    pub(super) names: Vec<String>,
    pub(super) threads: usize,
}

/// All nodes. Dropping it kills those that still run.
#[derive(Debug)]
pub(super) struct Nodes {
    setup: Setup,
    secret: String,
    nodes: Vec<Node>,
    /// When the first node was seen to have ended by itself.
    first_end: Option<Instant>,
}

/// One node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) dir: PathBuf,
    pub(super) life: Life,
    /// When its process was started last, in milliseconds of Unix time.
    born_ms: u64,
    told: watch::Receiver<Option<NodeStatus>>,
    follower: JoinHandle<()>,
}

/// Where a node is in its life.
#[derive(Debug)]
pub(super) enum Life {
    /// Waits for the address of the first node.
    Unborn,
    Running(Child),
    /// By the demo.
    Killed,
    /// It came back after the kill, and too late.
    TooLate,
    /// By itself, without an error.
    Ended,
}

/// What is left of a node for the proof.
#[derive(Clone, Debug)]
pub(super) struct Final {
    pub(super) name: String,
    pub(super) dir: PathBuf,
    pub(super) too_late: bool,
    pub(super) status: Option<NodeStatus>,
}

impl Nodes {
    pub(super) fn new(setup: Setup) -> Self {
        let nodes = setup.names.iter().map(|name| {
            let dir = setup.folder.join(name);
            let (tell, told) = watch::channel(None);
            let follower = tokio::spawn(follow(dir.clone(), tell));
            Node { name: name.clone(), dir, life: Life::Unborn, born_ms: 0, told, follower }
        });
        let nodes = nodes.collect();
        Self { secret: SwarmSecret::generate().reveal(), nodes, first_end: None, setup }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.setup.folder
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter()
    }

    pub(super) fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// The node that sees the whole run: never killed, present from the first step to the last.
    pub(super) fn witness_index(&self) -> usize {
        usize::from(self.nodes.len() > 1)
    }

    /// What the witness tells.
    pub(super) fn witness(&self) -> Option<NodeStatus> {
        self.nodes[self.witness_index()].status()
    }

    /// Whether every node takes part in steps.
    pub(super) fn all_train(&self) -> bool {
        self.nodes.iter().all(Node::contributes)
    }

    pub(super) fn all_ended(&self) -> bool {
        self.nodes.iter().all(|node| matches!(node.life, Life::Ended | Life::TooLate))
    }

    pub(super) fn finals(&self) -> Vec<Final> {
        let of = |node: &Node| Final {
            name: node.name.clone(),
            dir: node.dir.clone(),
            too_late: matches!(node.life, Life::TooLate),
            status: node.status(),
        };
        self.nodes.iter().map(of).collect()
    }

    /// Starts the node that starts the job.
    pub(super) fn found(&mut self) -> anyhow::Result<()> {
        let job = self.setup.job.clone();
        self.spawn(0, |command| {
            command.arg("run").arg(job);
        })
    }

    /// Starts a node that joins those that run.
    pub(super) fn join(&mut self, index: usize) -> anyhow::Result<()> {
        let others = self
            .nodes
            .iter()
            .enumerate()
            .filter(|(other, node)| *other != index && matches!(node.life, Life::Running(_)));
        let addresses: Vec<String> =
            others.filter_map(|(_, node)| node.status()?.addresses.first().cloned()).collect();
        anyhow::ensure!(
            !addresses.is_empty(),
            "no node runs that {} could join",
            self.nodes[index].name
        );
        self.spawn(index, |command| {
            command.arg("join").arg("--peer").args(addresses);
        })
    }

    fn spawn(&mut self, index: usize, what: impl FnOnce(&mut Command)) -> anyhow::Result<()> {
        let threads = self.setup.threads.to_string();
        let secret = self.secret.clone();
        let node = &mut self.nodes[index];
        fs::create_dir_all(&node.dir)
            .with_context(|| format!("cannot create {}", node.dir.display()))?;
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut command = Command::new(program);
        what(&mut command);
        command
            .args(["--listen", "127.0.0.1", "--no-mdns", "--threads", &threads])
            .arg("--dir")
            .arg(&node.dir)
            .args(["--name", &node.name])
            // Not on the command line, where every user of the machine could read it.
            .env("P2PTRAIN_SWARM", secret)
            .env_remove("P2PTRAIN_DIR")
            .stdin(Stdio::null())
            .stdout(log(&node.dir, "stdout.txt")?)
            .stderr(log(&node.dir, "stderr.txt")?)
            // Ctrl-C is for the demo, which ends its nodes itself.
            .process_group(0);
        node.born_ms = unix_ms();
        let child = command.spawn().with_context(|| format!("cannot start {}", node.name))?;
        node.life = Life::Running(child);
        Ok(())
    }

    /// Kills a node with SIGKILL.
    pub(super) fn kill(&mut self, index: usize) {
        self.nodes[index].kill();
        self.nodes[index].life = Life::Killed;
    }

    /// Starts what waits for the founder, and sees who has ended.
    ///
    /// # Errors
    /// A node failed; with the end of its log.
    pub(super) async fn look_after(&mut self) -> anyhow::Result<()> {
        let founder = self.nodes[0].status();
        let founder_listens = founder.is_some_and(|status| !status.addresses.is_empty());
        for index in 0..self.nodes.len() {
            if matches!(self.nodes[index].life, Life::Unborn) && founder_listens {
                self.join(index)?;
            }
            let node = &mut self.nodes[index];
            let Life::Running(child) = &mut node.life else { continue };
            let Some(status) = child.try_wait().context("cannot look after a node")? else {
                continue;
            };
            if !status.success() {
                return Err(node.failure(status))
                    .hint(format!("its log is {}", node.dir.join("node.log").display()));
            }
            node.life = Life::Ended;
            self.first_end.get_or_insert_with(Instant::now);
        }
        self.give_up_stragglers();
        Ok(())
    }

    /// A node that was killed and joins when the others have finished has nobody to join.
    fn give_up_stragglers(&mut self) {
        let Some(since) = self.first_end else { return };
        let mut running =
            self.nodes.iter_mut().filter(|node| matches!(node.life, Life::Running(_)));
        let (Some(node), None) = (running.next(), running.next()) else { return };
        let joins = node.status().is_none_or(|status| {
            matches!(status.phase, Phase::Starting | Phase::Waiting | Phase::Joining)
        });
        if since.elapsed() > STRAGGLER_MAX || (joins && since.elapsed() > STRAGGLER_MAX / 10) {
            node.kill();
            node.life = Life::TooLate;
        }
    }

    /// The ends of the logs of all nodes that run.
    pub(super) fn log_tails(&self) -> String {
        let running = self.nodes.iter().filter(|node| matches!(node.life, Life::Running(_)));
        running.map(|node| format!("{}:\n{}", node.name, node.tail())).collect()
    }
}

impl Node {
    /// The last that the node has told in its present life.
    pub(super) fn status(&self) -> Option<NodeStatus> {
        self.told.borrow().clone().filter(|status| status.since_ms >= self.born_ms)
    }

    /// Whether it computes a part of the present step.
    pub(super) fn contributes(&self) -> bool {
        let Some(status) = self.status() else { return false };
        matches!(self.life, Life::Running(_))
            && status.phase == Phase::Training
            && status.peers.first().is_some_and(|own| own.slice.is_some())
    }

    fn kill(&mut self) {
        let Life::Running(child) = &mut self.life else { return };
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        // A process that is gone already is what was wanted.
        if group.is_none_or(|group| kill_process_group(group, Signal::KILL).is_err()) {
            let _ = child.kill();
        }
        let _ = child.wait();
    }

    fn failure(&self, status: ExitStatus) -> anyhow::Error {
        anyhow::anyhow!("{} ended with {status}; the end of its log:\n{}", self.name, self.tail())
    }

    /// The last lines of what the node has said.
    fn tail(&self) -> String {
        let mut out = String::new();
        for name in ["stderr.txt", "node.log"] {
            let bytes = fs::read(self.dir.join(name)).unwrap_or_default();
            let bytes = &bytes[bytes.len().saturating_sub(TAIL_BYTES)..];
            let text = String::from_utf8_lossy(bytes);
            let lines: Vec<&str> = text.lines().collect();
            for line in &lines[lines.len().saturating_sub(TAIL_LINES)..] {
                let line = crate::status::clean(line, 200);
                // Writing to a String cannot fail.
                let _ = writeln!(out, "  {line}");
            }
        }
        out
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.follower.abort();
        self.kill();
    }
}

/// Steps that the job of a node has committed.
pub(super) fn step_of(status: &NodeStatus) -> u64 {
    status.job.as_ref().map_or(0, |job| job.step)
}

/// A file for what a process prints. A node that comes back goes on in it.
fn log(dir: &Path, name: &str) -> anyhow::Result<File> {
    let path = dir.join(name);
    let file = File::options().create(true).append(true).open(&path);
    file.with_context(|| format!("cannot write {}", path.display()))
}

/// Keeps up with what the node in `dir` tells, in all its lives.
async fn follow(dir: PathBuf, tell: watch::Sender<Option<NodeStatus>>) {
    loop {
        if let Ok(mut feed) = ipc::watch(&dir, STATUS_INTERVAL).await {
            while let Ok(Some(status)) = feed.next().await {
                tell.send_replace(Some(status));
            }
        }
        tokio::time::sleep(CONNECT_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<String> = names(16).into_iter().collect();
        assert_eq!(names.len(), 16);
    }
}
