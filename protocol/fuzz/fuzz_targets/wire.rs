//! Whatever a peer sends as a small message gives a value or an error, and a value survives the way
//! out and back in.
#![no_main]

use libfuzzer_sys::fuzz_target;
use p2ptrain_protocol::checkpoint::StateManifest;
use p2ptrain_protocol::ledger::LedgerEntry;
use p2ptrain_protocol::view::{News, SignedAdvert, View};
use p2ptrain_protocol::wire::{self, Kind};

fuzz_target!(|data: &[u8]| {
    let _ = wire::kind_of(data);
    let Some((selector, body)) = data.split_first() else { return };
    match selector % 5 {
        0 => {
            if let Some(advert) = check::<SignedAdvert>(Kind::Advert, body) {
                let _ = advert.verify();
            }
        }
        1 => {
            if let Some(view) = check::<View>(Kind::View, body) {
                let _ = view.verify();
            }
        }
        2 => {
            if let Some(manifest) = check::<StateManifest>(Kind::Manifest, body) {
                let _ = manifest.verify();
                let _ = manifest.verify_chunk(0, body);
            }
        }
        3 => {
            check::<LedgerEntry>(Kind::Ledger, body);
        }
        _ => {
            if let Some(news) = check::<News>(Kind::Step, body) {
                let _ = news.verify();
            }
        }
    }
});

/// The value of a whole message, or else of a body alone; what decodes must encode to the same.
fn check<T>(kind: Kind, data: &[u8]) -> Option<T>
where
    T: bincode::Decode<()> + bincode::Encode + PartialEq + std::fmt::Debug,
{
    let value: T = wire::decode(kind, data).or_else(|_| wire::from_bytes(kind, data)).ok()?;
    let again: T = wire::from_bytes(kind, &wire::to_bytes(&value)).expect("own bytes decode");
    assert_eq!(again, value);
    Some(value)
}
