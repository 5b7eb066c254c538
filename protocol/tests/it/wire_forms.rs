//! Every message type of the crate comes back from its wire form, and none of its damaged forms panics.

use std::fmt::Debug;
use std::net::SocketAddr;

use bincode::{Decode, Encode};
use ed25519_dalek::SigningKey;
use proptest::prelude::*;

use p2ptrain_protocol::checkpoint::{StateLayout, StateManifest, chunk_digest};
use p2ptrain_protocol::collective::{Phase, PieceId};
use p2ptrain_protocol::id::{Digest, Incarnation, JobId, PeerId, Step};
use p2ptrain_protocol::ledger::{LedgerEntry, LedgerHeader, Share};
use p2ptrain_protocol::limits;
use p2ptrain_protocol::view::{
    Advert, DeviceAdvert, DeviceKind, JobSummary, JoinCandidate, LinkAdvert, Member, News,
    SignedAdvert, View,
};
use p2ptrain_protocol::wire::{self, Kind, WireError};

/// Round trip; every truncation is refused; every flipped bit and every length of all ones gives a value or an
/// error.
fn check<T: Encode + Decode<()> + PartialEq + Debug>(value: &T) {
    let bytes = wire::encode(Kind::Step, value);
    assert_eq!(wire::decode::<T>(Kind::Step, &bytes).as_ref(), Ok(value));
    for cut in 0..bytes.len() {
        let error = wire::decode::<T>(Kind::Step, &bytes[..cut]).expect_err("cut off");
        assert!(matches!(error, WireError::Truncated { .. }), "{error}");
        if let Some(body) = bytes[..cut].get(wire::ENVELOPE_BYTES..) {
            assert!(wire::from_bytes::<T>(Kind::Step, body).is_err());
        }
    }
    for bit in 0..8 * bytes.len() {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let _ = wire::decode::<T>(Kind::Step, &flipped);
    }
    for at in wire::ENVELOPE_BYTES..bytes.len().saturating_sub(8) {
        let mut huge = bytes.clone();
        huge[at..at + 8].fill(0xff);
        let _ = wire::decode::<T>(Kind::Step, &huge);
    }
}

fn key(id: u8) -> SigningKey {
    SigningKey::from_bytes(&[id; 32])
}

fn largest_advert() -> Advert {
    let name = || "n".repeat(limits::NAME_BYTES_MAX);
    let peer = PeerId::of_key(&key(1));
    let device = DeviceAdvert {
        kind: DeviceKind::Cuda,
        name: name(),
        memory_bytes: limits::DEVICE_MEMORY_BYTES_MAX,
        flops_per_s: limits::DEVICE_FLOPS_PER_S_MAX,
        load_permille: limits::LOAD_PERMILLE_MAX,
    };
    let link = |i: usize| LinkAdvert {
        to: PeerId::from_bytes(std::array::from_fn(|b| (i >> (8 * (b % 2))) as u8)),
        rtt_us: limits::LINK_RTT_US_MAX,
        bits_per_s: limits::LINK_BITS_PER_S_MAX,
    };
    let job = |i: usize| JobSummary {
        job: JobId::of_job(&i.to_le_bytes()),
        name: name(),
        step: Step(1),
        steps: Step(1),
        members: 256,
    };
    let addr: SocketAddr = "[2001:db8::1]:4001".parse().expect("an address");
    Advert {
        peer,
        incarnation: Incarnation(u64::MAX),
        version: u64::MAX,
        name: name(),
        agent: name(),
        devices: vec![device; limits::DEVICES_MAX],
        links: (0..limits::LINKS_MAX).map(link).collect(),
        control_addrs: vec!["/".repeat(limits::ADDR_BYTES_MAX); limits::ADDRS_MAX],
        bulk_addrs: vec![addr; limits::ADDRS_MAX],
        jobs: (0..limits::JOBS_MAX).map(job).collect(),
    }
}

#[test]
fn the_largest_plausible_advert_is_signed_sent_and_verified() {
    let advert = largest_advert();
    let signed = SignedAdvert::sign(&advert, &key(1)).expect("within the bounds");
    let bytes = wire::encode(Kind::Advert, &signed);
    let received: SignedAdvert = wire::decode(Kind::Advert, &bytes).expect("comes back");
    assert_eq!(received.verify(), Ok(advert));
}

#[test]
fn every_message_comes_back_and_no_damage_panics() {
    let peer = PeerId::of_key(&key(1));
    let (job, step) = (JobId::of_job(b"job"), Step(3));
    let member = Member { peer, incarnation: Incarnation(1), us_per_microbatch: 9, synced: true };
    check(&View::new(5, vec![member]).expect("unique"));
    check(&News {
        joins: [(peer, JoinCandidate { incarnation: Incarnation(1), us_per_microbatch: 3 })].into(),
        leaves: [peer].into(),
        dead: [(peer, Incarnation(0))].into(),
        measured_us_per_microbatch: 17,
    });
    check(&PieceId { phase: Phase::Gather, hop: 1, chunk: 2, piece: 3 });
    let share = Share { peer, redone: true, ranges: vec![0..3, 4..5] };
    check(&LedgerEntry { step, epoch: 2, attempt: Digest::of("t", &1_u8), shares: vec![share] });
    check(&LedgerHeader { job, first: step, items: 8, samples_per_item: 4 });
    let layout = StateLayout::new(2, vec![3, 4]).expect("small");
    let chunks = vec![chunk_digest(b"x"); 4];
    check(&StateManifest::new(job, step, layout, chunks).expect("matches"));
    let mut advert = largest_advert();
    advert.devices.truncate(1);
    advert.links.truncate(1);
    advert.control_addrs.truncate(1);
    advert.bulk_addrs.truncate(1);
    advert.jobs.truncate(1);
    check(&SignedAdvert::sign(&advert, &key(1)).expect("plausible"));
    check(&advert);
}

proptest! {
    #[test]
    fn random_bodies_of_every_type_give_a_value_or_an_error(
        body in prop::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(255), any::<u8>()], 0..300)
    ) {
        let _ = wire::from_bytes::<View>(Kind::View, &body).map(|view| view.verify());
        let _ = wire::from_bytes::<News>(Kind::Step, &body).map(|news| news.verify());
        let _ = wire::from_bytes::<PieceId>(Kind::Piece, &body);
        let _ = wire::from_bytes::<LedgerEntry>(Kind::Ledger, &body).map(|entry| entry.to_line());
        let _ = wire::from_bytes::<StateManifest>(Kind::Manifest, &body).map(|m| m.verify());
        let _ = wire::from_bytes::<SignedAdvert>(Kind::Advert, &body).map(|signed| signed.verify());
        let _ = wire::from_bytes::<Advert>(Kind::Advert, &body).map(|advert| advert.verify());
    }
}
