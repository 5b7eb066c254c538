//! A run is named by its scenario and seed.

use p2ptrain_netsim::{LinkSpec, Scenario};

fn busy(seed: u64) -> Scenario {
    Scenario::new(seed, 4).link(LinkSpec::WIFI).steps(12).random_kills(4, 2_000_000)
}

#[test]
fn the_same_seed_gives_the_same_run_message_by_message() {
    for seed in 0..5 {
        let first = busy(seed).run().unwrap_or_else(|failure| panic!("{failure}"));
        let second = busy(seed).run().unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(first, second, "seed {seed}");
    }
}

#[test]
fn another_seed_gives_another_run() {
    let trace = |seed| busy(seed).run().unwrap_or_else(|failure| panic!("{failure}")).trace;
    assert_ne!(trace(1), trace(2));
}
