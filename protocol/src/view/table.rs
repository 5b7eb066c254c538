//! The adverts of all known peers: of each the last, by (incarnation, version).

use std::collections::BTreeMap;

use super::{Advert, AdvertError, SignedAdvert};
use crate::id::PeerId;
use crate::limits;

/// What became of an advert that was offered to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// It is the first of its peer.
    New,
    /// It replaced an older one of its peer.
    Updated,
    /// It is not newer than the one there: a repetition or a replay.
    Stale,
}

/// The last advert of each known peer, bounded by [`limits::ADVERTS_MAX`].
///
/// Tables that have seen the same adverts in any order hold the same (last writer wins by incarnation, then
/// version), as long as neither was full.
#[derive(Clone, Debug, Default)]
pub struct AdvertTable {
    adverts: BTreeMap<PeerId, (Advert, SignedAdvert)>,
}

impl AdvertTable {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// The last advert of `peer`.
    pub fn advert(&self, peer: &PeerId) -> Option<&Advert> {
        self.adverts.get(peer).map(|(advert, _)| advert)
    }

    /// The last advert of `peer` as it was signed, to forward it.
    pub fn signed(&self, peer: &PeerId) -> Option<&SignedAdvert> {
        self.adverts.get(peer).map(|(_, signed)| signed)
    }

    /// All adverts, by peer.
    pub fn iter(&self) -> impl Iterator<Item = &Advert> {
        self.adverts.values().map(|(advert, _)| advert)
    }

    /// Number of peers.
    pub fn len(&self) -> usize {
        self.adverts.len()
    }

    /// Whether no peer is known.
    pub fn is_empty(&self) -> bool {
        self.adverts.is_empty()
    }

    /// Verifies an advert and keeps it if it is newer than its peer's last.
    pub fn offer(&mut self, signed: SignedAdvert) -> Result<Offered, AdvertError> {
        let advert = signed.verify()?;
        let peer = advert.peer;
        let Some((known, known_signed)) = self.adverts.get(&peer) else {
            if self.adverts.len() >= limits::ADVERTS_MAX {
                return Err(AdvertError::TableFull { peer, limit: limits::ADVERTS_MAX });
            }
            self.adverts.insert(peer, (advert, signed));
            return Ok(Offered::New);
        };
        let (incarnation, version) = (advert.incarnation, advert.version);
        match (incarnation, version).cmp(&(known.incarnation, known.version)) {
            std::cmp::Ordering::Less => Ok(Offered::Stale),
            std::cmp::Ordering::Equal if known_signed.advert == signed.advert => Ok(Offered::Stale),
            std::cmp::Ordering::Equal => Err(AdvertError::Conflict { peer, incarnation, version }),
            std::cmp::Ordering::Greater => {
                self.adverts.insert(peer, (advert, signed));
                Ok(Offered::Updated)
            }
        }
    }

    /// Forgets a peer; returns whether it was known.
    pub fn remove(&mut self, peer: &PeerId) -> bool {
        self.adverts.remove(peer).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::advert::tests::{advert, key};

    fn signed(id: u8, incarnation: u64, version: u64) -> SignedAdvert {
        SignedAdvert::sign(&advert(id, incarnation, version), &key(id)).expect("plausible")
    }

    #[test]
    fn the_last_writer_wins_by_incarnation_then_version() {
        let mut table = AdvertTable::new();
        assert_eq!(table.offer(signed(1, 5, 3)), Ok(Offered::New));
        assert_eq!(table.offer(signed(1, 5, 3)), Ok(Offered::Stale));
        assert_eq!(table.offer(signed(1, 5, 2)), Ok(Offered::Stale));
        assert_eq!(table.offer(signed(1, 4, 9)), Ok(Offered::Stale));
        assert_eq!(table.offer(signed(1, 5, 4)), Ok(Offered::Updated));
        assert_eq!(table.offer(signed(1, 6, 0)), Ok(Offered::Updated));
        let peer = PeerId::of_key(&key(1));
        assert_eq!(table.advert(&peer), Some(&advert(1, 6, 0)));
        assert_eq!(table.signed(&peer), Some(&signed(1, 6, 0)));
        assert_eq!(table.len(), 1);
        assert!(table.remove(&peer) && table.is_empty() && !table.remove(&peer));
    }

    #[test]
    fn any_order_of_adverts_gives_the_same_table() {
        let all = [(1, 1, 1), (1, 1, 2), (1, 2, 0), (2, 0, 0), (2, 0, 7)];
        let mut tables = Vec::new();
        for shift in 0..all.len() {
            let mut table = AdvertTable::new();
            for i in 0..all.len() {
                // Steps of 2 and of 3 through five adverts meet each once.
                let (id, incarnation, version) = all[(i * (2 + shift % 2) + shift) % all.len()];
                table.offer(signed(id, incarnation, version)).expect("plausible");
            }
            tables.push(table.iter().cloned().collect::<Vec<_>>());
        }
        tables.dedup();
        assert_eq!(tables, [[advert(1, 2, 0), advert(2, 0, 7)]]);
    }

    #[test]
    fn two_adverts_of_one_version_are_a_conflict_and_the_first_stays() {
        let mut table = AdvertTable::new();
        table.offer(signed(1, 1, 1)).expect("plausible");
        let mut other = advert(1, 1, 1);
        other.name = "other".into();
        let other = SignedAdvert::sign(&other, &key(1)).expect("plausible");
        assert!(matches!(table.offer(other), Err(AdvertError::Conflict { version: 1, .. })));
        assert_eq!(table.signed(&PeerId::of_key(&key(1))), Some(&signed(1, 1, 1)));
    }

    #[test]
    fn a_full_table_takes_updates_but_no_new_peer() {
        let mut table = AdvertTable::new();
        let place = |i: usize| {
            let peer = PeerId::from_bytes(std::array::from_fn(|b| (i >> (8 * (b % 2))) as u8));
            (peer, (advert(9, 0, 0), signed(9, 0, 0)))
        };
        table.adverts = (0..limits::ADVERTS_MAX - 1).map(place).collect();
        assert_eq!(table.offer(signed(1, 1, 1)), Ok(Offered::New));
        assert!(matches!(table.offer(signed(2, 1, 1)), Err(AdvertError::TableFull { .. })));
        assert_eq!(table.offer(signed(1, 1, 2)), Ok(Offered::Updated));
    }
}
