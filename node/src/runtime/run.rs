//! A job on this node: the driver, its effects on network and worker, and what is kept of it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::Context;
use bytes::Bytes;
use p2ptrain_protocol::checkpoint::StateLayout;
use p2ptrain_protocol::id::{Incarnation, JobId, PeerId, Step};
use p2ptrain_protocol::ledger::{Ledger, LedgerHeader};
use p2ptrain_protocol::peer::{Commit, Message, Notice, Peer, PieceHeader};
use p2ptrain_protocol::wire::{self, Kind};
use tokio::sync::mpsc::UnboundedSender;

use super::feed::{Feed, PeerChunks, fill_all};
use super::prepare::Prepared;
use super::serve::Served;
use super::{Internal, fetch};
use crate::driver::{Driver, Event};
use crate::effect::{ApplyOrder, ComputeOrder, Effects, End};
use crate::job::JobSpec;
use crate::net::{NetHandle, SendError};
use crate::optimizer::Optimizer;
use crate::state::SharedState;
use crate::trace::Trace;
use crate::worker::{Worker, WorkerParts};

/// Compare replicas' parameters this often.
const DIGEST_EVERY: u64 = 50;

/// A job on this node.
pub(super) struct JobRun {
    pub(super) spec: JobSpec,
    pub(super) id: JobId,
    pub(super) driver: Driver,
    pub(super) effects: NodeEffects,
    pub(super) served: Arc<Served>,
    pub(super) ledger: LedgerFile,
    pub(super) checkpoints: PathBuf,
    stop: Arc<AtomicBool>,
}

/// What the node needs to know to run a job.
pub(super) struct Place<'a> {
    pub(super) me: PeerId,
    pub(super) incarnation: Incarnation,
    pub(super) folder: &'a Path,
    pub(super) checkpoints: Option<PathBuf>,
    pub(super) threads: usize,
    pub(super) net: &'a NetHandle,
    pub(super) internal: &'a UnboundedSender<Internal>,
    pub(super) trace: &'a Arc<Trace>,
}

impl JobRun {
    /// Sets a job up, as its founder or as a joiner. `founder` holds the state.
    pub(super) fn new(
        prepared: Prepared,
        founder: bool,
        place: &Place<'_>,
    ) -> anyhow::Result<Self> {
        let geometry = prepared.geometry();
        let Prepared { spec, id, program, package, store, samples, executor, state, .. } = prepared;
        let first = state.step;
        let folder = place.folder.join("jobs").join(id.short());
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let peer = if founder {
            Peer::found(place.me, place.incarnation, geometry, first)
        } else {
            Peer::join(place.me, place.incarnation, geometry)
        };
        let state = SharedState::new(state);
        let stop = Arc::new(AtomicBool::new(false));
        let source = PeerChunks::new(place.net.clone(), id);
        tokio::spawn(fill_all(Arc::clone(&store), source.clone(), Arc::clone(&stop)));
        let runtime = tokio::runtime::Handle::current();
        let feed = Feed::new(samples, &spec, source, runtime, Arc::clone(&stop));
        let events = place.internal.clone();
        let tokens = spec.batch.micro as usize * spec.model.block_size() as usize;
        let worker = Worker::start(WorkerParts {
            executor,
            state: state.clone(),
            optimizer: Optimizer::new(&spec, &program, place.threads),
            samples: Box::new(feed),
            micro_batches: spec.batch.micro_batches(),
            tokens,
            checkpoint_every: spec.checkpoint.every,
            steps: spec.steps,
            digest_every: DIGEST_EVERY,
            trace: Arc::clone(place.trace),
            // The node outlives its worker; after it nobody wants the event.
            events: Box::new(move |event| drop(events.send(Internal::Worker(event)))),
        })?;
        let ledger_header = LedgerHeader {
            job: id,
            first,
            items: spec.batch.micro_batches(),
            samples_per_item: spec.batch.micro,
        };
        let effects = NodeEffects {
            net: place.net.clone(),
            worker,
            internal: place.internal.clone(),
            trace: Arc::clone(place.trace),
            job: id,
            layout: prepared.layout,
            state: state.clone(),
            fetch: None,
            side: Vec::new(),
        };
        let served = Served { job: id, package, store, state, manifest: Mutex::new(None) };
        Ok(Self {
            driver: Driver::new(peer),
            effects,
            served: Arc::new(served),
            ledger: LedgerFile::new(&folder, place.incarnation, ledger_header),
            checkpoints: place.checkpoints.clone().unwrap_or_else(|| folder.join("checkpoints")),
            stop,
            spec,
            id,
        })
    }

    /// Takes in an event and performs its effects.
    pub(super) fn handle(&mut self, event: Event) {
        self.driver.handle(event, &mut self.effects);
    }

    /// Performs what the protocol wants at its beginning.
    pub(super) fn start(&mut self) {
        self.driver.start(&mut self.effects);
    }

    /// What people and files have to be told since the last call.
    pub(super) fn take_side(&mut self) -> Vec<Side> {
        std::mem::take(&mut self.effects.side)
    }
}

impl Drop for JobRun {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What the driver says besides orders and messages.
pub(super) enum Side {
    Committed(Box<Commit>),
    Notice(Notice),
    NewIncarnation(Incarnation),
    Ended(End),
    Refused { peer: PeerId, reason: String },
}

/// The driver's effects on a real node.
pub(super) struct NodeEffects {
    net: NetHandle,
    worker: Worker,
    internal: UnboundedSender<Internal>,
    trace: Arc<Trace>,
    job: JobId,
    layout: StateLayout,
    state: SharedState,
    /// The state being fetched, and the newest list of who has it.
    fetch: Option<(Step, Vec<PeerId>)>,
    side: Vec<Side>,
}

impl NodeEffects {
    /// A fetch has failed: tries those who were named since, if others.
    pub(super) fn fetch_failed(&mut self, step: Step, tried: &[PeerId]) -> bool {
        match &self.fetch {
            Some((wanted, from)) if *wanted == step && from != tried && !from.is_empty() => {
                let from = from.clone();
                self.spawn_fetch(step, from);
                true
            }
            _ => {
                self.fetch = None;
                false
            }
        }
    }

    pub(super) fn fetch_done(&mut self) {
        self.fetch = None;
    }

    fn spawn_fetch(&mut self, step: Step, from: Vec<PeerId>) {
        let (net, job, layout) = (self.net.clone(), self.job, self.layout.clone());
        let (state, internal) = (self.state.clone(), self.internal.clone());
        tokio::spawn(async move {
            let event = match fetch::state(&net, job, step, &layout, &from).await {
                Ok(fetched) => {
                    // The lock may be held by a computation; no task of the network waits for it.
                    let install = tokio::task::spawn_blocking(move || *state.write() = fetched);
                    match install.await {
                        Ok(()) => Internal::StateFetched(step),
                        Err(error) => {
                            Internal::StateFailed { step, from, reason: error.to_string() }
                        }
                    }
                }
                Err(error) => Internal::StateFailed { step, from, reason: error.to_string() },
            };
            // If the node has ended, nobody wants the state.
            let _ = internal.send(event);
        });
    }

    fn sent(&mut self, to: PeerId, result: Result<(), SendError>) {
        match result {
            // A lost link is reported by the network, in order.
            Ok(()) | Err(SendError::NotConnected) => {}
            Err(error) => self.refuse(to, format!("can't be sent to: {error}")),
        }
    }
}

impl Effects for NodeEffects {
    fn send(&mut self, to: PeerId, message: Message) {
        let result = self.net.send(to, wire::encode(Kind::Step, &message).into());
        self.sent(to, result);
    }

    fn send_piece(&mut self, to: PeerId, header: PieceHeader, payload: Bytes) {
        let result = self.net.send_chunk(to, &wire::encode(Kind::Piece, &header), payload);
        self.sent(to, result);
    }

    fn reduced(&mut self, _step: Step, bucket: u32) {
        self.trace.instant("gradient reduced", u64::from(bucket));
    }

    fn refuse(&mut self, peer: PeerId, reason: String) {
        self.side.push(Side::Refused { peer, reason });
    }

    fn compute(&mut self, order: ComputeOrder) {
        self.worker.compute(order);
    }

    fn fetch_state(&mut self, step: Step, from: Vec<PeerId>) {
        let running = self.fetch.as_ref().is_some_and(|(wanted, _)| *wanted == step);
        self.fetch = Some((step, from.clone()));
        if !running {
            self.spawn_fetch(step, from);
        }
    }

    fn apply(&mut self, order: ApplyOrder) {
        self.worker.apply(order);
    }

    fn committed(&mut self, commit: &Commit) {
        self.trace.instant("commit", commit.step.0);
        self.side.push(Side::Committed(Box::new(commit.clone())));
    }

    fn notice(&mut self, notice: Notice) {
        self.side.push(Side::Notice(notice));
    }

    fn new_incarnation(&mut self, incarnation: Incarnation) {
        self.side.push(Side::NewIncarnation(incarnation));
    }

    fn ended(&mut self, end: End) {
        self.side.push(Side::Ended(end));
    }
}

/// The ledger of what this node has seen committed, as text.
pub(super) struct LedgerFile {
    folder: PathBuf,
    incarnation: Incarnation,
    header: LedgerHeader,
    open: Option<(Ledger, File, u64)>,
}

impl LedgerFile {
    fn new(folder: &Path, incarnation: Incarnation, header: LedgerHeader) -> Self {
        Self { folder: folder.to_owned(), incarnation, header, open: None }
    }

    /// Bytes written.
    pub(super) fn bytes(&self) -> u64 {
        self.open.as_ref().map_or(0, |(_, _, bytes)| *bytes)
    }

    /// The account of all entries.
    pub(super) fn ledger(&self) -> Option<&Ledger> {
        self.open.as_ref().map(|(ledger, _, _)| ledger)
    }

    /// Appends a committed step. A gap (this node was away meanwhile) begins a new file.
    pub(super) fn append(&mut self, commit: &Commit) -> anyhow::Result<()> {
        let follows = |(ledger, _, _): &(Ledger, File, u64)| ledger.next_step() == commit.step;
        if !self.open.as_ref().is_some_and(follows) {
            self.begin(commit.step)?;
        }
        let (ledger, file, bytes) = self.open.as_mut().expect("begun above");
        ledger.append(&commit.entry)?;
        let line = format!("{}\n", commit.entry.to_line());
        file.write_all(line.as_bytes()).context("cannot write the ledger")?;
        *bytes += line.len() as u64;
        Ok(())
    }

    fn begin(&mut self, first: Step) -> anyhow::Result<()> {
        let header = LedgerHeader { first, ..self.header.clone() };
        let name = format!("ledger-{:09}-{}.txt", first.0, self.incarnation.0);
        let path = self.folder.join(name);
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .open(&path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        let line = format!("{}\n", header.to_line());
        file.write_all(line.as_bytes()).context("cannot write the ledger")?;
        self.open = Some((Ledger::new(header)?, file, line.len() as u64));
        Ok(())
    }
}
