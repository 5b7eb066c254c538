//! Members find each other and everything arrives.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use p2ptrain_node::net::{
    self, LossCause, NetError, NetEvent, Port, PublishError, RequestError, SendError, Topic,
};

use super::{Node, config, pair, start};

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_exchange_messages_in_order() {
    let (ann, mut bob) = pair().await;
    for number in 0_u32..500 {
        ann.handle.send(bob.id(), number.to_le_bytes().to_vec().into()).expect("queued");
    }
    for number in 0_u32..500 {
        assert_eq!(bob.message().await, (ann.id(), number.to_le_bytes().to_vec()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn five_nodes_that_know_one_of_them_become_a_full_mesh() {
    let mut nodes = vec![start(config(1, &[])).await];
    for _ in 1..5 {
        nodes.push(start(config(1, &[&nodes[0]])).await);
    }
    let all: BTreeSet<_> = nodes.iter().map(Node::id).collect();
    for node in &mut nodes {
        let mut met = BTreeSet::from([node.id()]);
        while met.len() < 5 {
            assert!(met.insert(node.connected().await), "each peer connects once");
        }
        assert_eq!(met, all);
    }
    for from in &nodes {
        assert_eq!(from.handle.links().len(), 4);
        for to in all.iter().filter(|to| **to != from.id()) {
            let text = format!("{} to {to}", from.id());
            from.handle.send(*to, text.into()).expect("queued");
        }
    }
    for node in &mut nodes {
        for _ in 0..4 {
            let (from, bytes) = node.message().await;
            assert_eq!(bytes, format!("{from} to {}", node.id()).into_bytes());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_of_64_mebibytes_arrive_intact_without_loss_of_any() {
    const CHUNKS: u32 = 256;
    let (ann, mut bob) = pair().await;
    let payload = |number: u32| -> Bytes {
        let mut bytes = vec![0; 256 << 10];
        blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes.into()
    };
    for number in 0..CHUNKS {
        let header = number.to_le_bytes();
        ann.handle.send_chunk(bob.id(), &header, payload(number)).expect("queued");
    }
    let mut missing: BTreeSet<u32> = (0..CHUNKS).collect();
    while !missing.is_empty() {
        let (header, got) = bob
            .wait("chunk", |event| match event {
                NetEvent::Chunk { header, payload, .. } => Some((header, payload)),
                _ => None,
            })
            .await;
        let number = u32::from_le_bytes(header[..].try_into().expect("four bytes"));
        assert!(missing.remove(&number), "chunk {number} came twice");
        assert!(got == payload(number), "chunk {number} was changed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_answered_refused_or_too_large() {
    let (ann, mut bob) = pair().await;
    let (asker, to) = (ann.handle.clone(), bob.id());
    let answering = tokio::spawn(async move {
        for _ in 0..3 {
            let (bytes, respond) = bob
                .wait("request", |event| match event {
                    NetEvent::Request { bytes, respond, .. } => Some((bytes, respond)),
                    _ => None,
                })
                .await;
            match &bytes[..] {
                b"refuse" => drop(respond),
                b"large" => respond.send(vec![7; 3 << 20].into()),
                _ => respond.send(bytes),
            }
        }
        bob
    });
    assert_eq!(asker.request(to, "hello".into(), 100).await, Ok("hello".into()));
    assert_eq!(asker.request(to, "refuse".into(), 100).await, Err(RequestError::Refused));
    let large = asker.request(to, "large".into(), 1 << 20).await;
    assert_eq!(large, Err(RequestError::ResponseTooLarge { max: 1 << 20 }));
    let too_large = asker.request(to, vec![0; 70_000].into(), 100).await;
    assert_eq!(too_large, Err(RequestError::TooLarge { bytes: 70_000 }));
    drop(answering.await.expect("answers"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_to_a_peer_that_leaves_fails() {
    let (ann, bob) = pair().await;
    let asking = tokio::spawn({
        let (asker, to) = (ann.handle.clone(), bob.id());
        async move { asker.request(to, "hello".into(), 100).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    bob.handle.shutdown().await;
    assert_eq!(asking.await.expect("no panic"), Err(RequestError::Lost));
}

#[tokio::test(flavor = "multi_thread")]
async fn gossip_reaches_members_with_its_source() {
    let (mut ann, bob) = pair().await;
    // A subscription takes a moment to arrive; gossip is for state that is published again.
    let publishing = tokio::spawn({
        let handle = bob.handle.clone();
        async move {
            loop {
                handle.publish(Topic::Status, "step 7".into()).expect("taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    });
    let (from, topic, bytes) = ann
        .wait("gossip", |event| match event {
            NetEvent::Gossip { from, topic, bytes } => Some((from, topic, bytes)),
            _ => None,
        })
        .await;
    publishing.abort();
    assert_eq!((from, topic, &bytes[..]), (bob.id(), Topic::Status, &b"step 7"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_exceeds_a_bound_is_refused_to_the_sender() {
    let (ann, bob) = pair().await;
    let bytes = net::MESSAGE_BYTES_MAX + 1;
    assert_eq!(
        ann.handle.send(bob.id(), vec![0; bytes].into()),
        Err(SendError::TooLarge { bytes, max: net::MESSAGE_BYTES_MAX })
    );
    assert!(ann.handle.send_chunk(bob.id(), &[0; 257], Bytes::new()).is_err());
    let payload = vec![0; net::CHUNK_PAYLOAD_BYTES_MAX + 1];
    assert!(ann.handle.send_chunk(bob.id(), &[], payload.into()).is_err());
    let bytes = net::GOSSIP_BYTES_MAX + 1;
    assert_eq!(
        ann.handle.publish(Topic::Job, vec![0; bytes].into()),
        Err(PublishError::TooLarge { bytes })
    );
    assert_eq!(ann.handle.send(ann.id(), Bytes::new()), Err(SendError::NotConnected));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_takes_nothing_fills_a_bounded_queue() {
    let mut ann = start(config(1, &[])).await;
    let mut small = config(1, &[&ann]);
    small.tuning.queue_bytes_max = 8 << 20;
    let mut bob = start(small).await;
    assert_eq!(bob.connected().await, ann.id());
    let payload = Bytes::from(vec![1; 1 << 20]);
    let full = loop {
        // The windows and the untaken events take some; then the queue is full.
        match bob.handle.send_chunk(ann.id(), &[], payload.clone()) {
            Ok(()) => tokio::time::sleep(Duration::from_millis(1)).await,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, SendError::QueueFull { .. }), "{full}");
    // As soon as the events are taken it moves on.
    let taken = ann.wait("chunk", |event| matches!(event, NetEvent::Chunk { .. }).then_some(()));
    taken.await;
}

#[tokio::test(flavor = "multi_thread")]
async fn goodbye_is_a_certain_loss_and_not_pursued() {
    let (mut ann, bob) = pair().await;
    let id = bob.id();
    bob.handle.shutdown().await;
    assert_eq!(ann.lost().await, (id, LossCause::Closed));
    ann.stays_alone(Duration::from_millis(500)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_last_handle_says_goodbye() {
    let (mut ann, bob) = pair().await;
    let id = bob.id();
    drop(bob.handle);
    assert_eq!(ann.lost().await, (id, LossCause::Closed));
}

#[tokio::test(flavor = "multi_thread")]
async fn links_tell_their_state() {
    let (ann, bob) = pair().await;
    let links = ann.handle.links();
    let link = links.first().expect("one link");
    assert_eq!((links.len(), link.peer, link.remote), (1, bob.id(), bob.bulk()));
    assert!(link.rtt > Duration::ZERO && link.rtt < Duration::from_secs(1));
    assert!(link.sent_bytes > 0 && link.received_bytes > 0 && link.mtu_bytes >= 1200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_required_port_in_use_is_an_error_and_a_preferred_one_is_replaced() {
    let ann = start(config(1, &[])).await;

    let mut control = config(1, &[]);
    control.control_port = Port::Require(ann.control().port());
    let error = net::start(control.clone()).await.expect_err("the port is taken");
    assert!(matches!(error, NetError::PortInUse { .. }), "{error}");
    assert!(error.to_string().contains(&ann.control().port().to_string()), "{error}");

    let mut bulk = config(1, &[]);
    bulk.bulk_port = Port::Require(ann.bulk().port());
    let error = net::start(bulk.clone()).await.expect_err("the port is taken");
    assert!(error.to_string().contains(&ann.bulk().port().to_string()), "{error}");

    control.control_port = Port::Prefer(ann.control().port());
    control.bulk_port = Port::Prefer(ann.bulk().port());
    let bob = start(control).await;
    assert_ne!(bob.control().port(), ann.control().port());
    assert_ne!(bob.bulk().port(), ann.bulk().port());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unroutable_bootstrap_address_is_tried_again_and_reported() {
    let mut lonely = config(1, &[]);
    // Nobody listens on a privileged port here; the name can't exist (RFC 6761).
    lonely.bootstrap = vec![
        "127.0.0.1:9".parse().expect("an address"),
        "nowhere.invalid:4120".parse().expect("an address"),
    ];
    let mut node = start(lonely).await;
    let mut failures = [0, 0];
    while failures[0] < 3 || failures[1] < 3 {
        let (addr, reason) = node
            .wait("report", |event| match event {
                NetEvent::BootstrapFailed { addr, reason, .. } => Some((addr, reason)),
                _ => None,
            })
            .await;
        assert!(!reason.is_empty());
        failures[usize::from(addr.to_string().starts_with("nowhere"))] += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bootstrap_node_that_starts_later_is_found() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port();
    drop(taken);
    let mut early = config(1, &[]);
    early.bootstrap = vec![format!("127.0.0.1:{port}").parse().expect("an address")];
    let mut ann = start(early).await;
    ann.wait("failure", |e| matches!(e, NetEvent::BootstrapFailed { .. }).then_some(())).await;
    let mut late = config(1, &[]);
    late.control_port = Port::Require(port);
    let bob = start(late).await;
    assert_eq!(ann.connected().await, bob.id());
}
