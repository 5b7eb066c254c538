//! Parameters of the bulk transport. The defaults were chosen by the throughput benchmark; users
//! need none of them.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::{Arc, LazyLock},
    time::Duration,
};

use quinn::{
    EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt,
    congestion::{BbrConfig, ControllerFactory, CubicConfig, NewRenoConfig},
};

use crate::net::limits;

/// Largest UDP payload that IPv4 carries.
const LOOPBACK_MTU_MAX: u16 = 65_507;
/// quinn hands the system up to this many packets at once, which together must fit into what a UDP
/// datagram can hold; with larger packets the system refuses them all, and quinn takes them for
/// lost.
const OFFLOAD_PACKETS: u16 = 10;
/// So this is the largest payload with which segmentation offload works. Jumbo frames are used up
/// to it.
const WIRE_MTU_MAX: u16 = LOOPBACK_MTU_MAX / OFFLOAD_PACKETS;
/// Packets of the handshake are padded to the smallest MTU, and their lengths have 14 bits.
const MIN_MTU_MAX: u16 = 16_000;
/// Bytes under way on a new loopback connection: a burst that the socket buffers hold.
const LOOPBACK_WINDOW_BYTES: u64 = 1 << 20;
/// Bytes under way on any other new connection: 30 packets, a little above what RFC 6928 lets TCP
/// start with.
const WIRE_WINDOW_BYTES: u64 = 30 * 1_472;

/// Makes the system's allocator keep memory that was freed instead of giving it back and faulting
/// it in again page by page, which costs a third of the transfer's processor time.
///
/// glibc learns from the first large block that is freed: blocks up to that size come from the heap
/// from then on, and the heap keeps twice as much. Other allocators take no notice.
pub(super) fn keep_freed_memory() {
    /// Just below the largest block from which glibc learns.
    const BLOCK_BYTES: usize = (32 << 20) - (64 << 10);
    // Never touched, so that it takes no memory.
    drop(std::hint::black_box(Vec::<u8>::with_capacity(BLOCK_BYTES)));
}

/// UDP payload that the loopback device takes whole; what is safe anywhere if that is unknown.
fn loopback_mtu() -> u16 {
    const HEADERS_BYTES: u32 = 48;
    static MTU: LazyLock<u16> = LazyLock::new(|| {
        let device = std::fs::read_to_string("/sys/class/net/lo/mtu").unwrap_or_default();
        let device = device.trim().parse::<u32>().unwrap_or(1_500);
        u16::try_from(device.saturating_sub(HEADERS_BYTES)).unwrap_or(u16::MAX).max(1_200)
    });
    *MTU
}

/// How fast a sender may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Congestion {
    /// CUBIC, as most of the Internet.
    Cubic,
    /// New Reno.
    NewReno,
    /// BBR, which models the path instead of filling its queue.
    Bbr,
}

/// Parameters of the bulk transport.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuning {
    /// Bytes of one stream that may be under way or unread.
    pub stream_window_bytes: u32,
    /// Bytes of one connection that may be under way or unread.
    pub connection_window_bytes: u32,
    /// Bytes of one connection kept until the peer has acknowledged them.
    pub send_window_bytes: u64,
    /// The same on the loopback device, whose only queue is the receiver's socket buffer: more only
    /// overflows it.
    pub loopback_window_bytes: u64,
    /// Bytes for one peer that may wait to be sent; beyond it `send` and `send_chunk` refuse.
    pub queue_bytes_max: usize,
    /// Streams over which a peer's chunks are spread.
    pub chunk_streams: u8,
    /// Largest UDP payload to try on the loopback device.
    pub loopback_mtu: u16,
    /// Largest UDP payload to try elsewhere.
    pub wire_mtu: u16,
    /// Bytes of the socket's buffers, as far as the system permits.
    pub socket_buffer_bytes: usize,
    /// Congestion controller.
    pub congestion: Congestion,
    /// Packets after which a receiver acknowledges; `None`: the default of the protocol, every
    /// second.
    pub ack_every_packets: Option<u32>,
    /// Whether to let the system split large sends into datagrams.
    pub segmentation_offload: bool,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            stream_window_bytes: 16 << 20,
            connection_window_bytes: 64 << 20,
            send_window_bytes: 64 << 20,
            loopback_window_bytes: 2 << 20,
            queue_bytes_max: 512 << 20,
            chunk_streams: 4,
            loopback_mtu: LOOPBACK_MTU_MAX,
            wire_mtu: WIRE_MTU_MAX,
            socket_buffer_bytes: 16 << 20,
            congestion: Congestion::Cubic,
            ack_every_packets: None,
            segmentation_offload: true,
        }
    }
}

impl Tuning {
    /// Binds the UDP socket with the largest buffers that the system grants.
    pub(crate) fn bind(&self, addr: SocketAddr) -> io::Result<UdpSocket> {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(addr),
            socket2::Type::DGRAM,
            Some(socket2::Protocol::UDP),
        )?;
        if addr.is_ipv6() && addr.ip().is_unspecified() {
            socket.set_only_v6(false)?;
        }
        // The system silently grants less than asked for; that costs speed only.
        let _ = socket.set_recv_buffer_size(self.socket_buffer_bytes);
        let _ = socket.set_send_buffer_size(self.socket_buffer_bytes);
        socket.bind(&addr.into())?;
        tracing::debug!(
            receive_bytes = socket.recv_buffer_size().unwrap_or(0),
            send_bytes = socket.send_buffer_size().unwrap_or(0),
            "bulk socket buffers"
        );
        Ok(socket.into())
    }

    pub(super) fn endpoint(&self) -> EndpointConfig {
        let mut config = EndpointConfig::default();
        config
            .max_udp_payload_size(self.loopback_mtu.max(self.wire_mtu).max(1200))
            .expect("a UDP payload of at least 1200 bytes is valid");
        config
    }

    pub(super) fn transport(&self, loopback: bool) -> TransportConfig {
        let mut config = TransportConfig::default();
        let mut discovery = MtuDiscoveryConfig::default();
        let mtu = if loopback { self.loopback_mtu.min(loopback_mtu()) } else { self.wire_mtu };
        discovery.upper_bound(mtu);
        if loopback {
            // What the device takes is known: nothing has to be discovered, and lost packets mean
            // full buffers, not that large ones can't pass.
            config.initial_mtu(mtu).min_mtu(mtu.min(MIN_MTU_MAX));
        }
        let idle = IdleTimeout::try_from(Duration::from_secs(10)).expect("ten seconds fit");
        config
            .mtu_discovery_config(Some(discovery))
            .stream_receive_window(VarInt::from_u32(self.stream_window_bytes))
            .receive_window(VarInt::from_u32(self.connection_window_bytes))
            .send_window(if loopback { self.loopback_window_bytes } else { self.send_window_bytes })
            // Chunks leave in the order in which they were given, not a little of each.
            .send_fairness(false)
            .max_concurrent_bidi_streams(VarInt::from_u32(limits::REQUESTS_OPEN_MAX))
            .max_concurrent_uni_streams(VarInt::from_u32(limits::CHUNK_STREAMS_MAX))
            .datagram_receive_buffer_size(None)
            .keep_alive_interval(Some(Duration::from_secs(1)))
            .max_idle_timeout(Some(idle))
            .enable_segmentation_offload(self.segmentation_offload && mtu <= WIRE_MTU_MAX)
            .congestion_controller_factory(self.controller(loopback));
        if let Some(packets) = self.ack_every_packets {
            let mut acks = quinn::AckFrequencyConfig::default();
            acks.ack_eliciting_threshold(VarInt::from_u32(packets));
            config.ack_frequency_config(Some(acks));
        }
        config
    }

    fn controller(&self, loopback: bool) -> Arc<dyn ControllerFactory + Send + Sync> {
        // A window that doesn't hold one packet sends none, and loopback packets are large.
        let window = if loopback { LOOPBACK_WINDOW_BYTES } else { WIRE_WINDOW_BYTES };
        match self.congestion {
            Congestion::Cubic => {
                let mut config = CubicConfig::default();
                config.initial_window(window);
                Arc::new(config)
            }
            Congestion::NewReno => {
                let mut config = NewRenoConfig::default();
                config.initial_window(window);
                Arc::new(config)
            }
            Congestion::Bbr => {
                let mut config = BbrConfig::default();
                config.initial_window(window);
                Arc::new(config)
            }
        }
    }
}
