//! Requests and responses of the bulk plane.
#![no_main]

use libfuzzer_sys::fuzz_target;
use p2ptrain_node::request::{Request, Response};
use p2ptrain_protocol::peer::{Message, PieceHeader};
use p2ptrain_protocol::wire::{self, Kind};

fuzz_target!(|data: &[u8]| {
    let _ = Request::from_bytes(data);
    let _ = Response::from_bytes(data);
    let _ = wire::decode::<PieceHeader>(Kind::Piece, data);
    if let Ok(message) = wire::from_bytes::<Message>(Kind::Step, data) {
        let again = wire::from_bytes::<Message>(Kind::Step, &wire::to_bytes(&message));
        assert_eq!(again.expect("own bytes decode"), message);
    }
});
