//! Which tokens are for training and which are held out, and where sample `i` of either begins.

use super::error::DataError;

/// The data is held out by regions of about this many tokens, so that both parts are text that
/// belongs together and see every part of the corpus.
const REGION_TOKENS: u64 = 64 * 1024;
/// Regions held out at least where the data allows: small data gets smaller regions.
const HELD_OUT_REGIONS: u64 = 4;

/// The samples of both parts: runs of tokens cut into windows that do not overlap.
///
/// A window has `block_size` tokens and one more as the last target, which may be the first of the
/// next window but never belongs to the other part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    block_size: u64,
    train: Part,
    held_out: Part,
}

/// Runs of tokens, each with the number of its first sample.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Part {
    runs: Vec<(u64, u64)>,
    samples: u64,
}

impl Part {
    fn add(&mut self, start: u64, end: u64, block_size: u64) {
        let samples = (end - start).saturating_sub(1) / block_size;
        if samples > 0 {
            self.runs.push((self.samples, start));
            self.samples += samples;
        }
    }

    fn token(&self, sample: u64, block_size: u64) -> u64 {
        assert!(sample < self.samples, "sample {sample} of {}", self.samples);
        let run = self.runs.partition_point(|(first, _)| *first <= sample) - 1;
        let (first, start) = self.runs[run];
        start + (sample - first) * block_size
    }
}

impl Split {
    /// Splits this many tokens, a function of these numbers alone.
    pub fn new(tokens: u64, block_size: u32, held_out_ppm: u32) -> Result<Self, DataError> {
        let block = u64::from(block_size);
        let ppm = u128::from(held_out_ppm);
        let held_out_tokens = (u128::from(tokens) * ppm / 1_000_000) as u64;
        let region =
            (held_out_tokens / HELD_OUT_REGIONS).clamp(block + 1, REGION_TOKENS.max(block + 1));
        let mut split =
            Self { block_size: block, train: Part::default(), held_out: Part::default() };
        // So many regions are held out among the first `regions`: the r-th is where this number rises.
        let held_before = |regions: u64| u128::from(regions) * ppm / 1_000_000;
        let mut run_start = 0;
        for r in 0..tokens.div_ceil(region) {
            if held_before(r + 1) > held_before(r) {
                let (start, end) = (r * region, tokens.min((r + 1) * region));
                split.train.add(run_start, start, block);
                split.held_out.add(start, end, block);
                run_start = end;
            }
        }
        split.train.add(run_start, tokens, block);
        let too_small = |part| {
            let held_out = f64::from(held_out_ppm) / 1e6;
            DataError::TooSmall { tokens, part, block_size, held_out }
        };
        if split.train.samples == 0 {
            return Err(too_small("training"));
        }
        if held_out_ppm > 0 && split.held_out.samples == 0 {
            return Err(too_small("held-out"));
        }
        Ok(split)
    }

    /// Number of training samples: one epoch.
    pub fn train_samples(&self) -> u64 {
        self.train.samples
    }

    /// Number of held-out samples.
    pub fn held_out_samples(&self) -> u64 {
        self.held_out.samples
    }

    /// First token of a training sample.
    ///
    /// # Panics
    /// If there is no such sample.
    pub fn train_token(&self, sample: u64) -> u64 {
        self.train.token(sample, self.block_size)
    }

    /// First token of a held-out sample.
    ///
    /// # Panics
    /// If there is no such sample.
    pub fn held_out_token(&self, sample: u64) -> u64 {
        self.held_out.token(sample, self.block_size)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Tokens that the inputs and targets of a part touch.
    fn touched(count: u64, block: u64, token: impl Fn(u64) -> u64) -> Vec<u64> {
        (0..count).flat_map(|sample| token(sample)..=token(sample) + block).collect()
    }

    #[test]
    fn no_token_is_in_both_parts_and_none_beyond_the_end() {
        for tokens in [3, 50, 64, 65, 1000, 4097, 200_000] {
            for block in [1_u32, 8, 16, 63] {
                for ppm in [0, 1, 10_000, 50_000, 333_333, 500_000] {
                    let Ok(split) = Split::new(tokens, block, ppm) else { continue };
                    let t = u64::from(block);
                    let train: BTreeSet<u64> =
                        touched(split.train_samples(), t, |i| split.train_token(i))
                            .into_iter()
                            .collect();
                    let held: BTreeSet<u64> =
                        touched(split.held_out_samples(), t, |i| split.held_out_token(i))
                            .into_iter()
                            .collect();
                    assert!(train.is_disjoint(&held), "{tokens} {block} {ppm}");
                    assert!(train.iter().chain(&held).all(|token| *token < tokens));
                    assert_eq!(split.held_out_samples() > 0, ppm > 0);
                }
            }
        }
    }

    #[test]
    fn the_held_out_share_is_about_what_was_asked_for() {
        for tokens in [100_000_u64, 1_000_000, 40_000_000] {
            for ppm in [10_000, 50_000, 200_000, 500_000] {
                let split = Split::new(tokens, 256, ppm).expect("enough data");
                let all = split.train_samples() + split.held_out_samples();
                let share = split.held_out_samples() as f64 / all as f64;
                let asked = f64::from(ppm) / 1e6;
                assert!((share / asked - 1.0).abs() < 0.35, "{tokens} {ppm}: {share}");
                assert!(all as f64 * 256.0 > 0.7 * tokens as f64, "{tokens} {ppm}: {all}");
            }
        }
    }

    #[test]
    fn without_held_out_data_every_whole_window_is_for_training() {
        let split = Split::new(1001, 10, 0).expect("enough data");
        assert_eq!((split.train_samples(), split.held_out_samples()), (100, 0));
        assert_eq!((split.train_token(0), split.train_token(99)), (0, 990));
    }

    #[test]
    fn too_little_data_says_which_part_lacks() {
        let part = |tokens, block, ppm| match Split::new(tokens, block, ppm) {
            Err(DataError::TooSmall { part, .. }) => part,
            other => panic!("{other:?}"),
        };
        assert_eq!(part(256, 256, 0), "training");
        assert_eq!(part(1, 1, 50_000), "training");
        assert_eq!(part(300, 256, 50_000), "held-out");
        assert!(Split::new(257, 256, 0).is_ok());
    }
}
