//! Every bound of the protocol in one place, and their relations checked when the crate is compiled.
//!
//! A message that exceeds one is refused before its size is allocated. Units come last in the names.

/// Members of a view.
pub const MEMBERS_MAX: usize = 256;
/// Micro-batches of one global step.
pub const ITEMS_MAX: u32 = 1 << 20;
/// Microseconds that one micro-batch may take in a plan: over an hour.
pub const US_PER_MICROBATCH_MAX: u32 = u32::MAX;

/// Bytes of one small message, its envelope included.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Bytes that decoding one message may claim in memory, where a value can be larger than on the wire.
pub const DECODE_BYTES_MAX: usize = 4 * MESSAGE_BYTES_MAX;
/// Bytes of one signed advert.
pub const ADVERT_BYTES_MAX: usize = 64 << 10;

/// Adverts that a table holds: peers known at a time.
pub const ADVERTS_MAX: usize = 1024;
/// Devices of one peer.
pub const DEVICES_MAX: usize = 64;
/// Measured links that a peer advertises.
pub const LINKS_MAX: usize = MEMBERS_MAX;
/// Addresses of each plane that a peer advertises.
pub const ADDRS_MAX: usize = 32;
/// Bytes of one address.
pub const ADDR_BYTES_MAX: usize = 256;
/// Bytes of a name.
pub const NAME_BYTES_MAX: usize = 64;
/// Jobs that a peer advertises.
pub const JOBS_MAX: usize = 64;
/// Memory of one device: a pebibyte.
pub const DEVICE_MEMORY_BYTES_MAX: u64 = 1 << 50;
/// Floating-point operations a second of one device.
pub const DEVICE_FLOPS_PER_S_MAX: u64 = 1_000_000_000_000_000_000;
/// Load of a device: all of it.
pub const LOAD_PERMILLE_MAX: u16 = 1000;
/// Round-trip time of a link that is worth an advert: a minute.
pub const LINK_RTT_US_MAX: u32 = 60_000_000;
/// Bandwidth of a link: 100 Tbit/s.
pub const LINK_BITS_PER_S_MAX: u64 = 100_000_000_000_000;

/// Candidates that one peer's news lists.
pub const NEWS_JOINS_MAX: usize = MEMBERS_MAX;
/// Leavers that one peer's news lists.
pub const NEWS_LEAVES_MAX: usize = MEMBERS_MAX;
/// Dead incarnations that one peer's news lists.
pub const NEWS_DEAD_MAX: usize = 4 * MEMBERS_MAX;

/// Bytes of one gradient element on the wire.
pub const ELEMENT_BYTES: usize = 4;
/// Bytes of one piece of a gradient chunk. Small enough that a ring pipelines, large enough for few headers.
pub const PIECE_BYTES_MAX: usize = 256 << 10;
/// Elements of one piece.
pub const PIECE_ELEMENTS_MAX: usize = PIECE_BYTES_MAX / ELEMENT_BYTES;
/// Elements of one bucket (a model block): 4 GiB of f32.
pub const BUCKET_ELEMENTS_MAX: usize = 1 << 30;

/// Blocks of a model.
pub const BLOCKS_MAX: usize = 4096;
/// Bytes of one chunk of the state.
pub const STATE_CHUNK_BYTES: usize = 1 << 20;
/// Chunks of a state; their digests must fit into one message.
pub const STATE_CHUNKS_MAX: usize = 1 << 16;

/// Bytes of one line of a ledger.
pub const LEDGER_LINE_BYTES_MAX: usize = 1 << 20;
/// Shares of one ledger entry: a planned and a redone one of each member that took part at some time.
pub const LEDGER_SHARES_MAX: usize = 2 * MEMBERS_MAX;
/// Peers whose samples a ledger counts one by one; those of later peers are counted together.
pub const LEDGER_PEERS_MAX: usize = 4096;

const _: () = {
    assert!(MEMBERS_MAX >= 2 && MEMBERS_MAX <= u16::MAX as usize, "ranks are u16");
    assert!(
        (US_PER_MICROBATCH_MAX as u128) * (ITEMS_MAX as u128) * (MEMBERS_MAX as u128) < 1 << 63,
        "finish times and their sums stay in u64"
    );
    assert!(ADVERT_BYTES_MAX < MESSAGE_BYTES_MAX, "an advert fits into a message");
    assert!(
        2 * ADDRS_MAX * (ADDR_BYTES_MAX + 8) + LINKS_MAX * 44 + (DEVICES_MAX + JOBS_MAX) * 160
            < ADVERT_BYTES_MAX,
        "the largest plausible advert fits"
    );
    assert!(PIECE_BYTES_MAX.is_multiple_of(ELEMENT_BYTES), "a piece holds whole elements");
    assert!(PIECE_ELEMENTS_MAX > 0 && PIECE_ELEMENTS_MAX <= BUCKET_ELEMENTS_MAX);
    assert!(STATE_CHUNK_BYTES.is_multiple_of(ELEMENT_BYTES), "a chunk holds whole elements");
    assert!(
        STATE_CHUNKS_MAX * 32 + BLOCKS_MAX * 8 + 1024 < MESSAGE_BYTES_MAX,
        "a manifest fits into a message"
    );
    assert!(
        16 * (NEWS_JOINS_MAX * 44 + NEWS_LEAVES_MAX * 32 + NEWS_DEAD_MAX * 40) < MESSAGE_BYTES_MAX,
        "news fits into a message many times"
    );
    assert!(MESSAGE_BYTES_MAX < u32::MAX as usize, "lengths on the wire are u32");
};
