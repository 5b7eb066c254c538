//! A whole GPT against PyTorch: logits, loss, every gradient, and fifty steps of AdamW.

use p2ptrain_kernels::model::{GptConfig, ModelError, gpt};
use p2ptrain_kernels::optim::{AdamW, adamw};
use p2ptrain_kernels::primitive::pool::Pool;
use p2ptrain_kernels::program::Init;
use p2ptrain_kernels::{Executor, Input, Params, Precision, Program, init_params};
use safetensors::SafeTensors;

const BATCH: usize = 3;

fn config(bias: bool, tied: bool) -> GptConfig {
    GptConfig { vocab: 29, block_size: 8, layers: 2, heads: 2, width: 16, bias, tied }
}

/// A stored run of PyTorch.
struct Stored<'a>(SafeTensors<'a>);

impl<'a> Stored<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let (_, metadata) = SafeTensors::read_metadata(bytes).unwrap();
        let torch = &metadata.metadata().as_ref().unwrap()["torch"];
        assert!(torch.starts_with("2.11"), "{torch}");
        Self(SafeTensors::deserialize(bytes).unwrap())
    }

    fn words(&self, name: &str) -> Vec<[u8; 4]> {
        let data = self.0.tensor(name).unwrap_or_else(|_| panic!("{name} is stored")).data();
        data.chunks_exact(4).map(|word| word.try_into().unwrap()).collect()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.words(name).into_iter().map(f32::from_le_bytes).collect()
    }

    fn ints(&self, name: &str) -> Vec<i32> {
        self.words(name).into_iter().map(i32::from_le_bytes).collect()
    }

    fn params(&self, program: &Program) -> Params {
        let mut params = Params::zeros(program);
        for info in program.params() {
            let values = self.floats(&format!("param.{}", info.name));
            params.param_mut(info).copy_from_slice(&values);
        }
        let stored = self.0.names().iter().filter(|name| name.starts_with("param.")).count();
        assert_eq!(stored, program.params().len(), "PyTorch's module has the same parameters");
        params
    }
}

fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1e-6, |scale: f32, x| scale.max(x.abs()));
    for (place, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs();
        assert!(error <= tolerance * scale, "{what}[{place}]: {found}, PyTorch has {expected}");
    }
}

fn check(bytes: &[u8], bias: bool, tied: bool) {
    let stored = Stored::new(bytes);
    let program = gpt(&config(bias, tied), BATCH).unwrap();
    let mut params = stored.params(&program);
    let (tokens, targets) = (stored.ints("tokens"), stored.ints("targets"));
    let losses = stored.floats("losses");
    let size = BATCH * 8;
    let mut executor = Executor::new(&program, 2, Precision::F32).unwrap();

    let logits = executor.logits(&params, &[Input::I32(&tokens[..size])]).unwrap();
    assert_close("logits", logits, &stored.floats("logits"), 1e-5);

    let pool = Pool::new(2);
    let adam = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
    let (mut m, mut v) = (Params::zeros(&program), Params::zeros(&program));
    for (step, &expected) in losses.iter().enumerate() {
        let place = step % (tokens.len() / size) * size;
        let inputs =
            [Input::I32(&tokens[place..place + size]), Input::I32(&targets[place..place + size])];
        let mut grads = Params::zeros(&program);
        let loss = executor.step(&params, &inputs, &mut grads.blocks, &mut |_, _| ()).unwrap();
        assert!((loss / expected - 1.0).abs() < 1e-4, "step {step}: {loss}, PyTorch {expected}");
        let evaluated = executor.evaluate(&params, &inputs).unwrap();
        assert!((loss / evaluated - 1.0).abs() < 1e-6, "{loss} {evaluated}");
        if step == 0 {
            for info in program.params() {
                let expected = stored.floats(&format!("grad.{}", info.name));
                assert_close(&info.name, grads.param(info), &expected, 1e-4);
            }
        }
        for info in program.params() {
            adamw(
                &pool,
                params.param_mut(info),
                grads.param(info),
                m.param_mut(info),
                v.param_mut(info),
                1.0,
                1e-3,
                info.decay,
                step as u64 + 1,
                &adam,
            );
        }
    }
}

#[test]
fn a_tied_gpt_trains_as_in_pytorch() {
    check(include_bytes!("../reference/gpt_tied.safetensors"), true, true);
}

#[test]
fn an_untied_gpt_without_biases_trains_as_in_pytorch() {
    check(include_bytes!("../reference/gpt_untied.safetensors"), false, false);
}

#[test]
fn parameters_have_nano_gpt_names_blocks_and_decay() {
    let program = gpt(&config(true, true), 2).unwrap();
    let names: Vec<&str> = program.params().iter().map(|info| info.name.as_str()).collect();
    assert_eq!(names[0], "transformer.wte.weight");
    assert!(names.contains(&"transformer.h.1.attn.c_attn.weight"));
    assert!(!names.contains(&"lm_head.weight"));
    let info = program.params().iter().find(|info| info.name.ends_with("h.1.mlp.c_proj.weight"));
    let info = info.unwrap();
    assert_eq!((info.block, info.shape.dims()), (2, &[16, 64][..]));
    assert_eq!(info.init, Init::Normal { std: 0.02 / 2.0 });
    for info in program.params() {
        assert_eq!(info.decay, info.shape.rank() >= 2, "{}", info.name);
    }
    let blocks: Vec<&str> = program.blocks().iter().map(|block| block.name.as_str()).collect();
    assert_eq!(blocks, ["embeddings", "h.0", "h.1", "head"]);
    let untied = gpt(&config(true, false), 2).unwrap();
    assert_eq!(untied.params().last().unwrap().name, "lm_head.weight");
    assert_eq!(untied.params().last().unwrap().block, 3);
}

#[test]
fn initial_values_are_the_same_on_every_cpu() {
    let program = gpt(&config(true, true), 2).unwrap();
    let params = init_params(&program, 42);
    let bytes: Vec<u8> = params.blocks.iter().flatten().flat_map(|x| x.to_le_bytes()).collect();
    // The hash is part of the contract between peers: if it changes, old and new peers differ.
    assert_eq!(
        blake3::hash(&bytes).to_hex().as_str(),
        "65b91366b34008b5993673a7b961b0c77ba62324282730d7a64715e1b235ffb9"
    );
    assert_ne!(params, init_params(&program, 43));
    let wte = params.param(&program.params()[0]);
    let mean = wte.iter().sum::<f32>() / wte.len() as f32;
    let square = wte.iter().map(|x| x * x).sum::<f32>() / wte.len() as f32;
    assert!(mean.abs() < 0.003 && (square.sqrt() - 0.02).abs() < 0.002, "{mean} {square}");
}

#[test]
fn impossible_models_are_refused() {
    let check = |config: GptConfig, expected: &str| {
        let error = gpt(&config, 2).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let base = config(true, true);
    check(GptConfig { heads: 3, ..base.clone() }, "3 heads do not divide a width of 16");
    check(GptConfig { vocab: 0, ..base.clone() }, "vocab must be at least 1");
    check(GptConfig { width: usize::MAX - 1, ..base.clone() }, "out of bounds");
    check(GptConfig { layers: usize::MAX, ..base.clone() }, "out of bounds");
    check(GptConfig { vocab: 1 << 40, ..base.clone() }, "out of bounds");
    let error = gpt(&base, 0).unwrap_err();
    assert_eq!(error, ModelError::Zero("batch"));
    assert!(gpt(&base, 1 << 40).is_err());
}
