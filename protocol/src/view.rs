//! Who takes part: what peers advertise, the view of a step, and how news makes the next view of it.
//!
//! A view is never voted on. Each member sends its [`News`] with the collective of a step; so at the end of
//! the step all members of its final group hold the same news, and [`View::next`], a pure function, gives
//! all of them the same next view (design invariant 2). [`may_continue`] decides whether a group that lost
//! members may go on (invariant 3).

mod advert;
mod news;
mod quorum;
mod table;

use std::fmt;

use bincode::{Decode, Encode};
use thiserror::Error;

use crate::id::{Digest, Incarnation, PeerId};
use crate::limits;

pub use self::advert::{
    Advert, AdvertError, DeviceAdvert, DeviceKind, JobSummary, LinkAdvert, SignedAdvert,
};
pub use self::news::{JoinCandidate, News, NewsError, RefusalReason, RemovalReason, ViewChange};
pub use self::quorum::{QuorumError, QuorumReason, may_continue};
pub use self::table::{AdvertTable, Offered};

/// A peer that takes part in a step.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Member {
    /// The peer.
    pub peer: PeerId,
    /// The run of the peer's process that takes part.
    pub incarnation: Incarnation,
    /// Time of one micro-batch in µs, measured and [quantized](quantize_us).
    pub us_per_microbatch: u32,
    /// Whether the member holds the parameters of the view's step. A newcomer doesn't in its first view,
    /// and so computes nothing there.
    pub synced: bool,
}

/// The members of a step.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct View {
    /// Counts the views of a job.
    pub epoch: u64,
    /// The members, sorted by peer, each once.
    pub members: Vec<Member>,
}

/// Why a view, as some peer sent it, is none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ViewError {
    /// There are more members than a view may have.
    #[error("view has {got} members, at most {limit} are allowed")]
    TooMany {
        /// Members allowed.
        limit: usize,
        /// Members there.
        got: usize,
    },
    /// The members are not sorted, or one is there twice.
    #[error("view's members are not sorted and unique: {after:#} follows {before:#}")]
    Order {
        /// A member.
        before: PeerId,
        /// The member behind it, which is not greater.
        after: PeerId,
    },
}

impl View {
    /// A view of these members, in any order.
    pub fn new(epoch: u64, mut members: Vec<Member>) -> Result<Self, ViewError> {
        members.sort_unstable();
        let view = Self { epoch, members };
        view.verify()?;
        Ok(view)
    }

    /// Checks a view that a peer sent: sorted, unique, not too many.
    pub fn verify(&self) -> Result<(), ViewError> {
        let got = self.members.len();
        if got > limits::MEMBERS_MAX {
            return Err(ViewError::TooMany { limit: limits::MEMBERS_MAX, got });
        }
        match self.members.windows(2).find(|pair| pair[0].peer >= pair[1].peer) {
            None => Ok(()),
            Some(pair) => Err(ViewError::Order { before: pair[0].peer, after: pair[1].peer }),
        }
    }

    /// The member that `peer` is, if it is one.
    pub fn member(&self, peer: &PeerId) -> Option<&Member> {
        self.rank(peer).map(|rank| &self.members[rank])
    }

    /// The place of `peer` among the members.
    pub fn rank(&self, peer: &PeerId) -> Option<usize> {
        self.members.binary_search_by(|member| member.peer.cmp(peer)).ok()
    }

    /// Whether `peer` is a member.
    pub fn contains(&self, peer: &PeerId) -> bool {
        self.rank(peer).is_some()
    }

    /// The members' peers, in order.
    pub fn peers(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.members.iter().map(|member| member.peer)
    }

    /// Hash of the view: equal views, and only those, have equal digests.
    pub fn digest(&self) -> Digest {
        Digest::of("p2ptrain view v1", self)
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "view {} of {} members:", self.epoch, self.members.len())?;
        for member in &self.members {
            write!(f, " {} ({} µs", member.peer, member.us_per_microbatch)?;
            f.write_str(if member.synced { ")" } else { ", new)" })?;
        }
        Ok(())
    }
}

/// Rounds a measured time to the nearest of steps of about 5%, so that noise does not change every plan.
/// Below 20 µs the steps are 1 µs; 0 ("not measured") stays 0.
pub fn quantize_us(us: u32) -> u32 {
    let (mut low, mut high) = (0_u32, 1_u32);
    // About 420 steps reach u32::MAX.
    while high <= us {
        low = high;
        match high.checked_add((high / 20).max(1)) {
            Some(next) => high = next,
            None => return low,
        }
    }
    if us - low < high - us { low } else { high }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn member(id: u8) -> Member {
        Member {
            peer: PeerId::from_bytes([id; 32]),
            incarnation: Incarnation(1),
            us_per_microbatch: 100,
            synced: true,
        }
    }

    #[test]
    fn a_view_sorts_its_members_and_finds_them() {
        let view = View::new(3, vec![member(9), member(2), member(5)]).expect("unique");
        assert_eq!(view.rank(&member(5).peer), Some(1));
        assert_eq!(view.member(&member(9).peer), Some(&member(9)));
        assert!(!view.contains(&member(3).peer));
        assert_eq!(view.peers().count(), 3);
        assert_eq!(
            view.to_string(),
            "view 3 of 3 members: 02020202 (100 µs) 05050505 (100 µs) 09090909 (100 µs)"
        );
    }

    #[test]
    fn doubled_unsorted_and_too_many_members_are_refused() {
        let twice = View::new(0, vec![member(1), Member { synced: false, ..member(1) }]);
        let error = ViewError::Order { before: member(1).peer, after: member(1).peer };
        assert_eq!(twice, Err(error));
        let unsorted = View { epoch: 0, members: vec![member(2), member(1)] };
        assert!(matches!(unsorted.verify(), Err(ViewError::Order { .. })));
        let many = View { epoch: 0, members: vec![member(1); limits::MEMBERS_MAX + 1] };
        let error = ViewError::TooMany { limit: limits::MEMBERS_MAX, got: limits::MEMBERS_MAX + 1 };
        assert_eq!(many.verify(), Err(error));
    }

    #[test]
    fn the_digest_covers_every_field() {
        let view = View::new(1, vec![member(1), member(2)]).expect("unique");
        let digest = view.digest();
        assert_eq!(digest, view.clone().digest());
        let changes: [fn(&mut View); 6] = [
            |v| v.epoch = 2,
            |v| v.members.truncate(1),
            |v| v.members[0].peer = PeerId::from_bytes([0; 32]),
            |v| v.members[0].incarnation = Incarnation(7),
            |v| v.members[1].us_per_microbatch = 7,
            |v| v.members[1].synced = false,
        ];
        for change in changes {
            let mut changed = view.clone();
            change(&mut changed);
            assert_ne!(changed.digest(), digest);
        }
    }

    #[test]
    fn quantizing_keeps_small_and_extreme_times() {
        for us in 0..=40 {
            assert_eq!(quantize_us(us), us);
        }
        assert!(quantize_us(u32::MAX) > u32::MAX / 20 * 19);
    }

    proptest! {
        #[test]
        fn quantizing_moves_a_time_by_at_most_half_a_step(us in 0_u32..4_000_000_000) {
            let quantized = quantize_us(us);
            prop_assert!(2 * quantized.abs_diff(us) <= us / 20 + 1);
            prop_assert_eq!(quantize_us(quantized), quantized);
        }
    }
}
