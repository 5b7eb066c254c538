//! Shares follow the measured speed.

use p2ptrain_netsim::{Fault, NodeSpec, Scenario};

fn node(us_per_microbatch: u32) -> NodeSpec {
    NodeSpec { us_per_microbatch, ..NodeSpec::default() }
}

#[test]
fn a_node_of_triple_speed_computes_three_quarters() {
    let scenario = Scenario::new(1, 2).node(0, node(30_000)).node(1, node(10_000)).steps(40);
    let outcome = scenario.run().unwrap_or_else(|failure| panic!("{failure}"));
    let mut samples: Vec<u64> = outcome.ledger.samples_by_peer.values().copied().collect();
    samples.sort_unstable();
    // In the first step the newcomer fetches the state; the second is shared out evenly, since the
    // newcomer is not measured yet.
    assert_eq!(samples, [38 * 2 + 8 + 4, 38 * 6 + 4]);
}

#[test]
fn a_node_that_becomes_slow_hands_work_over() {
    let scenario =
        Scenario::new(1, 2).steps(60).fault(1_000_000, Fault::Slow { node: 1, percent: 300 });
    let outcome = scenario.run().unwrap_or_else(|failure| panic!("{failure}"));
    let mut samples: Vec<u64> = outcome.ledger.samples_by_peer.values().copied().collect();
    samples.sort_unstable();
    assert!(samples[0] < 180 && samples[1] > 300, "{samples:?}");
}
