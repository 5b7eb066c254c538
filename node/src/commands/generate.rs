//! `p2ptrain generate`: text from a trained model.

use std::io::{self, Read as _, Write as _};
use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::Context as _;
use p2ptrain_kernels::model::{self, GenerateError, Sampling, generate_each};
use p2ptrain_kernels::{Executor, Params};
use serde_json::json;

use super::export::Weights;
use crate::cli::{ExitKind, GenerateArgs, Global, Output, UsageError};
use crate::profile;
use crate::runtime::prepare::{gpt_config, precision_of};

/// Bytes of a prompt. A model sees far less of it.
const PROMPT_BYTES_MAX: u64 = 1 << 20;

/// Continues a prompt.
///
/// # Errors
/// There is no good checkpoint, or its model does not know the prompt's bytes.
pub(super) async fn generate(global: &Global, args: &GenerateArgs) -> anyhow::Result<ExitKind> {
    let prompt = read_prompt(&args.prompt)?;
    let Weights { job, step, params, .. } =
        Weights::of_checkpoint(global, args.checkpoint.as_deref())?;
    let tokens = tokens_of(&prompt, job.model.vocab())?;
    let program = model::gpt(&gpt_config(&job), 1)?;
    let threads = args.threads.map_or_else(profile::usable_cores, usize::from);
    let mut executor = Executor::inference(&program, threads, precision_of(&job))?;
    let sampling = Sampling {
        temperature: args.temperature,
        top_k: args.top_k.map_or(0, usize::from),
        seed: args.seed,
    };

    let output = Output::new(global);
    let started = Instant::now();
    let mut writer = Writer::new(!output.json);
    writer.show(&printable(&String::from_utf8_lossy(&prompt)));
    let count = args.tokens as usize;
    let written = write(&mut executor, &params, &tokens, count, &sampling, &mut writer)?;
    let seconds = started.elapsed().as_secs_f64();
    let text = writer.finish()?;
    if output.json {
        output.json_line(&json!({
            "prompt": String::from_utf8_lossy(&prompt),
            "text": text,
            "tokens": written,
            "seconds": seconds,
            "job": job.name,
            "step": step.0,
        }))?;
    }
    Ok(ExitKind::Success)
}

/// Generates into `writer` and returns the number of tokens.
fn write(
    executor: &mut Executor,
    params: &Params,
    prompt: &[i32],
    count: usize,
    sampling: &Sampling,
    writer: &mut Writer,
) -> Result<usize, GenerateError> {
    let mut on_token = |token: i32| {
        writer.token(token);
        if writer.ended() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    generate_each(executor, params, prompt, count, sampling, &mut on_token)
        .map(|tokens| tokens.len())
}

fn read_prompt(arg: &str) -> anyhow::Result<Vec<u8>> {
    let prompt = if arg == "-" {
        let mut bytes = Vec::new();
        let stdin = io::stdin().lock();
        stdin
            .take(PROMPT_BYTES_MAX + 1)
            .read_to_end(&mut bytes)
            .context("cannot read the prompt from stdin")?;
        bytes
    } else {
        arg.as_bytes().to_vec()
    };
    if prompt.is_empty() {
        return Err(UsageError("the prompt is empty: there is nothing to continue".into()).into());
    }
    if prompt.len() as u64 > PROMPT_BYTES_MAX {
        let text = format!("the prompt is too long: at most {PROMPT_BYTES_MAX} bytes");
        return Err(UsageError(text).into());
    }
    Ok(prompt)
}

/// Tokens are bytes; a model may know fewer of them.
fn tokens_of(prompt: &[u8], vocab: u32) -> anyhow::Result<Vec<i32>> {
    let unknown = prompt.iter().enumerate().find(|(_, byte)| u32::from(**byte) >= vocab);
    if let Some((at, byte)) = unknown {
        let text = format!(
            "the prompt's byte {at} is {byte}, and the model knows bytes below {vocab} only"
        );
        return Err(UsageError(text).into());
    }
    Ok(prompt.iter().map(|byte| i32::from(*byte)).collect())
}

/// Collects text, and shows it at once where that is wanted.
struct Writer {
    shows: bool,
    text: String,
    decoder: Decoder,
    /// How stdout refused what was shown.
    failed: Option<io::Error>,
}

impl Writer {
    fn new(shows: bool) -> Self {
        Self { shows, text: String::new(), decoder: Decoder::default(), failed: None }
    }

    /// Whether nobody reads on.
    fn ended(&self) -> bool {
        self.failed.is_some()
    }

    fn token(&mut self, token: i32) {
        let text = match u8::try_from(token) {
            Ok(byte) => self.decoder.push(byte),
            // A vocabulary may be larger than that of bytes, which is all the data has.
            Err(_) => self.decoder.finish() + "\u{FFFD}",
        };
        self.take(&text);
    }

    fn take(&mut self, text: &str) {
        self.text.push_str(text);
        self.show(&printable(text));
    }

    fn show(&mut self, text: &str) {
        if !self.shows || text.is_empty() || self.ended() {
            return;
        }
        let mut stdout = io::stdout().lock();
        self.failed = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).err();
    }

    /// The text, with an end of line shown after it.
    fn finish(mut self) -> io::Result<String> {
        let rest = self.decoder.finish();
        self.take(&rest);
        self.show("\n");
        match self.failed {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(self.text),
        }
    }
}

/// UTF-8 from single bytes; what is none becomes U+FFFD, as in [`String::from_utf8_lossy`].
#[derive(Default)]
struct Decoder {
    /// The beginning of a character.
    pending: Vec<u8>,
}

impl Decoder {
    /// The text that is certain with this byte.
    fn push(&mut self, byte: u8) -> String {
        self.pending.push(byte);
        let mut text = String::new();
        while !self.pending.is_empty() {
            let error = match std::str::from_utf8(&self.pending) {
                Ok(whole) => {
                    text.push_str(whole);
                    self.pending.clear();
                    break;
                }
                Err(error) => error,
            };
            // Only the last byte is new, so that nothing before the error is valid by itself.
            let Some(wrong) = error.error_len() else { break };
            text.push('\u{FFFD}');
            self.pending.drain(..error.valid_up_to() + wrong);
        }
        text
    }

    /// What an unfinished character stands for.
    fn finish(&mut self) -> String {
        let unfinished = !std::mem::take(&mut self.pending).is_empty();
        if unfinished { "\u{FFFD}".to_owned() } else { String::new() }
    }
}

/// Text that a terminal shows and does not obey.
fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() && !matches!(c, '\n' | '\t') { '\u{FFFD}' } else { c };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(bytes: &[u8]) -> String {
        let mut decoder = Decoder::default();
        let mut text: String = bytes.iter().map(|byte| decoder.push(*byte)).collect();
        text.push_str(&decoder.finish());
        text
    }

    proptest! {
        #[test]
        fn bytes_become_the_same_text_one_by_one_as_at_once(
            bytes in proptest::collection::vec(prop_oneof![
                any::<u8>(), 0x80_u8..=0xbf, 0xc0_u8..=0xff,
            ], 0..40),
        ) {
            prop_assert_eq!(decode(&bytes), String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn valid_text_survives(text in ".{0,20}") {
            prop_assert_eq!(decode(text.as_bytes()), text);
        }
    }

    #[test]
    fn a_terminal_gets_no_commands() {
        assert_eq!(printable("a\x1b[2J\r\n\tb\u{9b}"), "a\u{FFFD}[2J\u{FFFD}\n\tb\u{FFFD}");
    }

    #[test]
    fn a_prompt_must_be_something_that_the_model_knows() {
        assert!(read_prompt("").is_err());
        assert_eq!(tokens_of(b"az", 256).expect("bytes"), [97, 122]);
        let error = tokens_of("aß".as_bytes(), 128).expect_err("128 tokens are ASCII");
        assert!(error.to_string().contains("byte 1 is 195"), "{error}");
    }
}
