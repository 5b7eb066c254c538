//! Views, plans and the ledger over many steps in which peers die, leave, join and are cut off: all members
//! hold the same view, and every sample counts exactly once.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::ops::Range;

use proptest::prelude::*;

use p2ptrain_protocol::id::{Digest, Incarnation, JobId, PeerId, Step};
use p2ptrain_protocol::ledger::{Ledger, LedgerEntry, LedgerHeader, Share, audit};
use p2ptrain_protocol::order;
use p2ptrain_protocol::planner::{assign, redistribute};
use p2ptrain_protocol::view::{JoinCandidate, Member, News, View, may_continue};

const ITEMS: u32 = 12;
const SAMPLES_PER_ITEM: u32 = 2;

fn peer(id: u8) -> PeerId {
    PeerId::from_bytes([id; 32])
}

/// What happens to a peer in a step.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Dies(u8),
    Leaves(u8),
    Joins(u8),
}

fn faults() -> impl Strategy<Value = Vec<Option<Fault>>> {
    let fault = prop_oneof![
        (0_u8..6).prop_map(Fault::Dies),
        (0_u8..6).prop_map(Fault::Leaves),
        (0_u8..6).prop_map(Fault::Joins),
    ];
    prop::collection::vec(prop::option::of(fault), 1..40)
}

/// A job in which every step may lose, and win, a peer.
struct Job {
    view: View,
    ledger: Ledger,
    lines: Vec<String>,
    dead: BTreeSet<(PeerId, Incarnation)>,
    incarnations: BTreeMap<PeerId, Incarnation>,
}

impl Job {
    fn new(ids: Range<u8>) -> Self {
        let member = |id: u8| Member {
            peer: peer(id),
            incarnation: Incarnation(1),
            us_per_microbatch: 100 * (1 + u32::from(id)),
            synced: true,
        };
        let view = View::new(0, ids.map(member).collect()).expect("unique");
        let header = LedgerHeader {
            job: JobId::of_job(b"job"),
            first: Step(0),
            items: ITEMS,
            samples_per_item: SAMPLES_PER_ITEM,
        };
        Self {
            incarnations: view.members.iter().map(|m| (m.peer, m.incarnation)).collect(),
            lines: vec![header.to_line()],
            ledger: Ledger::new(header).expect("plausible"),
            view,
            dead: BTreeSet::new(),
        }
    }

    /// Runs one step; returns whether it was committed.
    fn step(&mut self, fault: Option<Fault>) -> bool {
        let before = self.view.clone();
        let (ranges, _) = assign(&before.members, ITEMS, before.epoch);
        let mut shares: Vec<Share> = Vec::new();
        let mut group: Vec<PeerId> = before.peers().collect();
        if let Some(Fault::Dies(id)) = fault
            && let Some(rank) = before.rank(&peer(id))
        {
            let dead = BTreeSet::from([peer(id)]);
            if may_continue(&before, &dead, &BTreeSet::new()).is_err() {
                return false;
            }
            self.dead.insert((peer(id), before.members[rank].incarnation));
            group.remove(rank);
            let mut survivors = before.members.clone();
            survivors.remove(rank);
            let mut kept = ranges.clone();
            let lost = kept.remove(rank);
            let already: Vec<_> = kept.iter().map(|range| vec![range.clone()]).collect();
            let (redone, _) = redistribute(&survivors, &[lost], &already, before.epoch);
            for (member, ranges) in survivors.iter().zip(redone) {
                shares.push(Share { peer: member.peer, redone: true, ranges });
            }
            shares.retain(|share| !share.ranges.is_empty());
        }
        for (member, range) in before.members.iter().zip(ranges) {
            if group.contains(&member.peer) && !range.is_empty() {
                shares.push(Share { peer: member.peer, redone: false, ranges: vec![range] });
            }
        }
        let step = self.ledger.next_step();
        let attempt = Digest::of("test attempt", &(step, before.digest()));
        let entry = LedgerEntry { step, epoch: before.epoch, attempt, shares };
        self.ledger.append(&entry).expect("every sample counts once");
        self.lines.push(entry.to_line());
        self.next_view(&group, fault);
        true
    }

    fn next_view(&mut self, group: &[PeerId], fault: Option<Fault>) {
        let mut common = News { dead: self.dead.clone(), ..News::default() };
        match fault {
            Some(Fault::Joins(id)) if !self.view.contains(&peer(id)) => {
                let incarnation = self.incarnations.entry(peer(id)).or_insert(Incarnation(0));
                incarnation.0 += 1;
                let candidate =
                    JoinCandidate { incarnation: *incarnation, us_per_microbatch: 1000 };
                common.joins.insert(peer(id), candidate);
            }
            Some(Fault::Leaves(id)) if self.view.members.len() > 1 => {
                common.leaves.insert(peer(id));
            }
            _ => {}
        }
        let news: BTreeMap<_, _> = group.iter().map(|&peer| (peer, common.clone())).collect();
        let (next, _) = self.view.next(group, &news);
        // Whoever computes it, in whatever order it knows the group, has the same view.
        let mut other_order = group.to_vec();
        other_order.reverse();
        assert_eq!(self.view.next(&other_order, &news).0.digest(), next.digest());
        assert_eq!(next.verify(), Ok(()));
        assert_eq!(next.epoch, self.view.epoch + 1);
        self.view = next;
    }
}

#[test]
fn a_killed_peer_loses_no_sample_and_joins_again_with_a_new_incarnation() {
    let mut job = Job::new(0..3);
    assert!(job.step(None));
    assert!(job.step(Some(Fault::Dies(0))));
    assert_eq!(job.view.peers().collect::<Vec<_>>(), [peer(1), peer(2)]);
    assert!(job.step(Some(Fault::Joins(0))));
    // It is in the view, fetches the parameters, and computes from the step after.
    let member = job.view.member(&peer(0)).expect("joined");
    assert_eq!((member.incarnation, member.synced), (Incarnation(2), false));
    let samples = job.ledger.report().samples_by_peer[&peer(0)];
    assert!(job.step(None));
    assert_eq!(job.ledger.report().samples_by_peer[&peer(0)], samples);
    assert!(job.view.member(&peer(0)).expect("stays").synced);
    assert!(job.step(None));
    assert!(job.ledger.report().samples_by_peer[&peer(0)] > samples);
    let report = audit(&job.lines).expect("tiles");
    assert_eq!(&report, job.ledger.report());
    assert_eq!((report.steps, report.redone_steps), (5, 1));
}

/// Peers of different machines must agree to the byte; a change of any of these is a new protocol version.
#[test]
fn digests_and_plans_are_fixed_for_good() {
    let job = Job::new(0..5);
    let digest = job.view.digest().to_hex();
    assert_eq!(digest, "ebdf21eee725f89895a379dfaf0f66ee40a5da24d91b1c5df717b6994d0112c8");
    let mut equal = job.view.members.clone();
    equal.iter_mut().for_each(|member| member.us_per_microbatch = 100);
    let (ranges, _) = assign(&equal, ITEMS, 3);
    assert_eq!(ranges, [0..2, 2..4, 4..7, 7..10, 10..12]);
    let (redone, _) = redistribute(&equal, &[0..3], &vec![vec![]; 5], 3);
    assert_eq!(redone, [vec![], vec![], vec![0..1], vec![1..2], vec![2..3]]);
}

#[test]
fn a_whole_epoch_of_data_is_read_once_whoever_came_and_went() {
    let n = NonZeroU64::new(48).expect("not zero");
    let mut job = Job::new(0..4);
    let faults = [Some(Fault::Dies(1)), Some(Fault::Leaves(2))];
    let mut read = Vec::new();
    for fault in faults {
        let step = job.ledger.next_step();
        assert!(job.step(fault));
        let entry = LedgerEntry::parse_line(job.lines.last().expect("a line")).expect("its form");
        for item in entry.shares.into_iter().flat_map(|share| share.ranges).flatten() {
            let positions = order::item_positions(step, ITEMS, SAMPLES_PER_ITEM, item);
            read.extend(positions.expect("small").map(|position| order::sample_at(3, n, position)));
        }
    }
    read.sort_unstable();
    assert!(read.into_iter().eq(0..48));
}

proptest! {
    #[test]
    fn every_sample_counts_once_whatever_happens(faults in faults(), members in 1_u8..6) {
        let mut job = Job::new(0..members);
        for fault in faults {
            let committed = job.step(fault);
            // Only where the last member dies does a job stop.
            prop_assert!(committed || job.view.members.len() == 1);
            prop_assert!(!job.view.members.is_empty());
        }
        let report = audit(&job.lines);
        prop_assert_eq!(report.as_ref(), Ok(job.ledger.report()));
    }
}
