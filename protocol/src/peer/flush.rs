//! Agreement of the survivors after a loss, without a leader.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::id::{Digest, Incarnation, PeerId};
use crate::limits;
use crate::planner;
use crate::view;

use super::attempt::{Attempt, subtract, survivors};
use super::{Lost, Message, Notice, Peer, Phase, Report, Status, incarnation_in};

/// In a status of a step that has not begun. Nobody looks at the attempt of such a status.
const NO_ATTEMPT: Digest = Digest::from_bytes([0; 32]);

/// The statuses of one set of losses. A larger set opens a new round.
#[derive(Debug)]
pub(super) struct Round {
    statuses: BTreeMap<PeerId, Status>,
}

impl Peer {
    /// Takes in what this peer or another knows of lost members.
    pub(super) fn learn_losses(&mut self, losses: impl IntoIterator<Item = Lost>) {
        let mut grown = false;
        for Lost { peer, incarnation, certain } in losses {
            // Others' doubts about this peer count once they have decided: see `Message::Fenced`.
            if peer == self.me {
                continue;
            }
            // What was a doubt first stays one: who died or left later may have gone on meanwhile
            // with others, so that its end says nothing about what was committed.
            let known = self.known_lost.entry(peer).or_insert((incarnation, certain));
            if known.0 < incarnation {
                *known = (incarnation, certain);
            }
            let certain = known.1;
            let Phase::Member(member) = &mut self.phase else { continue };
            if incarnation_in(&member.view, &peer) == Some(incarnation) {
                grown |= member.lost.insert(peer, (incarnation, certain)).is_none();
            }
        }
        if grown {
            self.start_round();
        }
    }

    /// Stops the attempt and tells the survivors where this peer stands.
    pub(super) fn start_round(&mut self) {
        // Until the step has begun there is nothing to agree on; `begin_step` comes back here.
        let Some(status) = self.status().filter(|status| status.begun) else { return };
        let Phase::Member(member) = &mut self.phase else { return };
        member.round = Some(Round { statuses: BTreeMap::from([(self.me, status.clone())]) });
        let mut receivers: BTreeSet<PeerId> =
            survivors(&member.view, &member.lost).into_iter().collect();
        receivers.extend(member.previous.iter().filter(|peer| !member.lost.contains_key(peer)));
        for to in receivers {
            self.send(to, Message::Status(status.clone()));
        }
        self.try_decide();
    }

    pub(super) fn on_status(&mut self, from: PeerId, status: Status) {
        if let Phase::Finishing { view, step, .. } = &self.phase {
            // The sender lacks a barrier of the last step, which all of us hold.
            if status.step < *step {
                let reply = Status {
                    step: *step,
                    view: view.clone(),
                    begun: false,
                    lost: status.lost,
                    holds: false,
                    attempt: status.attempt,
                    news: self.news(),
                    report: Report::default(),
                };
                self.send(from, Message::Status(reply));
            }
            return;
        }
        let Phase::Member(member) = &mut self.phase else { return };
        // A newcomer of the next view may be the first to tell that our step is committed.
        let newcomer = status.step.0 == member.step.0 + 1 && status.view.contains(&from);
        let known = member.view.contains(&from) || member.previous.contains(&from) || newcomer;
        if !known || member.lost.contains_key(&from) || status.lost.len() > limits::MEMBERS_MAX {
            return;
        }
        let bounded = status.view.verify().is_ok() && status.news.verify().is_ok();
        if !bounded || !well_formed(&status.report.work, self.geometry.items(status.step).total()) {
            let what =
                format!("a malformed view, news or work list in the status of {}", status.step);
            self.notice(Notice::Violation { peer: from, what });
            return;
        }
        let ours = member.step;
        if status.step.0 + 1 == ours.0 {
            self.answer_laggard(from, &status);
        } else if status.step == ours {
            self.learn_losses(status.lost.iter().copied());
            self.take_status(from, status);
        } else if status.step.0 == ours.0 + 1 {
            self.follow(from, status);
        }
    }

    /// The sender has not seen the commit of the step before: our status says that it happened.
    fn answer_laggard(&mut self, from: PeerId, status: &Status) {
        self.learn_losses(status.lost.iter().copied());
        if let Some(reply) = self.status() {
            self.send(from, Message::Status(reply));
        }
    }

    /// Where this member stands. Before its step has begun it names no attempt that could be met.
    fn status(&self) -> Option<Status> {
        let Phase::Member(member) = &self.phase else { return None };
        let attempt = member.attempt.as_ref();
        Some(Status {
            step: member.step,
            view: member.view.clone(),
            begun: attempt.is_some(),
            lost: as_losses(&member.lost),
            holds: attempt.is_some_and(Attempt::holds),
            attempt: attempt.map_or(NO_ATTEMPT, Attempt::id),
            news: self.news(),
            report: member.local.report.clone(),
        })
    }

    fn take_status(&mut self, from: PeerId, status: Status) {
        let Phase::Member(member) = &mut self.phase else { return };
        if status.step != member.step || status.view != member.view || !status.begun {
            return;
        }
        match &mut member.round {
            Some(round) if same_losses(&status.lost, &member.lost) => {
                round.statuses.insert(from, status);
                self.try_decide();
            }
            // The sender does not know of all our losses yet; our own status tells it.
            Some(_) => {}
            // Our step has not begun yet: the previous commit is being applied.
            None if member.attempt.is_none() => self.keep_status(from, status),
            None => {}
        }
    }

    /// The sender committed our step, so every member of the group holds the result: commit too.
    fn follow(&mut self, from: PeerId, status: Status) {
        let Phase::Member(member) = &mut self.phase else { return };
        let Some(attempt) = &member.attempt else {
            // Still applying the commit before; `begin_step` replays this.
            self.keep_status(from, status);
            return;
        };
        if incarnation_in(&status.view, &self.me) != Some(self.incarnation) && !self.leaving {
            self.join_again();
            return;
        }
        if !attempt.holds() {
            let what = format!("says that {} is committed, which needs our gradient", member.step);
            self.notice(Notice::Violation { peer: from, what });
            self.join_again();
            return;
        }
        let lost: Vec<PeerId> = member.lost.keys().copied().collect();
        let (step, view) = (member.step, status.view.clone());
        let words = std::mem::take(&mut member.barriers)
            .into_iter()
            .map(|(peer, barrier)| (peer, (barrier.news, barrier.report)))
            .collect();
        member.round = None;
        let losses: Vec<Lost> = status.lost.iter().copied().collect();
        self.notice(Notice::CommittedAfterLoss { step, lost });
        if status.begun {
            self.keep_status(from, status);
        }
        self.commit_with(words, Some(view));
        self.learn_losses(losses);
    }

    fn keep_status(&mut self, from: PeerId, status: Status) {
        self.early.statuses.retain(|(sender, old)| *sender != from || old.step > status.step);
        if self.early.statuses.len() < limits::EARLY_MESSAGES_MAX {
            self.early.statuses.push((from, status));
        }
    }

    /// Decides once the statuses of all survivors are there; all of them decide alike.
    fn try_decide(&mut self) {
        let Phase::Member(member) = &mut self.phase else { return };
        let Some(round) = &member.round else { return };
        let group = survivors(&member.view, &member.lost);
        if !group.iter().all(|peer| round.statuses.contains_key(peer)) {
            return;
        }
        let certain: BTreeSet<PeerId> = round
            .statuses
            .values()
            .flat_map(|status| status.lost.iter().filter(|lost| lost.certain))
            .map(|lost| lost.peer)
            .collect();
        let suspect: BTreeSet<PeerId> =
            member.lost.keys().filter(|peer| !certain.contains(peer)).copied().collect();
        if let Err(error) = view::may_continue(&member.view, &certain, &suspect) {
            if !std::mem::replace(&mut member.stalled, true) {
                let (step, reason) = (member.step, error.to_string());
                self.notice(Notice::Stalled { step, reason });
            }
            return;
        }
        member.stalled = false;
        let first = round.statuses[&group[0]].attempt;
        let all_hold =
            group.iter().all(|p| round.statuses[p].holds && round.statuses[p].attempt == first);
        let round = member.round.take().expect("present above");
        let lost: Vec<PeerId> = member.lost.keys().copied().collect();
        let step = member.step;
        let fenced: Vec<_> = member.lost.iter().map(|(peer, (inc, _))| (*peer, *inc)).collect();
        for (peer, incarnation) in fenced {
            if self.connected.contains(&peer) {
                self.send(peer, Message::Fenced(incarnation));
            }
        }
        if all_hold {
            let mut words: BTreeMap<_, _> =
                round.statuses.into_iter().map(|(p, s)| (p, (s.news, s.report))).collect();
            words.retain(|peer, _| group.contains(peer));
            self.notice(Notice::CommittedAfterLoss { step, lost });
            self.commit_with(words, None);
        } else {
            self.redo(&group, &round, lost);
        }
    }

    /// Shares out the work that no survivor has, and exchanges again.
    fn redo(&mut self, group: &[PeerId], round: &Round, lost: Vec<PeerId>) {
        let Phase::Member(member) = &mut self.phase else { return };
        let items = self.geometry.items(member.step);
        let mut shares: BTreeMap<PeerId, Vec<Range<u32>>> = BTreeMap::new();
        let mut missing = vec![0..items.total()];
        for peer in group {
            let work = round.statuses[peer].report.work.clone();
            missing = subtract(&missing, &work);
            shares.insert(*peer, work);
        }
        let redone = missing.iter().map(|range| range.end - range.start).sum();
        let members: Vec<_> =
            member.view.members.iter().filter(|m| group.contains(&m.peer)).cloned().collect();
        let already: Vec<_> = group.iter().map(|peer| shares[peer].clone()).collect();
        let (extra, _) = planner::redistribute(&members, &missing, &already, member.view.epoch);
        for (peer, extra) in group.iter().zip(extra) {
            let work = shares.entry(*peer).or_default();
            work.extend(extra);
            work.sort_unstable_by_key(|range| range.start);
        }
        let step = member.step;
        self.drop_attempt();
        self.notice(Notice::Redo { step, lost, items: redone });
        self.start_attempt(shares, false);
        self.replay_early();
    }
}

fn as_losses(lost: &BTreeMap<PeerId, (Incarnation, bool)>) -> BTreeSet<Lost> {
    lost.iter()
        .map(|(peer, (incarnation, certain))| Lost {
            peer: *peer,
            incarnation: *incarnation,
            certain: *certain,
        })
        .collect()
}

/// Whether both name the same peers; certainty aside.
fn same_losses(theirs: &BTreeSet<Lost>, ours: &BTreeMap<PeerId, (Incarnation, bool)>) -> bool {
    theirs.len() == ours.len()
        && theirs.iter().all(|l| ours.get(&l.peer).is_some_and(|(i, _)| *i == l.incarnation))
}

/// Whether ranges are sorted, disjoint, non-empty and within `0..total`.
pub(super) fn well_formed(work: &[Range<u32>], total: u32) -> bool {
    let mut next = 0;
    work.iter().all(|range| {
        let fits = range.start >= next && range.start < range.end && range.end <= total;
        next = range.end;
        fits
    })
}
