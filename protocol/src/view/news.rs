//! News of a step, and the next view that it makes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bincode::{Decode, Encode};
use thiserror::Error;

use super::{Member, View, quantize_us};
use crate::id::{Incarnation, PeerId};
use crate::limits;

/// A peer that asks to join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct JoinCandidate {
    /// The run of its process.
    pub incarnation: Incarnation,
    /// Its time of one micro-batch in µs as it says itself; 0 if it has not measured.
    pub us_per_microbatch: u32,
}

/// What one member knows at the end of a step. It travels with the step's collective.
///
/// News is a join-semilattice: [`merge`](Self::merge) is commutative, associative and idempotent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct News {
    /// Candidates that this member can reach.
    pub joins: BTreeMap<PeerId, JoinCandidate>,
    /// Members that asked to leave after the step.
    pub leaves: BTreeSet<PeerId>,
    /// Incarnations that are certainly dead. Each fences itself and all older ones of the peer; keep them
    /// here as long as a stale message of them could arrive.
    pub dead: BTreeSet<(PeerId, Incarnation)>,
    /// The sender's measured time of one micro-batch in µs; 0 if it computed none in this step.
    pub measured_us_per_microbatch: u32,
}

/// News of a peer exceeds a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("news lists {got} {field}, at most {limit} are allowed")]
pub struct NewsError {
    /// The list.
    pub field: &'static str,
    /// Entries allowed.
    pub limit: usize,
    /// Entries there.
    pub got: usize,
}

impl News {
    /// Takes in what `other` knows: unions, and per candidate the newest incarnation and the longer time.
    pub fn merge(&mut self, other: &Self) {
        for (&peer, &candidate) in &other.joins {
            let known = self.joins.entry(peer).or_insert(candidate);
            *known = candidate.max(*known);
        }
        self.leaves.extend(&other.leaves);
        self.dead.extend(&other.dead);
        self.measured_us_per_microbatch =
            self.measured_us_per_microbatch.max(other.measured_us_per_microbatch);
    }

    /// Checks the bounds of news that a peer sent.
    pub fn verify(&self) -> Result<(), NewsError> {
        let lists = [
            ("joins", limits::NEWS_JOINS_MAX, self.joins.len()),
            ("leaves", limits::NEWS_LEAVES_MAX, self.leaves.len()),
            ("dead", limits::NEWS_DEAD_MAX, self.dead.len()),
        ];
        match lists.into_iter().find(|(_, limit, got)| got > limit) {
            None => Ok(()),
            Some((field, limit, got)) => Err(NewsError { field, limit, got }),
        }
    }
}

/// Why a member is not in the next view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RemovalReason {
    /// Its process is certainly gone.
    Dead,
    /// It asked to leave.
    Left,
    /// Somebody sees a newer incarnation of it: the process was restarted.
    Superseded,
    /// It was not in the group that finished the step: it could not be reached.
    Absent,
}

impl fmt::Display for RemovalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dead => "it is dead",
            Self::Left => "it asked to leave",
            Self::Superseded => "its process was restarted",
            Self::Absent => "it was not in the group that finished the step",
        })
    }
}

/// Why a candidate is not in the next view.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefusalReason {
    /// This incarnation, or a newer one, is known dead.
    Fenced {
        /// The newest dead incarnation.
        dead: Incarnation,
    },
    /// It takes part already with this or a newer incarnation.
    AlreadyMember {
        /// The incarnation that takes part.
        incarnation: Incarnation,
    },
    /// It asked to leave at once.
    Left,
    /// Some members do not list this incarnation: they can't reach it yet.
    Unreached {
        /// One of them, the smallest.
        by: PeerId,
        /// How many there are.
        members: usize,
    },
    /// No member remains that could give it the parameters.
    NobodyStays,
    /// The view has no place left.
    Full,
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fenced { dead } => write!(f, "incarnation {dead} of it is known dead"),
            Self::AlreadyMember { incarnation } => {
                write!(f, "it takes part already with incarnation {incarnation}")
            }
            Self::Left => f.write_str("it asked to leave"),
            Self::Unreached { by, members: 1 } => write!(f, "{by} can't reach it yet"),
            Self::Unreached { by, members } => {
                write!(f, "{by} and {} others can't reach it yet", members - 1)
            }
            Self::NobodyStays => f.write_str("no member remains to give it the parameters"),
            Self::Full => write!(f, "the view has all of its {} members", limits::MEMBERS_MAX),
        }
    }
}

/// One difference between a view and the next, with its reason.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ViewChange {
    /// A member is gone.
    Removed {
        /// The member.
        peer: PeerId,
        /// Its incarnation.
        incarnation: Incarnation,
        /// Why.
        reason: RemovalReason,
    },
    /// A candidate is in: every remaining member reaches it.
    Admitted {
        /// The new member.
        peer: PeerId,
        /// Its incarnation.
        incarnation: Incarnation,
    },
    /// A candidate must wait, or is refused for good.
    Refused {
        /// The candidate.
        peer: PeerId,
        /// The newest incarnation that was listed.
        incarnation: Incarnation,
        /// Why.
        reason: RefusalReason,
    },
    /// A newcomer of the last view now holds the parameters.
    Synced {
        /// The member.
        peer: PeerId,
    },
    /// A member's measured speed moved to another step of the scale.
    Speed {
        /// The member.
        peer: PeerId,
        /// µs of one micro-batch before.
        from_us: u32,
        /// µs of one micro-batch now.
        to_us: u32,
    },
}

impl fmt::Display for ViewChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Removed { peer, incarnation, reason } => {
                write!(f, "{peer} (incarnation {incarnation}) is out: {reason}")
            }
            Self::Admitted { peer, incarnation } => {
                write!(f, "{peer} (incarnation {incarnation}) is in: every member reaches it")
            }
            Self::Refused { peer, incarnation, reason } => {
                write!(f, "{peer} (incarnation {incarnation}) does not join now: {reason}")
            }
            Self::Synced { peer } => write!(f, "{peer} holds the parameters now"),
            Self::Speed { peer, from_us, to_us } => {
                write!(f, "{peer} now takes {to_us} µs a micro-batch instead of {from_us} µs")
            }
        }
    }
}

impl View {
    /// The view of the next step: a pure function of this view, of the group that finished the step, and
    /// of the news that each member of that group sent in it. The order of `group` does not matter; news of
    /// peers that are not in it, and peers in it that are no members, are ignored.
    ///
    /// - Members that are dead, that leave, that a newer incarnation supersedes, or that are not in `group`
    ///   are out.
    /// - The others are synced, and have the speed that they measured.
    /// - A candidate is in if somebody remains, every remaining member lists its newest listed incarnation,
    ///   and no dead incarnation of it is that new. It comes in unsynced. Where members state different
    ///   speeds of it, the slowest counts.
    ///
    /// Changes come sorted by kind (removed, admitted, refused, synced, speed), then by peer.
    #[must_use]
    pub fn next(&self, group: &[PeerId], news: &BTreeMap<PeerId, News>) -> (Self, Vec<ViewChange>) {
        let group: BTreeSet<PeerId> =
            group.iter().copied().filter(|peer| self.contains(peer)).collect();
        let mut merged = News::default();
        news.iter().filter(|(sender, _)| group.contains(sender)).for_each(|(_, n)| merged.merge(n));
        let mut fenced = BTreeMap::new();
        for &(peer, incarnation) in &merged.dead {
            // Sorted by (peer, incarnation): the last insertion of a peer is its newest.
            fenced.insert(peer, incarnation);
        }
        let mut changes = Vec::new();
        let mut members = Vec::with_capacity(self.members.len());
        for member in &self.members {
            match removal(member, &group, &merged, &fenced) {
                Some(reason) => {
                    let (peer, incarnation) = (member.peer, member.incarnation);
                    changes.push(ViewChange::Removed { peer, incarnation, reason });
                }
                None => members.push(remaining(member, news.get(&member.peer), &mut changes)),
            }
        }
        let staying = Self { epoch: self.epoch, members };
        let mut members = staying.members.clone();
        for (&peer, &candidate) in &merged.joins {
            let incarnation = candidate.incarnation;
            let refusal = refusal(self, &staying, peer, candidate, &merged, &fenced, news)
                .or_else(|| (members.len() >= limits::MEMBERS_MAX).then_some(RefusalReason::Full));
            match refusal {
                Some(reason) => {
                    changes.push(ViewChange::Refused { peer, incarnation, reason });
                }
                None => {
                    changes.push(ViewChange::Admitted { peer, incarnation });
                    let us_per_microbatch = quantize_us(candidate.us_per_microbatch);
                    members.push(Member { peer, incarnation, us_per_microbatch, synced: false });
                }
            }
        }
        members.sort_unstable();
        changes.sort_unstable();
        (Self { epoch: self.epoch.saturating_add(1), members }, changes)
    }
}

/// Why `member` is out, if it is.
fn removal(
    member: &Member,
    group: &BTreeSet<PeerId>,
    merged: &News,
    fenced: &BTreeMap<PeerId, Incarnation>,
) -> Option<RemovalReason> {
    if fenced.get(&member.peer).is_some_and(|&dead| dead >= member.incarnation) {
        Some(RemovalReason::Dead)
    } else if merged.leaves.contains(&member.peer) {
        Some(RemovalReason::Left)
    } else if merged.joins.get(&member.peer).is_some_and(|c| c.incarnation > member.incarnation) {
        Some(RemovalReason::Superseded)
    } else if !group.contains(&member.peer) {
        Some(RemovalReason::Absent)
    } else {
        None
    }
}

/// A member that stays: synced, with the speed that it measured.
fn remaining(member: &Member, news: Option<&News>, changes: &mut Vec<ViewChange>) -> Member {
    let peer = member.peer;
    if !member.synced {
        changes.push(ViewChange::Synced { peer });
    }
    let from_us = member.us_per_microbatch;
    let to_us = match news.map_or(0, |news| news.measured_us_per_microbatch) {
        0 => from_us,
        measured => quantize_us(measured),
    };
    if to_us != from_us {
        changes.push(ViewChange::Speed { peer, from_us, to_us });
    }
    Member { us_per_microbatch: to_us, synced: true, ..member.clone() }
}

/// Why a candidate is not admitted, if it is not.
fn refusal(
    before: &View,
    staying: &View,
    peer: PeerId,
    candidate: JoinCandidate,
    merged: &News,
    fenced: &BTreeMap<PeerId, Incarnation>,
    news: &BTreeMap<PeerId, News>,
) -> Option<RefusalReason> {
    let incarnation = candidate.incarnation;
    if let Some(&dead) = fenced.get(&peer).filter(|&&dead| dead >= incarnation) {
        return Some(RefusalReason::Fenced { dead });
    }
    if let Some(member) = staying.member(&peer) {
        // A newer incarnation would have superseded the member.
        return Some(RefusalReason::AlreadyMember { incarnation: member.incarnation });
    }
    // A member's wish to leave is one of its old incarnation, and says nothing of a newer one.
    let left = before.member(&peer).is_none_or(|member| member.incarnation >= incarnation);
    if left && merged.leaves.contains(&peer) {
        return Some(RefusalReason::Left);
    }
    if staying.members.is_empty() {
        return Some(RefusalReason::NobodyStays);
    }
    let lists = |member: &PeerId| {
        let listed = news.get(member).and_then(|news| news.joins.get(&peer));
        listed.is_some_and(|listed| listed.incarnation == incarnation)
    };
    let mut unreached = staying.peers().filter(|member| !lists(member));
    let by = unreached.next()?;
    Some(RefusalReason::Unreached { by, members: 1 + unreached.count() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn peer(id: u8) -> PeerId {
        PeerId::from_bytes([id; 32])
    }

    fn member(id: u8) -> Member {
        Member {
            peer: peer(id),
            incarnation: Incarnation(10),
            us_per_microbatch: 1000,
            synced: true,
        }
    }

    fn view(ids: &[u8]) -> View {
        View::new(7, ids.iter().copied().map(member).collect()).expect("unique")
    }

    fn group(ids: &[u8]) -> Vec<PeerId> {
        ids.iter().copied().map(peer).collect()
    }

    fn joining(id: u8, incarnation: u64) -> News {
        let candidate =
            JoinCandidate { incarnation: Incarnation(incarnation), us_per_microbatch: 2000 };
        News { joins: [(peer(id), candidate)].into(), ..News::default() }
    }

    fn dead(id: u8, incarnation: u64) -> News {
        News { dead: [(peer(id), Incarnation(incarnation))].into(), ..News::default() }
    }

    /// The next view's members as (id, incarnation, synced), and the changes as text.
    fn check(
        view: &View,
        ids: &[u8],
        news: &[(u8, News)],
        members: &[(u8, u64, bool)],
        text: &[&str],
    ) {
        let news = news.iter().map(|(id, news)| (peer(*id), news.clone())).collect();
        let (next, changes) = view.next(&group(ids), &news);
        assert_eq!(next.epoch, view.epoch + 1);
        assert_eq!(next.verify(), Ok(()));
        let got = |m: &Member| (m.peer.as_bytes()[0], m.incarnation.0, m.synced);
        assert_eq!(next.members.iter().map(got).collect::<Vec<_>>(), members);
        assert_eq!(changes.iter().map(ToString::to_string).collect::<Vec<_>>(), text);
    }

    #[test]
    fn without_news_only_the_epoch_changes() {
        check(&view(&[1, 2]), &[2, 1], &[], &[(1, 10, true), (2, 10, true)], &[]);
    }

    #[test]
    fn the_dead_leavers_and_the_absent_are_out_with_their_reason() {
        let leaving = News { leaves: group(&[3]).into_iter().collect(), ..News::default() };
        check(
            &view(&[1, 2, 3, 4]),
            &[1, 2, 3],
            &[(1, dead(2, 10)), (3, leaving)],
            &[(1, 10, true)],
            &[
                "02020202 (incarnation 10) is out: it is dead",
                "03030303 (incarnation 10) is out: it asked to leave",
                "04040404 (incarnation 10) is out: it was not in the group that finished the step",
            ],
        );
    }

    #[test]
    fn the_death_of_an_older_incarnation_does_not_concern_a_member() {
        check(&view(&[1, 2]), &[1, 2], &[(1, dead(2, 9))], &[(1, 10, true), (2, 10, true)], &[]);
    }

    #[test]
    fn a_candidate_comes_in_unsynced_once_every_remaining_member_reaches_it() {
        let (one, two) = ((1, joining(5, 3)), (2, joining(5, 3)));
        let before = view(&[1, 2]);
        let text = "05050505 (incarnation 3) does not join now: 02020202 can't reach it yet";
        check(
            &before,
            &[1, 2],
            std::slice::from_ref(&one),
            &[(1, 10, true), (2, 10, true)],
            &[text],
        );
        let after = [(1, 10, true), (2, 10, true), (5, 3, false)];
        let text = "05050505 (incarnation 3) is in: every member reaches it";
        check(&before, &[1, 2], &[one.clone(), two], &after, &[text]);
        // A member that is out has no say.
        let out = "02020202 (incarnation 10) is out: it is dead";
        let news = [(1, News { dead: dead(2, 10).dead, ..one.1 })];
        check(&before, &[1, 2], &news, &[(1, 10, true), (5, 3, false)], &[out, text]);
    }

    #[test]
    fn a_newcomer_is_synced_in_the_view_after_its_first() {
        let mut before = view(&[1, 2]);
        before.members[1].synced = false;
        let text = "02020202 holds the parameters now";
        check(&before, &[1, 2], &[], &[(1, 10, true), (2, 10, true)], &[text]);
    }

    #[test]
    fn a_fenced_incarnation_is_refused_and_a_newer_one_is_not() {
        let news = |incarnation| {
            let dead = dead(5, 3).dead;
            [(1, News { dead, ..joining(5, incarnation) })]
        };
        let text = "05050505 (incarnation 3) does not join now: incarnation 3 of it is known dead";
        check(&view(&[1]), &[1], &news(3), &[(1, 10, true)], &[text]);
        let text = "05050505 (incarnation 4) is in: every member reaches it";
        check(&view(&[1]), &[1], &news(4), &[(1, 10, true), (5, 4, false)], &[text]);
    }

    #[test]
    fn the_newest_incarnation_wins_and_must_be_listed_by_all() {
        let news = [(1, joining(5, 3)), (2, joining(5, 4))];
        let text = "05050505 (incarnation 4) does not join now: 01010101 can't reach it yet";
        check(&view(&[1, 2]), &[1, 2], &news, &[(1, 10, true), (2, 10, true)], &[text]);
    }

    #[test]
    fn a_restarted_member_is_out_as_soon_as_one_sees_its_new_incarnation() {
        let news = [(1, joining(2, 11)), (3, joining(2, 11))];
        check(
            &view(&[1, 2, 3]),
            &[1, 2, 3],
            &news,
            &[(1, 10, true), (2, 11, false), (3, 10, true)],
            &[
                "02020202 (incarnation 10) is out: its process was restarted",
                "02020202 (incarnation 11) is in: every member reaches it",
            ],
        );
    }

    #[test]
    fn a_stale_candidate_of_a_member_changes_nothing() {
        let text = "02020202 (incarnation 9) does not join now: it takes part already with \
                    incarnation 10";
        let after = [(1, 10, true), (2, 10, true)];
        check(&view(&[1, 2]), &[1, 2], &[(1, joining(2, 9))], &after, &[text]);
    }

    #[test]
    fn a_peer_that_was_absent_may_come_back_with_the_same_incarnation() {
        check(
            &view(&[1, 2]),
            &[1],
            &[(1, joining(2, 10))],
            &[(1, 10, true), (2, 10, false)],
            &[
                "02020202 (incarnation 10) is out: it was not in the group that finished the step",
                "02020202 (incarnation 10) is in: every member reaches it",
            ],
        );
    }

    #[test]
    fn news_of_outsiders_is_ignored() {
        let news = [(9, dead(1, 10)), (2, dead(1, 10))];
        let text =
            "02020202 (incarnation 10) is out: it was not in the group that finished the step";
        check(&view(&[1, 2]), &[1, 9], &news, &[(1, 10, true)], &[text]);
    }

    #[test]
    fn nobody_joins_where_nobody_stays() {
        let leaving = News { leaves: group(&[1]).into_iter().collect(), ..joining(5, 3) };
        check(
            &view(&[1]),
            &[1],
            &[(1, leaving)],
            &[],
            &[
                "01010101 (incarnation 10) is out: it asked to leave",
                "05050505 (incarnation 3) does not join now: no member remains to give it the \
                 parameters",
            ],
        );
    }

    #[test]
    fn a_candidate_that_leaves_at_once_does_not_join() {
        let leaving = News { leaves: group(&[5]).into_iter().collect(), ..joining(5, 3) };
        let text = "05050505 (incarnation 3) does not join now: it asked to leave";
        check(&view(&[1]), &[1], &[(1, leaving)], &[(1, 10, true)], &[text]);
        // A member's wish to leave does not concern its next incarnation.
        let restarted = News { leaves: group(&[2]).into_iter().collect(), ..joining(2, 11) };
        check(
            &view(&[1, 2]),
            &[1, 2],
            &[(1, restarted)],
            &[(1, 10, true), (2, 11, false)],
            &[
                "02020202 (incarnation 10) is out: it asked to leave",
                "02020202 (incarnation 11) is in: every member reaches it",
            ],
        );
    }

    #[test]
    fn measured_speed_moves_in_steps_of_the_scale() {
        let measured = |us| {
            let news = News { measured_us_per_microbatch: us, ..News::default() };
            view(&[1]).next(&group(&[1]), &[(peer(1), news)].into())
        };
        let (next, changes) = measured(500);
        let to_us = quantize_us(500);
        assert_eq!(next.members[0].us_per_microbatch, to_us);
        assert_eq!(changes, [ViewChange::Speed { peer: peer(1), from_us: 1000, to_us }]);
        assert_eq!(measured(0).0.members[0].us_per_microbatch, 1000);
    }

    #[test]
    fn a_full_view_takes_nobody() {
        let member = |i: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&(i as u64).to_be_bytes());
            Member { peer: PeerId::from_bytes(bytes), ..member(0) }
        };
        let members = (0..limits::MEMBERS_MAX).map(member).collect();
        let view = View::new(0, members).expect("within the bounds");
        let group: Vec<_> = view.peers().collect();
        let news = group.iter().map(|&peer| (peer, joining(255, 1))).collect();
        let (next, changes) = view.next(&group, &news);
        assert_eq!(next.members.len(), limits::MEMBERS_MAX);
        let (peer, incarnation) = (peer(255), Incarnation(1));
        let refused = ViewChange::Refused { peer, incarnation, reason: RefusalReason::Full };
        assert_eq!(changes, [refused]);
    }

    #[test]
    fn news_over_its_bounds_is_refused_by_field() {
        let dead = (0..=limits::NEWS_DEAD_MAX).map(|i| (peer(1), Incarnation(i as u64))).collect();
        let news = News { dead, ..News::default() };
        let (limit, got) = (limits::NEWS_DEAD_MAX, limits::NEWS_DEAD_MAX + 1);
        assert_eq!(news.verify(), Err(NewsError { field: "dead", limit, got }));
        assert_eq!(News::default().verify(), Ok(()));
    }

    fn some_news() -> impl Strategy<Value = News> {
        let candidate = (0_u64..4, 0_u32..4).prop_map(|(incarnation, us_per_microbatch)| {
            JoinCandidate { incarnation: Incarnation(incarnation), us_per_microbatch }
        });
        (
            prop::collection::btree_map((0_u8..6).prop_map(peer), candidate, 0..4),
            prop::collection::btree_set((0_u8..6).prop_map(peer), 0..3),
            prop::collection::btree_set(
                ((0_u8..6).prop_map(peer), (0_u64..4).prop_map(Incarnation)),
                0..3,
            ),
            0_u32..5000,
        )
            .prop_map(|(joins, leaves, dead, measured_us_per_microbatch)| News {
                joins,
                leaves,
                dead,
                measured_us_per_microbatch,
            })
    }

    fn merged(a: &News, b: &News) -> News {
        let mut a = a.clone();
        a.merge(b);
        a
    }

    proptest! {
        #[test]
        fn merging_is_commutative_associative_and_idempotent(
            a in some_news(), b in some_news(), c in some_news()
        ) {
            prop_assert_eq!(merged(&a, &b), merged(&b, &a));
            prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
            prop_assert_eq!(merged(&a, &a), a.clone());
            prop_assert_eq!(merged(&merged(&a, &b), &b), merged(&a, &b));
        }

        #[test]
        fn the_next_view_is_sound_whatever_the_news(
            ids in prop::collection::btree_set(0_u8..6, 1..6),
            present in prop::collection::vec(0_u8..6, 0..6),
            news in prop::collection::btree_map((0_u8..6).prop_map(peer), some_news(), 0..6),
        ) {
            let mut before = view(&ids.into_iter().collect::<Vec<_>>());
            before.members.iter_mut().for_each(|m| m.incarnation = Incarnation(1));
            let group = group(&present);
            let (next, changes) = before.next(&group, &news);
            prop_assert_eq!(next.verify(), Ok(()));
            let mut reversed = group.clone();
            reversed.reverse();
            prop_assert_eq!((&next, &changes), (&before.next(&reversed, &news).0, &changes));
            let senders = |p: &PeerId| group.contains(p) && before.contains(p);
            for member in &next.members {
                let fenced = news.iter().filter(|(p, _)| senders(p)).any(|(_, n)| {
                    n.dead.iter().any(|(p, i)| *p == member.peer && *i >= member.incarnation)
                });
                prop_assert!(!fenced);
                if member.synced {
                    prop_assert!(senders(&member.peer));
                } else {
                    for old in next.members.iter().filter(|m| m.synced) {
                        let listed = &news[&old.peer].joins[&member.peer];
                        prop_assert_eq!(listed.incarnation, member.incarnation);
                    }
                }
            }
        }
    }
}
