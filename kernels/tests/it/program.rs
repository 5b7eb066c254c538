//! Programs against PyTorch, finite differences, and hostile input.

use std::collections::BTreeMap;

use p2ptrain_kernels::exec::training_program;
use p2ptrain_kernels::grad::differentiate;
use p2ptrain_kernels::model::{GptConfig, gpt};
use p2ptrain_kernels::program::reference::{Results, Tensor, run};
use p2ptrain_kernels::{Executor, Input, Params, Precision, Program};
use proptest::prelude::*;
use serde_json::Value as Json;

/// A stored program with PyTorch's values.
struct Case {
    name: String,
    program: Program,
    params: Vec<Vec<f64>>,
    ints: Vec<Vec<i32>>,
    weights: Vec<f64>,
    result: Vec<f64>,
    loss: f64,
    grads: Vec<Vec<f64>>,
}

fn numbers(json: &Json) -> Vec<f64> {
    json.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn cases() -> Vec<Case> {
    let stored: Json = serde_json::from_str(include_str!("../reference/programs.json")).unwrap();
    assert!(stored["torch"].as_str().unwrap().starts_with("2.11"));
    stored["cases"].as_array().unwrap().iter().map(case).collect()
}

fn case(json: &Json) -> Case {
    let name = json["name"].as_str().unwrap().to_owned();
    let text = json["program"].as_str().unwrap();
    let program =
        Program::parse_text(text).unwrap_or_else(|error| panic!("{name}: {error}\n{text}"));
    let by_param = |key: &str| {
        program.params().iter().map(|info| numbers(&json[key][&info.name])).collect::<Vec<_>>()
    };
    let ints = program.inputs().iter().filter(|input| input.name != "weights").map(|input| {
        numbers(&json["ints"][&input.name]).iter().map(|&x| x as i32).collect::<Vec<_>>()
    });
    Case {
        params: by_param("params"),
        ints: ints.collect(),
        weights: numbers(&json["weights"]),
        result: numbers(&json["result"]),
        loss: json["loss"].as_f64().unwrap(),
        grads: by_param("grads"),
        name,
        program,
    }
}

impl Case {
    fn reference(&self, program: &Program, params: &[Vec<f64>]) -> Results<f64> {
        let mut inputs: Vec<Tensor<f64>> = self.ints.iter().cloned().map(Tensor::Index).collect();
        inputs.push(Tensor::Real(self.weights.clone()));
        run(program, params, &inputs)
    }
}

fn assert_close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1e-3, |scale: f64, x| scale.max(x.abs()));
    for (place, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs();
        assert!(error <= tolerance * scale, "{what}[{place}]: {found}, PyTorch has {expected}");
    }
}

#[test]
fn the_reference_and_every_gradient_rule_match_pytorch() {
    for case in cases() {
        let both = differentiate(&case.program).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let found = case.reference(&both, &case.params);
        assert_close(&format!("{} loss", case.name), &found.outputs[0], &[case.loss], 1e-6);
        assert_close(&format!("{} result", case.name), &found.outputs[1], &case.result, 1e-6);
        for (info, (grad, expected)) in
            both.params().iter().zip(found.grads.iter().zip(&case.grads))
        {
            assert_close(&format!("{} d{}", case.name, info.name), grad, expected, 1e-6);
        }
    }
}

#[test]
fn the_gradients_match_finite_differences() {
    for case in cases() {
        let both = differentiate(&case.program).unwrap();
        let grads = case.reference(&both, &case.params).grads;
        for (param, grad) in grads.iter().enumerate() {
            for place in 0..grad.len() {
                let step = 1e-5;
                let loss = |offset: f64| {
                    let mut params = case.params.clone();
                    params[param][place] += offset;
                    case.reference(&case.program, &params).outputs[0][0]
                };
                let slope = (loss(step) - loss(-step)) / (2.0 * step);
                let error = (slope - grad[place]).abs();
                let name = &both.params()[param].name;
                assert!(
                    error < 1e-6 * slope.abs().max(1.0),
                    "{} d{name}[{place}]: {} but the slope is {slope}",
                    case.name,
                    grad[place],
                );
            }
        }
    }
}

#[test]
fn the_passes_change_no_result() {
    for case in cases() {
        let plain = case.reference(&differentiate(&case.program).unwrap(), &case.params);
        let passed = training_program(&case.program).unwrap();
        passed.verify().unwrap();
        let found = case.reference(&passed, &case.params);
        assert_close(&case.name, &found.outputs[0], &plain.outputs[0], 1e-12);
        for (grad, expected) in found.grads.iter().zip(&plain.grads) {
            assert_close(&case.name, grad, expected, 1e-12);
        }
    }
}

#[test]
fn the_executor_matches_pytorch_for_every_operator() {
    for case in cases() {
        for (precision, tolerance) in [(Precision::F32, 1e-5), (Precision::Bf16, 0.06)] {
            check_executor(&case, precision, tolerance);
        }
    }
}

fn check_executor(case: &Case, precision: Precision, tolerance: f64) {
    let name = &case.name;
    let mut executor = Executor::new(&case.program, 2, precision).unwrap();
    let mut params = Params::zeros(&case.program);
    for (info, values) in case.program.params().iter().zip(&case.params) {
        let to = params.param_mut(info);
        to.iter_mut().zip(values).for_each(|(to, &from)| *to = from as f32);
    }
    let weights: Vec<f32> = case.weights.iter().map(|&x| x as f32).collect();
    let mut inputs: Vec<Input<'_>> = case.ints.iter().map(|ints| Input::I32(ints)).collect();
    inputs.push(Input::F32(&weights));
    let mut grads = Params::zeros(&case.program).blocks;
    let mut done = Vec::new();
    let loss =
        executor.step(&params, &inputs, &mut grads, &mut |block, _| done.push(block)).unwrap();
    assert_eq!(done, [0], "{name}: each block completes once");
    // A sum of weighted terms: its rounding is relative to them, not to itself.
    let scale = case.loss.abs().max(1.0);
    assert!((f64::from(loss) - case.loss).abs() < tolerance * scale * 10.0, "{name}: {loss}");
    let again = executor.evaluate(&params, &inputs).unwrap();
    assert!((again - loss).abs() <= 1e-5 * loss.abs().max(1.0), "{name}: {again} or {loss}");
    let all = Params { blocks: grads.clone() };
    for (info, expected) in case.program.params().iter().zip(&case.grads) {
        let found: Vec<f64> = all.param(info).iter().map(|&x| f64::from(x)).collect();
        assert_close(&format!("{name} d{} {precision:?}", info.name), &found, expected, tolerance);
    }
    // A second micro-batch adds to the first.
    executor.step(&params, &inputs, &mut grads, &mut |_, _| ()).unwrap();
    for (twice, once) in grads[0].iter().zip(&all.blocks[0]) {
        assert!((twice - 2.0 * once).abs() <= 1e-5 * once.abs().max(1e-3), "{name}");
    }
}

fn small_gpt() -> Program {
    let config = GptConfig {
        vocab: 11,
        block_size: 4,
        layers: 1,
        heads: 2,
        width: 8,
        bias: true,
        tied: true,
    };
    gpt(&config, 2).unwrap()
}

#[test]
fn binary_and_text_forms_round_trip() {
    let mut programs: Vec<Program> = cases().into_iter().map(|case| case.program).collect();
    programs.push(small_gpt());
    for program in programs {
        for program in [training_program(&program).unwrap(), program] {
            let bytes = program.encode();
            let decoded = Program::decode(&bytes).unwrap();
            assert_eq!(decoded, program);
            assert_eq!(decoded.encode(), bytes);
            let parsed = Program::parse_text(&program.to_text()).unwrap();
            assert_eq!(parsed, program);
            assert_eq!(parsed.id(), program.id());
        }
    }
}

#[test]
fn programs_that_differ_have_different_ids() {
    let ids: BTreeMap<String, String> =
        cases().into_iter().map(|case| (case.program.id().to_string(), case.name)).collect();
    assert_eq!(ids.len(), cases().len());
}

#[test]
fn text_errors_name_line_and_column() {
    let check = |text: &str, expected: &str| {
        let error = Program::parse_text(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(
        "program p\nblock b\nparam w : f32[2,x] block=0 decay=true init=zeros",
        "line 3, column 11",
    );
    check("program p\nfoo", "line 2, column 1");
    check("program p\nblock b\n%0 = relu(x)", "line 3, column 11");
    check(
        "program p\nblock b\ninput x : f32[2]\n%0 = relu(x) : f32[2] block=0",
        "unknown operator relu",
    );
    check(
        "program p\nblock b\ninput x : f32[2]\n%0 = unary(x) kind=no : f32[2] block=0",
        "attribute kind",
    );
    check(
        "program p\nblock b\ninput x : f32[2]\n%0 = softmax(x) : f32[3] block=0",
        "node 0 (softmax of (f32[2])): declares outputs (f32[3]), yields (f32[2])",
    );
    check("program p\nblock b\ninput x : f32[2] y", "line 3, column 18");
}

#[test]
fn trailing_bytes_and_other_versions_are_refused() {
    let mut bytes = small_gpt().encode();
    bytes.push(0);
    assert!(Program::decode(&bytes).unwrap_err().to_string().contains("1 bytes follow"));
    bytes[0] ^= 1;
    assert!(Program::decode(&bytes).unwrap_err().to_string().contains("not a program"));
}

#[test]
fn every_truncation_is_refused() {
    let bytes = small_gpt().encode();
    for len in 0..bytes.len() {
        assert!(Program::decode(&bytes[..len]).is_err(), "{len} of {} bytes", bytes.len());
    }
}

#[test]
fn every_flipped_bit_yields_an_error_or_another_valid_program() {
    let bytes = small_gpt().encode();
    let mut accepted = 0;
    for place in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[place] ^= 1 << bit;
            if let Ok(program) = Program::decode(&flipped) {
                program.verify().unwrap();
                assert_eq!(program.encode(), flipped, "equal programs have equal bytes");
                accepted += 1;
            }
        }
    }
    // Names, decay flags and the like may change; most of the structure may not.
    assert!(accepted < bytes.len() * 8 / 2, "{accepted} of {} accepted", bytes.len() * 8);
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut framed = b"p2pprog1".to_vec();
        framed.extend(&bytes);
        prop_assert!(Program::decode(&bytes).is_err());
        if let Ok(program) = Program::decode(&framed) {
            prop_assert_eq!(program.encode(), framed);
        }
    }

    #[test]
    fn overwritten_bytes_never_panic(
        places in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
    ) {
        let mut bytes = small_gpt().encode();
        for (place, value) in places {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        if let Ok(program) = Program::decode(&bytes) {
            prop_assert_eq!(program.encode(), bytes);
        }
    }

    #[test]
    fn random_text_never_panics(text in "(program|block|param|input|output|grad|%0|%1|=|\\(|\\)|:|,|f32\\[2\\]|[a-z]| |\n|é){0,40}") {
        let _ = Program::parse_text(&text);
    }
}
