//! One attempt at a step: work shared out, buckets reduced, barriers, commit.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::collective::{self, RingAllReduce};
use crate::id::{Digest, Incarnation, JobId, PeerId, Step};
use crate::ledger::{LedgerEntry, Share};
use crate::limits;
use crate::planner;
use crate::view::{News, View};

use super::{
    Barrier, Commit, Early, Forward, LocalWork, Membership, Message, Notice, OrderReport, Output,
    Peer, Phase, PieceError, PieceHeader, Report, incarnation_in,
};

/// Names an order of computation; its events echo it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct OrderId(pub u64);

/// A group's try at a step.
#[derive(Debug)]
pub struct Attempt {
    id: Digest,
    group: Vec<PeerId>,
    shares: BTreeMap<PeerId, Vec<Range<u32>>>,
    buckets: Vec<RingAllReduce>,
    /// Buckets that are not yet reduced.
    open_buckets: BTreeSet<usize>,
    holds: bool,
}

impl Attempt {
    fn new(
        job: JobId,
        step: Step,
        view: &View,
        lost: &BTreeMap<PeerId, (Incarnation, bool)>,
        shares: BTreeMap<PeerId, Vec<Range<u32>>>,
        me: PeerId,
        bucket_lens: &[u64],
    ) -> Self {
        let group = survivors(view, lost);
        let rank = group.iter().position(|peer| *peer == me).expect("a peer acts in its own group");
        let buckets: Vec<_> = bucket_lens
            .iter()
            .map(|len| {
                RingAllReduce::new(rank as u16, group.len() as u16, *len as usize)
                    .expect("views and buckets are within the limits")
            })
            .collect();
        let open_buckets = (0..buckets.len()).collect();
        let id = attempt_id(job, step, view, lost);
        Self { id, group, shares, buckets, open_buckets, holds: false }
    }

    /// Digest of job, step, view and losses: equal on all peers that may exchange.
    pub fn id(&self) -> Digest {
        self.id
    }

    /// The peers that exchange, in ring order.
    pub fn group(&self) -> &[PeerId] {
        &self.group
    }

    /// Who does which work items.
    pub fn shares(&self) -> &BTreeMap<PeerId, Vec<Range<u32>>> {
        &self.shares
    }

    /// Whether this peer holds the reduced gradient of every bucket and is done with its work.
    pub fn holds(&self) -> bool {
        self.holds
    }

    fn rank_of(&self, peer: &PeerId) -> Option<u16> {
        self.group.iter().position(|member| member == peer).map(|rank| rank as u16)
    }
}

/// The members of `view` without the lost ones, in ring order.
pub(super) fn survivors(view: &View, lost: &BTreeMap<PeerId, (Incarnation, bool)>) -> Vec<PeerId> {
    view.peers().filter(|peer| !lost.contains_key(peer)).collect()
}

fn attempt_id(
    job: JobId,
    step: Step,
    view: &View,
    lost: &BTreeMap<PeerId, (Incarnation, bool)>,
) -> Digest {
    let mut hasher = blake3::Hasher::new_derive_key("p2ptrain attempt v1");
    hasher.update(job.as_bytes());
    hasher.update(&step.0.to_le_bytes());
    hasher.update(view.digest().as_bytes());
    for (peer, (incarnation, _)) in lost {
        hasher.update(peer.as_bytes());
        hasher.update(&incarnation.0.to_le_bytes());
    }
    Digest::from_bytes(*hasher.finalize().as_bytes())
}

impl LocalWork {
    pub(super) fn computed(&mut self, order: OrderId, report: &OrderReport) {
        let add = |bits: &mut u64, loss: f64| *bits = (f64::from_bits(*bits) + loss).to_bits();
        add(&mut self.report.train_loss_bits, report.train_loss);
        add(&mut self.report.eval_loss_bits, report.eval_loss);
        self.done = order == self.order;
    }
}

impl Membership {
    pub(super) fn piece_arrived(
        &mut self,
        from: PeerId,
        header: PieceHeader,
        elements: usize,
    ) -> Result<(), PieceError> {
        let attempt = self.attempt.as_mut().expect("checked by the caller: the piece's attempt");
        let rank = attempt
            .rank_of(&from)
            .ok_or(PieceError::NotAMember { from, attempt: header.attempt })?;
        let buckets = attempt.buckets.len();
        let bucket = attempt
            .buckets
            .get_mut(header.bucket as usize)
            .ok_or(PieceError::NoSuchBucket { bucket: header.bucket, buckets })?;
        bucket.handle_piece(rank, header.piece, elements)?;
        Ok(())
    }

    pub(super) fn bucket_ready(&mut self, bucket: usize) {
        let Some(ready) = self.local.ready.get_mut(bucket) else { return };
        if std::mem::replace(ready, true) || self.round.is_some() {
            return;
        }
        if let Some(attempt) = &mut self.attempt {
            attempt.buckets[bucket].handle_local_ready();
        }
    }
}

impl Peer {
    pub(super) fn enter(
        &mut self,
        step: Step,
        view: View,
        synced: bool,
        applied: bool,
        previous: Vec<PeerId>,
    ) {
        let known = &self.known_lost;
        let lost = view
            .members
            .iter()
            .filter_map(|m| {
                let (incarnation, certain) = known.get(&m.peer)?;
                (*incarnation >= m.incarnation).then_some((m.peer, (m.incarnation, *certain)))
            })
            .collect();
        self.phase = Phase::Member(Box::new(Membership {
            step,
            view,
            lost,
            synced,
            applied,
            attempt: None,
            planned: BTreeMap::new(),
            local: LocalWork::default(),
            barriers: BTreeMap::new(),
            round: None,
            abandoned: BTreeSet::new(),
            stalled: false,
            previous,
        }));
    }

    /// Starts the step whose state is in place: shares out the work and starts computing.
    pub(super) fn begin_step(&mut self) {
        let Phase::Member(member) = &mut self.phase else { return };
        let items = self.geometry.items(member.step);
        let members = &member.view.members;
        let epoch = member.view.epoch;
        let (train, _) = planner::assign(members, items.train, epoch);
        let (eval, _) = planner::assign(members, items.eval, epoch);
        let mut shares = BTreeMap::new();
        for ((m, train), eval) in members.iter().zip(train).zip(eval) {
            let eval = eval.start + items.train..eval.end + items.train;
            let work: Vec<_> =
                [train, eval].into_iter().filter(|range| !range.is_empty()).collect();
            shares.insert(m.peer, work);
        }
        let block_digests = std::mem::take(&mut member.local.report.block_digests);
        member.local = LocalWork {
            report: Report { block_digests, ..Report::default() },
            ..LocalWork::default()
        };
        // The first attempt is that of the whole view. Members lost meanwhile are met by a round.
        let lost = std::mem::take(&mut member.lost);
        member.planned = shares.clone();
        self.start_attempt(shares, true);
        if let Phase::Member(member) = &mut self.phase {
            member.lost = lost;
            if !member.lost.is_empty() {
                self.start_round();
            }
        }
        self.replay_early();
    }

    /// Starts an attempt with these shares; computes what of this peer's share is not yet done.
    pub(super) fn start_attempt(&mut self, shares: BTreeMap<PeerId, Vec<Range<u32>>>, fresh: bool) {
        let Phase::Member(member) = &mut self.phase else { return };
        let closing = self.geometry.items(member.step).train == 0;
        let bucket_lens: &[u64] = if closing { &[] } else { &self.geometry.bucket_lens };
        let mine = shares.get(&self.me).cloned().unwrap_or_default();
        let extra = subtract(&mine, &member.local.report.work);
        member.local.report.work = mine;
        let mut attempt = Attempt::new(
            self.geometry.job,
            member.step,
            &member.view,
            &member.lost,
            shares,
            self.me,
            bucket_lens,
        );
        if fresh || !extra.is_empty() {
            self.next_order += 1;
            member.local.order = OrderId(self.next_order);
            if fresh {
                member.local.first_order = member.local.order;
            }
            member.local.ready = vec![false; bucket_lens.len()];
            member.local.done = false;
            self.outputs.push_back(Output::Compute {
                order: member.local.order,
                step: member.step,
                work: extra,
                fresh,
            });
        } else {
            for (bucket, ready) in member.local.ready.iter().enumerate() {
                if *ready {
                    attempt.buckets[bucket].handle_local_ready();
                }
            }
        }
        if !member.synced {
            let from = member
                .view
                .members
                .iter()
                .filter(|m| m.synced && !member.lost.contains_key(&m.peer))
                .map(|m| m.peer)
                .collect();
            self.outputs.push_back(Output::FetchState { step: member.step, from });
        }
        member.attempt = Some(attempt);
        member.barriers.clear();
        self.drain_attempt();
    }

    /// Takes what arrived early and belongs to the step or attempt that has begun.
    pub(super) fn replay_early(&mut self) {
        let Early { pieces, barriers, statuses } = std::mem::take(&mut self.early);
        for (from, header, elements) in pieces {
            match self.handle_piece(from, header, elements) {
                Ok(super::PieceVerdict::Keep) => {}
                Ok(super::PieceVerdict::Stale) => self.outputs.push_back(Output::Discard(header)),
                Err(error) => {
                    self.outputs.push_back(Output::Discard(header));
                    self.notice(Notice::Violation { peer: from, what: error.to_string() });
                }
            }
        }
        for (from, barrier) in barriers {
            self.on_barrier(from, barrier);
        }
        for (from, status) in statuses {
            self.on_status(from, status);
        }
    }

    /// Passes on what the collectives want, and says so once all buckets are reduced.
    pub(super) fn drain_attempt(&mut self) {
        let Phase::Member(member) = &mut self.phase else { return };
        if member.round.is_some() {
            return;
        }
        let Some(attempt) = &mut member.attempt else { return };
        let (step, id) = (member.step, attempt.id);
        let mut finished = Vec::new();
        for index in &attempt.open_buckets {
            let header = |piece| PieceHeader { step, attempt: id, bucket: *index as u32, piece };
            let forward = |to: collective::Forward| Forward {
                to: attempt.group[to.to as usize],
                header: header(to.piece),
            };
            while let Some(output) = attempt.buckets[*index].poll_output() {
                self.outputs.push_back(match output {
                    collective::Output::SendLocal { forward: to, range } => {
                        Output::SendLocal { forward: forward(to), range }
                    }
                    collective::Output::ReduceThenForward {
                        piece,
                        range,
                        forward: to,
                        complete,
                    } => Output::Reduce {
                        header: header(piece),
                        range,
                        forward: forward(to),
                        complete,
                    },
                    collective::Output::StoreThenForward { piece, range, forward: to } => {
                        Output::Store { header: header(piece), range, forward: to.map(forward) }
                    }
                    // The commit of a lone peer says that its own gradient is the result.
                    collective::Output::KeepLocal { .. } => continue,
                    collective::Output::Done => {
                        finished.push(*index);
                        Output::Reduced { step, bucket: *index as u32 }
                    }
                });
            }
        }
        for index in finished {
            attempt.open_buckets.remove(&index);
        }
        let complete = attempt.open_buckets.is_empty() && member.local.done && member.synced;
        if complete && !attempt.holds {
            attempt.holds = true;
            self.send_barrier();
            self.try_commit();
        }
    }

    fn send_barrier(&mut self) {
        let news = self.news();
        let Phase::Member(member) = &mut self.phase else { return };
        let Some(attempt) = &member.attempt else { return };
        let barrier = Barrier {
            step: member.step,
            attempt: attempt.id,
            news,
            report: member.local.report.clone(),
        };
        member.barriers.insert(self.me, barrier.clone());
        for to in attempt.group.clone() {
            self.send(to, Message::Barrier(barrier.clone()));
        }
    }

    pub(super) fn on_barrier(&mut self, from: PeerId, barrier: Barrier) {
        let Phase::Member(member) = &mut self.phase else { return };
        if barrier.step < member.step || member.abandoned.contains(&barrier.attempt) {
            return;
        }
        let current = member.attempt.as_ref().filter(|a| a.id == barrier.attempt);
        match current {
            Some(attempt) => {
                if attempt.shares.get(&from) != Some(&barrier.report.work) {
                    let what = format!("did other work in {} than planned", barrier.step);
                    self.notice(Notice::Violation { peer: from, what });
                } else if member.round.is_none() {
                    member.barriers.insert(from, barrier);
                    self.try_commit();
                }
            }
            None if barrier.step.0 <= member.step.0 + 1
                && self.early.barriers.len() < limits::EARLY_MESSAGES_MAX =>
            {
                self.early.barriers.push((from, barrier));
            }
            None => {}
        }
    }

    fn try_commit(&mut self) {
        let Phase::Member(member) = &mut self.phase else { return };
        let Some(attempt) = &member.attempt else { return };
        let complete = attempt.holds
            && member.round.is_none()
            && attempt.group.iter().all(|peer| member.barriers.contains_key(peer));
        if complete {
            let barriers = std::mem::take(&mut member.barriers);
            let words = barriers.into_iter().map(|(peer, b)| (peer, (b.news, b.report))).collect();
            self.commit_with(words, None);
        }
    }

    /// Commits the attempt in hand. `words` are news and reports of the final group; with
    /// `adopted`, the next view is another member's, who committed before.
    pub(super) fn commit_with(
        &mut self,
        mut words: BTreeMap<PeerId, (News, Report)>,
        adopted: Option<View>,
    ) {
        let Phase::Member(member) = &mut self.phase else { return };
        let attempt = member.attempt.take().expect("only a held attempt is committed");
        let items = self.geometry.items(member.step);
        let step = member.step;
        let group: Vec<PeerId> = words.keys().copied().collect();
        let diverged = find_diverged(&words);
        if let Some((_, peers)) = &diverged {
            for (news, _) in words.values_mut() {
                news.leaves.extend(peers.iter().copied());
            }
        }
        let (train_loss, eval_loss) = losses(&words, items.train);
        let (next_view, changes) = match adopted {
            Some(view) => (view, Vec::new()),
            None => {
                let news = words.into_iter().map(|(peer, (news, _))| (peer, news)).collect();
                member.view.next(&group, &news)
            }
        };
        let before = member.view.clone();
        let planned = std::mem::take(&mut member.planned);
        let previous = attempt.group.clone();
        self.outputs.push_back(Output::Commit(Box::new(Commit {
            step,
            entry: LedgerEntry {
                step,
                epoch: before.epoch,
                attempt: attempt.id,
                shares: ledger_shares(&attempt.shares, &planned, items.train),
            },
            apply: items.train > 0,
            alone: attempt.group.len() == 1,
            train_loss,
            eval_loss,
            changes,
            next_view: next_view.clone(),
        })));
        self.outputs.push_back(Output::DropAttempt(attempt.id));
        let next = Step(step.0 + 1);
        if items.train == 0 {
            self.finish(next_view, next, previous);
        } else if incarnation_in(&next_view, &self.me) != Some(self.incarnation) {
            self.depart(step, diverged);
        } else {
            self.admit_newcomers(&before, &next_view, next);
            self.enter(next, next_view, true, false, previous);
            self.report_divergence(step, diverged);
        }
    }

    fn depart(&mut self, step: Step, diverged: Option<(u32, Vec<PeerId>)>) {
        let expelled = diverged.as_ref().is_some_and(|(_, peers)| peers.contains(&self.me));
        self.report_divergence(step, diverged);
        if expelled || !self.leaving {
            self.join_again();
        } else {
            self.phase = Phase::Ended;
            self.outputs.push_back(Output::Left);
        }
    }

    fn report_divergence(&mut self, step: Step, diverged: Option<(u32, Vec<PeerId>)>) {
        if let Some((block, peers)) = diverged {
            // The digests are those of the parameters after the commit before this one.
            let step = Step(step.0.saturating_sub(1));
            self.notice(Notice::Diverged { step, block, peers });
        }
    }

    fn finish(&mut self, view: View, step: Step, group: Vec<PeerId>) {
        let waiting_for: BTreeSet<PeerId> = group
            .into_iter()
            .filter(|peer| *peer != self.me && self.connected.contains(peer))
            .collect();
        for peer in &waiting_for {
            self.send(*peer, Message::Done(self.geometry.job));
        }
        let waiting_for = waiting_for.difference(&self.done).copied().collect();
        self.phase = Phase::Finishing { view, step, waiting_for };
        self.try_finish();
    }

    /// Forgets the attempt under way, if any.
    pub(super) fn drop_attempt(&mut self) {
        if let Phase::Member(member) = &mut self.phase
            && let Some(attempt) = member.attempt.take()
        {
            member.abandoned.insert(attempt.id);
            self.outputs.push_back(Output::DropAttempt(attempt.id));
        }
    }
}

/// Mean training and held-out loss over the reported items, summed in the order of peer ids.
fn losses(
    words: &BTreeMap<PeerId, (News, Report)>,
    train_items: u32,
) -> (Option<f64>, Option<f64>) {
    let (mut train, mut eval) = ((0.0, 0u32), (0.0, 0u32));
    for (_, report) in words.values() {
        train.0 += f64::from_bits(report.train_loss_bits);
        eval.0 += f64::from_bits(report.eval_loss_bits);
        for range in &report.work {
            let split = range.end.min(train_items.max(range.start));
            train.1 += split - range.start;
            eval.1 += range.end - split;
        }
    }
    let mean = |(sum, count): (f64, u32)| (count > 0).then(|| sum / f64::from(count));
    (mean(train), mean(eval))
}

/// The micro-batches among the shares; what was not planned for a peer, it did for a lost one.
fn ledger_shares(
    shares: &BTreeMap<PeerId, Vec<Range<u32>>>,
    planned: &BTreeMap<PeerId, Vec<Range<u32>>>,
    train_items: u32,
) -> Vec<Share> {
    let mut entries = Vec::new();
    for (peer, ranges) in shares {
        let ranges = subtract(ranges, &[train_items..u32::MAX]);
        let redone = subtract(&ranges, planned.get(peer).map_or(&[], Vec::as_slice));
        let own = subtract(&ranges, &redone);
        for (redone, ranges) in [(false, own), (true, redone)] {
            if !ranges.is_empty() {
                entries.push(Share { peer: *peer, redone, ranges });
            }
        }
    }
    entries
}

/// The peers whose parameter digests are not those of the majority (of equal halves, that with the
/// smallest peer id), and the first block that differs.
fn find_diverged(words: &BTreeMap<PeerId, (News, Report)>) -> Option<(u32, Vec<PeerId>)> {
    let mut camps: BTreeMap<&[Digest], Vec<PeerId>> = BTreeMap::new();
    for (peer, (_, report)) in words {
        if !report.block_digests.is_empty() {
            camps.entry(&report.block_digests).or_default().push(*peer);
        }
    }
    if camps.len() < 2 {
        return None;
    }
    let (right, _) = camps
        .iter()
        .max_by_key(|(_, peers)| (peers.len(), std::cmp::Reverse(peers.iter().min().copied())))?;
    let right = *right;
    let wrong: Vec<(&[Digest], Vec<PeerId>)> =
        camps.iter().filter(|(d, _)| **d != right).map(|(d, p)| (*d, p.clone())).collect();
    let block = wrong
        .iter()
        .filter_map(|(digests, _)| digests.iter().zip(right).position(|(a, b)| a != b))
        .min()
        .unwrap_or(0);
    let mut peers: Vec<PeerId> = wrong.into_iter().flat_map(|(_, peers)| peers).collect();
    peers.sort_unstable();
    Some((block as u32, peers))
}

/// `all` without `done`; both are sorted and disjoint within themselves.
pub(super) fn subtract(all: &[Range<u32>], done: &[Range<u32>]) -> Vec<Range<u32>> {
    let mut rest = Vec::new();
    for range in all {
        let mut start = range.start;
        let mut overlaps: Vec<_> =
            done.iter().filter(|d| d.start < range.end && d.end > range.start).collect();
        overlaps.sort_unstable_by_key(|d| d.start);
        for overlap in overlaps {
            if overlap.start > start {
                rest.push(start..overlap.start);
            }
            start = start.max(overlap.end);
        }
        if start < range.end {
            rest.push(start..range.end);
        }
    }
    rest
}
