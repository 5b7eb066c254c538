//! Frames on the streams of a proven connection.
//!
//! - Message stream (the one of the handshake), each way: `length u32 | kind u8 | body`, the length
//!   counting kind and body.
//! - Chunk streams (unidirectional, several): `header length u16 | header | payload length u32 |
//!   payload`, repeated.
//! - Requests (a bidirectional stream each): the request up to the end of the stream; back comes
//!   the response.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::net::limits;

/// Messages overtake chunks, whose streams have priority 0.
pub(crate) const MESSAGE_PRIORITY: i32 = 1;

const MESSAGE_HEAD_BYTES: usize = 5;

/// What a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The driver's.
    Message,
    /// Where members are, for this module.
    Presence,
}

/// How a peer broke the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a message of {bytes} bytes")]
    MessageLength { bytes: u32 },
    #[error("a message of unknown kind {kind}")]
    MessageKind { kind: u8 },
    #[error("a chunk header of {bytes} bytes")]
    HeaderLength { bytes: u16 },
    #[error("a chunk payload of {bytes} bytes")]
    PayloadLength { bytes: u32 },
    #[error("a frame cut short")]
    Truncated,
}

/// The head of a message.
pub(crate) fn message_head(kind: Kind, body_bytes: usize) -> Bytes {
    let mut head = BytesMut::with_capacity(MESSAGE_HEAD_BYTES);
    let length = u32::try_from(body_bytes + 1).expect("bodies are limited when they are queued");
    head.put_u32_le(length);
    head.put_u8(match kind {
        Kind::Message => 0,
        Kind::Presence => 1,
    });
    head.freeze()
}

/// All of a chunk that goes before its payload.
pub(crate) fn chunk_head(header: &[u8], payload_bytes: usize) -> Bytes {
    let mut head = BytesMut::with_capacity(header.len() + 6);
    let header_length = u16::try_from(header.len()).expect("headers are limited when queued");
    let payload_length = u32::try_from(payload_bytes).expect("payloads are limited when queued");
    head.put_u16_le(header_length);
    head.put_slice(header);
    head.put_u32_le(payload_length);
    head.freeze()
}

/// Cuts a stream of bytes into messages.
#[derive(Default)]
pub(crate) struct MessageReader {
    field: Field,
    body: Option<Kind>,
}

impl MessageReader {
    /// Takes bytes off `input` until a message is complete or the input is used up.
    pub(crate) fn read(&mut self, input: &mut Bytes) -> Result<Option<(Kind, Bytes)>, FrameError> {
        loop {
            let Some(kind) = self.body else {
                let Some(mut head) = self.field.take(MESSAGE_HEAD_BYTES, input) else {
                    return Ok(None);
                };
                let bytes = head.get_u32_le();
                let kind = match head.get_u8() {
                    0 => Kind::Message,
                    1 => Kind::Presence,
                    kind => return Err(FrameError::MessageKind { kind }),
                };
                let body = bytes.checked_sub(1).map(|body| body as usize);
                match body {
                    Some(body) if body <= limits::MESSAGE_BYTES_MAX => self.field.expect(body),
                    _ => return Err(FrameError::MessageLength { bytes }),
                }
                self.body = Some(kind);
                continue;
            };
            let bytes = self.field.expected;
            let Some(body) = self.field.take(bytes, input) else { return Ok(None) };
            self.body = None;
            return Ok(Some((kind, body)));
        }
    }

    /// The stream ended here.
    pub(crate) fn finish(&self) -> Result<(), FrameError> {
        let complete = self.body.is_none() && self.field.is_empty();
        if complete { Ok(()) } else { Err(FrameError::Truncated) }
    }
}

/// Cuts a stream of bytes into chunks.
#[derive(Default)]
pub(crate) struct ChunkReader {
    field: Field,
    next: ChunkField,
    header: Bytes,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum ChunkField {
    #[default]
    HeaderLength,
    Header,
    PayloadLength,
    Payload,
}

impl ChunkReader {
    /// Takes bytes off `input` until a chunk is complete or the input is used up.
    pub(crate) fn read(&mut self, input: &mut Bytes) -> Result<Option<(Bytes, Bytes)>, FrameError> {
        loop {
            let bytes = match self.next {
                ChunkField::HeaderLength => 2,
                ChunkField::PayloadLength => 4,
                ChunkField::Header | ChunkField::Payload => self.field.expected,
            };
            let Some(mut field) = self.field.take(bytes, input) else { return Ok(None) };
            match self.next {
                ChunkField::HeaderLength => {
                    let bytes = field.get_u16_le();
                    if usize::from(bytes) > limits::CHUNK_HEADER_BYTES_MAX {
                        return Err(FrameError::HeaderLength { bytes });
                    }
                    self.field.expect(usize::from(bytes));
                    self.next = ChunkField::Header;
                }
                ChunkField::Header => {
                    // Headers are small and may be kept: don't let one hold a whole datagram.
                    self.header = Bytes::copy_from_slice(&field);
                    self.next = ChunkField::PayloadLength;
                }
                ChunkField::PayloadLength => {
                    let bytes = field.get_u32_le();
                    if bytes as usize > limits::CHUNK_PAYLOAD_BYTES_MAX {
                        return Err(FrameError::PayloadLength { bytes });
                    }
                    self.field.expect(bytes as usize);
                    self.next = ChunkField::Payload;
                }
                ChunkField::Payload => {
                    self.next = ChunkField::HeaderLength;
                    return Ok(Some((std::mem::take(&mut self.header), field)));
                }
            }
        }
    }

    /// The stream ended here.
    pub(crate) fn finish(&self) -> Result<(), FrameError> {
        let complete = self.next == ChunkField::HeaderLength && self.field.is_empty();
        if complete { Ok(()) } else { Err(FrameError::Truncated) }
    }
}

/// Collects one field of known length. Memory grows with what has arrived, not with what was
/// announced.
#[derive(Default)]
struct Field {
    expected: usize,
    collected: BytesMut,
}

impl Field {
    /// A field of `bytes` follows.
    fn expect(&mut self, bytes: usize) {
        self.expected = bytes;
    }

    fn is_empty(&self) -> bool {
        self.collected.is_empty()
    }

    /// The field once it is complete; without a copy if `input` holds it whole.
    fn take(&mut self, bytes: usize, input: &mut Bytes) -> Option<Bytes> {
        if self.collected.is_empty() && input.len() >= bytes {
            return Some(input.split_to(bytes));
        }
        if self.collected.is_empty() {
            // One allocation for the whole field as soon as its first bytes are here: it is bounded
            // by the limits.
            self.collected.reserve(bytes);
        }
        let part = input.len().min(bytes - self.collected.len());
        self.collected.extend_from_slice(&input.split_to(part));
        (self.collected.len() == bytes).then(|| std::mem::take(&mut self.collected).freeze())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds `stream` in parts of the given sizes and collects what comes out.
    fn chunks(stream: &[u8], cuts: &[usize]) -> Result<Vec<(Bytes, Bytes)>, FrameError> {
        let (mut reader, mut out) = (ChunkReader::default(), Vec::new());
        for mut part in parts(stream, cuts) {
            while let Some(chunk) = reader.read(&mut part)? {
                out.push(chunk);
            }
        }
        reader.finish().map(|()| out)
    }

    fn messages(stream: &[u8], cuts: &[usize]) -> Result<Vec<(Kind, Bytes)>, FrameError> {
        let (mut reader, mut out) = (MessageReader::default(), Vec::new());
        for mut part in parts(stream, cuts) {
            while let Some(message) = reader.read(&mut part)? {
                out.push(message);
            }
        }
        reader.finish().map(|()| out)
    }

    fn parts(stream: &[u8], cuts: &[usize]) -> Vec<Bytes> {
        let mut stream = Bytes::copy_from_slice(stream);
        let mut parts = Vec::new();
        for cut in cuts {
            parts.push(stream.split_to(stream.len().min(*cut)));
        }
        parts.push(stream);
        parts
    }

    fn chunk_stream(chunks: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut stream = Vec::new();
        for (header, payload) in chunks {
            stream.extend_from_slice(&chunk_head(header, payload.len()));
            stream.extend_from_slice(payload);
        }
        stream
    }

    #[test]
    fn oversized_lengths_are_refused_before_their_bytes_arrive() {
        assert_eq!(chunks(&[1, 1], &[]), Err(FrameError::HeaderLength { bytes: 257 }));
        let payload = [0, 0, 1, 0, 16, 0];
        assert_eq!(chunks(&payload, &[]), Err(FrameError::PayloadLength { bytes: 1_048_577 }));
        let huge = [255, 255, 255, 255, 0];
        assert_eq!(messages(&huge, &[]), Err(FrameError::MessageLength { bytes: u32::MAX }));
        assert_eq!(messages(&[0; 5], &[]), Err(FrameError::MessageLength { bytes: 0 }));
        assert_eq!(messages(&[1, 0, 0, 0, 9], &[]), Err(FrameError::MessageKind { kind: 9 }));
    }

    #[test]
    fn a_stream_that_ends_inside_a_frame_is_truncated() {
        let stream = chunk_stream(&[(b"head", b"payload")]);
        for end in 1..stream.len() {
            assert_eq!(chunks(&stream[..end], &[]), Err(FrameError::Truncated), "at {end}");
        }
        let mut stream = message_head(Kind::Message, 3).to_vec();
        stream.extend_from_slice(b"abc");
        for end in 1..stream.len() {
            assert_eq!(messages(&stream[..end], &[]), Err(FrameError::Truncated), "at {end}");
        }
    }

    #[test]
    fn a_payload_inside_one_datagram_is_not_copied() {
        let stream = Bytes::from(chunk_stream(&[(b"head", b"payload")]));
        let mut input = stream.clone();
        let chunk = ChunkReader::default().read(&mut input).expect("valid").expect("complete");
        assert_eq!(chunk.1.as_ptr(), stream[stream.len() - 7..].as_ptr());
    }

    proptest! {
        #[test]
        fn chunks_arrive_whole_however_the_stream_is_cut(
            sent in prop::collection::vec(
                (
                    prop::collection::vec(any::<u8>(), 0..20),
                    prop::collection::vec(any::<u8>(), 0..90),
                ),
                0..6,
            ),
            cuts in prop::collection::vec(0_usize..40, 0..20),
        ) {
            let refs: Vec<(&[u8], &[u8])> = sent.iter().map(|(h, p)| (&h[..], &p[..])).collect();
            let got = chunks(&chunk_stream(&refs), &cuts).expect("valid");
            let got: Vec<_> = got.into_iter().map(|(h, p)| (h.to_vec(), p.to_vec())).collect();
            prop_assert_eq!(got, sent);
        }

        #[test]
        fn messages_arrive_whole_however_the_stream_is_cut(
            sent in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..90), 0..6),
            cuts in prop::collection::vec(0_usize..40, 0..20),
        ) {
            let mut stream = Vec::new();
            for body in &sent {
                stream.extend_from_slice(&message_head(Kind::Presence, body.len()));
                stream.extend_from_slice(body);
            }
            let got = messages(&stream, &cuts).expect("valid");
            let got: Vec<_> = got.into_iter().map(|(_, body)| body.to_vec()).collect();
            prop_assert_eq!(got, sent);
        }

        #[test]
        fn random_streams_never_panic(
            stream in prop::collection::vec(any::<u8>(), 0..400),
            cuts in prop::collection::vec(0_usize..40, 0..20),
        ) {
            let _ = chunks(&stream, &cuts);
            let _ = messages(&stream, &cuts);
        }
    }
}
