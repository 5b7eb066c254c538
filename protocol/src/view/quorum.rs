//! Whether the rest of a view may go on after some members are gone.

use std::collections::BTreeSet;
use std::fmt;

use thiserror::Error;

use super::View;
use crate::id::PeerId;

/// Why a group goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuorumReason {
    /// Nobody is missing but peers that are certainly dead.
    Complete {
        /// Members that are not certainly dead; all are here.
        living: usize,
    },
    /// More than half of the members that are not certainly dead are here.
    Majority {
        /// Members here.
        present: usize,
        /// Members that are not certainly dead.
        living: usize,
    },
    /// Exactly half are here, among them the smallest id.
    HalfWithSmallest {
        /// Members here.
        present: usize,
        /// Members that are not certainly dead.
        living: usize,
        /// The smallest id of those.
        smallest: PeerId,
    },
}

impl fmt::Display for QuorumReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Complete { living } => {
                write!(f, "goes on: all {living} members that are not known dead are here")
            }
            Self::Majority { present, living } => {
                write!(f, "goes on: {present} of {living} members are here, more than half")
            }
            Self::HalfWithSmallest { present, living, smallest } => write!(
                f,
                "goes on: {present} of {living} members are here, exactly half, and {smallest} with the \
                 smallest id is one of them"
            ),
        }
    }
}

/// Why a group must stop: another part of the view may be going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum QuorumError {
    /// Fewer than half of the members that are not certainly dead are here.
    #[error(
        "stops: only {present} of {living} members are here, fewer than half; the others may go on"
    )]
    Minority {
        /// Members here.
        present: usize,
        /// Members that are not certainly dead.
        living: usize,
    },
    /// Exactly half are here, without the smallest id.
    #[error(
        "stops: {present} of {living} members are here, exactly half, and {smallest} with the smallest \
         id is not one of them; the other half may go on"
    )]
    HalfWithoutSmallest {
        /// Members here.
        present: usize,
        /// Members that are not certainly dead.
        living: usize,
        /// The smallest id of those.
        smallest: PeerId,
    },
    /// Every member is dead.
    #[error("stops: no member of the view is alive")]
    Nobody,
}

/// Whether the members of `view` that are neither in `dead` nor in `suspect` may go on without those
/// (design invariant 3: no split brain).
///
/// `dead` holds peers whose process is certainly gone (connection refused or reset, a goodbye, a fenced
/// incarnation): they can't go on elsewhere, and don't count. `suspect` holds peers that cannot be reached but
/// may live. Of the others, more than half goes on; exactly half goes on where it holds the smallest id.
/// A peer in both sets is dead.
///
/// Two groups that see each other as suspect never both go on, even where they know different dead peers.
pub fn may_continue(
    view: &View,
    dead: &BTreeSet<PeerId>,
    suspect: &BTreeSet<PeerId>,
) -> Result<QuorumReason, QuorumError> {
    let mut present = 0;
    let mut living = 0;
    let mut smallest = None;
    for peer in view.peers().filter(|peer| !dead.contains(peer)) {
        let here = !suspect.contains(&peer);
        living += 1;
        present += usize::from(here);
        // Members are sorted: the first is the smallest.
        smallest = smallest.or(Some((peer, here)));
    }
    let Some((smallest, smallest_here)) = smallest else { return Err(QuorumError::Nobody) };
    match (2 * present).cmp(&living) {
        _ if present == living => Ok(QuorumReason::Complete { living }),
        std::cmp::Ordering::Greater => Ok(QuorumReason::Majority { present, living }),
        std::cmp::Ordering::Less => Err(QuorumError::Minority { present, living }),
        std::cmp::Ordering::Equal if smallest_here => {
            Ok(QuorumReason::HalfWithSmallest { present, living, smallest })
        }
        std::cmp::Ordering::Equal => {
            Err(QuorumError::HalfWithoutSmallest { present, living, smallest })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::Incarnation;
    use crate::view::Member;

    fn peer(id: u8) -> PeerId {
        PeerId::from_bytes([id; 32])
    }

    fn peers(ids: &[u8]) -> BTreeSet<PeerId> {
        ids.iter().copied().map(peer).collect()
    }

    fn view(n: u8) -> View {
        let member = |id| Member {
            peer: peer(id),
            incarnation: Incarnation(0),
            us_per_microbatch: 1,
            synced: true,
        };
        View::new(0, (1..=n).map(member).collect()).expect("unique")
    }

    fn check(n: u8, dead: &[u8], suspect: &[u8], expected: &str) {
        let reason = may_continue(&view(n), &peers(dead), &peers(suspect));
        let text = reason.map_or_else(|error| error.to_string(), |reason| reason.to_string());
        assert_eq!(text, expected);
    }

    #[test]
    fn of_two_peers_the_survivor_of_a_crash_goes_on() {
        check(2, &[1], &[], "goes on: all 1 members that are not known dead are here");
    }

    #[test]
    fn a_majority_goes_on_and_a_minority_stops() {
        check(5, &[], &[1, 2], "goes on: 3 of 5 members are here, more than half");
        let text = "stops: only 2 of 5 members are here, fewer than half; the others may go on";
        check(5, &[], &[3, 4, 5], text);
    }

    #[test]
    fn an_exact_half_goes_on_with_the_smallest_id_only() {
        let text = "goes on: 2 of 4 members are here, exactly half, and 01010101 with the smallest id is \
                    one of them";
        check(4, &[], &[2, 3], text);
        let text = "stops: 2 of 4 members are here, exactly half, and 01010101 with the smallest id is \
                    not one of them; the other half may go on";
        check(4, &[], &[1, 4], text);
    }

    #[test]
    fn the_dead_do_not_count_even_where_they_are_suspected_too() {
        check(5, &[1, 2], &[1, 2], "goes on: all 3 members that are not known dead are here");
        check(5, &[1, 2], &[3], "goes on: 2 of 3 members are here, more than half");
        check(3, &[1, 2, 3], &[], "stops: no member of the view is alive");
        check(0, &[], &[], "stops: no member of the view is alive");
    }

    #[test]
    fn at_most_one_side_of_every_partition_of_up_to_seven_peers_goes_on() {
        for n in 1..=7_u8 {
            for cut in 0..1_u32 << n {
                let side =
                    |bit| (1..=n).filter(|id| cut >> (id - 1) & 1 == bit).collect::<Vec<_>>();
                let (a, b) = (side(0), side(1));
                let goes_on =
                    |other: &[u8]| may_continue(&view(n), &BTreeSet::new(), &peers(other)).is_ok();
                let both = [goes_on(&a), goes_on(&b)];
                assert_eq!(both.iter().filter(|on| **on).count(), 1, "{n} peers, {a:?} | {b:?}");
            }
        }
    }

    proptest! {
        // Each peer is dead (and known as such to the sides whose bit is set) or lives on one of three sides.
        #[test]
        fn at_most_one_side_goes_on_whatever_each_knows_of_the_dead(
            fates in prop::collection::vec((0_u8..4, 0_u8..8), 1..12)
        ) {
            let n = fates.len() as u8;
            let goes_on = |side: u8| {
                let (mut dead, mut suspect) = (BTreeSet::new(), BTreeSet::new());
                for (id, &(fate, known)) in (1..=n).zip(&fates) {
                    if fate == 3 && known >> side & 1 == 1 {
                        dead.insert(peer(id));
                    } else if fate != side {
                        suspect.insert(peer(id));
                    }
                }
                may_continue(&view(n), &dead, &suspect).is_ok()
            };
            let inhabited = |side| fates.iter().any(|&(fate, _)| fate == side);
            let sides = (0..3).filter(|&side| inhabited(side) && goes_on(side)).count();
            prop_assert!(sides <= 1);
        }
    }
}
