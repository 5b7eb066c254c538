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
    /// More than half of the members are here.
    Majority {
        /// Members here.
        present: usize,
        /// Members of the view.
        members: usize,
    },
    /// Exactly half are here, among them the smallest id.
    HalfWithSmallest {
        /// Members here.
        present: usize,
        /// Members of the view.
        members: usize,
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
            Self::Majority { present, members } => {
                write!(f, "goes on: {present} of {members} members are here, more than half")
            }
            Self::HalfWithSmallest { present, members, smallest } => write!(
                f,
                "goes on: {present} of {members} members are here, exactly half, and {smallest} with the \
                 smallest id is one of them"
            ),
        }
    }
}

/// Why a group must stop: another part of the view may be going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum QuorumError {
    /// Fewer than half of the members are here.
    #[error(
        "stops: only {present} of {members} members are here, fewer than half; the others may go on"
    )]
    Minority {
        /// Members here.
        present: usize,
        /// Members of the view.
        members: usize,
    },
    /// Exactly half are here, without the smallest id.
    #[error(
        "stops: {present} of {members} members are here, exactly half, and {smallest} with the smallest \
         id is not one of them; the other half may go on"
    )]
    HalfWithoutSmallest {
        /// Members here.
        present: usize,
        /// Members of the view.
        members: usize,
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
/// `dead` holds peers whose process is certainly gone (connection refused or reset, a goodbye). Where nobody
/// else is missing, they are no partition: of two peers the survivor of a crash goes on. `suspect` holds peers
/// that cannot be reached but may live. Then more than half of all members goes on, or exactly half where it
/// holds the smallest id; and the dead count as missing, since before they died they may have gone on with
/// those who are suspected. A peer in both sets is dead.
///
/// Two groups that see each other as suspect never both go on, even where they know different dead peers.
pub fn may_continue(
    view: &View,
    dead: &BTreeSet<PeerId>,
    suspect: &BTreeSet<PeerId>,
) -> Result<QuorumReason, QuorumError> {
    let members = view.members.len();
    let living = view.peers().filter(|peer| !dead.contains(peer)).count();
    let here = |peer: &PeerId| !dead.contains(peer) && !suspect.contains(peer);
    let present = view.peers().filter(here).count();
    // Members are sorted: the first is the smallest.
    let Some(smallest) = view.peers().next().filter(|_| living > 0) else {
        return Err(QuorumError::Nobody);
    };
    match (2 * present).cmp(&members) {
        _ if present == living => Ok(QuorumReason::Complete { living }),
        std::cmp::Ordering::Greater => Ok(QuorumReason::Majority { present, members }),
        std::cmp::Ordering::Less => Err(QuorumError::Minority { present, members }),
        std::cmp::Ordering::Equal if here(&smallest) => {
            Ok(QuorumReason::HalfWithSmallest { present, members, smallest })
        }
        std::cmp::Ordering::Equal => {
            Err(QuorumError::HalfWithoutSmallest { present, members, smallest })
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
    fn the_dead_are_no_partition_even_where_they_were_suspected_too() {
        check(5, &[1, 2], &[1, 2], "goes on: all 3 members that are not known dead are here");
        check(3, &[1, 2, 3], &[], "stops: no member of the view is alive");
        check(0, &[], &[], "stops: no member of the view is alive");
    }

    #[test]
    fn where_others_are_suspected_the_dead_may_have_been_with_them() {
        check(5, &[1], &[2], "goes on: 3 of 5 members are here, more than half");
        let text = "stops: only 1 of 3 members are here, fewer than half; the others may go on";
        check(3, &[1], &[2], text);
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
