//! Strangers: other swarms, other software, noise.

use std::{io::Write, net::TcpStream, time::Duration};

use p2ptrain_node::{
    identity::Identity,
    net::{NetEvent, SwarmAccess},
};

use super::{Node, config, start};

/// A node that joins `node` and the failure that it reports.
async fn fails_to_join(mut joining: p2ptrain_node::net::NetConfig, node: &Node) -> (Node, String) {
    joining.bootstrap = vec![node.addr()];
    let mut stranger = start(joining).await;
    let reason = stranger
        .wait("failure", |event| match event {
            NetEvent::BootstrapFailed { reason, .. } => Some(reason),
            NetEvent::Connected { .. } => panic!("a stranger is connected"),
            _ => None,
        })
        .await;
    (stranger, reason)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_of_another_swarm_stays_out_and_learns_why() {
    let mut ann = start(config(1, &[])).await;
    let (mut eve, reason) = fails_to_join(config(2, &[]), &ann).await;
    assert!(reason.contains("another swarm"), "{reason}");
    // It finds out where the bulk plane is and tries that too.
    eve.handle.connect(ann.id(), vec![ann.bulk()]);
    ann.handle.connect(eve.id(), vec![eve.bulk()]);
    ann.stays_alone(Duration::from_millis(700)).await;
    eve.stays_alone(Duration::from_millis(100)).await;
    let bob = start(config(1, &[&ann])).await;
    assert_eq!(ann.connected().await, bob.id());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_allow_list_admits_those_on_it_and_nobody_else() {
    let (ann_key, bob_key) = (Identity::generate(), Identity::generate());
    let list = SwarmAccess::AllowList(vec![ann_key.peer_id(), bob_key.peer_id()]);
    let listed = |key: &Identity, bootstrap: &[&Node]| {
        let mut config = config(1, bootstrap);
        (config.identity, config.access) = (key.clone(), list.clone());
        config
    };
    let mut ann = start(listed(&ann_key, &[])).await;
    let mut bob = start(listed(&bob_key, &[&ann])).await;
    assert_eq!(ann.connected().await, bob.id());
    assert_eq!(bob.connected().await, ann.id());

    let mut eve = config(1, &[]);
    eve.access = SwarmAccess::AllowList(vec![ann_key.peer_id(), eve.identity.peer_id()]);
    eve.bootstrap = vec![ann.addr()];
    let mut eve = start(eve).await;
    eve.handle.connect(ann.id(), vec![ann.bulk()]);
    eve.stays_alone(Duration::from_millis(700)).await;
    assert_eq!(ann.handle.links().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_on_all_ports_changes_nothing() {
    let mut ann = start(config(1, &[])).await;
    let mut noise = vec![0; 200_000];
    let mut random = blake3::Hasher::new().finalize_xof();
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("binds");
    for round in 0..20 {
        random.fill(&mut noise);
        let mut stream = TcpStream::connect(ann.control()).expect("connects");
        // A valid start, an oversized length, and anything.
        let start: &[u8] = match round % 3 {
            0 => b"\x13/multistream/1.0.0\n",
            1 => b"\xff\xff\xff\xff\xff\xff",
            _ => b"",
        };
        let _ = stream.write_all(start).and_then(|()| stream.write_all(&noise));
        for bytes in [1, 20, 1200, 20_000] {
            for to in [ann.bulk(), ann.control()] {
                let _ = udp.send_to(&noise[..bytes], to);
            }
        }
        // A packet that looks like the start of a QUIC connection.
        noise[..6].copy_from_slice(&[0xc0, 0, 0, 0, 1, 8]);
        let _ = udp.send_to(&noise[..1200], ann.bulk());
    }
    let bob = start(config(1, &[&ann])).await;
    assert_eq!(ann.connected().await, bob.id());
}
