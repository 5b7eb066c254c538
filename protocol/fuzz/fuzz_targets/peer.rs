//! The step state machine hears anything from anybody in any order: it may refuse, stall or join again,
//! but never panics, and keeps what it holds in bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use p2ptrain_protocol::id::{Incarnation, JobId, PeerId, Step};
use p2ptrain_protocol::peer::{
    JobGeometry, Message, OrderId, OrderReport, Output, Peer, PieceHeader,
};
use p2ptrain_protocol::wire::{self, Kind};

/// Senders have the ids 0 to 2, this peer has id 1 or 3: so zeros, which fuzzers like, mean something.
#[derive(bincode::Decode)]
enum Event {
    Connected(u8),
    Lost(u8, bool),
    Message(u8, Message),
    Piece(u8, PieceHeader),
    /// The worker goes on.
    Work,
    Leave,
}

const OUTPUTS_MAX: usize = 100_000;

fuzz_target!(|data: &[u8]| {
    let Some((&[founder, members_min], rest)) = data.split_first_chunk::<2>() else { return };
    let Ok(events) = wire::from_bytes::<Vec<Event>>(Kind::Step, rest) else { return };
    let geometry = JobGeometry {
        job: JobId::from_bytes([0; 32]),
        micro_batches: 4,
        steps: 3,
        bucket_lens: vec![3, 0, 9],
        eval_every: 2,
        eval_items: 1,
        members_min: u32::from(members_min % 4),
    };
    let me = id(1 + (founder & 2));
    let mut peer = match founder & 1 {
        0 => Peer::found(me, Incarnation(0), geometry, Step(0)),
        _ => Peer::join(me, Incarnation(0), geometry),
    };
    let mut world = World::default();
    world.drain(&mut peer);
    for event in events {
        match event {
            Event::Connected(from) => peer.handle_connected(id(from % 3)),
            Event::Lost(from, certain) => peer.handle_lost(id(from % 3), certain),
            Event::Message(from, message) => peer.handle_message(id(from % 3), message),
            Event::Piece(from, header) => {
                let _ = peer.handle_piece(id(from % 3), header, 1);
            }
            Event::Work => world.work(&mut peer),
            Event::Leave => peer.leave(),
        }
        world.drain(&mut peer);
    }
});

fn id(number: u8) -> PeerId {
    PeerId::from_bytes([number; 32])
}

/// The worker behind the peer.
#[derive(Default)]
struct World {
    orders: Vec<OrderId>,
    fetches: Vec<Step>,
    commits: Vec<Step>,
}

impl World {
    fn drain(&mut self, peer: &mut Peer) {
        let mut outputs = 0;
        while let Some(output) = peer.poll_output() {
            outputs += 1;
            assert!(outputs < OUTPUTS_MAX, "one event gives bounded work");
            match output {
                Output::Compute { order, .. } => self.orders.push(order),
                Output::FetchState { step, .. } => self.fetches.push(step),
                Output::Commit(commit) if commit.apply => self.commits.push(commit.step),
                _ => {}
            }
        }
    }

    fn work(&mut self, peer: &mut Peer) {
        if let Some(step) = self.fetches.pop() {
            peer.handle_state(step);
        } else if let Some(step) = self.commits.pop() {
            peer.handle_applied(step, Vec::new());
        } else if !self.orders.is_empty() {
            let order = self.orders.remove(0);
            for bucket in 0..3 {
                peer.handle_bucket_ready(order, bucket);
            }
            peer.handle_computed(order, &OrderReport::default());
        }
    }
}
