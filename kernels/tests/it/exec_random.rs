//! Random programs: the executor, with passes and planned memory, against the plain reference; and
//! programs altered on their way, which must be refused or run.

use p2ptrain_kernels::dtype::DType;
use p2ptrain_kernels::grad::differentiate;
use p2ptrain_kernels::program::op::{BinaryKind, Epilogue, Op, ReduceKind, UnaryKind};
use p2ptrain_kernels::program::reference::{Tensor, run};
use p2ptrain_kernels::program::{Builder, Init, Type, Value};
use p2ptrain_kernels::{Executor, Input, Params, Precision, Program, init_params};
use proptest::prelude::*;
use serde_json::Value as Json;

const UNARY: [UnaryKind; 8] = [
    UnaryKind::Tanh,
    UnaryKind::Sigmoid,
    UnaryKind::Neg,
    UnaryKind::GeluErf,
    UnaryKind::GeluTanh,
    UnaryKind::Scale(0.5),
    UnaryKind::Offset(0.25),
    UnaryKind::Relu,
];
const BINARY: [BinaryKind; 3] = [BinaryKind::Add, BinaryKind::Sub, BinaryKind::Mul];

/// Builds a program from random choices: each step applies an operator to earlier values.
struct Author {
    build: Builder,
    values: Vec<Value>,
    params: usize,
    tokens: Value,
}

impl Author {
    fn program(choices: &[(u8, u16, u16)]) -> Program {
        let mut build = Builder::new("random");
        build.begin_block("first");
        let tokens = build.input("tokens", Type::i32([6])).unwrap();
        let mut author = Self { build, values: Vec::new(), params: 0, tokens };
        let start = author.param(&[6, 4]);
        author.values.push(start);
        for (place, &(kind, a, b)) in choices.iter().enumerate() {
            if place == choices.len() / 2 {
                author.build.begin_block("second");
            }
            author.step(kind, usize::from(a), usize::from(b));
        }
        author.finish()
    }

    fn param(&mut self, shape: &[usize]) -> Value {
        self.params += 1;
        let init = Init::Normal { std: 0.5 };
        self.build.param(&format!("p{}", self.params), shape.to_vec(), init, true).unwrap()
    }

    fn pick(&self, choice: usize) -> Value {
        self.values[choice % self.values.len()]
    }

    fn step(&mut self, kind: u8, a: usize, b: usize) {
        let x = self.pick(a);
        let shape = self.build.shape(x);
        let (rank, last) = (shape.rank(), shape.last());
        let axis = b % rank;
        let result = match kind % 16 {
            0 | 1 => self.build.unary(UNARY[b % UNARY.len()], x),
            2..=4 => {
                // Where shapes do not broadcast, a parameter that does.
                let other = self.pick(b);
                let fits = shape.broadcast(&self.build.shape(other));
                let small = fits.is_some_and(|shape| shape.elements() <= 256);
                let other = if small { other } else { self.param(&[last]) };
                self.build.binary(BINARY[a % 3], x, other)
            }
            5 | 6 => {
                let w = self.param(&[4, last]);
                let bias = b.is_multiple_of(2).then(|| self.param(&[4]));
                self.build.linear(x, w, bias)
            }
            7 => {
                let gamma = self.param(&[last]);
                // Sometimes one parameter has both roles.
                let beta = [None, Some(gamma), Some(self.param(&[last]))][b % 3];
                self.build.layer_norm(x, gamma, beta, 1e-2)
            }
            8 => self.build.add(Op::Softmax, &[x]),
            9 => {
                let elements = shape.elements();
                let rows = [1, 2, elements][b % 3];
                let rows = if elements.is_multiple_of(rows) { rows } else { 1 };
                self.build.reshape(x, [rows, elements / rows])
            }
            10 => self.build.add(Op::Permute { axes: (0..rank).rev().collect() }, &[x]),
            11 => self.build.slice(x, axis, 0, shape[axis].div_ceil(2)),
            12 => self.build.add(Op::Concat { axis }, &[x, x]),
            13 => {
                let kind = if a.is_multiple_of(2) { ReduceKind::Mean } else { ReduceKind::Sum };
                self.build.reduce(kind, x, &[axis], true)
            }
            14 => {
                let table = self.param(&[3, 4]);
                self.build.add(Op::Embedding, &[table, self.tokens])
            }
            _ => {
                let gamma = self.param(&[last]);
                self.build.add(Op::RmsNorm { eps: 1e-2 }, &[x, gamma])
            }
        };
        let result = result.unwrap();
        if self.build.shape(result).elements() <= 256 {
            self.values.push(result);
        }
    }

    /// The loss reads the last values, so that most of the program matters.
    fn finish(mut self) -> Program {
        let mut loss: Option<Value> = None;
        for value in self.values.clone().into_iter().rev().take(3) {
            let flat = self.build.shape(value).elements();
            let flat = self.build.reshape(value, [1, flat]).unwrap();
            let w = self.build.shape(flat).last();
            let w = self.param(&[1, w]);
            let term = self.build.add(Op::Linear { epilogue: Epilogue::None }, &[flat, w]).unwrap();
            let term = self.build.reshape(term, []).unwrap();
            let term = self.build.unary(UnaryKind::Tanh, term).unwrap();
            loss = Some(match loss {
                Some(sum) => self.build.binary(BinaryKind::Add, sum, term).unwrap(),
                None => term,
            });
        }
        self.build.output("loss", loss.unwrap());
        self.build.finish().unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_programs_run_as_the_reference_says(
        choices in proptest::collection::vec(any::<(u8, u16, u16)>(), 1..14),
        seed in any::<u64>(),
    ) {
        let program = Author::program(&choices);
        let params = init_params(&program, seed);
        let tokens = [0, 2, 1, 1, 2, 2];
        let exact: Vec<Vec<f64>> = program
            .params()
            .iter()
            .map(|info| params.param(info).iter().map(|&x| f64::from(x)).collect())
            .collect();
        let both = differentiate(&program).unwrap();
        let expected = run(&both, &exact, &[Tensor::Index(tokens.to_vec())]);

        let mut executor = Executor::new(&program, 2, Precision::F32).unwrap();
        let mut grads = Params::zeros(&program);
        let mut blocks = Vec::new();
        let inputs = [Input::I32(&tokens)];
        let loss = executor
            .step(&params, &inputs, &mut grads.blocks, &mut |block, _| blocks.push(block))
            .unwrap();
        blocks.sort_unstable();
        prop_assert_eq!(blocks, (0..program.blocks().len()).collect::<Vec<_>>());
        let text = program.to_text();
        let wanted = expected.outputs[0][0];
        prop_assert!((f64::from(loss) - wanted).abs() < 1e-4, "{} or {}\n{}", loss, wanted, text);
        for (info, wanted) in program.params().iter().zip(&expected.grads) {
            let scale = wanted.iter().fold(1e-1, |scale: f64, x| scale.max(x.abs()));
            for (found, wanted) in grads.param(info).iter().zip(wanted) {
                let error = (f64::from(*found) - wanted).abs();
                prop_assert!(
                    error <= 1e-3 * scale,
                    "d{}: {} or {}\n{}", info.name, found, wanted, text
                );
            }
        }
    }
}

/// Encoded programs that together use every operator, forward and backward.
fn encoded() -> Vec<Vec<u8>> {
    let stored: Json = serde_json::from_str(include_str!("../reference/programs.json")).unwrap();
    let texts = stored["cases"].as_array().unwrap().iter().map(|case| case["program"].as_str());
    let programs = texts.map(|text| Program::parse_text(text.unwrap()).unwrap());
    programs
        .flat_map(|forward| [forward.encode(), differentiate(&forward).unwrap().encode()])
        .collect()
}

/// What a peer does with a program from elsewhere: check what it needs, and run it.
fn run_if_small(program: &Program) {
    const BYTES_MAX: usize = 1 << 20;
    let param_bytes = program.param_elements().saturating_mul(4);
    let input_elements = program.inputs().iter().map(|input| input.shape.elements());
    let input_bytes = input_elements.fold(0usize, usize::saturating_add).saturating_mul(4);
    let small = param_bytes < BYTES_MAX && input_bytes < BYTES_MAX;
    if !small || !Executor::bytes_needed(program).is_ok_and(|bytes| bytes < BYTES_MAX) {
        return;
    }
    let Ok(mut executor) = Executor::new(program, 1, Precision::F32) else { return };
    let (ints, floats) = (vec![0; input_bytes / 4], vec![0.5; input_bytes / 4]);
    let inputs: Vec<Input<'_>> = program
        .inputs()
        .iter()
        .map(|input| match input.dtype {
            DType::I32 => Input::I32(&ints[..input.shape.elements()]),
            DType::F32 => Input::F32(&floats[..input.shape.elements()]),
        })
        .collect();
    let params = init_params(program, 1);
    let mut grads = Params::zeros(program).blocks;
    let _ = executor.step(&params, &inputs, &mut grads, &mut |_, _| ());
    let _ = executor.evaluate(&params, &inputs);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20000))]

    #[test]
    fn altered_programs_are_refused_or_run(
        program in any::<prop::sample::Index>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..4),
    ) {
        thread_local! {
            static ENCODED: Vec<Vec<u8>> = encoded();
        }
        let mut bytes = ENCODED.with(|all| program.get(all).clone());
        for (place, value) in changes {
            let place = place.index(bytes.len());
            // Small numbers are what makes other valid shapes, axes and references.
            bytes[place] = value;
        }
        if let Ok(program) = Program::decode(&bytes) {
            run_if_small(&program);
        }
    }
}
