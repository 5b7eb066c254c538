//! The step state machine of one peer in one job: what it computes, what it exchanges, when a step
//! commits, and how survivors agree after a loss.
//!
//! Sans-IO: `handle_*` takes what happened, [`Peer::poll_output`] gives what to do. Drain the
//! outputs after each call.
//!
//! # How a step commits
//! 1. All members compute the same [`Attempt`] from the same view: who does which micro-batches.
//! 2. Each bucket goes through a ring all-reduce as soon as it is ready locally.
//! 3. A member that holds every reduced bucket says so to all ([`Barrier`]), with its news.
//! 4. A member that has the barriers of the whole group commits. So when anybody committed,
//!    everybody holds the reduced gradient and can commit as well.
//!
//! # What a loss does
//! Whoever learns that a member is gone stops the attempt and sends its [`Status`] to the other
//! survivors, with the set of losses that it knows; sets are united until all are equal. Then all
//! survivors have the same statuses and decide alike: if all hold the reduced gradient, commit it;
//! if somebody already committed, do what it did; otherwise share out only the work that the lost
//! members took with them, and exchange again. Nobody can have committed in the last case, since a
//! commit needs everybody to hold. This is the flush of view-synchronous group communication
//! (Birman and Joseph, 1987), with the collective as the message that is flushed.

mod attempt;
mod flush;
mod message;
mod output;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use crate::collective::CollectiveError;
use crate::id::{Digest, Incarnation, JobId, PeerId, Step};
use crate::limits;
use crate::view::{JoinCandidate, Member, News, View, quantize_us};

pub use self::attempt::{Attempt, OrderId};
use self::flush::Round;
pub use self::message::{Admit, Barrier, Hello, JoinRequest, Lost, Message, Report, Role, Status};
pub use self::output::{Commit, Forward, Notice, OrderReport, Output, PieceHeader, PieceVerdict};

/// What the state machine has to know of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobGeometry {
    /// The job.
    pub job: JobId,
    /// Micro-batches of a step.
    pub micro_batches: u32,
    /// Steps to train. One closing round of evaluation follows the last.
    pub steps: u64,
    /// Elements of each gradient bucket, in the order of the program's blocks.
    pub bucket_lens: Vec<u64>,
    /// Evaluate before steps that are multiples of this; 0 for the closing round only.
    pub eval_every: u64,
    /// Held-out batches of one evaluation.
    pub eval_items: u32,
    /// The founder waits for this many members, itself included, before the first step.
    pub members_min: u32,
}

impl JobGeometry {
    /// Work items of a step: micro-batches are `0..train`, evaluation items follow them.
    pub fn items(&self, step: Step) -> Items {
        let closing = step.0 >= self.steps;
        let evaluates = closing || (self.eval_every > 0 && step.0.is_multiple_of(self.eval_every));
        Items {
            train: if closing { 0 } else { self.micro_batches },
            eval: if evaluates { self.eval_items } else { 0 },
        }
    }
}

/// How many work items a step has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Items {
    /// Micro-batches, items `0..train`.
    pub train: u32,
    /// Evaluation items, `train..train + eval`.
    pub eval: u32,
}

impl Items {
    /// The number of all items.
    pub fn total(self) -> u32 {
        self.train + self.eval
    }
}

/// The step state machine. See the module's documentation.
#[derive(Debug)]
pub struct Peer {
    me: PeerId,
    incarnation: Incarnation,
    geometry: JobGeometry,
    phase: Phase,
    /// Peers with a live connection.
    connected: BTreeSet<PeerId>,
    /// Newcomers that asked this peer.
    candidates: BTreeMap<PeerId, Candidate>,
    /// Losses by peer: the newest incarnation known to be lost, and whether that is certain.
    known_lost: BTreeMap<PeerId, (Incarnation, bool)>,
    /// What arrived for a step or an attempt that this peer has not reached yet.
    early: Early,
    /// Peers that committed the last step.
    done: BTreeSet<PeerId>,
    us_per_microbatch: u32,
    leaving: bool,
    next_order: u64,
    outputs: VecDeque<Output>,
}

/// A newcomer as it told of itself.
#[derive(Debug)]
struct Candidate {
    join: JoinCandidate,
    reaches: BTreeSet<PeerId>,
}

#[derive(Debug)]
enum Phase {
    /// A founder waits for members.
    Gathering {
        step: Step,
    },
    /// Waits to be admitted.
    Joining,
    Member(Box<Membership>),
    /// All steps are committed; waits until the others know.
    Finishing {
        view: View,
        step: Step,
        waiting_for: BTreeSet<PeerId>,
    },
    Ended,
}

/// A member's position: the step, its view, and the attempt under way.
#[derive(Debug)]
struct Membership {
    step: Step,
    view: View,
    /// Losses among the members of `view`.
    lost: BTreeMap<PeerId, (Incarnation, bool)>,
    /// Whether this peer holds parameters and optimizer state of `step`.
    synced: bool,
    /// Whether the previous commit has been applied, so that this step may start.
    applied: bool,
    attempt: Option<Attempt>,
    /// The shares of the first attempt.
    planned: BTreeMap<PeerId, Vec<Range<u32>>>,
    local: LocalWork,
    barriers: BTreeMap<PeerId, Barrier>,
    round: Option<Round>,
    /// Attempts of this step that were given up.
    abandoned: BTreeSet<Digest>,
    stalled: bool,
    /// Members of the group of the previous step that may still need this peer's word.
    previous: Vec<PeerId>,
}

/// This peer's own contribution to a step, over all attempts of the step.
#[derive(Debug, Default)]
struct LocalWork {
    /// The first order of the step and the newest; the gradient is whole after the newest.
    first_order: OrderId,
    order: OrderId,
    /// Buckets whose gradient holds the whole of `work`.
    ready: Vec<bool>,
    done: bool,
    report: Report,
}

#[derive(Debug, Default)]
struct Early {
    pieces: Vec<(PeerId, PieceHeader, usize)>,
    barriers: Vec<(PeerId, Barrier)>,
    statuses: Vec<(PeerId, Status)>,
}

impl Peer {
    /// A peer that starts the job at `step` (0, or the step of a checkpoint) with the state in
    /// hand, and waits for [`JobGeometry::members_min`] members.
    pub fn found(me: PeerId, incarnation: Incarnation, geometry: JobGeometry, step: Step) -> Self {
        let mut peer = Self::new(me, incarnation, geometry, Phase::Gathering { step });
        peer.gather();
        peer
    }

    /// A peer that has program and data and wants to become a member.
    pub fn join(me: PeerId, incarnation: Incarnation, geometry: JobGeometry) -> Self {
        Self::new(me, incarnation, geometry, Phase::Joining)
    }

    fn new(me: PeerId, incarnation: Incarnation, geometry: JobGeometry, phase: Phase) -> Self {
        Self {
            me,
            incarnation,
            geometry,
            phase,
            connected: BTreeSet::new(),
            candidates: BTreeMap::new(),
            known_lost: BTreeMap::new(),
            early: Early::default(),
            done: BTreeSet::new(),
            us_per_microbatch: 0,
            leaving: false,
            next_order: 0,
            outputs: VecDeque::new(),
        }
    }

    /// This peer.
    pub fn me(&self) -> PeerId {
        self.me
    }

    /// The job's numbers.
    pub fn geometry(&self) -> &JobGeometry {
        &self.geometry
    }

    /// This peer's incarnation.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The step that this peer works on, if it is a member.
    pub fn step(&self) -> Option<Step> {
        match &self.phase {
            Phase::Member(member) => Some(member.step),
            Phase::Gathering { step } | Phase::Finishing { step, .. } => Some(*step),
            Phase::Joining | Phase::Ended => None,
        }
    }

    /// The view of that step.
    pub fn view(&self) -> Option<&View> {
        match &self.phase {
            Phase::Member(member) => Some(&member.view),
            Phase::Finishing { view, .. } => Some(view),
            _ => None,
        }
    }

    /// The attempt under way.
    pub fn attempt(&self) -> Option<&Attempt> {
        match &self.phase {
            Phase::Member(member) => member.attempt.as_ref(),
            _ => None,
        }
    }

    /// What this peer tells of itself on a new connection.
    pub fn hello(&self) -> Hello {
        let role = match &self.phase {
            Phase::Member(member) if member.stalled => Role::Stalled,
            Phase::Member(_) | Phase::Finishing { .. } => Role::Member,
            Phase::Gathering { .. } => Role::Founder,
            Phase::Joining => Role::Joining,
            Phase::Ended => Role::Idle,
        };
        Hello {
            incarnation: self.incarnation,
            job: Some(self.geometry.job),
            role,
            step: self.step().unwrap_or(Step(0)),
        }
    }

    /// A connection to `peer` is up.
    pub fn handle_connected(&mut self, peer: PeerId) {
        self.connected.insert(peer);
        self.send(peer, Message::Hello(self.hello()));
        if matches!(self.phase, Phase::Joining) {
            // To all: whom this peer reaches has changed.
            self.ask_to_join();
        }
    }

    /// `peer` is gone. `certain` says that its process is (refused, reset, or a goodbye); without
    /// it the peer may live on the other side of a partition.
    pub fn handle_lost(&mut self, peer: PeerId, certain: bool) {
        self.connected.remove(&peer);
        if let Some(candidate) = self.candidates.remove(&peer) {
            // It may have been admitted by barriers that are under way.
            self.learn_losses([Lost { peer, incarnation: candidate.join.incarnation, certain }]);
        }
        match &mut self.phase {
            Phase::Member(member) => {
                if let Some(incarnation) = incarnation_in(&member.view, &peer) {
                    self.learn_losses([Lost { peer, incarnation, certain }]);
                }
            }
            Phase::Finishing { waiting_for, .. } => {
                waiting_for.remove(&peer);
                self.try_finish();
            }
            Phase::Gathering { .. } | Phase::Joining | Phase::Ended => {}
        }
    }

    /// A message of the ordered stream.
    pub fn handle_message(&mut self, from: PeerId, message: Message) {
        match message {
            Message::Hello(hello) => self.on_hello(from, &hello),
            Message::JoinRequest(request) => self.on_join_request(from, &request),
            Message::Admit(admit) => self.on_admit(from, admit),
            Message::Barrier(barrier) => self.on_barrier(from, barrier),
            Message::Status(status) => self.on_status(from, status),
            Message::Fenced(incarnation) => {
                if incarnation == self.incarnation && !matches!(self.phase, Phase::Ended) {
                    self.join_again();
                }
            }
            Message::Done(job) => {
                if job != self.geometry.job {
                    return;
                }
                self.done.insert(from);
                if let Phase::Finishing { waiting_for, .. } = &mut self.phase {
                    waiting_for.remove(&from);
                    self.try_finish();
                }
            }
        }
    }

    /// A piece of a bucket, of so many elements, has arrived; the caller holds its bytes.
    ///
    /// # Errors
    /// The piece is not one that `from` may send: it is refused, and the sender is broken.
    pub fn handle_piece(
        &mut self,
        from: PeerId,
        header: PieceHeader,
        elements: usize,
    ) -> Result<PieceVerdict, PieceError> {
        let early = match &mut self.phase {
            Phase::Member(member) => {
                if header.step < member.step || member.abandoned.contains(&header.attempt) {
                    return Ok(PieceVerdict::Stale);
                }
                let current = member.round.is_none()
                    && member.attempt.as_ref().is_some_and(|a| a.id() == header.attempt);
                if current {
                    member.piece_arrived(from, header, elements)?;
                    self.drain_attempt();
                    return Ok(PieceVerdict::Keep);
                }
                header.step.0 <= member.step.0 + 1
            }
            Phase::Joining => true,
            Phase::Gathering { .. } | Phase::Finishing { .. } | Phase::Ended => false,
        };
        if !early {
            return Ok(PieceVerdict::Stale);
        }
        let limit = self.early_pieces_max();
        if self.early.pieces.len() >= limit {
            return Err(PieceError::TooManyEarly { limit });
        }
        self.early.pieces.push((from, header, elements));
        Ok(PieceVerdict::Keep)
    }

    /// The order's gradient of `bucket` is complete.
    pub fn handle_bucket_ready(&mut self, order: OrderId, bucket: usize) {
        if let Phase::Member(member) = &mut self.phase
            && member.local.order == order
        {
            member.bucket_ready(bucket);
            self.drain_attempt();
        }
    }

    /// The order is computed.
    pub fn handle_computed(&mut self, order: OrderId, report: &OrderReport) {
        if let Some(us) = report.us_per_microbatch {
            self.us_per_microbatch = us;
        }
        if let Phase::Member(member) = &mut self.phase
            && (member.local.first_order..=member.local.order).contains(&order)
        {
            member.local.computed(order, report);
            self.drain_attempt();
        }
    }

    /// The state asked for by [`Output::FetchState`] is in place.
    pub fn handle_state(&mut self, step: Step) {
        if let Phase::Member(member) = &mut self.phase
            && member.step == step
        {
            member.synced = true;
            self.drain_attempt();
        }
    }

    /// The state could not be fetched from anybody: join again as a new incarnation.
    pub fn handle_state_failed(&mut self, step: Step) {
        if self.step() == Some(step) {
            self.join_again();
        }
    }

    /// The commit of `step` has been applied. `block_digests` is given at the steps where replicas
    /// are compared.
    pub fn handle_applied(&mut self, step: Step, block_digests: Vec<Digest>) {
        if let Phase::Member(member) = &mut self.phase
            && member.step.0 == step.0 + 1
        {
            member.applied = true;
            member.local.report.block_digests = block_digests;
            self.begin_step();
        }
    }

    /// Leave the job at the end of the current step. A founder that still gathers leaves at once.
    pub fn leave(&mut self) {
        self.leaving = true;
        let in_step = matches!(&self.phase, Phase::Member(member) if !member.stalled);
        if !in_step {
            self.phase = Phase::Ended;
            self.outputs.push_back(Output::Left);
        }
    }

    /// Next thing to do; `None` when everything is said.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn on_hello(&mut self, from: PeerId, hello: &Hello) {
        let leads = matches!(hello.role, Role::Member | Role::Founder);
        if hello.job != Some(self.geometry.job) || !leads {
            return;
        }
        // Of two groups of one job, or two founders, the one that is ahead goes on; of equals, that
        // of the smaller id. One step ahead may be a newcomer of the commit that is under way here.
        let ahead =
            |step: Step| hello.step.0 > step.0 + 1 || (hello.step == step && from < self.me);
        let follow = match &self.phase {
            // The other side of the partition went on: its result stands (invariant 3).
            Phase::Member(member) if member.stalled => hello.step >= member.step,
            Phase::Member(member) if member.view.contains(&from) => {
                hello.step.0 > member.step.0 + 1
            }
            Phase::Member(member) => hello.role == Role::Member && ahead(member.step),
            Phase::Gathering { step } => {
                hello.role == Role::Member || (hello.step, self.me) > (*step, from)
            }
            Phase::Joining => {
                let request = self.join_request();
                self.send(from, request);
                return;
            }
            Phase::Finishing { .. } | Phase::Ended => false,
        };
        if follow {
            self.join_again();
        }
    }

    fn on_join_request(&mut self, from: PeerId, request: &JoinRequest) {
        if request.job != self.geometry.job || !self.connected.contains(&from) {
            return;
        }
        if self.candidates.len() >= limits::MEMBERS_MAX && !self.candidates.contains_key(&from) {
            return;
        }
        let lost = self.known_lost.get(&from).copied();
        if let Some((incarnation, _)) = lost.filter(|(lost, _)| *lost >= request.incarnation) {
            if incarnation == request.incarnation {
                self.send(from, Message::Fenced(incarnation));
            }
            return;
        }
        // An older incarnation in the view can't speak any more: the process started anew.
        if let Some(seen) = self.view().and_then(|view| incarnation_in(view, &from))
            && seen < request.incarnation
        {
            self.learn_losses([Lost { peer: from, incarnation: seen, certain: true }]);
        }
        let join = JoinCandidate {
            incarnation: request.incarnation,
            us_per_microbatch: request.us_per_microbatch,
        };
        self.candidates.insert(from, Candidate { join, reaches: request.reaches.clone() });
        self.gather();
    }

    /// As a founder, forms the first view once enough newcomers are there.
    fn gather(&mut self) {
        let Phase::Gathering { step } = &self.phase else { return };
        let step = *step;
        let news = self.news();
        if (news.joins.len() + 1) < self.geometry.members_min as usize {
            return;
        }
        let founder = Member {
            peer: self.me,
            incarnation: self.incarnation,
            us_per_microbatch: quantize_us(self.us_per_microbatch),
            synced: true,
        };
        let alone = View { epoch: 0, members: vec![founder] };
        let news = BTreeMap::from([(self.me, news)]);
        let (view, _) = alone.next(&[self.me], &news);
        self.admit_newcomers(&alone, &view, step);
        self.enter(step, view, true, true, Vec::new());
        self.begin_step();
    }

    fn on_admit(&mut self, from: PeerId, admit: Admit) {
        if admit.job != self.geometry.job {
            return;
        }
        let mine = incarnation_in(&admit.view, &self.me);
        if mine != Some(self.incarnation) || admit.view.verify().is_err() {
            return;
        }
        let accept = match &self.phase {
            Phase::Joining => true,
            // Before it has the state, a newcomer follows any survivor of the view that it was
            // admitted to: those who admitted it first may all be gone.
            Phase::Member(member) => {
                !member.synced
                    && admit.step == member.step
                    && admit.view != member.view
                    && member.view.contains(&from)
                    && !member.lost.contains_key(&from)
            }
            _ => false,
        };
        if accept && admit.view.contains(&from) {
            self.drop_attempt();
            self.enter(admit.step, admit.view, false, true, Vec::new());
            self.begin_step();
        }
    }

    fn try_finish(&mut self) {
        if let Phase::Finishing { waiting_for, .. } = &self.phase
            && waiting_for.is_empty()
        {
            self.phase = Phase::Ended;
            self.outputs.push_back(Output::Finished);
        }
    }

    /// Starts over as a newcomer with a new incarnation.
    fn join_again(&mut self) {
        let step = self.step().unwrap_or(Step(0));
        self.drop_attempt();
        self.phase = Phase::Joining;
        self.incarnation = Incarnation(self.incarnation.0 + 1);
        // Whom this peer merely doubted, the group that it now joins has kept.
        self.known_lost.retain(|_, (_, certain)| *certain);
        for (_, header, _) in std::mem::take(&mut self.early).pieces {
            self.outputs.push_back(Output::Discard(header));
        }
        self.outputs.push_back(Output::Notice(Notice::Fenced { step }));
        self.outputs.push_back(Output::NewIncarnation(self.incarnation));
        for peer in self.connected.clone() {
            self.send(peer, Message::Hello(self.hello()));
        }
        self.ask_to_join();
    }

    /// A group in step can't send more before this peer follows: the pieces of one step, and those
    /// of one attempt at it that was given up.
    fn early_pieces_max(&self) -> usize {
        let pieces_of =
            |len: &u64| *len as usize / limits::PIECE_ELEMENTS_MAX + limits::MEMBERS_MAX;
        2 * self.geometry.bucket_lens.iter().map(pieces_of).sum::<usize>()
    }

    fn join_request(&self) -> Message {
        Message::JoinRequest(JoinRequest {
            job: self.geometry.job,
            incarnation: self.incarnation,
            us_per_microbatch: self.us_per_microbatch,
            reaches: self.connected.clone(),
        })
    }

    fn ask_to_join(&mut self) {
        for peer in self.connected.clone() {
            let request = self.join_request();
            self.send(peer, request);
        }
    }

    /// This peer's news of the step: newcomers that it can reach, and its own wish to leave.
    fn news(&self) -> News {
        let view = self.view();
        let mut joins: BTreeMap<PeerId, JoinCandidate> = BTreeMap::new();
        for (peer, Candidate { join, reaches }) in &self.candidates {
            let member = view.and_then(|view| incarnation_in(view, peer));
            let is_new = member.is_none_or(|member| member < join.incarnation);
            let reaches = |other: PeerId| other == *peer || reaches.contains(&other);
            let reaches_members = view.is_none_or(|view| view.peers().all(reaches));
            let reaches_newcomers = joins.keys().copied().all(reaches);
            if is_new && reaches_members && reaches_newcomers {
                joins.insert(*peer, *join);
            }
        }
        let leaves = if self.leaving { BTreeSet::from([self.me]) } else { BTreeSet::new() };
        News {
            joins,
            leaves,
            dead: self
                .known_lost
                .iter()
                .filter(|(_, (_, certain))| *certain)
                .map(|(peer, (incarnation, _))| (*peer, *incarnation))
                .collect(),
            measured_us_per_microbatch: self.us_per_microbatch,
        }
    }

    fn admit_newcomers(&mut self, before: &View, view: &View, step: Step) {
        for member in &view.members {
            if incarnation_in(before, &member.peer) != Some(member.incarnation) {
                self.candidates.remove(&member.peer);
                let admit = Admit { job: self.geometry.job, step, view: view.clone() };
                self.send(member.peer, Message::Admit(admit));
            }
        }
    }

    fn send(&mut self, to: PeerId, message: Message) {
        if to != self.me {
            self.outputs.push_back(Output::Send { to, message });
        }
    }

    fn notice(&mut self, notice: Notice) {
        self.outputs.push_back(Output::Notice(notice));
    }
}

fn incarnation_in(view: &View, peer: &PeerId) -> Option<Incarnation> {
    view.member(peer).map(|member| member.incarnation)
}

/// Why a piece was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PieceError {
    /// The sender is not in the group of this attempt.
    #[error("{from} is not a member of attempt {attempt}")]
    NotAMember {
        /// Sender.
        from: PeerId,
        /// Attempt.
        attempt: Digest,
    },
    /// There is no such bucket.
    #[error("bucket {bucket} does not exist; the program has {buckets}")]
    NoSuchBucket {
        /// The bucket named.
        bucket: u32,
        /// How many there are.
        buckets: usize,
    },
    /// The ring does not expect this piece.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// More pieces of attempts to come than a group in step can send.
    #[error("more than {limit} pieces for attempts that are still to come")]
    TooManyEarly {
        /// The limit.
        limit: usize,
    },
}
