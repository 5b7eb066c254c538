//! Links that are cut and heal. No step may be committed in two ways; and where one side of the cut may
//! go on, the job comes to its end, with the other side when the network heals.

use p2ptrain_netsim::{Outcome, Scenario};
use p2ptrain_node::effect::End;
use p2ptrain_protocol::peer::Notice;

fn run(scenario: Scenario) -> Outcome {
    scenario.run().unwrap_or_else(|failure| panic!("{failure}"))
}

#[test]
fn a_node_that_is_cut_off_stops_and_joins_again_when_the_network_heals() {
    for seed in 0..60 {
        let node = seed as usize % 3;
        let start_us = 200_000 + seed * 5_003 % 400_000;
        let scenario = Scenario::new(seed, 3).steps(120);
        let outcome = run(scenario.isolate(node, start_us..start_us + 4_000_000));
        assert_eq!(outcome.ends, [Some(End::Finished); 3], "seed {seed}");
        let stalled = outcome.notices.iter().filter(|(_, n)| matches!(n, Notice::Stalled { .. }));
        assert!(stalled.clone().all(|(who, _)| *who == node), "seed {seed}");
        assert_eq!(stalled.count(), 1, "seed {seed}: {:?}", outcome.notices);
    }
}

#[test]
fn two_nodes_without_a_link_are_never_two_jobs() {
    for seed in 0..60 {
        let scenario = Scenario::new(seed, 2).steps(60);
        let outcome = run(scenario.isolate(1, 300_000..5_000_000));
        assert_eq!(outcome.ledger.steps, 60, "seed {seed}");
    }
}

/// Where two nodes can't reach each other and a third reaches both, all of them may stall: each doubts
/// another one. That is safe, and the oracle sees to it; most of these runs go on all the same.
#[test]
fn links_that_come_and_go_do_not_split_the_job() {
    let (runs, mut ended) = (150, 0);
    for seed in 0..runs {
        let nodes = 3 + seed as usize % 3;
        let scenario = Scenario::new(seed, nodes).steps(60).random_cuts(4, 4_000_000);
        ended += u64::from(run(scenario.may_stall()).ledger.steps == 60);
    }
    assert!(2 * ended > runs, "only {ended} of {runs} runs came to their end");
}

#[test]
fn deaths_and_cuts_together_do_not_split_the_job() {
    for seed in 0..1_000 {
        let nodes = 3 + seed as usize % 3;
        let scenario = Scenario::new(seed, nodes).steps(60).random_cuts(3, 4_000_000);
        run(scenario.random_kills(4, 4_000_000).may_stall());
    }
}
