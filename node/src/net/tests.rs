//! Peers that go wrong in ways that the public interface can't: strangers inside TLS, members that
//! break the format.

use std::{net::Ipv4Addr, time::Duration};

use quinn::{ConnectionError, VarInt};
use tokio::sync::mpsc::Receiver;

use super::{
    bulk::{DialError, close, frame, handshake, handshake::Proven},
    *,
};

const PATIENCE: Duration = Duration::from_secs(10);

struct Victim {
    handle: NetHandle,
    events: Receiver<NetEvent>,
}

/// A peer of which only the bulk endpoint exists, so that a test decides what it says.
struct Rogue {
    identity: Identity,
    bulk: Arc<Bulk>,
}

fn secret(byte: u8) -> SwarmAccess {
    SwarmAccess::Secret(SwarmSecret::from_bytes([byte; 32]))
}

fn config(access: SwarmAccess) -> NetConfig {
    NetConfig {
        access,
        listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
        control_port: Port::Any,
        bulk_port: Port::Any,
        mdns: false,
        ..NetConfig::default()
    }
}

async fn victim() -> Victim {
    let (handle, events) = start(config(secret(1))).await.expect("starts");
    Victim { handle, events }
}

fn rogue(identity: Identity, access: &SwarmAccess) -> Rogue {
    let tuning = Tuning::default();
    let socket = tuning.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("binds");
    let member = handshake::Member::new(access, identity.peer_id(), Incarnation(1));
    let bulk = Bulk::new(socket, &identity, member, tuning).expect("starts");
    Rogue { identity, bulk: Arc::new(bulk) }
}

impl Victim {
    fn id(&self) -> PeerId {
        self.handle.peer_id()
    }

    fn bulk(&self) -> SocketAddr {
        self.handle.local_addrs().bulk[0]
    }

    async fn event(&mut self) -> NetEvent {
        let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
        event.expect("an event").expect("the network runs")
    }

    /// The network still does what it is for.
    async fn still_works(&mut self) {
        let mut good = config(secret(1));
        good.bootstrap =
            vec![self.handle.local_addrs().control[0].to_string().parse().expect("an address")];
        let (handle, events) = start(good).await.expect("starts");
        let mut other = Self { handle, events };
        loop {
            if let NetEvent::Connected { peer, .. } = other.event().await
                && peer == self.id()
            {
                break;
            }
        }
        let friend = &other.handle;
        friend.send(self.id(), "hello".into()).expect("queued");
        loop {
            if let NetEvent::Message { from, bytes } = self.event().await {
                assert_eq!((from, &bytes[..]), (friend.peer_id(), &b"hello"[..]));
                break;
            }
        }
    }
}

impl Rogue {
    fn id(&self) -> PeerId {
        self.identity.peer_id()
    }

    /// Goes through the handshake as a good member does.
    async fn join(&self, victim: &Victim) -> Proven {
        let mut proven = self.bulk.dial(victim.id(), &[victim.bulk()]).await.expect("joins");
        if proven.decides(self.id()) {
            proven.choose().await.expect("chooses");
        } else {
            proven.chosen().await.expect("is chosen");
        }
        proven
    }
}

/// A rogue member does something and must be disconnected for it, and nobody else.
async fn check_violation<F>(what: &str, act: impl FnOnce(Proven) -> F)
where
    F: Future<Output = Proven>,
{
    let mut victim = victim().await;
    let rogue = rogue(Identity::generate(), &secret(1));
    let proven = rogue.join(&victim).await;
    assert!(matches!(victim.event().await, NetEvent::Connected { .. }), "{what}");
    let proven = act(proven).await;
    loop {
        match victim.event().await {
            NetEvent::Lost { peer, cause, .. } => {
                assert_eq!((peer, cause), (rogue.id(), LossCause::Violation), "{what}");
                break;
            }
            // Well-formed frames before the wrong one arrive.
            NetEvent::Message { .. } | NetEvent::Chunk { .. } => {}
            event => panic!("{what}: {event:?}"),
        }
    }
    let closed = tokio::time::timeout(PATIENCE, proven.connection.closed()).await;
    assert_eq!(code(&closed.expect("is closed")), Some(close::VIOLATION), "{what}");

    let again = rogue.bulk.dial(victim.id(), &[victim.bulk()]).await;
    if let Ok(mut again) = again {
        let refused = if again.decides(rogue.id()) {
            again.connection.closed().await
        } else {
            let error = again.chosen().await.expect_err("barred");
            let handshake::HandshakeError::Connection(error) = error else { panic!("{error}") };
            error
        };
        assert_eq!(code(&refused), Some(close::VIOLATION), "{what}: barred for a while");
    }
    victim.still_works().await;
}

fn code(error: &ConnectionError) -> Option<u32> {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            u32::try_from(close.error_code.into_inner()).ok()
        }
        _ => None,
    }
}

async fn write_message(mut proven: Proven, bytes: &[u8], finish: bool) -> Proven {
    // The victim may close before all is written.
    let _ = proven.send.write_all(bytes).await;
    if finish {
        let _ = proven.send.finish();
    }
    proven
}

async fn write_chunk_stream(proven: Proven, bytes: &[u8], finish: bool) -> Proven {
    let mut stream = proven.connection.open_uni().await.expect("opens");
    let _ = stream.write_all(bytes).await;
    if finish {
        let _ = stream.finish();
    }
    // Dropping an unfinished stream would reset it, which is another case.
    std::mem::forget(stream);
    proven
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_message_streams_disconnect_their_sender() {
    let good = [&frame::message_head(Kind::Message, 2)[..], b"hi"].concat();
    let cases: [(&str, Vec<u8>, bool); 6] = [
        ("oversized", vec![0xff, 0xff, 0xff, 0x7f, 0], false),
        ("empty frame", vec![0; 5], false),
        ("unknown kind", vec![1, 0, 0, 0, 77], false),
        ("truncated", [&good[..], &good[..5]].concat(), true),
        ("ended", good.clone(), true),
        ("malformed presence", vec![4, 0, 0, 0, 1, 1, 2, 3], false),
    ];
    for (what, bytes, finish) in cases {
        check_violation(what, |proven| async move { write_message(proven, &bytes, finish).await })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_chunk_streams_disconnect_their_sender() {
    let good = [&frame::chunk_head(b"head", 4)[..], b"body"].concat();
    let mut random = vec![0; 100_000];
    blake3::Hasher::new().finalize_xof().fill(&mut random);
    let cases: [(&str, Vec<u8>, bool); 4] = [
        ("oversized header", vec![1, 1], false),
        ("oversized payload", vec![0, 0, 1, 0, 16, 0], false),
        ("truncated", [&good[..], &good[..9]].concat(), true),
        ("random", random, false),
    ];
    for (what, bytes, finish) in cases {
        check_violation(
            what,
            |proven| async move { write_chunk_stream(proven, &bytes, finish).await },
        )
        .await;
    }
    check_violation("reset stream", |proven| async move {
        let mut stream = proven.connection.open_uni().await.expect("opens");
        let _ = stream.write_all(&[1]).await;
        let _ = stream.reset(VarInt::from_u32(9));
        proven
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_request_disconnects_its_sender() {
    check_violation("request", |proven| async move {
        let (mut send, recv) = proven.connection.open_bi().await.expect("opens");
        let _ = send.write_all(&vec![0; REQUEST_BYTES_MAX + 1]).await;
        let _ = send.finish();
        drop(recv);
        proven
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_without_the_secret_is_refused_and_told_nothing() {
    let mut victim = victim().await;
    let stranger = rogue(Identity::generate(), &secret(2));
    let refused = stranger.bulk.dial(victim.id(), &[victim.bulk()]).await;
    let Err(DialError::Handshake(handshake::HandshakeError::Connection(error))) = refused else {
        panic!("not refused");
    };
    assert_eq!(code(&error), Some(close::STRANGER));

    // One that says nothing, and one that tries to skip the proof: no stream and no byte comes
    // back.
    for early in [&b""[..], &[0; 200]] {
        let connection =
            stranger.bulk.connect(victim.id(), &[victim.bulk()]).await.expect("TLS is open to all");
        let (mut send, mut recv) = connection.open_bi().await.expect("opens");
        send.write_all(early).await.expect("sends");
        let mut uni = connection.open_uni().await.expect("opens");
        uni.write_all(&frame::chunk_head(b"head", 0)).await.expect("sends");
        let mut byte = [0];
        assert!(recv.read_exact(&mut byte).await.is_err(), "nothing is told");
        assert!(connection.accept_uni().await.is_err());
    }
    assert!(victim.handle.links().is_empty());
    victim.still_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_proof_of_membership_is_refused() {
    let mut victim = victim().await;
    let member = Identity::generate();
    let rogue = rogue(member.clone(), &secret(1));
    let proof = handshake::Member::new(&secret(1), member.peer_id(), Incarnation(1));
    let first = rogue.bulk.connect(victim.id(), &[victim.bulk()]).await.expect("connects");
    let recorded = proof.hello(&first, victim.id());
    let second = rogue.bulk.connect(victim.id(), &[victim.bulk()]).await.expect("connects");
    let (mut send, _recv) = second.open_bi().await.expect("opens");
    send.write_all(&recorded).await.expect("sends");
    assert_eq!(code(&second.closed().await), Some(close::STRANGER));
    assert!(victim.handle.links().is_empty());
    victim.still_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_peer_is_refused_in_both_directions() {
    let mut victim = victim().await;
    let impostor = rogue(Identity::generate(), &secret(1));
    let wanted = Identity::generate().peer_id();
    // The victim looks for one peer and finds another, who even knows the secret.
    let (sender, mut admitted) = mpsc::channel(1);
    let accepting = tokio::spawn(Arc::clone(&impostor.bulk).accept(sender));
    victim.handle.connect(wanted, vec![impostor.bulk.local_addr().expect("bound")]);
    assert!(matches!(victim.event().await, NetEvent::Discovered { peer, .. } if peer == wanted));
    tokio::time::sleep(Duration::from_millis(1000)).await;
    assert!(victim.handle.links().is_empty());
    assert!(admitted.try_recv().is_err());
    accepting.abort();
    // The impostor looks for another peer at the victim's address.
    let error = impostor.bulk.dial(wanted, &[victim.bulk()]).await;
    let Err(error) = error.map(|_| ()) else { panic!("accepted") };
    assert!(error.to_string().contains("expected"), "{error}");
    victim.still_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_incarnation_takes_over_and_an_earlier_one_is_fenced() {
    let mut victim = victim().await;
    let identity = Identity::generate();
    let run = |incarnation| {
        let tuning = Tuning::default();
        let socket = tuning.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("binds");
        let member =
            handshake::Member::new(&secret(1), identity.peer_id(), Incarnation(incarnation));
        let bulk = Bulk::new(socket, &identity, member, tuning).expect("starts");
        Rogue { identity: identity.clone(), bulk: Arc::new(bulk) }
    };
    let (second, third) = (run(2), run(3));
    let old = second.join(&victim).await;
    assert!(matches!(victim.event().await, NetEvent::Connected { .. }));
    let new = third.join(&victim).await;
    let NetEvent::Lost { incarnation, cause, .. } = victim.event().await else { panic!("lost") };
    assert_eq!((incarnation, cause), (Incarnation(2), LossCause::Dead));
    let NetEvent::Connected { incarnation, .. } = victim.event().await else { panic!("back") };
    assert_eq!(incarnation, Incarnation(3));
    assert_eq!(code(&old.connection.closed().await), Some(close::SUPERSEDED));

    // The earlier run wakes up and comes back.
    let late = second.bulk.dial(victim.id(), &[victim.bulk()]).await;
    if let Ok(mut late) = late
        && !late.decides(identity.peer_id())
    {
        assert!(late.chosen().await.is_err());
    }
    assert_eq!(victim.handle.links().len(), 1);
    assert!(new.connection.close_reason().is_none());
}
