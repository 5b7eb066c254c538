//! A running node: the network, the local socket and at most one job, in one loop.
//!
//! | Module | What |
//! |---|---|
//! | [`prepare`] | from a job to program, data store, executor and state |
//! | `run` | a job under way: driver, effects, ledger |
//! | `events` | what follows from the job's, the worker's and the user's events |
//! | `feed` | samples for the worker, fetched from peers where they are missing |
//! | `fetch`, `serve` | both sides of joining: package, data and state |
//! | `board` | what the status shows |

mod board;
mod events;
mod feed;
mod fetch;
pub mod prepare;
mod run;
mod serve;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ed25519_dalek::SigningKey;
use p2ptrain_kernels::op::matmul;
use p2ptrain_kernels::primitive::pool::Pool;
use p2ptrain_protocol::id::{Incarnation, JobId, PeerId, Step};
use p2ptrain_protocol::peer::{Commit, Message, Notice};
use p2ptrain_protocol::view::{
    Advert, AdvertTable, DeviceAdvert, DeviceKind, JobSummary, LinkAdvert, SignedAdvert, ViewChange,
};
use p2ptrain_protocol::wire::{self, Kind};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use self::board::Board;
use self::prepare::Prepared;
use self::run::{JobRun, Place, Side};
use crate::checkpoint::{About, Checkpoint, Folder, SaveError, Saved};
use crate::driver::Event;
use crate::effect::End;
use crate::identity::Identity;
use crate::ipc::{self, IpcCommand, Refusal, Reply};
use crate::job::{self, JobFile};
use crate::net::{
    self, LossCause, NetConfig, NetEvent, NetHandle, PeerAddr, Port, Responder, SwarmAccess, Topic,
    Tuning,
};
use crate::optimizer::Applied;
use crate::profile::{self, DeviceProfile};
use crate::request::{Package, Request, Response};
use crate::state::TrainState;
use crate::status::{
    CheckpointStatus, EventLevel, JobStatus, LedgerStatus, Phase, StatusHub, StepReport,
};
use crate::trace::Trace;
use crate::worker::WorkerEvent;

/// How often the status is rebuilt and waits are looked at.
const TICK: Duration = Duration::from_millis(250);
/// How often a node advertises itself, in ticks. Newcomers are told at once.
const ADVERT_TICKS: u64 = 8;

/// How long a node with a checkpoint looks for peers that are still at its job, in ticks.
const RESUME_TICKS: u64 = 10;

/// What a node is made of.
pub struct NodeOptions {
    /// Its folder.
    pub dir: PathBuf,
    /// Its name, for people.
    pub name: String,
    /// Who is a member of its swarm.
    pub access: SwarmAccess,
    /// Address to listen on.
    pub listen: IpAddr,
    /// Control port; 0 for the usual one or any.
    pub port: u16,
    /// Bulk port; 0 for the usual one or any.
    pub bulk_port: u16,
    /// Whether to look for peers on the local network.
    pub mdns: bool,
    /// Where to look for peers.
    pub bootstrap: Vec<PeerAddr>,
    /// Threads that compute.
    pub threads: usize,
    /// Where token stores are kept.
    pub stores: PathBuf,
    /// Memory that may be used, as the user says.
    pub memory_bytes: Option<u64>,
    /// Write a trace of the steps to this file.
    pub trace: Option<PathBuf>,
    /// Whether the node ends with its job.
    pub exit_when_done: bool,
    /// Take part in the job of this id (or its beginning) only.
    pub job: Option<String>,
    /// The secret as users type it, to be shown in the line for other machines.
    pub shown_secret: Option<String>,
}

/// What a node begins with.
pub enum Start {
    /// A job of its own, from the beginning or from a checkpoint.
    Found(Box<JobFile>, Option<Box<Checkpoint>>),
    /// The job of others.
    Join,
}

/// How a node ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its job is finished.
    Finished,
    /// It left.
    Left,
    /// Ctrl-C.
    Interrupted,
}

/// Events of the node's own tasks and threads.
pub(crate) enum Internal {
    Worker(WorkerEvent),
    /// A job was prepared; `founder` holds its state.
    Prepared {
        prepared: anyhow::Result<Box<Prepared>>,
        founder: bool,
        checkpoints: Option<PathBuf>,
        reply: Option<Reply>,
    },
    /// A job that a peer runs could not be fetched.
    PackageFailed(String),
    Package(Box<Package>),
    StateFetched(Step),
    StateFailed {
        step: Step,
        from: Vec<PeerId>,
        reason: String,
    },
    Saved {
        step: Step,
        result: Result<Saved, SaveError>,
    },
    Progress(String),
}

/// Runs a node until its job is done, it leaves, or it is interrupted.
///
/// # Errors
/// The node can't start, or its job can't go on here; why, and what to do.
pub async fn run(options: NodeOptions, start: Start, hub: StatusHub) -> anyhow::Result<Outcome> {
    std::fs::create_dir_all(&options.dir)
        .with_context(|| format!("cannot create the node's folder {}", options.dir.display()))?;
    let (_ipc, commands) = ipc::serve(&options.dir, hub.clone())?;
    let identity = Identity::load_or_create(&options.dir)?;
    let incarnation = next_incarnation(&options.dir)?;
    let trace = match &options.trace {
        None => Trace::off(),
        Some(path) => Trace::to_file(path, &options.name)
            .with_context(|| format!("cannot write the trace {}", path.display()))?,
    };
    let port = |port, usual| if port == 0 { Port::Prefer(usual) } else { Port::Require(port) };
    let (net, net_events) = net::start(NetConfig {
        identity: identity.clone(),
        incarnation,
        access: options.access.clone(),
        listen: options.listen,
        control_port: port(options.port, net::DEFAULT_CONTROL_PORT),
        bulk_port: port(options.bulk_port, net::DEFAULT_BULK_PORT),
        mdns: options.mdns,
        bootstrap: options.bootstrap.clone(),
        tuning: Tuning::default(),
    })
    .await?;
    let (internal, internal_events) = mpsc::unbounded_channel();
    let mut node = Node::new(options, identity, incarnation, net, hub, internal, trace);
    node.announce();
    match start {
        Start::Found(file, None) => node.prepare(*file, None, None),
        Start::Found(file, Some(checkpoint)) => {
            node.options.job = Some(file.spec.id().to_hex());
            node.resuming = Some((RESUME_TICKS, *file, *checkpoint));
        }
        Start::Join => node.wait_for_job(),
    }
    let outcome = node.event_loop(net_events, internal_events, commands).await;
    let failed = outcome.as_ref().err().map(ToString::to_string);
    node.hub.update(|status| match failed {
        Some(reason) => {
            status.phase = Phase::Failed;
            status.phase_note = reason;
        }
        None => status.phase = Phase::Done,
    });
    node.net.shutdown().await;
    outcome
}

struct Node {
    options: NodeOptions,
    key: SigningKey,
    me: PeerId,
    incarnation: Incarnation,
    net: NetHandle,
    hub: StatusHub,
    internal: UnboundedSender<Internal>,
    trace: Arc<Trace>,
    board: Board,
    adverts: AdvertTable,
    advert_version: u64,
    profile: DeviceProfile,
    connected: BTreeSet<PeerId>,
    /// Jobs that connected peers run.
    offers: BTreeMap<PeerId, JobId>,
    /// A job is being fetched or prepared.
    preparing: bool,
    /// A job to go on with from a checkpoint, and the tick at which that begins unless peers who
    /// run it are found: then they are joined instead.
    resuming: Option<(u64, JobFile, Checkpoint)>,
    job: Option<Box<JobRun>>,
    saving: u32,
    leaving: Vec<Reply>,
    outcome: Option<Outcome>,
    interrupts: u32,
    last_applied: Option<(Step, Applied)>,
}

impl Node {
    fn new(
        options: NodeOptions,
        identity: Identity,
        incarnation: Incarnation,
        net: NetHandle,
        hub: StatusHub,
        internal: UnboundedSender<Internal>,
        trace: Trace,
    ) -> Self {
        let me = identity.peer_id();
        let board = Board::new(me, &options.name);
        Self {
            key: SigningKey::from_bytes(&identity.secret()),
            me,
            incarnation,
            net,
            hub,
            internal,
            trace: Arc::new(trace),
            board,
            adverts: AdvertTable::new(),
            advert_version: 0,
            profile: DeviceProfile::default(),
            connected: BTreeSet::new(),
            offers: BTreeMap::new(),
            preparing: false,
            resuming: None,
            job: None,
            saving: 0,
            leaving: Vec::new(),
            outcome: None,
            interrupts: 0,
            last_applied: None,
            options,
        }
    }

    /// Says where this node is, and what others type to join it.
    fn announce(&mut self) {
        let threads = self.options.threads;
        let pool = Pool::new(threads);
        let mut scratch = matmul::Scratch::default();
        self.profile = profile::measure(threads, |n, a, b, c| {
            let (a, b) = (matmul::Matrix::plain(a), matmul::Matrix::plain(b));
            let size = matmul::Size { m: n, n, k: n };
            matmul::f32(&pool, &mut scratch, size, a, b, c, matmul::Store::Set);
        });
        if let Some(bytes) = self.options.memory_bytes {
            self.profile.memory_bytes = bytes;
        }
        let control = self.net.local_addrs().control.clone();
        let secret = self.options.shown_secret.as_ref();
        let join = control.first().map_or_else(String::new, |addr| match secret {
            Some(secret) => format!("p2ptrain join --peer {secret}@{addr}"),
            None => format!("p2ptrain join --peer {addr} --allow PEER..."),
        });
        let (name, me) = (self.options.name.clone(), self.me.to_hex());
        let swarm = match &self.options.access {
            SwarmAccess::Secret(secret) => secret.fingerprint(),
            SwarmAccess::AllowList(peers) => format!("allow-list of {}", peers.len()),
        };
        self.hub.update(|status| {
            status.name = name;
            status.peer = me;
            status.swarm = swarm;
            status.addresses = control.iter().map(SocketAddr::to_string).collect();
            status.join_command = join;
            status.since_ms = unix_ms();
        });
    }

    fn wait_for_job(&mut self) {
        self.hub.update(|status| {
            status.phase = Phase::Waiting;
            status.phase_note = "for a peer that runs a job".to_owned();
        });
    }

    async fn event_loop(
        &mut self,
        mut net: mpsc::Receiver<NetEvent>,
        mut internal: UnboundedReceiver<Internal>,
        mut commands: mpsc::Receiver<IpcCommand>,
    ) -> anyhow::Result<Outcome> {
        let mut ticks = 0u64;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        loop {
            tokio::select! {
                Some(event) = net.recv() => self.on_net(event),
                Some(event) = internal.recv() => self.on_internal(event)?,
                Some(command) = commands.recv() => self.on_command(command),
                _ = tick.tick() => {
                    if ticks.is_multiple_of(ADVERT_TICKS) {
                        self.advertise();
                    }
                    ticks += 1;
                    if self.resuming.as_ref().is_some_and(|(at, ..)| *at <= ticks)
                        && let Some((_, file, checkpoint)) = self.resuming.take()
                    {
                        self.prepare(file, Some(checkpoint), None);
                    }
                    self.refresh();
                }
                _ = interrupt.recv() => self.interrupt(),
                _ = terminate.recv() => self.interrupt(),
            }
            self.after_event();
            if let Some(outcome) = self.outcome.filter(|_| self.saving == 0) {
                self.refresh();
                for reply in self.leaving.drain(..) {
                    reply.done("left");
                }
                return Ok(outcome);
            }
        }
    }

    /// The first Ctrl-C leaves at the end of the step; the second at once.
    fn interrupt(&mut self) {
        self.interrupts += 1;
        match &mut self.job {
            Some(job) if self.interrupts == 1 => {
                self.hub.update(|status| status.phase = Phase::Leaving);
                self.hub.event(
                    EventLevel::Info,
                    "leaving at the end of this step; Ctrl-C again ends at once",
                );
                job.handle(Event::Leave);
            }
            _ => self.outcome = Some(Outcome::Interrupted),
        }
    }

    fn on_net(&mut self, event: NetEvent) {
        match event {
            NetEvent::Connected { peer, .. } => {
                self.connected.insert(peer);
                self.board.note_connected(&peer);
                self.advertise();
                if let Some(job) = &mut self.job {
                    job.handle(Event::Connected(peer));
                }
            }
            NetEvent::Lost { peer, cause, .. } => self.on_lost(peer, cause),
            NetEvent::Message { from, bytes } => match wire::decode(Kind::Step, &bytes) {
                Ok(message) => self.on_message(from, message),
                Err(error) => self.refuse(from, &format!("message: {error}")),
            },
            NetEvent::Chunk { from, header, payload } => match wire::decode(Kind::Piece, &header) {
                Ok(header) => {
                    if let Some(job) = &mut self.job {
                        job.handle(Event::Piece { from, header, payload });
                    }
                }
                Err(error) => self.refuse(from, &format!("piece: {error}")),
            },
            NetEvent::Request { from, bytes, respond } => self.on_request(from, &bytes, respond),
            NetEvent::Gossip { from, topic: Topic::Advert, bytes } => self.on_advert(from, &bytes),
            // With members at hand, a bootstrap address that is gone is no news.
            NetEvent::BootstrapFailed { .. } if !self.connected.is_empty() => {}
            NetEvent::BootstrapFailed { addr, reason, retry_in } => {
                let text = format!("{addr}: {reason}; next try in {} s", retry_in.as_secs().max(1));
                self.hub.event(EventLevel::Warn, text);
            }
            NetEvent::Gossip { .. } | NetEvent::Discovered { .. } => {}
        }
    }

    fn on_lost(&mut self, peer: PeerId, cause: LossCause) {
        self.connected.remove(&peer);
        self.offers.remove(&peer);
        let (certain, why) = match cause {
            LossCause::Dead => (true, "died"),
            LossCause::Closed => (true, "left"),
            LossCause::Unreachable => (false, "can't be reached"),
            LossCause::Violation => (false, "broke the protocol"),
        };
        let name = self.board.name_of(&peer, &self.adverts);
        let level = if cause == LossCause::Closed { EventLevel::Info } else { EventLevel::Warn };
        self.hub.event(level, format!("{name} {why}"));
        self.board.note_lost(peer, why);
        if let Some(job) = &mut self.job {
            job.handle(Event::Lost { peer, certain });
        }
    }

    fn on_message(&mut self, from: PeerId, message: Message) {
        if let Message::Hello(hello) = &message {
            match hello.job {
                Some(job) => self.offers.insert(from, job),
                None => self.offers.remove(&from),
            };
            self.consider_offers();
        }
        if let Some(job) = &mut self.job {
            job.handle(Event::Message { from, message });
        }
    }

    /// Fetches a job that a peer runs, if this node is free.
    fn consider_offers(&mut self) {
        if self.job.is_some() || self.preparing || self.outcome.is_some() {
            return;
        }
        let wanted = |job: &JobId| {
            self.options.job.as_ref().is_none_or(|prefix| job.to_hex().starts_with(prefix))
        };
        let Some(job) = self.offers.values().find(|job| wanted(job)).copied() else { return };
        let peers: Vec<PeerId> =
            self.offers.iter().filter(|(_, offer)| **offer == job).map(|(peer, _)| *peer).collect();
        self.preparing = true;
        self.resuming = None;
        self.hub.update(|status| {
            status.phase = Phase::Joining;
            status.phase_note = format!("job {job}");
        });
        let (net, internal) = (self.net.clone(), self.internal.clone());
        tokio::spawn(async move {
            let event = match fetch::package(&net, job, &peers).await {
                Ok(package) => Internal::Package(Box::new(package)),
                Err(error) => Internal::PackageFailed(error.to_string()),
            };
            // If the node has ended, nobody wants the job.
            let _ = internal.send(event);
        });
    }

    fn on_request(&mut self, from: PeerId, bytes: &[u8], respond: Responder) {
        let request = match Request::from_bytes(bytes) {
            Ok(request) => request,
            Err(error) => return self.refuse(from, &format!("request: {error}")),
        };
        match &self.job {
            None => {
                let refusal = Response::Refused("this peer runs no job".to_owned());
                respond.send(refusal.to_bytes().into());
            }
            Some(job) => {
                let served = Arc::clone(&job.served);
                tokio::spawn(async move {
                    respond.send(served.answer(request).await.to_bytes().into());
                });
            }
        }
    }

    fn on_advert(&mut self, from: PeerId, bytes: &[u8]) {
        let signed: SignedAdvert = match wire::decode(Kind::Advert, bytes) {
            Ok(signed) => signed,
            Err(error) => return self.refuse(from, &format!("advert: {error}")),
        };
        if let Err(error) = self.adverts.offer(signed) {
            self.refuse(from, &format!("advert: {error}"));
        }
    }

    /// A peer sent what can't be used. The run goes on without it.
    fn refuse(&self, peer: PeerId, reason: &str) {
        tracing::warn!(%peer, "refused: {reason}");
        self.hub.event(EventLevel::Warn, format!("refused from {peer}: {reason}"));
    }

    fn advertise(&mut self) {
        self.advert_version += 1;
        let addrs = self.net.local_addrs();
        let links = self.net.links().into_iter().map(|link| LinkAdvert {
            to: link.peer,
            rtt_us: u32::try_from(link.rtt.as_micros()).unwrap_or(u32::MAX).clamp(1, 60_000_000),
            bits_per_s: self.board.bits_per_s(&link.peer),
        });
        let cpu = DeviceAdvert {
            kind: DeviceKind::Cpu,
            name: crate::status::clean(&self.profile.name, 64),
            memory_bytes: self.profile.memory_bytes.max(1),
            flops_per_s: self.profile.f32_flops_per_s.max(1),
            load_permille: u16::try_from(self.profile.load_permille.min(1000)).unwrap_or(1000),
        };
        let jobs = self.job.as_ref().map(|job| JobSummary {
            job: job.id,
            name: job.spec.name.clone(),
            step: job.driver.peer().step().unwrap_or(Step(0)),
            steps: Step(job.spec.steps),
            members: job.driver.peer().view().map_or(0, |view| view.members.len() as u16),
        });
        let advert = Advert {
            peer: self.me,
            incarnation: self.incarnation,
            version: self.advert_version,
            name: self.options.name.clone(),
            devices: vec![cpu],
            links: links.collect(),
            control_addrs: addrs.control.iter().map(multiaddr).collect(),
            bulk_addrs: addrs.bulk.clone(),
            jobs: jobs.into_iter().collect(),
            agent: concat!("p2ptrain/", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        match SignedAdvert::sign(&advert, &self.key) {
            Ok(signed) => {
                let bytes = wire::encode(Kind::Advert, &signed).into();
                // State that is published again anyway: a busy control plane may skip one.
                if let Err(error) = self.net.publish(Topic::Advert, bytes) {
                    tracing::debug!("advert: {error}");
                }
            }
            Err(error) => tracing::error!("this node's advert is not plausible: {error}"),
        }
    }
}

fn multiaddr(addr: &SocketAddr) -> String {
    let version = if addr.is_ipv4() { "ip4" } else { "ip6" };
    format!("/{version}/{}/tcp/{}", addr.ip(), addr.port())
}

/// Milliseconds of Unix time.
fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// This start's incarnation: the time, or one more than the last where the clock went back.
fn next_incarnation(dir: &std::path::Path) -> anyhow::Result<Incarnation> {
    let path = dir.join("incarnation");
    let last = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
    let next = last.map_or(0, |last: u64| last.saturating_add(1)).max(unix_ms());
    let temporary = dir.join("incarnation.new");
    std::fs::write(&temporary, next.to_string())
        .and_then(|()| std::fs::rename(&temporary, &path))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Incarnation(next))
}
