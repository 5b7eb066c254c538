//! Models built in: the GPT of the demo, and small networks for tests and examples.

use crate::program::{
    BinaryKind, Builder, Init, LOGITS, LOSS, Op, Program, SpecError, Type, UnaryKind, Value,
};

use thiserror::Error;

mod generate;
mod init;

pub use generate::{GenerateError, Sampling, generate, generate_each};
pub use init::{Params, init_params};

/// Layer-norm's epsilon, PyTorch's default.
const NORM_EPS: f32 = 1e-5;
/// Standard deviation of initial weights.
const INIT_STD: f32 = 0.02;

/// A GPT with nanoGPT's semantics: learned positions, pre-norm blocks, exact gelu, and parameter
/// names that a PyTorch module of the same structure loads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GptConfig {
    /// Number of tokens that exist.
    pub vocab: usize,
    /// Tokens of a sequence.
    pub block_size: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Attention heads, a divisor of `width`.
    pub heads: usize,
    /// Features of a token.
    pub width: usize,
    /// Whether linear layers and norms have a bias.
    pub bias: bool,
    /// Whether the head's weight is the token embedding.
    pub tied: bool,
}

/// Why a model cannot be built.
#[derive(Debug, Error, PartialEq)]
pub enum ModelError {
    /// A number that must be positive is zero.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// Heads do not divide the width.
    #[error("{heads} heads do not divide a width of {width}")]
    Heads {
        /// Number of heads.
        heads: usize,
        /// Features of a token.
        width: usize,
    },
    /// The numbers are larger than a program may be.
    #[error("the model is out of bounds: {0}")]
    Spec(#[from] SpecError),
}

/// The program of a GPT for micro-batches of `batch` sequences. Inputs are `tokens` and `targets`,
/// both i32 `[batch, block_size]` (a target of -1 does not count); outputs are `loss` and `logits`
/// `[batch, block_size, vocab]`. Block 0 holds the embeddings, blocks `1..=layers` the layers,
/// block `layers + 1` the final norm and the head.
pub fn gpt(config: &GptConfig, batch: usize) -> Result<Program, ModelError> {
    check(config, batch)?;
    let GptConfig { vocab, block_size, layers, width, bias, tied, .. } = *config;
    let mut model = Gpt { build: Builder::new("gpt"), config };
    model.build.begin_block("embeddings");
    let tokens = model.build.input("tokens", Type::i32([batch, block_size]))?;
    let targets = model.build.input("targets", Type::i32([batch, block_size]))?;
    let normal = Init::Normal { std: INIT_STD };
    let wte = model.build.param("transformer.wte.weight", [vocab, width], normal, true)?;
    let wpe = model.build.param("transformer.wpe.weight", [block_size, width], normal, true)?;
    let embedded = model.build.add(Op::Embedding, &[wte, tokens])?;
    let mut x = model.build.binary(BinaryKind::Add, embedded, wpe)?;
    for layer in 0..layers {
        x = model.layer(layer, x)?;
    }
    model.build.begin_block("head");
    x = model.norm("transformer.ln_f", x, bias)?;
    let head = if tied {
        wte
    } else {
        model.build.param("lm_head.weight", [vocab, width], normal, true)?
    };
    let logits = model.build.linear(x, head, None)?;
    let loss = model.build.add(Op::CrossEntropy, &[logits, targets])?;
    model.build.output(LOSS, loss);
    model.build.output(LOGITS, logits);
    Ok(model.build.finish()?)
}

fn check(config: &GptConfig, batch: usize) -> Result<(), ModelError> {
    let numbers = [
        ("vocab", config.vocab),
        ("block_size", config.block_size),
        ("layers", config.layers),
        ("heads", config.heads),
        ("width", config.width),
        ("batch", batch),
    ];
    if let Some((name, _)) = numbers.iter().find(|(_, value)| *value == 0) {
        return Err(ModelError::Zero(name));
    }
    if !config.width.is_multiple_of(config.heads) {
        return Err(ModelError::Heads { heads: config.heads, width: config.width });
    }
    // Far beyond the specification's bounds: keeps the products below from overflowing.
    let bounded = config.layers < crate::program::spec::BLOCKS_MAX
        && config.width <= crate::shape::DIM_MAX / 4;
    if !bounded {
        let (what, max) = ("layers or width units", crate::program::spec::BLOCKS_MAX);
        return Err(SpecError::TooMany { what, found: config.layers.max(config.width), max }.into());
    }
    Ok(())
}

struct Gpt<'a> {
    build: Builder,
    config: &'a GptConfig,
}

impl Gpt<'_> {
    fn layer(&mut self, layer: usize, x: Value) -> Result<Value, SpecError> {
        let GptConfig { layers, heads, width, bias, .. } = *self.config;
        self.build.begin_block(&format!("h.{layer}"));
        let name = |rest: &str| format!("transformer.h.{layer}.{rest}");
        // Each layer adds twice to the residual stream, whose variance this keeps constant.
        let residual = INIT_STD / (2.0 * layers as f32).sqrt();

        let normed = self.norm(&name("ln_1"), x, bias)?;
        let qkv = self.linear(&name("attn.c_attn"), normed, 3 * width, INIT_STD)?;
        let mixed = self.build.add(Op::Attention { heads, causal: true }, &[qkv])?;
        let projected = self.linear(&name("attn.c_proj"), mixed, width, residual)?;
        let x = self.build.binary(BinaryKind::Add, x, projected)?;

        let normed = self.norm(&name("ln_2"), x, bias)?;
        let wide = self.linear(&name("mlp.c_fc"), normed, 4 * width, INIT_STD)?;
        let active = self.build.unary(UnaryKind::GeluErf, wide)?;
        let projected = self.linear(&name("mlp.c_proj"), active, width, residual)?;
        self.build.binary(BinaryKind::Add, x, projected)
    }

    fn norm(&mut self, name: &str, x: Value, bias: bool) -> Result<Value, SpecError> {
        let width = self.build.shape(x).last();
        let gamma = self.build.param(&format!("{name}.weight"), [width], Init::Ones, false)?;
        let beta = if bias {
            Some(self.build.param(&format!("{name}.bias"), [width], Init::Zeros, false)?)
        } else {
            None
        };
        self.build.layer_norm(x, gamma, beta, NORM_EPS)
    }

    fn linear(
        &mut self,
        name: &str,
        x: Value,
        outputs: usize,
        std: f32,
    ) -> Result<Value, SpecError> {
        let inputs = self.build.shape(x).last();
        let init = Init::Normal { std };
        let weight = self.build.param(&format!("{name}.weight"), [outputs, inputs], init, true)?;
        let bias = if self.config.bias {
            Some(self.build.param(&format!("{name}.bias"), [outputs], Init::Zeros, false)?)
        } else {
            None
        };
        self.build.linear(x, weight, bias)
    }
}
