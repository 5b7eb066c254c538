//! Which sample stands at which position: a stateless permutation of each epoch of the data.
//!
//! The samples of a job are one infinite sequence. Position p is place p % n of epoch p / n, and each epoch is
//! another permutation of the n samples. So any peer finds any sample without a table or a history: the plan
//! says who computes what, and nothing else (design invariant 6).

use std::num::NonZeroU64;
use std::ops::Range;

use crate::id::Step;

/// The sample at `place` of epoch `epoch`: a bijection of `0..n` for each seed and epoch.
///
/// # Panics
/// If `place` is not less than `n`.
///
/// ```
/// use p2ptrain_protocol::order::permute;
///
/// let mut samples: Vec<u64> = (0..5).map(|place| permute(7, 0, 5, place)).collect();
/// samples.sort();
/// assert_eq!(samples, [0, 1, 2, 3, 4]);
/// ```
pub fn permute(seed: u64, epoch: u64, n: u64, place: u64) -> u64 {
    assert!(place < n, "place {place} of {n} samples");
    if n == 1 {
        return 0;
    }
    let key = mix(mix(seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_add(epoch));
    let bits = u64::BITS - (n - 1).leading_zeros();
    // A permutation of 0..2^bits, applied until it leads back into 0..n. As 2^bits < 2n, that takes two
    // rounds on average; and as it runs along a cycle that holds `place` itself, it ends.
    let mut value = place;
    loop {
        value = feistel(key, bits, value);
        if value < n {
            return value;
        }
    }
}

/// Epoch of the data and place in it of a position of the sample sequence.
pub fn epoch_and_place(position: u64, n: NonZeroU64) -> (u64, u64) {
    (position / n, position % n)
}

/// The sample at a position of the sample sequence of `n` samples.
pub fn sample_at(seed: u64, n: NonZeroU64, position: u64) -> u64 {
    let (epoch, place) = epoch_and_place(position, n);
    permute(seed, epoch, n.get(), place)
}

/// The positions of one micro-batch: step s of `items` micro-batches of `samples_per_item` samples.
///
/// `None` where positions exceed 64 bits, or `item` is not less than `items`.
pub fn item_positions(
    step: Step,
    items: u32,
    samples_per_item: u32,
    item: u32,
) -> Option<Range<u64>> {
    if item >= items {
        return None;
    }
    let samples = u64::from(samples_per_item);
    let start = step.0.checked_mul(u64::from(items))?.checked_add(u64::from(item))?;
    let start = start.checked_mul(samples)?;
    Some(start..start.checked_add(samples)?)
}

/// Half-rounds of the Feistel network. Its halves differ by a bit at most, so six already mix well.
const HALF_ROUNDS: u64 = 8;

/// A keyed permutation of `0..2^bits`: an alternating Feistel network on the upper and the lower half.
/// Each half-round xors one half with a function of the other, and so undoes itself.
fn feistel(key: u64, bits: u32, value: u64) -> u64 {
    let low_bits = bits / 2;
    let (low_mask, high_mask) = ((1 << low_bits) - 1, (1 << (bits - low_bits)) - 1);
    let (mut low, mut high) = (value & low_mask, value >> low_bits);
    for round in 0..HALF_ROUNDS {
        let round_key = key.wrapping_add(round.wrapping_mul(0xd1b5_4a32_d192_ed03));
        if round % 2 == 0 {
            high ^= mix(round_key ^ low) & high_mask;
        } else {
            low ^= mix(round_key ^ high) & low_mask;
        }
    }
    high << low_bits | low
}

/// Finalizer of the splitmix64 generator: every bit of the input changes about half of the output's.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check_bijective(seed: u64, epoch: u64, n: u64) {
        let mut seen = vec![false; n as usize];
        for place in 0..n {
            let sample = permute(seed, epoch, n, place) as usize;
            assert!(!std::mem::replace(&mut seen[sample], true), "{sample} twice in {n}");
        }
    }

    #[test]
    fn every_small_size_and_those_around_powers_of_two_are_permuted() {
        let around = (3..=14).flat_map(|bits| [(1 << bits) - 1, 1 << bits, (1 << bits) + 1]);
        for n in (1..=300).chain(around) {
            for epoch in 0..3 {
                check_bijective(42, epoch, n);
            }
        }
    }

    #[test]
    fn the_order_is_fixed_for_good() {
        // A change here would read other data after a resume.
        let order = |epoch| (0..10).map(|place| permute(1, epoch, 10, place)).collect::<Vec<_>>();
        assert_eq!(order(0), ORDER_OF_EPOCH_0);
        assert_ne!(order(0), order(1));
        assert!(permute(1, 0, u64::MAX, u64::MAX - 1) < u64::MAX);
    }

    const ORDER_OF_EPOCH_0: [u64; 10] = [0; 10];

    #[test]
    fn each_place_gets_each_sample_about_equally_often() {
        for n in [3, 5, 10, 100] {
            let epochs = 20_000;
            for place in [0, n / 2, n - 1] {
                let mut counts = vec![0_u64; n as usize];
                for epoch in 0..epochs {
                    counts[permute(9, epoch, n, place) as usize] += 1;
                }
                let expected = epochs / n;
                // Five standard deviations of a binomial count.
                let allowed = 5 * (expected as f64).sqrt() as u64;
                for count in counts {
                    assert!(count.abs_diff(expected) <= allowed, "{count} of {expected}, n {n}");
                }
            }
        }
    }

    #[test]
    fn neighbours_do_not_stay_together() {
        let n = 10_000;
        let near = (1..n)
            .filter(|&place| permute(5, 0, n, place).abs_diff(permute(5, 0, n, place - 1)) <= 10)
            .count();
        // A random permutation has about 20 such pairs of ten thousand.
        assert!((5..50).contains(&near), "{near}");
    }

    #[test]
    fn positions_of_items_tile_the_sequence() {
        let mut end = 0;
        for step in 0..3 {
            for item in 0..4 {
                let positions = item_positions(Step(step), 4, 5, item).expect("small");
                assert_eq!(positions, end..end + 5);
                end += 5;
            }
        }
        assert_eq!(item_positions(Step(0), 4, 5, 4), None);
        assert_eq!(item_positions(Step(u64::MAX), 4, 5, 0), None);
        assert_eq!(item_positions(Step(u64::MAX / 20), 4, 5, 3), None);
    }

    proptest! {
        #[test]
        fn any_size_is_permuted(seed in any::<u64>(), epoch in any::<u64>(), n in 1_u64..5000) {
            check_bijective(seed, epoch, n);
        }

        #[test]
        fn large_sizes_stay_in_range(seed in any::<u64>(), n in 1..=u64::MAX, at in any::<u64>()) {
            prop_assert!(permute(seed, 0, n, at % n) < n);
        }

        #[test]
        fn an_epoch_of_positions_reads_each_sample_once(seed in any::<u64>(), n in 1_u64..200) {
            let n = NonZeroU64::new(n).expect("from 1");
            let mut samples: Vec<_> =
                (3 * n.get()..4 * n.get()).map(|position| sample_at(seed, n, position)).collect();
            samples.sort_unstable();
            prop_assert!(samples.into_iter().eq(0..n.get()));
        }
    }
}
