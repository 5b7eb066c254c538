//! The bytes of a proven connection: messages, chunks and presences, cut at any places.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

// These decoders are no part of the crate's interface, so their sources are taken in here.
#[allow(dead_code)]
#[path = "../../src/net"]
mod net {
    #[path = "bulk/frame.rs"]
    pub(crate) mod frame;
    pub(crate) mod limits;
    pub(crate) mod presence;
}

mod identity {
    pub(crate) use p2ptrain_protocol::id::PeerId;
}

use net::frame::{ChunkReader, MessageReader};
use net::presence;

fuzz_target!(|data: &[u8]| {
    let Some((&cut, stream)) = data.split_first() else { return };
    let _ = presence::decode(stream);
    // However the network cuts the stream, the frames are the same.
    let whole = messages(stream, stream.len().max(1));
    assert_eq!(whole, messages(stream, usize::from(cut) + 1));
    let whole = chunks(stream, stream.len().max(1));
    assert_eq!(whole, chunks(stream, usize::from(cut) + 1));
});

fn messages(stream: &[u8], part: usize) -> (Vec<Bytes>, bool) {
    let (mut reader, mut out) = (MessageReader::default(), Vec::new());
    for part in stream.chunks(part) {
        let mut input = Bytes::copy_from_slice(part);
        loop {
            match reader.read(&mut input) {
                Ok(Some((kind, body))) => {
                    if kind == net::frame::Kind::Presence {
                        let _ = presence::decode(&body);
                    }
                    out.push(body);
                }
                Ok(None) => break,
                Err(_) => return (out, false),
            }
        }
    }
    (out, reader.finish().is_ok())
}

fn chunks(stream: &[u8], part: usize) -> (Vec<(Bytes, Bytes)>, bool) {
    let (mut reader, mut out) = (ChunkReader::default(), Vec::new());
    for part in stream.chunks(part) {
        let mut input = Bytes::copy_from_slice(part);
        loop {
            match reader.read(&mut input) {
                Ok(Some(chunk)) => out.push(chunk),
                Ok(None) => break,
                Err(_) => return (out, false),
            }
        }
    }
    (out, reader.finish().is_ok())
}
