//! Dropout whose mask is a function of the sample, whoever computes it.

use crate::op::ELEMENTS_PER_TASK;
use crate::primitive::philox::philox;
use crate::primitive::pool::{Pool, Shared};

/// Which mask.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// The job's seed.
    pub seed: u64,
    /// The operator within the program.
    pub node: u32,
    /// Probability that an element becomes zero, in `0..=1`.
    pub rate: f32,
}

/// `y = x / (1 - rate)` where the mask keeps the element, else zero. The gradient is the same
/// function of `dy`.
///
/// `samples` names the sample (its position in the order of training) of each of the equal parts
/// of `x`. The mask of an element is a function of seed, node, sample and place in the sample.
pub fn apply(pool: &Pool, dropout: &Dropout, samples: &[u64], x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    if x.is_empty() {
        return;
    }
    let len = x.len() / samples.len();
    assert_eq!(x.len(), len * samples.len(), "equal parts for all samples");
    // A multiple of four, so that each task begins with a whole block of random words.
    let each = ELEMENTS_PER_TASK;
    let tasks = len.div_ceil(each);
    let y = Shared::new(y);
    pool.run(samples.len() * tasks, &|task| {
        let (part, begin) = (task / tasks, task % tasks * each);
        let count = each.min(len - begin);
        let at = part * len + begin;
        // SAFETY: runs of different tasks do not overlap.
        let y = unsafe { y.run(at, count) };
        dropout.part(samples[part], begin, &x[at..at + count], y);
    });
}

impl Dropout {
    /// Elements `begin..` of a sample, `begin` a multiple of four.
    fn part(&self, sample: u64, begin: usize, x: &[f32], y: &mut [f32]) {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        // Words below the threshold drop: the rate as a share of 2^32.
        let threshold = (f64::from(self.rate) * 4_294_967_296.0) as u64;
        let scale = if self.rate < 1.0 { 1.0 / (1.0 - self.rate) } else { 0.0 };
        for (block, (x, y)) in x.chunks(4).zip(y.chunks_mut(4)).enumerate() {
            let place = (begin / 4 + block) as u32;
            let words = philox(key, [place, self.node, sample as u32, (sample >> 32) as u32]);
            for ((y, &x), word) in y.iter_mut().zip(x).zip(words) {
                *y = if u64::from(word) < threshold { 0.0 } else { x * scale };
            }
        }
    }
}
