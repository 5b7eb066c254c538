//! Throughput of the bulk plane between two nodes on the loopback device, and what it costs.
//!
//! ```text
//! cargo bench -p p2ptrain-node --bench net_throughput -- [MEBIBYTES] [THREADS] [KIB A CHUNK] [CASES]
//! ```
//!
//! CASES is a part of the names of those to run.
//!
//! Both nodes run in this process, so the CPU seconds are those of sender and receiver together.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use bytes::Bytes;
use p2ptrain_node::{
    identity::Identity,
    net::{self, Congestion, NetConfig, NetEvent, NetHandle, Port, SendError, SwarmAccess, Tuning},
    swarm_key::SwarmSecret,
};
use p2ptrain_protocol::id::Incarnation;
use tokio::sync::mpsc::Receiver;

struct Case {
    name: String,
    tuning: Tuning,
}

fn main() {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let args: Vec<usize> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    let argument = |at: usize, default| args.get(at).copied().unwrap_or(default);
    let (mebibytes, threads) = (argument(0, 1024), argument(1, 2));
    let chunk_kib = argument(2, 256);
    let wanted = std::env::args()
        .skip(1)
        .find(|arg| !arg.starts_with("--") && arg.parse::<usize>().is_err());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .expect("a runtime");
    println!("{mebibytes} MiB in chunks of {chunk_kib} KiB, {threads} runtime threads");
    println!(
        "{:28} {:>10} {:>10} {:>10} {:>8} {:>7}",
        "", "one way", "both ways", "CPU s/GB", "lost", "MTU"
    );
    for case in cases() {
        if wanted.as_ref().is_some_and(|part| !case.name.contains(part.as_str())) {
            continue;
        }
        let row = runtime.block_on(run(&case.tuning, mebibytes, chunk_kib << 10));
        println!(
            "{:28} {:>6.0} MiB/s {:>4.0} MiB/s {:>8.2} {:>8} {:>7}",
            case.name, row.one_way, row.both_ways, row.cpu_s_per_gb, row.lost_packets, row.mtu
        );
    }
}

struct Row {
    /// MiB a second.
    one_way: f64,
    /// MiB a second in each direction while both send.
    both_ways: f64,
    cpu_s_per_gb: f64,
    lost_packets: u64,
    mtu: u16,
}

fn cases() -> Vec<Case> {
    let default = Tuning::default();
    let case = |name: &str, tuning| Case { name: name.to_owned(), tuning };
    let window = |bytes| Tuning { loopback_window_bytes: bytes, ..default.clone() };
    let ethernet = |change: fn(&mut Tuning)| {
        let mut tuning = Tuning { loopback_mtu: 1_472, ..default.clone() };
        change(&mut tuning);
        tuning
    };
    vec![
        case("default", default.clone()),
        case("window 512 KiB", window(512 << 10)),
        case("window 1 MiB", window(1 << 20)),
        case("window 4 MiB", window(4 << 20)),
        case("window 64 MiB", window(64 << 20)),
        case("MTU 32000", Tuning { loopback_mtu: 32_000, ..default.clone() }),
        case("MTU 16000", Tuning { loopback_mtu: 16_000, ..default.clone() }),
        case("MTU 6550 (jumbo frames)", Tuning { loopback_mtu: 6_550, ..default.clone() }),
        case("MTU 1472 (Ethernet)", Tuning { loopback_mtu: 1_472, ..default.clone() }),
        case("MTU 1472, no GSO", ethernet(|t| t.segmentation_offload = false)),
        case("MTU 1472, ack every 2", ethernet(|t| t.ack_every_packets = None)),
        case("MTU 1472, ack every 10", ethernet(|t| t.ack_every_packets = Some(10))),
        case("MTU 1472, ack every 30", ethernet(|t| t.ack_every_packets = Some(30))),
        case("MTU 1472, window 8 MiB", ethernet(|t| t.loopback_window_bytes = 8 << 20)),
        case("MTU 1472, one stream", ethernet(|t| t.chunk_streams = 1)),
        case("BBR", Tuning { congestion: Congestion::Bbr, ..default.clone() }),
        case("New Reno", Tuning { congestion: Congestion::NewReno, ..default.clone() }),
        case("one stream", Tuning { chunk_streams: 1, ..default.clone() }),
        case("ack every 10", Tuning { ack_every_packets: Some(10), ..default.clone() }),
        case("socket buffers 1 MiB", Tuning { socket_buffer_bytes: 1 << 20, ..default }),
    ]
}

async fn run(tuning: &Tuning, mebibytes: usize, chunk_bytes: usize) -> Row {
    let (ann, mut ann_events) = node(tuning, None).await;
    let (bob, mut bob_events) = node(tuning, Some(&ann)).await;
    connected(&mut ann_events).await;
    connected(&mut bob_events).await;
    let total = mebibytes << 20;

    // The first bytes find the window; they don't count.
    transfer(&ann, &bob, &mut bob_events, total / 8, chunk_bytes).await;
    let (wall, cpu) = (Instant::now(), cpu_time());
    transfer(&ann, &bob, &mut bob_events, total, chunk_bytes).await;
    let one_way = mebibytes as f64 / wall.elapsed().as_secs_f64();
    let cpu_s_per_gb = (cpu_time() - cpu).as_secs_f64() / (total as f64 / 1e9);

    let wall = Instant::now();
    tokio::join!(
        transfer(&ann, &bob, &mut bob_events, total, chunk_bytes),
        transfer(&bob, &ann, &mut ann_events, total, chunk_bytes),
    );
    let both_ways = mebibytes as f64 / wall.elapsed().as_secs_f64();
    let link = ann.links().remove(0);
    ann.shutdown().await;
    bob.shutdown().await;
    Row { one_way, both_ways, cpu_s_per_gb, lost_packets: link.lost_packets, mtu: link.mtu_bytes }
}

async fn node(tuning: &Tuning, joins: Option<&NetHandle>) -> (NetHandle, Receiver<NetEvent>) {
    let bootstrap =
        joins.map(|other| other.local_addrs().control[0].to_string().parse().expect("an address"));
    net::start(NetConfig {
        identity: Identity::generate(),
        incarnation: Incarnation(1),
        access: SwarmAccess::Secret(SwarmSecret::from_bytes([1; 32])),
        listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
        control_port: Port::Any,
        bulk_port: Port::Any,
        mdns: false,
        bootstrap: bootstrap.into_iter().collect(),
        tuning: tuning.clone(),
    })
    .await
    .expect("starts")
}

async fn connected(events: &mut Receiver<NetEvent>) {
    while let Some(event) = events.recv().await {
        if matches!(event, NetEvent::Connected { .. }) {
            return;
        }
    }
    panic!("the network stopped");
}

async fn transfer(
    from: &NetHandle,
    to: &NetHandle,
    events: &mut Receiver<NetEvent>,
    bytes: usize,
    chunk_bytes: usize,
) {
    let (sender, peer) = (from.clone(), to.peer_id());
    let sending = tokio::spawn(async move {
        let payload = Bytes::from(vec![7; chunk_bytes]);
        for number in 0..bytes / chunk_bytes {
            let header = number.to_le_bytes();
            while let Err(e) = sender.send_chunk(peer, &header, payload.clone()) {
                assert!(matches!(e, SendError::QueueFull { .. }), "{e}");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    let mut left = bytes / chunk_bytes * chunk_bytes;
    while left > 0 {
        match events.recv().await.expect("the network runs") {
            NetEvent::Chunk { payload, .. } => left -= payload.len(),
            NetEvent::Lost { cause, .. } => panic!("lost: {cause:?}"),
            _ => {}
        }
    }
    sending.await.expect("sends");
}

/// User and system time of this process.
fn cpu_time() -> Duration {
    /// Linux reports times in hundredths of a second.
    const TICK_MS: u64 = 10;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields = after_name.split_ascii_whitespace().skip(11).take(2);
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * TICK_MS)
}
