//! The executor's promises: memory, order of blocks, and refusal of bad input.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use p2ptrain_kernels::exec::training_program;
use p2ptrain_kernels::memory::unplanned_bytes;
use p2ptrain_kernels::model::{GptConfig, Sampling, generate, gpt};
use p2ptrain_kernels::program::{Builder, Init, Op, PoolKind, Type, UnaryKind, Window};
use p2ptrain_kernels::{ExecError, Executor, Input, Params, Precision, Program, init_params};

/// Counts allocations of the thread that asks for it.
struct Counting;

thread_local! {
    static COUNT: Cell<Option<usize>> = const { Cell::new(None) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get().map(|count| count + 1));
        // SAFETY: the caller's promise about the layout is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn config() -> GptConfig {
    GptConfig { vocab: 50, block_size: 16, layers: 2, heads: 2, width: 32, bias: true, tied: true }
}

fn batch(program: &Program, vocab: usize) -> (Vec<i32>, Vec<i32>) {
    let len = program.inputs()[0].shape.elements();
    let tokens = (0..len).map(|place| (place * 7 % vocab) as i32).collect();
    let targets = (0..len).map(|place| ((place * 7 + 7) % vocab) as i32).collect();
    (tokens, targets)
}

#[test]
fn a_steady_step_allocates_nothing() {
    for precision in [Precision::F32, Precision::Bf16] {
        let program = gpt(&config(), 2).unwrap();
        let mut executor = Executor::new(&program, 1, precision).unwrap();
        let params = init_params(&program, 1);
        let mut grads = Params::zeros(&program).blocks;
        let (tokens, targets) = batch(&program, 50);
        let inputs = [Input::I32(&tokens), Input::I32(&targets)];
        executor.step(&params, &inputs, &mut grads, &mut |_, _| ()).unwrap();
        let before = executor.memory_bytes();
        COUNT.set(Some(0));
        executor.step(&params, &inputs, &mut grads, &mut |_, _| ()).unwrap();
        let count = COUNT.take();
        assert_eq!(count, Some(0), "{precision:?}");
        assert_eq!(executor.memory_bytes(), before);
    }
}

#[test]
fn blocks_complete_in_backward_order_and_tied_embeddings_last() {
    let program = gpt(&config(), 2).unwrap();
    let mut executor = Executor::new(&program, 2, Precision::F32).unwrap();
    let params = init_params(&program, 1);
    let mut grads = Params::zeros(&program).blocks;
    let (tokens, targets) = batch(&program, 50);
    let mut order = Vec::new();
    let inputs = [Input::I32(&tokens), Input::I32(&targets)];
    let mut taken = vec![Vec::new(); grads.len()];
    executor
        .step(&params, &inputs, &mut grads, &mut |block, grad| {
            order.push(block);
            taken[block] = std::mem::take(grad);
        })
        .unwrap();
    assert_eq!(order, [3, 2, 1, 0]);
    for (block, info) in program.blocks().iter().enumerate() {
        assert_eq!(taken[block].len(), info.len);
        assert!(taken[block].iter().any(|&x| x != 0.0), "block {block}");
    }
}

#[test]
fn losses_and_gradients_do_not_depend_on_the_number_of_threads() {
    let program = gpt(&config(), 2).unwrap();
    let params = init_params(&program, 3);
    let (tokens, targets) = batch(&program, 50);
    let run = |threads| {
        let mut executor = Executor::new(&program, threads, Precision::F32).unwrap();
        let mut grads = Params::zeros(&program).blocks;
        let inputs = [Input::I32(&tokens), Input::I32(&targets)];
        let loss = executor.step(&params, &inputs, &mut grads, &mut |_, _| ()).unwrap();
        (loss.to_bits(), grads)
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(5));
}

#[test]
fn planning_saves_memory_and_never_holds_all_logits() {
    let large = GptConfig {
        vocab: 8192,
        block_size: 256,
        layers: 6,
        heads: 6,
        width: 384,
        bias: true,
        tied: true,
    };
    let program = training_program(&gpt(&large, 8).unwrap()).unwrap();
    let rows = 8 * 256;
    for node in program.nodes() {
        for output in &node.outputs {
            assert!(output.shape.elements() < rows * 8192, "{} {}", node.op.name(), output);
        }
    }
    let executor = Executor::new(&gpt(&large, 8).unwrap(), 1, Precision::F32).unwrap();
    let planned = executor.memory_bytes();
    // What PyTorch keeps for the backward: 16 activations of the residual stream's size a layer,
    // and besides them three times the logits.
    let stream = rows * 384 * 4;
    let pytorch = 6 * 16 * stream + 3 * rows * 8192 * 4;
    assert!(planned < pytorch, "{planned} of {pytorch}");
    assert!(planned * 10 < unplanned_bytes(&program) * 9, "{planned}");
}

#[test]
fn bad_input_is_refused_by_name_and_nothing_is_written() {
    let program = gpt(&config(), 2).unwrap();
    let mut executor = Executor::new(&program, 1, Precision::F32).unwrap();
    let params = init_params(&program, 1);
    let mut grads = Params::zeros(&program).blocks;
    let (tokens, targets) = batch(&program, 50);
    let mut check = |tokens: &[i32], targets: &[i32], expected: &str| {
        let inputs = [Input::I32(tokens), Input::I32(targets)];
        let error = executor.step(&params, &inputs, &mut grads, &mut |_, _| ()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(grads.iter().flatten().all(|&x| x == 0.0));
    };
    let mut wrong = tokens.clone();
    wrong[5] = 50;
    check(&wrong, &targets, "input tokens holds 50 at 5, allowed are 0..50");
    wrong[5] = -1;
    check(&wrong, &targets, "input tokens holds -1 at 5");
    let mut wrong = targets.clone();
    wrong[0] = -2;
    check(&tokens, &wrong, "input targets holds -2 at 0, allowed are -1..50");
    check(&tokens[1..], &targets, "input tokens must hold 32 elements of i32, holds 31");
    let inputs = [Input::I32(&tokens)];
    let error = executor.step(&params, &inputs, &mut grads, &mut |_, _| ()).unwrap_err();
    assert!(matches!(error, ExecError::InputCount { expected: 2, found: 1 }));
    grads[1].pop();
    let inputs = [Input::I32(&tokens), Input::I32(&targets)];
    let error = executor.step(&params, &inputs, &mut grads, &mut |_, _| ()).unwrap_err();
    assert!(matches!(error, ExecError::BlockLen { what: "gradients", block: 1, .. }), "{error}");
}

#[test]
fn generation_is_a_pure_function_of_params_prompt_and_seed() {
    let program = gpt(&config(), 1).unwrap();
    let params = init_params(&program, 5);
    let run = |threads, seed| {
        let mut executor = Executor::inference(&program, threads, Precision::F32).unwrap();
        let sampling = Sampling { temperature: 1.0, top_k: 20, seed };
        generate(&mut executor, &params, &[1, 2, 3], 30, &sampling).unwrap()
    };
    let first = run(1, 1);
    assert_eq!(first.len(), 30);
    assert!(first.iter().all(|token| (0..50).contains(token)));
    assert_eq!(first, run(2, 1));
    assert_ne!(first, run(1, 2));
}

#[test]
fn profiles_name_each_node_of_a_step() {
    let program = gpt(&config(), 2).unwrap();
    let mut executor = Executor::new(&program, 1, Precision::F32).unwrap();
    let params = init_params(&program, 1);
    let mut grads = Params::zeros(&program).blocks;
    let (tokens, targets) = batch(&program, 50);
    let inputs = [Input::I32(&tokens), Input::I32(&targets)];
    executor.step(&params, &inputs, &mut grads, &mut |_, _| ()).unwrap();
    assert!(executor.timings().iter().all(|timing| timing.calls == 0));
    executor.profile(true);
    executor.step(&params, &inputs, &mut grads, &mut |_, _| ()).unwrap();
    let timings = executor.timings();
    assert!(timings.iter().all(|timing| timing.calls == 1));
    assert!(timings.iter().any(|timing| timing.op == "attention_grad" && timing.flops > 0));
}

/// A contribution to a gradient that is a view (here the reshaped gradient of a reshaped weight)
/// was skipped with the views that cost nothing: the weight's other use alone was counted.
#[test]
fn a_weight_that_is_also_used_reshaped_gets_both_gradients() {
    let program = Program::parse_text(
        "program twice
block all
param w : f32[2,3] block=0 decay=true init=ones
param v : f32[1,6] block=0 decay=true init=ones
%0 = reshape(w) shape=[1,6] : f32[1,6] block=0
%1 = linear(%0, v) epilogue=none : f32[1,1] block=0
%2 = reshape(%1) shape=[] : f32[] block=0
%3 = reduce(w) kind=sum axes=[0,1] keep=false : f32[] block=0
%4 = binary(%2, %3) kind=add : f32[] block=0
output loss %4
",
    )
    .unwrap();
    let mut executor = Executor::new(&program, 1, Precision::F32).unwrap();
    let params = init_params(&program, 1);
    let mut grads = Params::zeros(&program).blocks;
    let loss = executor.step(&params, &[], &mut grads, &mut |_, _| ()).unwrap();
    assert_eq!(loss, 12.0);
    assert_eq!(grads[0], [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
}

#[test]
fn executors_move_between_threads_and_tell_what_they_need() {
    fn check<T: Send>(_: &T) {}
    let program = gpt(&config(), 2).unwrap();
    let executor = Executor::new(&program, 1, Precision::F32).unwrap();
    check(&executor);
    assert_eq!(Executor::bytes_needed(&program).unwrap(), executor.memory_bytes());
}

/// Tells bright top halves of images from bright bottom halves.
fn small_cnn(images: usize) -> Program {
    let mut build = Builder::new("cnn");
    build.begin_block("features");
    let x = build.input("images", Type::f32([images, 1, 8, 8])).unwrap();
    let labels = build.input("labels", Type::i32([images])).unwrap();
    let init = Init::Uniform { bound: 0.3 };
    let w = build.param("conv.weight", [4, 1, 3, 3], init, true).unwrap();
    let b = build.param("conv.bias", [4], Init::Zeros, false).unwrap();
    let window = Window { stride: 1, padding: 1 };
    let x = build.add(Op::Conv2d(window), &[x, w, b]).unwrap();
    let x = build.unary(UnaryKind::Relu, x).unwrap();
    let window = Window { stride: 4, padding: 0 };
    let x = build.add(Op::Pool2d { kind: PoolKind::Max, kernel: 4, window }, &[x]).unwrap();
    build.begin_block("head");
    let x = build.reshape(x, [images, 16]).unwrap();
    let w = build.param("head.weight", [2, 16], init, true).unwrap();
    let b = build.param("head.bias", [2], Init::Zeros, false).unwrap();
    let logits = build.linear(x, w, Some(b)).unwrap();
    let loss = build.add(Op::CrossEntropy, &[logits, labels]).unwrap();
    build.output("loss", loss);
    build.output("logits", logits);
    build.finish().unwrap()
}

#[test]
fn a_small_cnn_learns() {
    let program = small_cnn(6);
    let labels = [0, 1, 0, 1, 1, 0];
    let bright = |image: usize, row: usize| (row < 4) == (labels[image] == 0);
    let images: Vec<f32> = (0..6 * 64)
        .map(|place| {
            let (image, row) = (place / 64, place % 64 / 8);
            let noise = (place * 37 % 11) as f32 / 20.0;
            noise + if bright(image, row) { 1.0 } else { 0.0 }
        })
        .collect();
    let inputs = [Input::F32(&images), Input::I32(&labels)];
    let mut executor = Executor::new(&program, 2, Precision::F32).unwrap();
    let mut params = init_params(&program, 1);
    let before = executor.evaluate(&params, &inputs).unwrap();
    for _ in 0..60 {
        let mut grads = Params::zeros(&program).blocks;
        executor.step(&params, &inputs, &mut grads, &mut |_, _| ()).unwrap();
        for (p, g) in params.blocks.iter_mut().flatten().zip(grads.iter().flatten()) {
            *p -= 0.2 * g;
        }
    }
    let after = executor.evaluate(&params, &inputs).unwrap();
    assert!(after < before / 5.0, "{before} {after}");
    let logits = executor.logits(&params, &inputs[..1]).unwrap();
    for (logits, label) in logits.chunks_exact(2).zip(labels) {
        assert_eq!(i32::from(logits[1] > logits[0]), label);
    }
}
