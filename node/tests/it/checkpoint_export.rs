//! A whole GPT from its job to a file that PyTorch loads.

use std::fs;
use std::path::Path;
use std::process::Command;

use p2ptrain_kernels::model::{GptConfig, gpt};
use p2ptrain_kernels::{Executor, Input, Precision, Program, init_params};
use p2ptrain_node::checkpoint::{Alias, export, export_metadata, import};
use p2ptrain_node::job::{GptSpec, JobSpec, ModelSpec};
use p2ptrain_protocol::id::Step;
use safetensors::tensor::SafeTensors;

use crate::data::folder;

/// A job of a small GPT, and its program for one sample.
fn small(bias: bool, tied: bool) -> (JobSpec, Program) {
    let spec = GptSpec { vocab: 256, block_size: 16, layers: 2, heads: 2, width: 32, bias, tied };
    let sizes = [spec.vocab, spec.block_size, spec.layers, spec.heads, spec.width];
    let [vocab, block_size, layers, heads, width] = sizes.map(|size| size as usize);
    let config = GptConfig { vocab, block_size, layers, heads, width, bias, tied };
    let program = gpt(&config, 1).expect("a small model");
    let elements: usize = program.blocks().iter().map(|block| block.len).sum();
    assert_eq!(elements as u64, spec.parameters());
    (JobSpec { model: ModelSpec::Gpt(spec), ..JobSpec::default() }, program)
}

#[test]
fn an_exported_gpt_has_the_names_of_the_pytorch_module() {
    let place = folder();
    let path = place.path().join("model.safetensors");
    let (job, program) = small(true, true);
    let params = init_params(&program, 1);
    let (aliases, about) = (Alias::of_model(&job.model), export_metadata(&job, Step(40)));
    export(&path, &params.blocks, program.params(), &aliases, &about).expect("writable");

    let bytes = fs::read(&path).expect("readable");
    let file = SafeTensors::deserialize(&bytes).expect("a whole file");
    let mut names = file.names();
    names.sort();
    let mut expected = vec!["lm_head.weight".to_owned()];
    for rest in ["ln_f.bias", "ln_f.weight", "wpe.weight", "wte.weight"] {
        expected.push(format!("transformer.{rest}"));
    }
    for part in ["attn.c_attn", "attn.c_proj", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj"] {
        for (layer, kind) in [(0, "bias"), (0, "weight"), (1, "bias"), (1, "weight")] {
            expected.push(format!("transformer.h.{layer}.{part}.{kind}"));
        }
    }
    expected.sort();
    assert_eq!(names, expected);
    let back = import(&path, program.blocks(), program.params(), &aliases).expect("the same model");
    assert_eq!(back, params.blocks);
}

/// With P2PTRAIN_PYTHON set to a Python that has torch and safetensors, PyTorch computes the logits
/// of the exported files. Elsewhere the files are written and nothing reads them.
#[test]
fn pytorch_computes_the_same_logits_from_an_exported_gpt() {
    for (bias, tied) in [(true, true), (false, false)] {
        let place = folder();
        let (model, expected) =
            (place.path().join("model.safetensors"), place.path().join("expected.json"));
        let (job, program) = small(bias, tied);
        let mut params = init_params(&program, 7);
        // Biases and norms of the start are zeros and ones, which would hide swapped ones.
        for (index, element) in params.blocks.iter_mut().flatten().enumerate() {
            *element += ((index * 7919) % 101) as f32 / 1000.0 - 0.05;
        }
        let tokens: Vec<i32> = (0..16).map(|i| (i * 37 + 11) % 256).collect();
        let mut executor = Executor::inference(&program, 1, Precision::F32).expect("a small model");
        let logits = executor.logits(&params, &[Input::I32(&tokens)]).expect("good tokens");
        assert!(logits.iter().all(|x| x.is_finite()) && logits.len() == 16 * 256);
        let json = serde_json::json!({ "tokens": [tokens], "logits": logits });
        fs::write(&expected, json.to_string()).expect("writable");
        let aliases = Alias::of_model(&job.model);
        let about = export_metadata(&job, Step(1));
        export(&model, &params.blocks, program.params(), &aliases, &about).expect("writable");
        let Some(python) = std::env::var_os("P2PTRAIN_PYTHON") else { continue };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/load_export.py");
        let output = Command::new(python).arg(script).args([model, expected]).output();
        let output = output.expect("P2PTRAIN_PYTHON is a program");
        let said =
            [output.stdout, output.stderr].map(|it| String::from_utf8_lossy(&it).into_owned());
        assert!(output.status.success(), "{said:?}");
        println!("{}", said[0]);
    }
}
