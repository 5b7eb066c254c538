//! Bounds of both planes, in one place.

use std::time::Duration;

use p2ptrain_protocol::limits;

/// A message given to `send`.
pub const MESSAGE_BYTES_MAX: usize = limits::MESSAGE_BYTES_MAX;
/// The header of a chunk.
pub const CHUNK_HEADER_BYTES_MAX: usize = 256;
/// The payload of a chunk.
pub const CHUNK_PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// A request; its response has the limit that the asker gives.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;
/// A gossip message before it is sealed.
pub const GOSSIP_BYTES_MAX: usize = limits::ADVERT_BYTES_MAX + 1024;

/// Requests of one peer that may wait for their responses at once.
pub(crate) const REQUESTS_OPEN_MAX: u32 = 64;
/// Streams of one peer that may carry chunks at once.
pub(crate) const CHUNK_STREAMS_MAX: u32 = 16;
/// Events waiting for the driver. Beyond it the peers' streams are not read, so that senders slow
/// down.
pub(crate) const EVENTS_QUEUED_MAX: usize = 256;
/// Internal reports and commands waiting for a task.
pub(crate) const REPORTS_QUEUED_MAX: usize = 1024;

/// Peers known at a time, connected or not.
pub(crate) const PEERS_MAX: usize = 2 * limits::MEMBERS_MAX;
/// Addresses of a peer on one plane.
pub(crate) const ADDRS_MAX: usize = 16;
/// Control connections with one peer: TCP and QUIC, each dialled from both sides.
pub(crate) const CONTROL_CONNECTIONS_PER_PEER_MAX: u32 = 4;
/// Control connections in all.
pub(crate) const CONTROL_CONNECTIONS_MAX: u32 = 2 * limits::MEMBERS_MAX as u32;
/// Control connections whose handshake is not complete.
pub(crate) const CONTROL_PENDING_MAX: u32 = 64;
/// Bulk connections whose membership is not proven.
pub(crate) const HANDSHAKES_MAX: usize = 64;

/// A stranger may hold an unproven bulk connection this long. Members need a few round trips.
pub(crate) const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(5);
/// First pause between attempts to reach a peer; it doubles up to the last.
pub(crate) const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// Last pause between attempts to reach a peer.
pub(crate) const BACKOFF_LAST: Duration = Duration::from_secs(5);
/// Of two peers the one with the lower id dials first; the other waits this long in case it can't.
pub(crate) const HEAD_START: Duration = Duration::from_millis(400);
/// A probed TCP port that neither accepts nor refuses in this time says nothing.
pub(crate) const PROBE_TIME_MAX: Duration = Duration::from_millis(500);
/// A peer that vanished without a goodbye is sought this long before it is forgotten.
pub(crate) const SEEK_TIME_MAX: Duration = Duration::from_secs(3600);
/// A peer that broke the format is left alone for this long, times its violations.
pub(crate) const VIOLATION_PAUSE: Duration = Duration::from_secs(10);
/// Goodbyes have this long to reach the peers before a node that leaves is gone.
pub(crate) const GOODBYE_TIME_MAX: Duration = Duration::from_millis(300);

const _: () = {
    assert!(CHUNK_HEADER_BYTES_MAX <= u16::MAX as usize, "its length is a u16");
    assert!(CHUNK_PAYLOAD_BYTES_MAX >= limits::PIECE_BYTES_MAX, "a piece is one chunk");
    assert!(CHUNK_PAYLOAD_BYTES_MAX >= limits::STATE_CHUNK_BYTES, "a state chunk is one chunk");
    assert!(MESSAGE_BYTES_MAX < u32::MAX as usize, "its length is a u32");
};
