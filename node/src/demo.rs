//! `p2ptrain demo`: several nodes on this machine train a small model; the one that started the job
//! is killed in the middle and joins again.
//!
//! | Module | What |
//! |---|---|
//! | `folder` | the demo's folder: one demo at a time, leftovers replaced |
//! | `size` | a job that takes as long as asked for, from a measurement |
//! | `nodes` | the nodes' processes and what they tell |
//! | `kill` | the kill and the return |
//! | `screen` | the nodes' statuses in one picture |
//! | `proof`, `report` | what must hold at the end, from the nodes' files; how it is told |

mod folder;
mod kill;
mod nodes;
mod proof;
mod report;
mod screen;
mod size;

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use self::folder::DemoFolder;
use self::kill::Kill;
use self::nodes::{Nodes, Setup};
use self::report::Report;
use self::screen::Screen;
use self::size::Wish;
use crate::cli::{DemoArgs, ExitKind, Global, Hint as _, Output};
use crate::data::{self, Source, Store};
use crate::job::{DataSpec, JobFile, JobSpec};
use crate::profile;

/// Time between two pictures.
const TICK: Duration = Duration::from_millis(100);
/// The job file in the demo's folder.
const JOB_NAME: &str = "job.toml";
/// Beyond so many times the length asked for, and this much besides, something hangs.
const OVERTIME_FACTOR: u32 = 6;
const OVERTIME: Duration = Duration::from_secs(180);
/// Longest time from the nodes' start to the first step.
const START_MAX: Duration = Duration::from_secs(180);

/// `p2ptrain demo`: exit status 1 also where the model did not learn, the account of samples is not
/// exact or the nodes' parameters differ.
///
/// # Errors
/// The text can't be read, another demo runs in the folder, or a node failed.
pub async fn demo(global: &Global, args: &DemoArgs) -> anyhow::Result<ExitKind> {
    let output = Output::new(global);
    let folder = DemoFolder::claim(&global.demo_dir()).await?;
    let interrupted = interruption()?;
    let mut screen = Screen::new(&output, usize::from(args.peers));
    // What loses is dropped here, and with it the nodes end.
    let outcome = tokio::select! {
        outcome = train(&folder, args, &mut screen) => Some(outcome),
        () = interrupted => None,
    };
    screen.finish()?;
    let Some(outcome) = outcome else { return Ok(ExitKind::Interrupted) };
    let report = outcome?;
    output.result(&report.to_string(), &serde_json::json!({ "demo": report }))?;
    Ok(if report.failures.is_empty() { ExitKind::Success } else { ExitKind::Failure })
}

/// From the text to the report.
async fn train(
    folder: &DemoFolder,
    args: &DemoArgs,
    screen: &mut Screen,
) -> anyhow::Result<Report> {
    let peers = usize::from(args.peers);
    let cores = profile::usable_cores();
    let threads = args.threads_per_peer.map_or((cores / peers).max(1), usize::from);
    let names = nodes::names(peers);

    screen.working("reads the text")?;
    let text = Text::open(args)?;
    let description = text.description.clone();
    let files = text.files.clone();
    // The founder's store, so that it finds the text there already.
    let stores = folder.node(&names[0]).join("data");
    let root = off_thread(move || {
        let store = Store::build(&stores, &text.source, &mut |_| ())?;
        anyhow::Ok(store.root())
    })
    .await?
    .context("cannot prepare the text")?;

    screen.working("measures this machine")?;
    let wish = Wish { peers, threads, cores, seconds: args.seconds, root };
    let spec = off_thread(move || size::choose(&wish)).await?.context("cannot plan the demo")?;
    let job = folder.path().join(JOB_NAME);
    let file = JobFile { spec: spec.clone(), ..JobFile::new(files) };
    std::fs::write(&job, file.to_toml())
        .with_context(|| format!("cannot write {}", job.display()))?;

    let setup = Setup { folder: folder.path().to_owned(), job, names, threads };
    let mut nodes = Nodes::new(setup);
    let with_kill = peers > 1 && !args.no_kill;
    let mut kill = Kill::new(with_kill.then_some(spec.steps), args.seconds);
    let started = Instant::now();
    nodes.found()?;
    let seconds = watch_over(&mut nodes, &mut kill, &spec, args, started, screen).await?;

    screen.working("checks what the nodes have written")?;
    let witness = nodes.witness_index();
    let finals = nodes.finals();
    let killed = kill.into_story();
    let proven = off_thread(move || proof::collect(&spec, witness, &finals, killed)).await?;
    Ok(Report::new(proven, description, seconds, folder.path()))
}

/// Until all nodes have ended. Returns the seconds from the first step to the last.
async fn watch_over(
    nodes: &mut Nodes,
    kill: &mut Kill,
    spec: &JobSpec,
    args: &DemoArgs,
    started: Instant,
    screen: &mut Screen,
) -> anyhow::Result<f32> {
    let length_max = Duration::from_secs(args.seconds.into()) * OVERTIME_FACTOR + OVERTIME;
    let (mut first, mut last) = (None, None);
    loop {
        nodes.look_after().await?;
        kill.advance(nodes, screen).await?;
        screen.draw(nodes)?;
        let step = nodes.witness().map_or(0, |status| nodes::step_of(&status));
        if step > 0 {
            first.get_or_insert_with(Instant::now);
        }
        if step == spec.steps {
            last.get_or_insert_with(Instant::now);
        }
        if nodes.all_ended() {
            let end = last.unwrap_or_else(Instant::now);
            return Ok(first.map_or(0.0, |first: Instant| (end - first).as_secs_f32()));
        }
        let too_long = match first {
            None => started.elapsed() > START_MAX,
            Some(first) => first.elapsed() > length_max,
        };
        if too_long {
            let text = format!("the demo hangs at step {step} of {}", spec.steps);
            return Err(anyhow::anyhow!("{text}\n{}", nodes.log_tails()))
                .hint(format!("look into the logs in {}", nodes.folder().display()));
        }
        tokio::time::sleep(kill.pause().unwrap_or(TICK)).await;
    }
}

/// The text to train on.
struct Text {
    source: Source,
    /// As the job file names it.
    files: Vec<PathBuf>,
    description: String,
}

impl Text {
    fn open(args: &DemoArgs) -> anyhow::Result<Self> {
        let (source, files, what) = match &args.data {
            Some(path) => {
                let path = path
                    .canonicalize()
                    .with_context(|| format!("cannot read {}", path.display()))
                    .hint("name an existing file or folder of text")?;
                let spec = DataSpec { files: vec![path.clone()], ..DataSpec::default() };
                let what = format!("in {}", path.display());
                let source = Source::open(&spec).hint("name a file or folder of text")?;
                (source, vec![path], what)
            }
            None => {
                let source =
                    data::default_corpus().hint("name some text by --data: a file or a folder")?;
                let files = source.paths().take(1).map(PathBuf::from).collect();
                (source, files, "of Rust sources that cargo has fetched".to_owned())
            }
        };
        let size = crate::cli::human_bytes(source.bytes());
        let description = format!("{size} {what}");
        Ok(Self { source, files, description })
    }
}

/// Runs `work` on a thread of its own, which does not hold up the end of the process where nobody
/// waits for it any more.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<T> {
    let (done, result) = oneshot::channel();
    thread::Builder::new()
        .name("demo".to_owned())
        // If the demo was interrupted, nobody wants the result.
        .spawn(move || drop(done.send(work())))
        .context("cannot start a thread")?;
    result.await.context("a part of the demo panicked")
}

/// Waits for Ctrl-C, SIGTERM or the end of the terminal.
fn interruption() -> anyhow::Result<impl Future<Output = ()>> {
    let mut listen = Vec::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        listen.push(signal(kind).context("cannot listen for signals")?);
    }
    Ok(async move {
        let [interrupt, terminate, hangup] = &mut listen[..] else { return };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}
