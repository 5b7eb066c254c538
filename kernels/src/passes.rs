//! Passes: from a program to an equal one that runs faster. The specification runs after each.
//!
//! Forward passes ([`fuse_gelu`], [`fuse_head`]) come before differentiation, so that gradient
//! rules of the fused operators apply; the others fit anywhere.

use std::collections::BTreeMap;

use crate::program::spec::{SpecError, infer};
use crate::program::{BinaryKind, Epilogue, Instr, Node, Op, Program, Type, UnaryKind, Value};

/// The program with only these of its outputs, and what they (and the gradients) need.
pub fn keep_outputs(program: &Program, names: &[&str]) -> Result<Program, SpecError> {
    let mut program = program.clone();
    program.outputs.retain(|output| names.contains(&output.name.as_str()));
    remove_dead(&program)
}

/// Removes nodes that no output and no gradient needs.
pub fn remove_dead(program: &Program) -> Result<Program, SpecError> {
    let mut live = vec![false; program.nodes.len()];
    let mark = |live: &mut Vec<bool>, value: Value| {
        if let Value::Node(node, _) = value {
            live[node as usize] = true;
        }
    };
    program.outputs.iter().for_each(|output| mark(&mut live, output.value));
    program.grads.iter().for_each(|grad| mark(&mut live, grad.value));
    for index in (0..program.nodes.len()).rev() {
        if live[index] {
            program.nodes[index].inputs.iter().for_each(|&value| mark(&mut live, value));
        }
    }
    let mut renumbered = vec![0; live.len()];
    let mut next = 0;
    for (number, &live) in renumbered.iter_mut().zip(&live) {
        *number = next;
        next += u32::from(live);
    }
    let mut result = program.clone();
    let mut live = live.iter();
    result.nodes.retain(|_| *live.next().expect("one flag a node"));
    map_values(&mut result, |value| match value {
        Value::Node(node, slot) => Value::Node(renumbered[node as usize], slot),
        other => other,
    });
    result.verify()?;
    Ok(result)
}

/// Computes equal nodes once.
pub fn share_common(program: &Program) -> Result<Program, SpecError> {
    let mut result = program.clone();
    let mut first: BTreeMap<String, u32> = BTreeMap::new();
    let mut same: Vec<u32> = (0..program.nodes.len() as u32).collect();
    for index in 0..result.nodes.len() {
        let node = &mut result.nodes[index];
        node.inputs.iter_mut().for_each(|value| *value = renumber(*value, &same));
        let key = format!("{} {:?} {:?}", node.op.name(), node.op.attributes(), node.inputs);
        same[index] = *first.entry(key).or_insert(index as u32);
    }
    map_values(&mut result, |value| renumber(value, &same));
    remove_dead(&result)
}

fn renumber(value: Value, numbers: &[u32]) -> Value {
    match value {
        Value::Node(node, slot) => Value::Node(numbers[node as usize], slot),
        other => other,
    }
}

/// Lets a linear layer apply the gelu that is its only reader.
pub fn fuse_gelu(program: &Program) -> Result<Program, SpecError> {
    let mut result = program.clone();
    let uses = Uses::of(program);
    let mut replaced = BTreeMap::new();
    for (index, node) in program.nodes.iter().enumerate() {
        let epilogue = match node.op {
            Op::Unary(UnaryKind::GeluErf) => Epilogue::GeluErf,
            Op::Unary(UnaryKind::GeluTanh) => Epilogue::GeluTanh,
            _ => continue,
        };
        let Value::Node(source, 0) = node.inputs[0] else { continue };
        let linear = &mut result.nodes[source as usize];
        if linear.op == (Op::Linear { epilogue: Epilogue::None }) && uses.once(node.inputs[0]) {
            linear.op = Op::Linear { epilogue };
            linear.outputs.push(linear.outputs[0].clone());
            replaced.insert(Value::Node(index as u32, 0), node.inputs[0]);
        }
    }
    map_values(&mut result, |value| replaced.get(&value).copied().unwrap_or(value));
    remove_dead(&result)
}

/// Lets a linear layer add the residual stream, where the sum alone reads its result.
pub fn fuse_residual(program: &Program) -> Result<Program, SpecError> {
    let mut result = program.clone();
    let uses = Uses::of(program);
    for (index, node) in program.nodes.iter().enumerate() {
        if node.op != Op::Binary(BinaryKind::Add) {
            continue;
        }
        for (place, other) in [(1, 0), (0, 1)] {
            let Value::Node(source, 0) = node.inputs[place] else { continue };
            let linear = &program.nodes[source as usize];
            let plain = linear.op == (Op::Linear { epilogue: Epilogue::None });
            let residual = node.inputs[other];
            let same = program.type_of(residual) == node.outputs[0];
            if plain && same && linear.outputs == node.outputs && uses.once(node.inputs[place]) {
                let sum = &mut result.nodes[index];
                sum.op = Op::Linear { epilogue: Epilogue::Residual };
                sum.inputs = linear.inputs.iter().copied().chain([residual]).collect();
                break;
            }
        }
    }
    remove_dead(&result)
}

/// Joins a product with the derivative of gelu that alone reads it.
pub fn fuse_gelu_grad(program: &Program) -> Result<Program, SpecError> {
    let mut result = program.clone();
    let uses = Uses::of(program);
    for (index, node) in program.nodes.iter().enumerate() {
        let Op::Binary(kind @ (BinaryKind::GeluErfGrad | BinaryKind::GeluTanhGrad)) = node.op
        else {
            continue;
        };
        let Value::Node(source, 0) = node.inputs[1] else { continue };
        let product = &program.nodes[source as usize];
        let plain = product.op == (Op::MatMul { ta: false, tb: false });
        if !plain || !uses.once(node.inputs[1]) {
            continue;
        }
        let op = Op::MatMulGeluGrad { kind };
        let inputs = vec![product.inputs[0], product.inputs[1], node.inputs[0]];
        let types: Vec<Type> = inputs.iter().map(|&value| program.type_of(value)).collect();
        if infer(&op, &types).is_ok_and(|outputs| outputs == node.outputs) {
            let joined = &mut result.nodes[index];
            joined.op = op;
            joined.inputs = inputs;
        }
    }
    remove_dead(&result)
}

/// Lets the gradient of a norm add to the gradient of the residual stream.
pub fn fuse_norm_sum(program: &Program) -> Result<Program, SpecError> {
    let mut result = program.clone();
    let uses = Uses::of(program);
    let mut moved: BTreeMap<u32, u32> = BTreeMap::new();
    for (index, node) in program.nodes.iter().enumerate() {
        if node.op != Op::Binary(BinaryKind::Add) {
            continue;
        }
        for (place, other) in [(1, 0), (0, 1)] {
            let Value::Node(source, 0) = node.inputs[place] else { continue };
            let norm = &program.nodes[source as usize];
            let plain = match norm.op {
                Op::LayerNormGrad => norm.inputs.len() == 5,
                Op::RmsNormGrad => norm.inputs.len() == 4,
                _ => false,
            };
            // The norm moves to the sum, so that nothing may read its other results before.
            let read = program.nodes.iter().flat_map(|node| &node.inputs).any(
                |&value| matches!(value, Value::Node(other, slot) if other == source && slot > 0),
            );
            let base = node.inputs[other];
            let same =
                program.type_of(base) == norm.outputs[0] && node.outputs[0] == norm.outputs[0];
            if plain && same && !read && uses.once(node.inputs[place]) {
                let inputs = norm.inputs.iter().copied().chain([base]).collect();
                result.nodes[index] = Node { inputs, ..norm.clone() };
                moved.insert(source, index as u32);
                break;
            }
        }
    }
    map_values(&mut result, |value| match value {
        Value::Node(node, slot) if slot > 0 => {
            Value::Node(moved.get(&node).copied().unwrap_or(node), slot)
        }
        other => other,
    });
    remove_dead(&result)
}

/// Joins the last linear layer and the loss where nothing else reads the logits, so that they
/// never exist whole.
pub fn fuse_head(program: &Program) -> Result<Program, SpecError> {
    let mut result = program.clone();
    let uses = Uses::of(program);
    for (index, node) in program.nodes.iter().enumerate() {
        let (Op::CrossEntropy, Some(&Value::Node(source, 0))) = (&node.op, node.inputs.first())
        else {
            continue;
        };
        let linear = &program.nodes[source as usize];
        let plain = linear.op == (Op::Linear { epilogue: Epilogue::None });
        if plain && linear.inputs.len() == 2 && uses.once(node.inputs[0]) {
            let head = &mut result.nodes[index];
            head.op = Op::LinearCrossEntropy;
            head.inputs = vec![linear.inputs[0], linear.inputs[1], node.inputs[1]];
        }
    }
    remove_dead(&result)
}

/// Takes the loss from the backward of the joined head, which computes it anyway.
pub fn share_head_loss(program: &Program) -> Result<Program, SpecError> {
    let mut result = program.clone();
    for (index, node) in program.nodes.iter().enumerate() {
        if node.op != Op::LinearCrossEntropy {
            continue;
        }
        let loss = Value::Node(index as u32, 0);
        let read = program.nodes.iter().any(|node| node.inputs.contains(&loss));
        let backward = program.nodes.iter().position(|other| {
            other.op == Op::LinearCrossEntropyGrad && other.inputs[..3] == node.inputs[..]
        });
        if let (false, Some(backward)) = (read, backward) {
            for output in result.outputs.iter_mut().filter(|output| output.value == loss) {
                output.value = Value::Node(backward as u32, 2);
            }
        }
    }
    remove_dead(&result)
}

/// Joins elementwise nodes with the elementwise nodes that alone read them, so that a chain passes
/// over memory once.
pub fn fuse_elementwise(program: &Program) -> Result<Program, SpecError> {
    let mut result = program.clone();
    let uses = Uses::of(program);
    for index in 0..result.nodes.len() {
        // Inlining changes the inputs, so the search starts over until nothing more fits.
        while let Some(joined) = inline_one(&result, &uses, index) {
            result.nodes[index] = joined;
        }
    }
    remove_dead(&result)
}

/// The node with one of its producers inlined.
fn inline_one(program: &Program, uses: &Uses, index: usize) -> Option<Node> {
    let node = &program.nodes[index];
    let code = code_of(&node.op)?;
    for (place, &input) in node.inputs.iter().enumerate() {
        let Value::Node(source, 0) = input else { continue };
        let producer = &program.nodes[source as usize];
        let Some(inner) = code_of(&producer.op) else { continue };
        if !uses.once(input) || producer.outputs[0] != node.outputs[0] {
            continue;
        }
        let mut inputs = node.inputs.clone();
        inputs.remove(place);
        let mut place_of = |value: Value| {
            let at = inputs.iter().position(|&other| other == value).unwrap_or_else(|| {
                inputs.push(value);
                inputs.len() - 1
            });
            Instr::Input(at as u8)
        };
        let inner: Vec<Instr> = inner
            .into_iter()
            .map(|instr| match instr {
                Instr::Input(at) => place_of(producer.inputs[usize::from(at)]),
                other => other,
            })
            .collect();
        let mut joined = Vec::new();
        for &instr in &code {
            match instr {
                Instr::Input(at) if usize::from(at) == place => joined.extend(&inner),
                Instr::Input(at) => {
                    joined.push(Instr::Input(at - u8::from(usize::from(at) > place)));
                }
                other => joined.push(other),
            }
        }
        let op = Op::Fused(joined);
        let types: Vec<Type> = inputs.iter().map(|&value| program.type_of(value)).collect();
        if infer(&op, &types).is_ok_and(|outputs| outputs == node.outputs) {
            return Some(Node { op, inputs, outputs: node.outputs.clone(), block: node.block });
        }
    }
    None
}

/// An elementwise operator as a chain.
pub(crate) fn code_of(op: &Op) -> Option<Vec<Instr>> {
    match op {
        Op::Unary(kind) => Some(vec![Instr::Input(0), Instr::Unary(*kind)]),
        Op::Binary(kind) => Some(vec![Instr::Input(0), Instr::Input(1), Instr::Binary(*kind)]),
        Op::Fused(code) => Some(code.clone()),
        Op::Broadcast { .. } => Some(vec![Instr::Input(0)]),
        _ => None,
    }
}

fn map_values(program: &mut Program, map: impl Fn(Value) -> Value) {
    for node in &mut program.nodes {
        node.inputs.iter_mut().for_each(|value| *value = map(*value));
    }
    program.outputs.iter_mut().for_each(|output| output.value = map(output.value));
    program.grads.iter_mut().for_each(|grad| grad.value = map(grad.value));
}

/// How often each value is read.
pub(crate) struct Uses(BTreeMap<Value, usize>);

impl Uses {
    pub(crate) fn of(program: &Program) -> Self {
        let inputs = program.nodes.iter().flat_map(|node| node.inputs.iter().copied());
        let ends = program.outputs.iter().map(|output| output.value);
        let grads = program.grads.iter().map(|grad| grad.value);
        let mut counts = BTreeMap::new();
        for value in inputs.chain(ends).chain(grads) {
            *counts.entry(value).or_insert(0) += 1;
        }
        Self(counts)
    }

    pub(crate) fn any(&self, value: Value) -> bool {
        self.0.contains_key(&value)
    }

    pub(crate) fn once(&self, value: Value) -> bool {
        self.0.get(&value) == Some(&1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::training_program;
    use crate::grad::differentiate;
    use crate::model::{GptConfig, gpt};
    use crate::program::{Builder, Init, LOSS, ReduceKind};

    fn count(program: &Program, matches: impl Fn(&Op) -> bool) -> usize {
        program.nodes().iter().filter(|node| matches(&node.op)).count()
    }

    fn small_gpt() -> Program {
        let config = GptConfig {
            vocab: 11,
            block_size: 4,
            layers: 3,
            heads: 2,
            width: 8,
            bias: true,
            tied: true,
        };
        gpt(&config, 2).unwrap()
    }

    #[test]
    fn a_gpt_is_fused_throughout() {
        let program = training_program(&small_gpt()).unwrap();
        // What remains elementwise is the sum of token and position embeddings.
        assert_eq!(count(&program, |op| matches!(op, Op::Binary(_))), 1);
        assert_eq!(count(&program, |op| matches!(op, Op::Unary(_) | Op::Fused(_))), 0);
        assert_eq!(count(&program, |op| matches!(op, Op::MatMulGeluGrad { .. })), 3);
        let residual = Op::Linear { epilogue: Epilogue::Residual };
        assert_eq!(count(&program, |op| *op == residual), 6);
        let gelu = Op::Linear { epilogue: Epilogue::GeluErf };
        assert_eq!(count(&program, |op| *op == gelu), 3);
        assert_eq!(count(&program, |op| *op == Op::LinearCrossEntropy), 0);
        assert_eq!(count(&program, |op| *op == Op::LinearCrossEntropyGrad), 1);
    }

    #[test]
    fn who_asks_for_logits_gets_them() {
        let forward = keep_outputs(&small_gpt(), &["logits", "loss"]).unwrap();
        let forward = fuse_head(&forward).unwrap();
        assert_eq!(count(&forward, |op| *op == Op::LinearCrossEntropy), 0);
        assert_eq!(count(&forward, |op| *op == Op::CrossEntropy), 1);
    }

    #[test]
    fn dead_nodes_go_and_equal_nodes_are_shared() {
        let mut build = Builder::new("twins");
        build.begin_block("all");
        let x = build.param("x", [4], Init::Zeros, false).unwrap();
        build.unary(UnaryKind::Log, x).unwrap();
        let a = build.unary(UnaryKind::Exp, x).unwrap();
        let b = build.unary(UnaryKind::Exp, x).unwrap();
        let product = build.binary(BinaryKind::Mul, a, b).unwrap();
        let loss = build.reduce(ReduceKind::Sum, product, &[0], false).unwrap();
        build.output(LOSS, loss);
        let shared = share_common(&build.finish().unwrap()).unwrap();
        assert_eq!(shared.nodes().len(), 3);
        assert_eq!(shared.nodes()[1].inputs, [Value::Node(0, 0), Value::Node(0, 0)]);
    }

    #[test]
    fn chains_become_one_node_up_to_their_bounds() {
        let mut build = Builder::new("chain");
        build.begin_block("all");
        let mut x = build.param("x", [4], Init::Zeros, false).unwrap();
        for _ in 0..40 {
            x = build.unary(UnaryKind::Tanh, x).unwrap();
        }
        let loss = build.reduce(ReduceKind::Sum, x, &[0], false).unwrap();
        build.output(LOSS, loss);
        let program = build.finish().unwrap();
        let fused = fuse_elementwise(&program).unwrap();
        assert_eq!(fused.nodes().len(), 3, "{}", fused.to_text());
        fuse_elementwise(&differentiate(&program).unwrap()).unwrap();
    }
}
