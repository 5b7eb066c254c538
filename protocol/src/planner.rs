//! Who computes which micro-batches of a step: a pure function in integers (design invariant 1).
//!
//! A plan minimizes the time at which the last member finishes, exactly: with tᵢ µs of a micro-batch on member
//! i and kᵢ micro-batches there, the maximum of kᵢ·tᵢ. Ties go by a hash of (peer, slice, epoch), so that no
//! peer is favoured for its id. Every plan comes with a [`Reason`].

use std::fmt;
use std::ops::Range;

use crate::id::{Digest, PeerId};
use crate::limits;
use crate::view::Member;

/// Why a member has its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The share fits its measured speed.
    Speed,
    /// It has not been measured, and is taken to be as slow as the slowest member that has.
    Unmeasured,
    /// It gets nothing: it does not hold the parameters yet.
    NotSynced,
    /// It gets nothing more: even one more micro-batch would take it longer than the whole step.
    TooSlow,
}

/// One member's share of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareReason {
    /// The member.
    pub peer: PeerId,
    /// Micro-batches that this plan gives it.
    pub items: u32,
    /// Micro-batches that it had before.
    pub items_before: u32,
    /// Time of one micro-batch in µs, as planned.
    pub us_per_item: u32,
    /// When it has finished all of them, in µs.
    pub finish_us: u64,
    /// Why.
    pub why: Why,
}

/// Why a plan is as it is, for people: `{}` prints a line for the whole and one for each member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Micro-batches shared out.
    pub items: u32,
    /// When the last member finishes, in µs; no other plan is faster.
    pub finish_us: u64,
    /// When the last member would finish with equal shares, in µs.
    pub finish_even_us: u64,
    /// The shares by peer.
    pub shares: Vec<ShareReason>,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { items, finish_us, finish_even_us, shares } = self;
        write!(f, "{items} micro-batches in {finish_us} µs (equal shares: {finish_even_us} µs)")?;
        for share in shares {
            let ShareReason { peer, items, items_before, us_per_item, finish_us, why } = share;
            write!(f, "\n  {peer}: {items}")?;
            if *items_before > 0 {
                write!(f, " and {items_before} before")?;
            }
            write!(f, ", {finish_us} µs: ")?;
            match why {
                Why::Speed => write!(f, "measured {us_per_item} µs a micro-batch"),
                Why::Unmeasured => write!(
                    f,
                    "not measured, taken to be as slow as the slowest, {us_per_item} µs a micro-batch"
                ),
                Why::NotSynced => f.write_str("it does not hold the parameters yet"),
                Why::TooSlow => {
                    write!(f, "one more, at {us_per_item} µs, would outlast the step")
                }
            }?;
        }
        Ok(())
    }
}

/// Shares out micro-batches `0..items`: a range for each member, aligned with `members`, in the members' order
/// by peer. The same members in another order get the same ranges.
///
/// Members that are not synced get none, unless none is. Without members nothing is shared out.
///
/// # Panics
/// If there are more items or members than [`limits`] allows; jobs and views are checked for that.
pub fn assign(members: &[Member], items: u32, epoch: u64) -> (Vec<Range<u32>>, Reason) {
    let before = vec![0; members.len()];
    let (counts, reason) = share_out(members, &before, items, epoch);
    let mut ranges = vec![0..0; members.len()];
    let mut start = 0;
    for i in by_peer(members) {
        ranges[i] = start..start + counts[i];
        start += counts[i];
    }
    (ranges, reason)
}

/// Shares out the micro-batches of members that died in a step: a list of ranges for each survivor, aligned
/// with `survivors`. What survivors have `already` (aligned too) stays with them, and counts: the plan
/// minimizes the time at which the last has finished both.
///
/// `lost` may be in any order; ranges that touch or overlap count once.
///
/// # Panics
/// If there are more items or members than [`limits`] allows, or `already` has another length than `survivors`.
pub fn redistribute(
    survivors: &[Member],
    lost: &[Range<u32>],
    already: &[Vec<Range<u32>>],
    epoch: u64,
) -> (Vec<Vec<Range<u32>>>, Reason) {
    assert_eq!(survivors.len(), already.len(), "a list of ranges for each survivor");
    let lost = union(lost);
    let before: Vec<u32> = already.iter().map(|ranges| count(&union(ranges))).collect();
    let (counts, reason) = share_out(survivors, &before, count(&lost), epoch);
    let mut shares = vec![Vec::new(); survivors.len()];
    let mut lost = lost.into_iter();
    let mut rest = 0..0;
    for i in by_peer(survivors) {
        let mut wanted = counts[i];
        while wanted > 0 {
            if rest.is_empty() {
                rest = lost.next().expect("the counts add up to the items lost");
            }
            let end = rest.end.min(rest.start + wanted);
            shares[i].push(rest.start..end);
            wanted -= end - rest.start;
            rest.start = end;
        }
    }
    (shares, reason)
}

/// Ranges as a sorted list of those that neither touch nor overlap, without empty ones.
fn union(ranges: &[Range<u32>]) -> Vec<Range<u32>> {
    let mut sorted: Vec<_> = ranges.iter().filter(|range| !range.is_empty()).cloned().collect();
    sorted.sort_unstable_by_key(|range| (range.start, range.end));
    let mut union: Vec<Range<u32>> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match union.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => union.push(range),
        }
    }
    union
}

/// Items in disjoint ranges.
fn count(ranges: &[Range<u32>]) -> u32 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// Indices of the members by peer.
fn by_peer(members: &[Member]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..members.len()).collect();
    order.sort_by_key(|&i| (members[i].peer, members[i].incarnation));
    order
}

/// A member that may get items.
struct Worker {
    index: usize,
    us_per_item: u64,
    before: u64,
    items: u64,
}

impl Worker {
    /// Further items that it can finish until `finish_us`.
    fn items_until(&self, finish_us: u64) -> u64 {
        (finish_us / self.us_per_item).saturating_sub(self.before)
    }

    fn finish_us(&self) -> u64 {
        (self.before + self.items) * self.us_per_item
    }
}

/// How many of `items` each member gets, where member i has `before[i]` already.
fn share_out(members: &[Member], before: &[u32], items: u32, epoch: u64) -> (Vec<u32>, Reason) {
    assert!(items <= limits::ITEMS_MAX, "{items} items, at most {}", limits::ITEMS_MAX);
    assert!(members.len() <= limits::MEMBERS_MAX, "{} members", members.len());
    let mut workers = workers(members, before);
    let mut counts = vec![0; members.len()];
    if !workers.is_empty() && items > 0 {
        let finish_us = finish_us_min(&workers, items.into());
        fill(members, &mut workers, items.into(), finish_us, epoch);
        for worker in &workers {
            // At most `items`.
            counts[worker.index] = worker.items as u32;
        }
    }
    let reason = reason(members, before, &workers, items);
    (counts, reason)
}

fn workers(members: &[Member], before: &[u32]) -> Vec<Worker> {
    let any_synced = members.iter().any(|member| member.synced);
    let may = |member: &Member| member.synced || !any_synced;
    let slowest = members.iter().filter(|m| may(m)).map(|m| m.us_per_microbatch).max();
    let slowest = slowest.unwrap_or(0).max(1);
    let worker = |(index, member): (usize, &Member)| Worker {
        index,
        us_per_item: match member.us_per_microbatch {
            0 => slowest.into(),
            measured => measured.into(),
        },
        before: before[index].min(limits::ITEMS_MAX).into(),
        items: 0,
    };
    members.iter().enumerate().filter(|(_, member)| may(member)).map(worker).collect()
}

/// The earliest time until which the workers can finish `items` > 0 further items.
fn finish_us_min(workers: &[Worker], items: u64) -> u64 {
    let fits = |finish_us: u64| {
        let mut free = 0;
        workers.iter().any(|worker| {
            free += worker.items_until(finish_us).min(items);
            free >= items
        })
    };
    let alone = |worker: &Worker| (worker.before + items) * worker.us_per_item;
    // Invariant: `low` does not fit and `high` does.
    let (mut low, mut high) = (0, workers.iter().map(alone).min().unwrap_or(0));
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle) { high = middle } else { low = middle }
    }
    high
}

/// Gives each worker what it finishes before the last moment, and the rest, by hash, to workers that finish
/// one more just then.
fn fill(members: &[Member], workers: &mut [Worker], items: u64, finish_us: u64, epoch: u64) {
    let mut rest = items;
    for worker in &mut *workers {
        worker.items = worker.items_until(finish_us - 1);
        rest -= worker.items;
    }
    let mut one_more: Vec<_> = workers
        .iter_mut()
        .filter(|worker| worker.items_until(finish_us) > worker.items)
        .map(|worker| {
            let peer = members[worker.index].peer;
            (Digest::of("p2ptrain plan tie v1", &(peer, worker.items, epoch)), peer, worker)
        })
        .collect();
    one_more.sort_by_key(|&(tie, peer, _)| (tie, peer));
    for (_, _, worker) in one_more.into_iter().take(rest as usize) {
        worker.items += 1;
    }
}

fn reason(members: &[Member], before: &[u32], workers: &[Worker], items: u32) -> Reason {
    let finish_us = workers.iter().map(Worker::finish_us).max().unwrap_or(0);
    let even = u64::from(items).div_ceil(workers.len().max(1) as u64);
    let finish_even = |worker: &Worker| (worker.before + even) * worker.us_per_item;
    let share = |index: usize| {
        let Member { peer, us_per_microbatch, .. } = members[index];
        let Some(worker) = workers.iter().find(|worker| worker.index == index) else {
            return ShareReason {
                peer,
                items: 0,
                items_before: before[index],
                us_per_item: us_per_microbatch,
                finish_us: 0,
                why: Why::NotSynced,
            };
        };
        ShareReason {
            peer,
            // Both are at most ITEMS_MAX, and the time came from a u32.
            items: worker.items as u32,
            items_before: worker.before as u32,
            us_per_item: worker.us_per_item as u32,
            finish_us: worker.finish_us(),
            why: match us_per_microbatch {
                0 => Why::Unmeasured,
                _ if worker.items == 0 && items > 0 => Why::TooSlow,
                _ => Why::Speed,
            },
        }
    };
    Reason {
        items,
        finish_us,
        finish_even_us: workers.iter().map(finish_even).max().unwrap_or(0),
        shares: by_peer(members).into_iter().map(share).collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::Incarnation;

    fn member(id: u8, us_per_microbatch: u32) -> Member {
        Member {
            peer: PeerId::from_bytes([id; 32]),
            incarnation: Incarnation(0),
            us_per_microbatch,
            synced: true,
        }
    }

    fn members(us: &[u32]) -> Vec<Member> {
        (1..).zip(us).map(|(id, &us)| member(id, us)).collect()
    }

    fn counts(ranges: &[Range<u32>]) -> Vec<u32> {
        ranges.iter().map(|range| range.end - range.start).collect()
    }

    /// The least of max(kᵢ·tᵢ) over all ways to share out, by trying all.
    fn brute_force(us: &[u32], before: &[u32], items: u32) -> u64 {
        let finish = |i: usize, k: u32| u64::from(us[i]) * u64::from(before[i] + k);
        let last = us.len() - 1;
        if last == 0 {
            return finish(0, items);
        }
        (0..=items)
            .map(|k| finish(last, k).max(brute_force(&us[..last], &before[..last], items - k)))
            .min()
            .expect("at least k = 0")
    }

    #[test]
    fn shares_fit_the_speeds_and_the_reason_says_so() {
        let (ranges, reason) = assign(&members(&[1000, 2000, 50_000]), 6, 0);
        assert_eq!(ranges, [0..4, 4..6, 6..6]);
        assert_eq!(
            reason.to_string(),
            "6 micro-batches in 4000 µs (equal shares: 100000 µs)\n  \
             01010101: 4, 4000 µs: measured 1000 µs a micro-batch\n  \
             02020202: 2, 4000 µs: measured 2000 µs a micro-batch\n  \
             03030303: 0, 0 µs: one more, at 50000 µs, would outlast the step"
        );
    }

    #[test]
    fn members_that_are_not_synced_get_nothing_unless_none_is() {
        let mut both = members(&[1000, 10]);
        both[1].synced = false;
        let (ranges, reason) = assign(&both, 4, 0);
        assert_eq!(ranges, [0..4, 4..4]);
        assert_eq!(reason.shares[1].why, Why::NotSynced);
        both[0].synced = false;
        assert_eq!(counts(&assign(&both, 4, 0).0), [0, 4]);
    }

    #[test]
    fn an_unmeasured_member_is_taken_to_be_as_slow_as_the_slowest() {
        let (ranges, reason) = assign(&members(&[100, 0, 300]), 5, 0);
        assert_eq!(counts(&ranges), [3, 1, 1]);
        assert_eq!(reason.shares[1].why, Why::Unmeasured);
        assert_eq!(reason.shares[1].us_per_item, 300);
        assert_eq!(counts(&assign(&members(&[0, 0]), 6, 0).0), [3, 3]);
    }

    #[test]
    fn ties_change_with_the_epoch_and_favour_nobody() {
        let mut extra = [0; 3];
        for epoch in 0..300 {
            let counts = counts(&assign(&members(&[10, 10, 10]), 4, epoch).0);
            extra[counts.iter().position(|&k| k == 2).expect("4 items on 3 members")] += 1;
        }
        assert!(extra.iter().all(|&times| (60..140).contains(&times)), "{extra:?}");
    }

    #[test]
    fn nothing_and_nobody_are_plans_too() {
        assert_eq!(assign(&[], 5, 0).0, []);
        assert_eq!(assign(&members(&[5, 5]), 0, 0).0, [0..0, 0..0]);
        assert_eq!(redistribute(&members(&[5]), &[], &[vec![0..3]], 0).0, [[]]);
        let (shares, _) = redistribute(&[], std::slice::from_ref(&(0..3)), &[], 0);
        assert!(shares.is_empty());
    }

    #[test]
    fn the_largest_sizes_do_not_overflow() {
        let member = |i: usize| {
            let mut peer = [0; 32];
            peer[..8].copy_from_slice(&i.to_be_bytes());
            Member { peer: PeerId::from_bytes(peer), ..member(0, limits::US_PER_MICROBATCH_MAX) }
        };
        let many: Vec<_> = (0..limits::MEMBERS_MAX).map(member).collect();
        let (ranges, reason) = assign(&many, limits::ITEMS_MAX, 0);
        assert_eq!(counts(&ranges), vec![limits::ITEMS_MAX / 256; 256]);
        assert_eq!(reason.finish_us, u64::from(u32::MAX) << 12);
        let already = vec![vec![0..u32::MAX]; 2];
        let lost = 0..limits::ITEMS_MAX;
        let (shares, _) = redistribute(&many[..2], &[lost], &already, 0);
        let half = limits::ITEMS_MAX / 2;
        assert_eq!(shares, [[0..half], [half..limits::ITEMS_MAX]]);
    }

    #[test]
    fn what_the_dead_left_goes_to_those_who_finish_first() {
        // Both survivors are equally fast, and the second has done less.
        let (shares, reason) =
            redistribute(&members(&[10, 10]), &[8..10, 4..6], &[vec![0..4], vec![6..8]], 0);
        assert_eq!(shares, [vec![4..5], vec![5..6, 8..10]]);
        assert_eq!(reason.finish_us, 50);
        assert_eq!(reason.shares[1].items_before, 2);
        assert!(reason.to_string().contains("02020202: 3 and 2 before, 50 µs"), "{reason}");
    }

    #[test]
    fn a_lost_range_that_is_named_twice_is_done_once() {
        let (shares, _) = redistribute(&members(&[10]), &[4..6, 5..8, 4..5, 9..9], &[vec![]], 0);
        assert_eq!(shares, [[4..8]]);
        // Neighbours come as one range, so that two peers' work does not fall apart for ever.
        let (shares, _) = redistribute(&members(&[10]), &[4..6, 6..8], &[vec![]], 0);
        assert_eq!(shares, [[4..8]]);
    }

    #[test]
    fn every_small_case_is_a_minimum() {
        for items in 0..=7 {
            for code in 0..5_u32.pow(3) {
                let us = [code % 5 + 1, code / 5 % 5 + 1, code / 25 + 1];
                let (ranges, reason) = assign(&members(&us), items, code.into());
                assert_eq!(reason.finish_us, brute_force(&us, &[0; 3], items), "{us:?} {items}");
                assert_eq!(counts(&ranges).iter().sum::<u32>(), items);
            }
        }
    }

    proptest! {
        #[test]
        fn plans_are_minimal_tile_and_do_not_depend_on_the_order(
            us in prop::collection::vec(1_u32..2000, 1..5), items in 0_u32..12, epoch in any::<u64>(),
            shift in 0_usize..5,
        ) {
            let mut members = members(&us);
            let (ranges, reason) = assign(&members, items, epoch);
            let least = if items == 0 { 0 } else { brute_force(&us, &vec![0; us.len()], items) };
            prop_assert_eq!(reason.finish_us, least);
            let mut end = 0;
            for range in &ranges {
                prop_assert_eq!(range.start, end);
                end = range.end;
            }
            prop_assert_eq!(end, items);
            let shift = shift % us.len();
            members.rotate_left(shift);
            let (mut rotated, reason_rotated) = assign(&members, items, epoch);
            rotated.rotate_right(shift);
            prop_assert_eq!((ranges, reason), (rotated, reason_rotated));
        }

        #[test]
        fn redone_shares_are_minimal_and_tile_what_was_lost(
            us in prop::collection::vec(1_u32..500, 1..4),
            before in prop::collection::vec(0_u32..6, 3),
            lost in prop::collection::vec((0_u32..30, 1_u32..4), 0..4),
            epoch in any::<u64>(),
        ) {
            let lost: Vec<_> = lost.into_iter().map(|(start, len)| start..start + len).collect();
            let before = &before[..us.len()];
            let already: Vec<_> =
                before.iter().map(|&k| if k > 0 { vec![100..100 + k] } else { vec![] }).collect();
            let (shares, reason) = redistribute(&members(&us), &lost, &already, epoch);
            let mut items: Vec<u32> = shares.iter().flatten().cloned().flatten().collect();
            items.sort_unstable();
            let mut expected: Vec<u32> = lost.into_iter().flatten().collect();
            expected.sort_unstable();
            expected.dedup();
            prop_assert_eq!(&items, &expected);
            if !items.is_empty() {
                let least = brute_force(&us, before, items.len() as u32);
                prop_assert_eq!(reason.finish_us, least);
            }
        }
    }
}
