//! Sweeps over seeds. What must hold in every run is the oracle's business; the tests add what a particular
//! fault must lead to. A failure prints its seed and the last events.

use p2ptrain_netsim::{Fault, LinkSpec, NodeSpec, Outcome, Scenario};
use p2ptrain_node::effect::End;
use p2ptrain_protocol::peer::Notice;

fn run(scenario: Scenario) -> Outcome {
    scenario.run().unwrap_or_else(|failure| panic!("{failure}"))
}

/// How many living nodes were taken for dead, or had to follow another group.
fn fenced(outcome: &Outcome) -> usize {
    outcome.notices.iter().filter(|(_, notice)| matches!(notice, Notice::Fenced { .. })).count()
}

#[test]
fn groups_of_every_small_size_train_to_the_end() {
    for nodes in 1..=6 {
        for seed in 0..10 {
            let outcome = run(Scenario::new(seed, nodes));
            assert_eq!(outcome.ends, vec![Some(End::Finished); nodes], "seed {seed}");
            assert_eq!((outcome.steps, outcome.ledger.steps), (11, 10), "seed {seed}");
            assert!(outcome.notices.is_empty(), "seed {seed}: {:?}", outcome.notices);
        }
    }
}

#[test]
fn a_death_at_any_moment_loses_and_doubles_nothing() {
    for seed in 0..200 {
        let nodes = 2 + seed as usize % 4;
        let at_us = 10_000 + seed * 4_321 % 900_000;
        let node = seed as usize / 4 % nodes;
        let outcome = run(Scenario::new(seed, nodes).fault(at_us, Fault::Kill { node }));
        assert_eq!(outcome.ledger.steps, 10, "seed {seed}");
    }
}

#[test]
fn nodes_that_die_and_return_all_the_time_do_not_disturb_the_result() {
    for (link, seeds) in [(LinkSpec::LOOPBACK, 100), (LinkSpec::LAN, 100), (LinkSpec::WIFI, 100)] {
        for seed in 0..seeds {
            let nodes = 2 + seed as usize % 4;
            let scenario = Scenario::new(seed, nodes).link(link).steps(15);
            let outcome = run(scenario.random_kills(6, 3_000_000));
            assert_eq!(outcome.ledger.steps, 15, "seed {seed}");
            assert_eq!(fenced(&outcome), 0, "seed {seed}: {:?}", outcome.notices);
        }
    }
}

#[test]
fn a_killed_node_returns_and_contributes() {
    for seed in 0..50 {
        let scenario = Scenario::new(seed, 3)
            .steps(40)
            .fault(300_000 + seed * 1_000, Fault::Kill { node: 1 })
            .fault(500_000 + seed * 1_000, Fault::Restart { node: 1 });
        let outcome = run(scenario);
        assert_eq!(outcome.ends, [Some(End::Finished); 3], "seed {seed}");
        assert_eq!(outcome.kill_to_commit_us.len(), 1, "seed {seed}");
    }
}

#[test]
fn after_a_kill_the_next_commit_comes_within_a_step_and_the_time_to_notice() {
    for seed in 0..100 {
        let at_us = 200_000 + seed * 7_919 % 300_000;
        let outcome = run(Scenario::new(seed, 2).fault(at_us, Fault::Kill { node: 1 }));
        // Eight micro-batches of 20 ms, all of which may fall to the survivor, and 50 ms to notice.
        let limit_us = 8 * 20_000 + 50_000 + 20_000;
        for took_us in &outcome.kill_to_commit_us {
            assert!(*took_us <= limit_us, "seed {seed}: {took_us} µs");
        }
    }
}

#[test]
fn a_leaver_finishes_its_step_and_nothing_is_done_again() {
    for seed in 0..50 {
        let at_us = 150_000 + seed * 3_000;
        let outcome = run(Scenario::new(seed, 3).fault(at_us, Fault::Leave { node: 2 }));
        assert_eq!(outcome.ends[..2], [Some(End::Finished); 2], "seed {seed}");
        assert_eq!(outcome.ledger.redone_steps, 0, "seed {seed}");
        let redone = outcome.notices.iter().any(|(_, n)| matches!(n, Notice::Redo { .. }));
        assert!(!redone, "seed {seed}: {:?}", outcome.notices);
    }
}

#[test]
fn a_late_node_joins_a_running_job() {
    for seed in 0..50 {
        let late = NodeSpec { starts_us: 400_000 + seed * 5_000, ..NodeSpec::default() };
        let scenario = Scenario::new(seed, 3).members_min(2).node(2, late).steps(30);
        let outcome = run(scenario);
        assert_eq!(outcome.ends, [Some(End::Finished); 3], "seed {seed}");
        assert_eq!(outcome.ledger.samples_by_peer.len(), 3, "seed {seed}");
        assert_eq!(fenced(&outcome), 0, "seed {seed}: {:?}", outcome.notices);
    }
}
