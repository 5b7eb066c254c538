//! The commands that run a node or work on its files. Those that only talk to a running node are in
//! [`cli`](crate::cli).

mod bench;
mod export;
mod generate;
mod ledger;
mod plan;
mod swarm_key;

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use p2ptrain_protocol::id::PeerId;
use tokio::sync::oneshot;

use crate::checkpoint::{self, Checkpoint, Folder};
use crate::cli::{
    Cli, Command, ExitKind, Global, Hint as _, JoinArgs, NodeArgs, Output, ResumeArgs, RunArgs,
    SubmitArgs, UsageError, resolve_swarm_secret,
};
use crate::dashboard::{Dashboard, Mode};
use crate::job::{self, JobFile};
use crate::net::{PeerAddr, SwarmAccess};
use crate::runtime::{self, NodeOptions, Outcome, Start};
use crate::status::{NodeStatus, StatusHub};
use crate::swarm_key::SwarmSecret;
use crate::{logging, profile};

/// The secret of the swarm that a node was last in, in its folder.
const SECRET_FILE: &str = "swarm";
/// Longest time between two pictures.
const REDRAW: Duration = Duration::from_millis(250);

/// Carries out a command.
///
/// # Errors
/// What went wrong, with advice where there is any.
pub async fn run(cli: Cli) -> anyhow::Result<ExitKind> {
    let global = &cli.global;
    match &cli.command {
        Command::Run(args) => run_job(global, args).await,
        Command::Join(args) => join(global, args).await,
        Command::Resume(args) => resume(global, args).await,
        Command::Submit(args) => submit(global, args).await,
        Command::Demo(args) => crate::demo::demo(global, args).await,
        Command::Generate(args) => generate::generate(global, args).await,
        Command::Export(args) => export::export(global, args).await,
        Command::Plan(args) => plan::plan(global, args).await,
        Command::SwarmKey(args) => swarm_key::swarm_key(global, args).await,
        Command::Ledger(args) => ledger::ledger(global, args).await,
        Command::Bench(args) => bench::bench(global, args).await,
        // `cli` has carried these out already.
        Command::Status(_)
        | Command::Watch(_)
        | Command::Leave(_)
        | Command::Doctor(_)
        | Command::Completions(_) => unreachable!("carried out by `cli::main`"),
    }
}

/// `p2ptrain run`: starts a job here.
async fn run_job(global: &Global, args: &RunArgs) -> anyhow::Result<ExitKind> {
    let file = job::parse(&args.job).map_err(|error| UsageError(error.to_string()))?;
    let access = Access::of(global, &args.node, &args.peer, true)?;
    let options = options(global, &args.node, access, None)?;
    node(global, options, Start::Found(Box::new(file), None)).await
}

/// `p2ptrain join`: takes part in a job of others.
async fn join(global: &Global, args: &JoinArgs) -> anyhow::Result<ExitKind> {
    let access = Access::of(global, &args.node, &args.peer, false)?;
    let options = options(global, &args.node, access, args.job.clone())?;
    node(global, options, Start::Join).await
}

/// `p2ptrain resume`: goes on from a checkpoint, with whoever is there now.
async fn resume(global: &Global, args: &ResumeArgs) -> anyhow::Result<ExitKind> {
    let checkpoint = find_checkpoint(global, args.checkpoint.as_deref())?;
    let file = JobFile { spec: checkpoint.about.job.clone(), ..JobFile::new([] as [PathBuf; 0]) };
    let access = Access::of(global, &args.node, &args.peer, true)?;
    let options = options(global, &args.node, access, None)?;
    node(global, options, Start::Found(Box::new(file), Some(Box::new(checkpoint)))).await
}

/// `p2ptrain submit`: gives a job to the node that runs here.
async fn submit(global: &Global, args: &SubmitArgs) -> anyhow::Result<ExitKind> {
    crate::cli::submit(global, args, |path, text| {
        job::parse_str(text, path).map(drop).map_err(|error| UsageError(error.to_string()).into())
    })
    .await
}

/// The checkpoint at `path`, or the newest good one of a folder; without a path, of this node.
///
/// # Errors
/// There is none, or it is damaged.
pub fn find_checkpoint(global: &Global, path: Option<&Path>) -> anyhow::Result<Checkpoint> {
    match path {
        Some(path) if path.is_dir() => latest_in(&[path.to_owned()]),
        Some(path) => checkpoint::load(path, None)
            .with_context(|| format!("cannot use the checkpoint {}", path.display())),
        None => {
            let jobs = global.node_dir().join("jobs");
            let folders = std::fs::read_dir(&jobs)
                .with_context(|| format!("cannot read {}", jobs.display()))
                .hint("name a checkpoint, or the node's folder by --dir")?;
            let folders: Vec<PathBuf> =
                folders.flatten().map(|entry| entry.path().join("checkpoints")).collect();
            latest_in(&folders)
        }
    }
}

/// The newest good checkpoint of several folders.
fn latest_in(folders: &[PathBuf]) -> anyhow::Result<Checkpoint> {
    let mut found: Option<(std::time::SystemTime, Checkpoint)> = None;
    let mut reason = None;
    for folder in folders.iter().filter(|folder| folder.is_dir()) {
        match Folder::open(folder)
            .map_err(anyhow::Error::from)
            .and_then(|folder| Ok(folder.latest_good(None)?))
        {
            Ok(latest) => {
                for error in &latest.passed_over {
                    tracing::warn!("{error}");
                }
                let time = std::fs::metadata(&latest.path).and_then(|m| m.modified())?;
                if found.as_ref().is_none_or(|(newest, _)| *newest < time) {
                    found = Some((time, latest.checkpoint));
                }
            }
            Err(error) => reason = Some(error),
        }
    }
    match (found, reason) {
        (Some((_, checkpoint)), _) => Ok(checkpoint),
        (None, Some(error)) => Err(error),
        (None, None) => Err(anyhow::anyhow!("there is no checkpoint here"))
            .hint("name a checkpoint, or the node's folder by --dir"),
    }
}

/// Who is a member, and where to look.
struct Access {
    access: SwarmAccess,
    /// The secret as others type it.
    shown: Option<String>,
    bootstrap: Vec<PeerAddr>,
}

impl Access {
    /// From `--allow`, `--swarm`, a secret before the `@` of a peer's address, or the node's folder;
    /// who may found a swarm gets a new secret where there is none.
    fn of(
        global: &Global,
        args: &NodeArgs,
        peers: &[String],
        may_found: bool,
    ) -> anyhow::Result<Self> {
        let mut bootstrap = Vec::new();
        let mut secrets: Vec<String> = args.swarm_secret()?.into_iter().collect();
        for peer in peers {
            let address = match peer.split_once('@') {
                Some((secret, address)) => {
                    secrets.push(secret.to_owned());
                    address
                }
                None => peer,
            };
            let address: PeerAddr = address.parse().map_err(|e| UsageError(format!("{e}")))?;
            bootstrap.push(address);
        }
        if !args.allow.is_empty() {
            let parse = |peer: &String| {
                peer.parse::<PeerId>()
                    .map_err(|error| UsageError(format!("--allow {peer}: {error}")))
            };
            let peers = args.allow.iter().map(parse).collect::<Result<_, _>>()?;
            return Ok(Self { access: SwarmAccess::AllowList(peers), shown: None, bootstrap });
        }
        secrets.dedup();
        let path = global.node_dir().join(SECRET_FILE);
        let secret = match (secrets.as_slice(), std::fs::read_to_string(&path)) {
            ([], Ok(_)) => resolve_swarm_secret(&format!("@{}", path.display()))?,
            ([], Err(_)) if may_found => SwarmSecret::generate().reveal(),
            ([], Err(_)) => {
                return Err(anyhow::Error::new(UsageError(
                    "this node has no swarm secret yet".to_owned(),
                )))
                .hint("paste the line that `p2ptrain run` prints, or give --swarm SECRET");
            }
            ([secret], _) => secret.clone(),
            _ => {
                return Err(UsageError("the peers' secrets differ: one swarm a node".into()).into());
            }
        };
        let parsed: SwarmSecret =
            secret.parse().map_err(|error| UsageError(format!("the swarm secret: {error}")))?;
        write_secret(&path, &parsed.reveal())?;
        let shown = Some(parsed.reveal());
        Ok(Self { access: SwarmAccess::Secret(parsed), shown, bootstrap })
    }
}

/// Keeps the secret for the next start, readable by the user alone.
fn write_secret(path: &Path, secret: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let write = || {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut options = std::fs::OpenOptions::new();
        options.create(true).truncate(true).write(true).mode(0o600);
        writeln!(options.open(path)?, "{secret}")
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

fn options(
    global: &Global,
    args: &NodeArgs,
    access: Access,
    job: Option<String>,
) -> anyhow::Result<NodeOptions> {
    let dir = global.node_dir();
    let stores = args.data_dir.clone().unwrap_or_else(|| dir.join("data"));
    Ok(NodeOptions {
        name: global.node_name(),
        access: access.access,
        listen: args.listen.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        port: args.port,
        bulk_port: args.bulk_port,
        mdns: !args.no_mdns,
        bootstrap: access.bootstrap,
        threads: args.threads.map_or_else(profile::usable_cores, usize::from),
        stores,
        memory_bytes: args.memory.map(|size| size.0),
        trace: args.trace.clone(),
        exit_when_done: !args.keep_running,
        job,
        shown_secret: access.shown,
        dir,
    })
}

/// Runs a node with its display.
async fn node(global: &Global, options: NodeOptions, start: Start) -> anyhow::Result<ExitKind> {
    std::fs::create_dir_all(&options.dir)
        .with_context(|| format!("cannot create the node's folder {}", options.dir.display()))?;
    logging::init(Some(&options.dir), global.log)?;
    let hub = StatusHub::new(NodeStatus::default());
    let founds = matches!(start, Start::Found(..));
    let display = Dashboard::new(Mode::of(&Output::new(global)));
    let (done, ended) = oneshot::channel();
    let shown = tokio::spawn(show(hub.clone(), display, founds, ended));
    let outcome = runtime::run(options, start, hub).await;
    // The display ends by itself where stdout is gone.
    let _ = done.send(());
    shown.await.context("the display failed")??;
    Ok(match outcome? {
        Outcome::Finished | Outcome::Left => ExitKind::Success,
        Outcome::Interrupted => ExitKind::Interrupted,
    })
}

/// Draws the status whenever it changes, until the node ends.
async fn show(
    hub: StatusHub,
    mut display: Dashboard,
    mut tell_how_to_join: bool,
    mut ended: oneshot::Receiver<()>,
) -> std::io::Result<()> {
    let mut tick = tokio::time::interval(REDRAW);
    loop {
        let over = tokio::select! {
            _ = tick.tick() => false,
            _ = &mut ended => true,
        };
        let status = hub.snapshot();
        if tell_how_to_join && !status.join_command.is_empty() {
            tell_how_to_join = false;
            display.note(&format!("on the other machines: {}", status.join_command))?;
        }
        display.draw(&status, "")?;
        if over {
            return display.finish();
        }
    }
}
