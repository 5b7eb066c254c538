//! N ranks of a ring with data, in any order of delivery: every rank ends with the same sum, bit for bit.

use std::collections::BTreeMap;

use proptest::prelude::*;

use p2ptrain_protocol::collective::{Accepted, Forward, Output, PieceId, RingAllReduce};
use p2ptrain_protocol::schedule::chunk_bounds;

/// One rank: its state machine, its buffers, and the payloads that it holds.
struct Rank {
    ring: RingAllReduce,
    local: Vec<f32>,
    out: Vec<f32>,
    payloads: BTreeMap<PieceId, Vec<f32>>,
    done: bool,
}

/// A piece on its way.
struct InFlight {
    from: u16,
    forward: Forward,
    payload: Vec<f32>,
}

/// Ranks, and what is on its way between them.
struct Swarm {
    ranks: Vec<Rank>,
    in_flight: Vec<InFlight>,
    elements_sent: Vec<usize>,
}

/// What can happen next.
#[derive(Clone, Copy, Debug)]
enum Event {
    LocalReady(usize),
    Deliver(usize),
}

impl Swarm {
    fn new(ranks: u16, len: usize, piece_len: usize) -> Self {
        let rank = |rank: u16| Rank {
            ring: RingAllReduce::with_pieces(rank, ranks, len, piece_len).expect("in bounds"),
            local: (0..len).map(|i| gradient(rank, i)).collect(),
            out: vec![f32::NAN; len],
            payloads: BTreeMap::new(),
            done: false,
        };
        Self {
            ranks: (0..ranks).map(rank).collect(),
            in_flight: Vec::new(),
            elements_sent: vec![0; ranks.into()],
        }
    }

    fn events(&self) -> Vec<Event> {
        let waiting = |&rank: &usize| !self.ranks[rank].ring.is_local_ready();
        let ready = (0..self.ranks.len()).filter(waiting).map(Event::LocalReady);
        ready.chain((0..self.in_flight.len()).map(Event::Deliver)).collect()
    }

    fn happen(&mut self, event: Event) {
        let index = match event {
            Event::LocalReady(index) => {
                self.ranks[index].ring.handle_local_ready();
                index
            }
            Event::Deliver(at) => {
                let InFlight { from, forward, payload } = self.in_flight.remove(at);
                let index = usize::from(forward.to);
                let rank = &mut self.ranks[index];
                let accepted = rank.ring.handle_piece(from, forward.piece, payload.len());
                let expected = match rank.ring.is_local_ready() {
                    true => Accepted::Now,
                    false => Accepted::AfterLocalReady,
                };
                assert_eq!(accepted, Ok(expected));
                rank.payloads.insert(forward.piece, payload);
                index
            }
        };
        self.drain(index);
    }

    fn drain(&mut self, index: usize) {
        let rank = &mut self.ranks[index];
        while let Some(output) = rank.ring.poll_output() {
            assert!(!rank.done, "{output:?} after the end");
            let mut take = |piece| rank.payloads.remove(&piece).expect("each piece comes out once");
            let sent = match output {
                Output::SendLocal { forward, range } => Some((forward, rank.local[range].to_vec())),
                Output::ReduceThenForward { piece, range, forward, complete } => {
                    let mut sum = take(piece);
                    sum.iter_mut().zip(&rank.local[range.clone()]).for_each(|(s, x)| *s += x);
                    if complete {
                        rank.out[range].copy_from_slice(&sum);
                    }
                    Some((forward, sum))
                }
                Output::StoreThenForward { piece, range, forward } => {
                    let sum = take(piece);
                    rank.out[range].copy_from_slice(&sum);
                    forward.map(|forward| (forward, sum))
                }
                Output::KeepLocal { range } => {
                    rank.out[range.clone()].copy_from_slice(&rank.local[range]);
                    None
                }
                Output::Done => {
                    rank.done = true;
                    None
                }
            };
            if let Some((forward, payload)) = sent {
                let from = rank.ring.rank();
                self.elements_sent[index] += payload.len();
                self.in_flight.push(InFlight { from, forward, payload });
            }
        }
    }

    /// Lets events happen until none is left, the next one chosen by `choose` among so many.
    fn run(&mut self, mut choose: impl FnMut(&[Event]) -> usize) {
        loop {
            let events = self.events();
            if events.is_empty() {
                break;
            }
            self.happen(events[choose(&events)]);
        }
    }

    /// All are done, hold the sum in the ring's order bit for bit, and sent what the formula says.
    fn check(&self, order: &str) {
        let n = self.ranks.len() as u16;
        let len = self.ranks[0].local.len();
        for chunk in 0..n {
            for i in chunk_bounds(len, n, chunk) {
                let terms = (0..n).map(|k| gradient((chunk + k) % n, i));
                let expected = terms.reduce(|sum, x| sum + x).expect("a rank");
                for rank in &self.ranks {
                    assert_eq!(
                        rank.out[i].to_bits(),
                        expected.to_bits(),
                        "{order}, {n} ranks: element {i} of {len}"
                    );
                }
            }
        }
        for (index, rank) in self.ranks.iter().enumerate() {
            assert!(
                rank.done && rank.ring.is_done(),
                "{order}: rank {index} of {n} waits for ever"
            );
            assert!(rank.payloads.is_empty());
            assert_eq!(rank.ring.missing_pieces(), 0);
            // All chunks but one in each phase: 2(n-1)/n of the data where the chunks are equal.
            let before = (index as u16 + 1) % n;
            let skipped = [before, (before + 1) % n].map(|c| chunk_bounds(len, n, c).len());
            let expected = if n == 1 { 0 } else { 2 * len - skipped.iter().sum::<usize>() };
            assert_eq!(self.elements_sent[index], expected);
            if n > 1 && len.is_multiple_of(n.into()) {
                assert_eq!(expected, 2 * (usize::from(n) - 1) * len / usize::from(n));
            }
        }
    }
}

/// Gradients of very different size, so that another order of summation would show.
fn gradient(rank: u16, i: usize) -> f32 {
    let x = (u32::from(rank) * 7919 + i as u32 * 104_729) % 1009;
    (x as f32 - 500.0) * [1.0, 1e-3, 1e4, 3e-7][(usize::from(rank) + i) % 4]
}

#[test]
fn adversarial_orders_end_with_the_same_sums() {
    type Choose = fn(&[Event]) -> usize;
    let last_ready = |events: &[Event]| {
        // Every gradient but the one of rank 0 is ready first; then the newest piece goes first.
        let other = |e: &Event| matches!(e, Event::LocalReady(rank) if *rank > 0);
        events.iter().position(other).unwrap_or(events.len() - 1)
    };
    let orders: [(&str, Choose); 4] = [
        ("oldest first", |_| 0),
        ("newest first", |events| events.len() - 1),
        ("pieces before gradients", |events| {
            events.iter().position(|e| matches!(e, Event::Deliver(_))).unwrap_or(0)
        }),
        ("rank 0 is ready last", last_ready),
    ];
    for n in 1..=8 {
        for len in [0, 1, 5, 8, 64, 103] {
            for (name, order) in orders {
                let mut swarm = Swarm::new(n, len, 5);
                swarm.run(order);
                swarm.check(name);
            }
        }
    }
}

/// Depth-first through the choices of small rings: all orders of two ranks with one and with two pieces a
/// chunk, and the first hundred thousand of three ranks.
#[test]
fn every_order_of_small_rings_ends_with_the_same_sums() {
    for (n, len, runs_max) in [(2, 2, u32::MAX), (2, 4, u32::MAX), (3, 3, 100_000)] {
        let mut path = Vec::new();
        for _ in 0..runs_max {
            let mut options = run_along(n, len, &mut path);
            // The deepest choice that has another option goes to it.
            while path.last().zip(options.last()).is_some_and(|(choice, of)| choice + 1 == *of) {
                path.pop();
                options.pop();
            }
            match path.last_mut() {
                Some(choice) => *choice += 1,
                None => break,
            }
        }
        assert_eq!(path.is_empty(), runs_max == u32::MAX);
    }
}

/// Runs a ring along a path of choices, which is continued with first choices where it ends. Returns how many
/// options there were at each.
fn run_along(n: u16, len: usize, path: &mut Vec<usize>) -> Vec<usize> {
    let mut swarm = Swarm::new(n, len, 1);
    let mut options = Vec::new();
    swarm.run(|events| {
        let at = options.len();
        options.push(events.len());
        if at == path.len() {
            path.push(0);
        }
        path[at]
    });
    swarm.check(&format!("choices {path:?}"));
    options
}

proptest! {
    #[test]
    fn random_orders_end_with_the_same_sums(
        n in 1_u16..9,
        len in 0_usize..150,
        piece_len in 1_usize..40,
        choices in prop::collection::vec(any::<prop::sample::Index>(), 1..60),
    ) {
        let mut swarm = Swarm::new(n, len, piece_len);
        let mut choices = choices.into_iter().cycle();
        swarm.run(|events| choices.next().expect("a cycle never ends").index(events.len()));
        swarm.check("random");
    }
}
