//! Text generation: sampling from a model's logits.

use std::ops::ControlFlow;

use thiserror::Error;

use super::init::{Params, Stream};
use crate::exec::{ExecError, Executor, Input};

/// Stream of random numbers that sampling reads; far from those of parameters.
const SAMPLING_STREAM: u32 = u32::MAX;

/// How tokens are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 chooses the largest.
    pub temperature: f32,
    /// Only so many of the largest logits are considered; 0 means all.
    pub top_k: usize,
    /// Seed of the random numbers.
    pub seed: u64,
}

/// Why nothing can be generated.
#[derive(Debug, Error)]
pub enum GenerateError {
    /// There is nothing to continue.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The temperature is negative or not a number.
    #[error("temperature must be a finite number, at least 0, is {0}")]
    Temperature(f32),
    /// The executor's program is not a language model of one sequence.
    #[error("the program must take tokens [1, T] and yield logits [1, T, V]")]
    Model,
    /// The model cannot be run.
    #[error(transparent)]
    Exec(#[from] ExecError),
}

/// Continues `prompt` by `count` tokens: a pure function of parameters, prompt and sampling. The
/// model sees the last `T` tokens. `executor` runs a program of batch 1, such as
/// [`super::gpt`] builds; [`Executor::inference`] is enough.
pub fn generate(
    executor: &mut Executor,
    params: &Params,
    prompt: &[i32],
    count: usize,
    sampling: &Sampling,
) -> Result<Vec<i32>, GenerateError> {
    generate_each(executor, params, prompt, count, sampling, &mut |_| ControlFlow::Continue(()))
}

/// As [`generate`], and gives each token to `on_token` as soon as it is chosen; a break ends the
/// generation with the tokens so far.
pub fn generate_each(
    executor: &mut Executor,
    params: &Params,
    prompt: &[i32],
    count: usize,
    sampling: &Sampling,
    on_token: &mut dyn FnMut(i32) -> ControlFlow<()>,
) -> Result<Vec<i32>, GenerateError> {
    if prompt.is_empty() {
        return Err(GenerateError::EmptyPrompt);
    }
    let temperature = sampling.temperature;
    if !temperature.is_finite() || temperature < 0.0 {
        return Err(GenerateError::Temperature(temperature));
    }
    let shape = executor.logits_shape().ok_or(GenerateError::Model)?;
    let [1, time, vocab] = shape[..] else { return Err(GenerateError::Model) };
    let stream = Stream { seed: sampling.seed, stream: SAMPLING_STREAM };
    let mut tokens = prompt.to_vec();
    let mut window = vec![0; time];
    let mut ranked: Vec<(f32, usize)> = Vec::with_capacity(vocab);
    for place in 0..count {
        let seen = &tokens[tokens.len().saturating_sub(time)..];
        // What follows the last token is invisible to it, so that any filling does.
        window.fill(0);
        window[..seen.len()].copy_from_slice(seen);
        let last = seen.len() - 1;
        let logits = executor.logits(params, &[Input::I32(&window)])?;
        let row = &logits[last * vocab..][..vocab];
        ranked.clear();
        ranked.extend(row.iter().copied().zip(0..));
        // Largest first; equal ones by token, so that the order is defined.
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let [unit, _] = stream.units(place as u64);
        let token = choose(&ranked, sampling, unit) as i32;
        tokens.push(token);
        if on_token(token).is_break() {
            break;
        }
    }
    Ok(tokens.split_off(prompt.len()))
}

/// The token at `unit` of the cumulative distribution.
fn choose(ranked: &[(f32, usize)], sampling: &Sampling, unit: f64) -> usize {
    if sampling.temperature == 0.0 {
        return ranked[0].1;
    }
    let kept = if sampling.top_k == 0 { ranked.len() } else { sampling.top_k.min(ranked.len()) };
    let top = f64::from(ranked[0].0);
    let temperature = f64::from(sampling.temperature);
    let weight = |logit: f32| libm::exp((f64::from(logit) - top) / temperature);
    let total: f64 = ranked[..kept].iter().map(|&(logit, _)| weight(logit)).sum();
    let mut left = unit * total;
    for &(logit, token) in &ranked[..kept] {
        left -= weight(logit);
        if left < 0.0 {
            return token;
        }
    }
    ranked[kept - 1].1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temperature_zero_takes_the_largest_logit_and_top_k_one_as_well() {
        let ranked = [(3.0, 7), (1.0, 2), (0.5, 0)];
        let sampling = |temperature, top_k| Sampling { temperature, top_k, seed: 0 };
        assert_eq!(choose(&ranked, &sampling(0.0, 0), 0.99), 7);
        assert_eq!(choose(&ranked, &sampling(2.0, 1), 0.99), 7);
        assert_eq!(choose(&ranked, &sampling(1e6, 0), 0.99), 0);
    }
}
