//! Forward and gradient of each operator against `tests/reference/ops.safetensors`, which
//! `ops.py` beside it wrote.

use super::{assert_close, on_threads};
use p2ptrain_kernels::op::attention::{self, Attention, Gradients, Qkv};
use p2ptrain_kernels::op::conv2d::{self, Conv2d};
use p2ptrain_kernels::op::elementwise::{Binary, Chain, Input, Instr, Unary};
use p2ptrain_kernels::op::gelu::{self, Form};
use p2ptrain_kernels::op::matmul::{self, Matrix, Scratch, Size, Store};
use p2ptrain_kernels::op::pool2d::{self, Pool2d};
use p2ptrain_kernels::op::reduce::{self, Kind};
use p2ptrain_kernels::op::{embedding, layer_norm, rms_norm, softmax, softmax_xent};
use p2ptrain_kernels::optim::{self, AdamW};
use p2ptrain_kernels::primitive::pool::Pool;
use safetensors::SafeTensors;

const TOLERANCE: f32 = 3e-6;

/// The tensors of one case.
struct Case {
    file: Vec<u8>,
    name: String,
}

impl Case {
    fn f32(&self, tensor: &str) -> Vec<f32> {
        self.words(tensor).map(f32::from_bits).collect()
    }

    fn i32(&self, tensor: &str) -> Vec<i32> {
        self.words(tensor).map(|word| word as i32).collect()
    }

    fn words(&self, tensor: &str) -> impl Iterator<Item = u32> {
        let all = SafeTensors::deserialize(&self.file).expect("the reference file is well formed");
        let name = format!("{}/{tensor}", self.name);
        let view = all.tensor(&name).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (words, _) = view.data().as_chunks::<4>();
        words.iter().map(|&word| u32::from_le_bytes(word)).collect::<Vec<_>>().into_iter()
    }

    #[track_caller]
    fn check(&self, tensor: &str, got: &[f32]) {
        self.check_within(tensor, got, TOLERANCE);
    }

    #[track_caller]
    fn check_within(&self, tensor: &str, got: &[f32], tolerance: f32) {
        assert_close(&format!("{}/{tensor}", self.name), got, &self.f32(tensor), tolerance);
    }
}

/// The cases below a name, with the rest of their names.
fn cases(prefix: &str) -> Vec<(Case, String)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/ops.safetensors");
    let file = std::fs::read(path).expect("the reference file is in the repository");
    let all = SafeTensors::deserialize(&file).expect("the reference file is well formed");
    let prefix = format!("{prefix}/");
    let mut names: Vec<String> = all
        .names()
        .into_iter()
        .filter(|name| name.starts_with(&prefix))
        .filter_map(|name| name.rsplit_once('/').map(|(case, _)| case.to_owned()))
        .collect();
    names.sort();
    names.dedup();
    assert!(!names.is_empty(), "no case {prefix}");
    names
        .into_iter()
        .map(|name| {
            let rest = name[(prefix.len() - 1)..].trim_start_matches('/').to_owned();
            (Case { file: file.clone(), name }, rest)
        })
        .collect()
}

/// The numbers of a shape such as `3x17`.
fn numbers<const N: usize>(shape: &str) -> [usize; N] {
    let numbers: Vec<usize> =
        shape.split('x').map(|number| number.parse().expect("a number")).collect();
    numbers.try_into().expect("the numbers of a shape")
}

#[test]
fn layer_norm_with_and_without_beta() {
    for (prefix, has_beta) in [("layer_norm", true), ("layer_norm_no_beta", false)] {
        for (case, shape) in cases(prefix) {
            let [rows, columns] = numbers(&shape);
            let (x, gamma, dy) = (case.f32("x"), case.f32("gamma"), case.f32("dy"));
            let beta = has_beta.then(|| case.f32("beta"));
            let [y, dx, dgamma, dbeta, added] = on_threads(|pool| {
                let (mut y, mut mean, mut rstd) =
                    (vec![0.0; x.len()], vec![0.0; rows], vec![0.0; rows]);
                let beta = beta.as_deref();
                layer_norm::fwd(pool, &x, &gamma, beta, 1e-5, &mut y, &mut mean, &mut rstd);
                let mut dx = vec![f32::NAN; x.len()];
                let mut added = vec![1.0; x.len()];
                let (mut dgamma, mut dbeta) = (vec![0.0; columns], vec![0.0; columns]);
                layer_norm::bwd(
                    pool,
                    &x,
                    &gamma,
                    &mean,
                    &rstd,
                    &dy,
                    &mut dx,
                    false,
                    &mut dgamma,
                    beta.map(|_| &mut dbeta[..]),
                );
                let mut unused = dgamma.clone();
                layer_norm::bwd(
                    pool,
                    &x,
                    &gamma,
                    &mean,
                    &rstd,
                    &dy,
                    &mut added,
                    true,
                    &mut unused,
                    None,
                );
                [y, dx, dgamma, dbeta, added]
            });
            // One column: the difference to the mean is nothing but rounding.
            let tolerance = if columns == 1 { 1e-4 } else { 2e-5 };
            case.check("y", &y);
            case.check_within("dx", &dx, tolerance);
            case.check_within("dgamma", &dgamma, 1e-5);
            let without: Vec<f32> = added.iter().map(|x| x - 1.0).collect();
            case.check_within("dx", &without, tolerance);
            if has_beta {
                case.check("dbeta", &dbeta);
            }
        }
    }
}

#[test]
fn rms_norm_forward_and_gradient() {
    for (case, shape) in cases("rms_norm") {
        let [rows, columns] = numbers(&shape);
        let (x, gamma, dy) = (case.f32("x"), case.f32("gamma"), case.f32("dy"));
        let [y, dx, dgamma] = on_threads(|pool| {
            let (mut y, mut rstd) = (vec![0.0; x.len()], vec![0.0; rows]);
            rms_norm::fwd(pool, &x, &gamma, 1e-6, &mut y, &mut rstd);
            let (mut dx, mut dgamma) = (vec![f32::NAN; x.len()], vec![0.0; columns]);
            rms_norm::bwd(pool, &x, &gamma, &rstd, &dy, &mut dx, false, &mut dgamma);
            [y, dx, dgamma]
        });
        case.check("y", &y);
        case.check_within("dx", &dx, 1e-5);
        case.check_within("dgamma", &dgamma, 1e-5);
    }
}

#[test]
fn softmax_forward_and_gradient() {
    for (case, shape) in cases("softmax") {
        let [_, columns] = numbers(&shape);
        let (x, dy) = (case.f32("x"), case.f32("dy"));
        let [y, dx] = on_threads(|pool| {
            let (mut y, mut dx) = (x.clone(), x.clone());
            softmax::fwd(pool, columns, &x, &mut y);
            softmax::bwd(pool, columns, &y, &dy, &mut dx);
            [y, dx]
        });
        case.check("y", &y);
        case.check("dx", &dx);
    }
}

#[test]
fn reductions_over_either_axis() {
    for (name, kind) in [("sum", Kind::Sum), ("mean", Kind::Mean), ("amax", Kind::Max)] {
        for (case, shape) in cases(&format!("{name}1")) {
            let [rows, _] = numbers(&shape);
            let x = case.f32("x");
            let y = on_threads(|pool| {
                let mut y = vec![0.0; rows];
                reduce::last_axis(pool, kind, &x, &mut y);
                y
            });
            case.check("y", &y);
        }
        for (case, shape) in cases(&format!("{name}0")) {
            let [_, columns] = numbers(&shape);
            let x = case.f32("x");
            let y = on_threads(|pool| {
                let mut y = vec![1.0; columns];
                reduce::first_axis(pool, kind, &x, &mut y, true);
                y.iter().map(|y| y - 1.0).collect::<Vec<_>>()
            });
            case.check("y", &y);
        }
    }
}

#[test]
fn gelu_exact_and_by_tanh() {
    for (name, form) in [("gelu_exact", Form::Exact), ("gelu_tanh", Form::Tanh)] {
        for (case, _) in cases(name) {
            let (x, dy) = (case.f32("x"), case.f32("dy"));
            let [y, dx] = on_threads(|pool| {
                let (mut y, mut dx) = (x.clone(), x.clone());
                gelu::fwd(pool, form, &x, &mut y);
                gelu::bwd(pool, form, &x, &dy, &mut dx);
                [y, dx]
            });
            case.check_within("y", &y, 1e-6);
            case.check_within("dx", &dx, 1e-6);
        }
    }
}

#[test]
fn attention_causal_and_full() {
    for (name, causal) in [("attention_causal", true), ("attention_full", false)] {
        for (case, shape) in cases(name) {
            let [batch, tokens, heads, head_dim] = numbers(&shape);
            let scale = 1.0 / (head_dim as f32).sqrt();
            let shape = Attention { batch, tokens, heads, head_dim, causal, scale };
            let (qkv, dy) = (case.f32("qkv"), case.f32("dy"));
            let [y, dqkv] = on_threads(|pool| {
                let (mut y, mut lse) = (dy.clone(), vec![0.0; batch * heads * tokens]);
                let packed = Qkv::packed(&shape, &qkv);
                attention::fwd(pool, &shape, packed, &mut y, &mut lse);
                let mut dqkv = vec![f32::NAN; qkv.len()];
                let gradients = Gradients::Packed(&mut dqkv);
                attention::bwd(pool, &shape, packed, &y, &lse, &dy, gradients);
                [y, dqkv]
            });
            case.check("y", &y);
            case.check_within("dqkv", &dqkv, 1e-5);
        }
    }
}

#[test]
fn cross_entropy_and_its_gradient() {
    for (case, _) in cases("cross_entropy") {
        let (x, targets) = (case.f32("x"), case.i32("targets"));
        let counted = targets.iter().filter(|&&target| target >= 0).count();
        let [losses, forward_losses, dx] = on_threads(|pool| {
            let mut forward = vec![0.0; targets.len()];
            softmax_xent::fwd(pool, &x, &targets, &mut forward).expect("targets are classes");
            let (mut dx, mut losses) = (x.clone(), forward.clone());
            let scale = 1.0 / counted as f32;
            softmax_xent::fwd_bwd(pool, &mut dx, &targets, scale, &mut losses)
                .expect("targets are classes");
            [losses, forward, dx]
        });
        case.check("losses", &losses);
        case.check("losses", &forward_losses);
        case.check("dx", &dx);
    }
}

#[test]
fn embedding_with_positions() {
    for (case, _) in cases("embedding") {
        let (ids, table, dy) = (case.i32("ids"), case.f32("table"), case.f32("dy"));
        let positions = case.f32("positions");
        let columns = dy.len() / ids.len();
        let [y, dtable, dpositions] = on_threads(|pool| {
            let mut y = vec![0.0; dy.len()];
            embedding::fwd(pool, columns, &table, Some(&positions), &ids, &mut y)
                .expect("ids are rows");
            let (mut dtable, mut dpositions) = (vec![0.0; table.len()], vec![0.0; positions.len()]);
            embedding::bwd(pool, columns, &dy, &ids, &mut dtable).expect("ids are rows");
            embedding::bwd_positions(pool, columns, &dy, &mut dpositions);
            [y, dtable, dpositions]
        });
        case.check("y", &y);
        case.check("dtable", &dtable);
        case.check("dpositions", &dpositions);
    }
}

#[test]
fn linear_layer_as_three_products_and_a_column_sum() {
    for (case, shape) in cases("linear") {
        let [m, n, k] = numbers(&shape);
        let (x, w, bias, dy) = (case.f32("x"), case.f32("w"), case.f32("bias"), case.f32("dy"));
        let [y, dx, dw, dbias] = on_threads(|pool| {
            let scratch = &mut Scratch::default();
            let (mut y, mut dx, mut dw, mut dbias) =
                (dy.clone(), x.clone(), vec![0.0; w.len()], vec![0.0; n]);
            let (plain, transposed) = (Matrix::plain, Matrix::transposed);
            let size = Size { m, n, k };
            let store = Store::Bias(&bias);
            matmul::f32(pool, scratch, size, plain(&x), transposed(&w), &mut y, store);
            let size = Size { m, n: k, k: n };
            matmul::f32(pool, scratch, size, plain(&dy), plain(&w), &mut dx, Store::Set);
            let size = Size { m: n, n: k, k: m };
            matmul::f32(pool, scratch, size, transposed(&dy), plain(&x), &mut dw, Store::Add);
            reduce::first_axis(pool, Kind::Sum, &dy, &mut dbias, true);
            [y, dx, dw, dbias]
        });
        case.check_within("y", &y, 1e-5);
        case.check_within("dx", &dx, 1e-5);
        case.check_within("dw", &dw, 1e-5);
        case.check_within("dbias", &dbias, 1e-5);
    }
}

#[test]
fn unary_functions() {
    for (case, name) in cases("unary") {
        let op = match name.as_str() {
            "neg" => Unary::Neg,
            "abs" => Unary::Abs,
            "exp" => Unary::Exp,
            "ln" => Unary::Ln,
            "tanh" => Unary::Tanh,
            "sigmoid" => Unary::Sigmoid,
            "relu" => Unary::Relu,
            "erf" => Unary::Erf,
            "sqrt" => Unary::Sqrt,
            "rsqrt" => Unary::Rsqrt,
            "recip" => Unary::Recip,
            "square" => Unary::Square,
            other => panic!("no function {other}"),
        };
        let chain = Chain::new(vec![Instr::Input(0), Instr::Unary(op)]).expect("a good chain");
        let x = case.f32("x");
        let y = on_threads(|pool| {
            let mut y = vec![0.0; x.len()];
            chain.run(pool, &[Input::Full(&x)], &mut y, false);
            y
        });
        case.check_within("y", &y, 5e-7);
    }
}

#[test]
fn binary_functions() {
    for (case, name) in cases("binary") {
        let op = match name.as_str() {
            "add" => Binary::Add,
            "sub" => Binary::Sub,
            "mul" => Binary::Mul,
            "div" => Binary::Div,
            "max" => Binary::Max,
            "min" => Binary::Min,
            "pow" => Binary::Pow,
            other => panic!("no function {other}"),
        };
        let code = vec![Instr::Input(0), Instr::Input(1), Instr::Binary(op)];
        let chain = Chain::new(code).expect("a good chain");
        let (a, b) = (case.f32("a"), case.f32("b"));
        let y = on_threads(|pool| {
            let mut y = vec![0.0; a.len()];
            chain.run(pool, &[Input::Full(&a), Input::Full(&b)], &mut y, false);
            y
        });
        case.check_within("y", &y, 5e-7);
    }
}

#[test]
fn adamw_with_and_without_decay() {
    for (name, beta2, decay) in [("adamw", 0.95, true), ("adamw_no_decay", 0.999, false)] {
        for (case, _) in cases("optimizer").into_iter().filter(|(_, rest)| rest == name) {
            let gradients = case.f32("g");
            let [p, m, v] = on_threads(|pool| {
                let mut p = case.f32("p");
                let (mut m, mut v) = (vec![0.0; p.len()], vec![0.0; p.len()]);
                let adam = AdamW { beta1: 0.9, beta2, eps: 1e-8, weight_decay: 0.1 };
                for (index, g) in gradients.chunks_exact(p.len()).enumerate() {
                    // The scale undoes a factor of two: a power of two changes no bit.
                    let g: Vec<f32> = g.iter().map(|g| 2.0 * g).collect();
                    let step = index as u64 + 1;
                    optim::adamw(pool, &mut p, &g, &mut m, &mut v, 0.5, 1e-2, decay, step, &adam);
                }
                [p, m, v]
            });
            case.check_within("result", &p, 1e-6);
            case.check_within("state_exp_avg", &m, 1e-6);
            case.check_within("state_exp_avg_sq", &v, 1e-6);
        }
    }
}

#[test]
fn sgd_with_momentum() {
    for (name, nesterov, weight_decay) in [("sgd", false, 0.01), ("nesterov", true, 0.0)] {
        for (case, _) in cases("optimizer").into_iter().filter(|(_, rest)| rest == name) {
            let gradients = case.f32("g");
            let [p, m] = on_threads(|pool| {
                let mut p = case.f32("p");
                let mut m = vec![0.0; p.len()];
                for g in gradients.chunks_exact(p.len()) {
                    optim::sgd_momentum(
                        pool,
                        &mut p,
                        g,
                        &mut m,
                        1.0,
                        0.05,
                        0.9,
                        nesterov,
                        weight_decay,
                        true,
                    );
                }
                [p, m]
            });
            case.check_within("result", &p, 1e-6);
            case.check_within("state_momentum_buffer", &m, 1e-6);
        }
    }
}

#[test]
fn convolutions() {
    for (case, name) in cases("conv2d") {
        let plain = Conv2d {
            batch: 2,
            channels: 4,
            height: 7,
            width: 9,
            filters: 8,
            kernel: [3, 3],
            stride: [1, 1],
            padding: [1, 1],
            dilation: [1, 1],
            groups: 1,
        };
        let shape = match name.as_str() {
            "plain" => Conv2d { padding: [0, 0], ..plain },
            "padded" => plain,
            "strided" => Conv2d { stride: [2, 2], ..plain },
            "dilated" => Conv2d { padding: [2, 2], dilation: [2, 2], ..plain },
            "grouped" => Conv2d { groups: 2, ..plain },
            "depthwise" => Conv2d { groups: 4, stride: [2, 2], ..plain },
            "pointwise" => Conv2d {
                channels: 5,
                height: 4,
                width: 6,
                filters: 3,
                kernel: [1, 1],
                padding: [0, 0],
                ..plain
            },
            other => panic!("no convolution {other}"),
        };
        let (x, w, bias, dy) = (case.f32("x"), case.f32("w"), case.f32("bias"), case.f32("dy"));
        let [y, dx, dw, dbias] = on_threads(|pool| {
            let scratch = &mut Scratch::default();
            let (mut y, mut dx) = (dy.clone(), x.clone());
            conv2d::fwd(pool, scratch, &shape, &x, &w, Some(&bias), &mut y);
            let (mut dw, mut dbias) = (vec![0.0; w.len()], vec![0.0; bias.len()]);
            let (out_x, out_bias) = (Some(&mut dx[..]), Some(&mut dbias[..]));
            conv2d::bwd(pool, scratch, &shape, &x, &w, &dy, out_x, &mut dw, out_bias);
            [y, dx, dw, dbias]
        });
        case.check_within("y", &y, 1e-5);
        case.check_within("dx", &dx, 1e-5);
        case.check_within("dw", &dw, 1e-5);
        case.check_within("dbias", &dbias, 1e-5);
    }
}

#[test]
fn maximum_and_mean_of_windows() {
    let shape =
        Pool2d { planes: 6, height: 7, width: 8, kernel: [3, 2], stride: [2, 2], padding: [1, 1] };
    for (case, _) in cases("max_pool2d") {
        let (x, dy) = (case.f32("x"), case.f32("dy"));
        let (mut y, mut dx, mut pixels) = (dy.clone(), x.clone(), vec![0; dy.len()]);
        let pool = Pool::new(2);
        pool2d::max_fwd(&pool, &shape, &x, &mut y, &mut pixels);
        pool2d::max_bwd(&pool, &shape, &dy, &pixels, &mut dx);
        case.check("y", &y);
        case.check("dx", &dx);
    }
    for (case, _) in cases("avg_pool2d") {
        let (x, dy) = (case.f32("x"), case.f32("dy"));
        let (mut y, mut dx) = (dy.clone(), x.clone());
        let pool = Pool::new(2);
        pool2d::mean_fwd(&pool, &shape, &x, &mut y);
        pool2d::mean_bwd(&pool, &shape, &dy, &mut dx);
        case.check("y", &y);
        case.check("dx", &dx);
    }
}
