//! A program made ready to run: each node with its places, checked once.

use std::ops::Range;
use std::time::Duration;

use super::chain::ElementChain;
use super::{ExecError, Input, Machine, Timing, kernel};
use crate::dtype::DType;
use crate::grad;
use crate::memory::{Place, Plan};
use crate::model::Params;
use crate::program::reference::{Data, Operand};
use crate::program::spec::{NODE_INPUTS_MAX, NODE_OUTPUTS_MAX};
use crate::program::{Op, Program, Value};
use crate::shape::Shape;

/// Most storages that a node touches: its inputs, its outputs and its scratch.
const PARTS_MAX: usize = NODE_INPUTS_MAX + NODE_OUTPUTS_MAX + 1;

/// A program with its memory plan.
#[derive(Debug)]
pub(super) struct Compiled {
    program: Program,
    steps: Vec<Step>,
    arena_len: usize,
    /// The first output: its elements of the arena and its shape.
    result: Range<usize>,
    result_shape: Shape,
    /// For each input that is read: smallest index allowed and first not allowed.
    bounds: Vec<Option<(i32, usize)>>,
    /// Inputs up to the last that is read.
    inputs_needed: usize,
    /// Blocks whose gradient nothing contributes to.
    untouched: Vec<usize>,
}

/// A node that computes.
#[derive(Debug)]
struct Step {
    node: usize,
    /// Storages of the arena that it touches, unused ones empty.
    parts: [Range<usize>; PARTS_MAX],
    inputs: Vec<(Source, Shape)>,
    outputs: Vec<Target>,
    /// Part that it may use while it runs.
    scratch: Option<usize>,
    in_place: Option<usize>,
    first_read: bool,
    /// Block of the gradients that it adds to, and their elements.
    grad_block: usize,
    grad_ranges: [Range<usize>; NODE_OUTPUTS_MAX],
    chain: Option<ElementChain>,
    additions: Vec<crate::memory::Addition>,
    /// Blocks whose gradient is final after it.
    completes: Vec<usize>,
    calls: u32,
    total: Duration,
    last_start: Duration,
    last: Duration,
}

#[derive(Debug, Clone)]
enum Source {
    Part {
        part: usize,
        range: Range<usize>,
    },
    Param {
        block: usize,
        range: Range<usize>,
    },
    Input {
        index: usize,
        range: Range<usize>,
    },
    /// What the first output holds before the node runs.
    Output,
}

#[derive(Debug, Clone)]
enum Target {
    Part(usize),
    /// Which of the step's gradient ranges.
    Grad(usize),
}

/// An output of a running node.
pub(super) struct Out<'a> {
    pub(super) data: &'a mut [f32],
    /// Add to what is there, instead of overwriting it.
    pub(super) add: bool,
}

impl Compiled {
    /// `result_name` is the program's only output.
    pub(super) fn new(program: Program, result_name: &'static str) -> Result<Self, ExecError> {
        program.verify()?;
        let plan = Plan::new(&program, |node| kernel::scratch_len(&program, node));
        let completion = grad::completion(&program);
        let steps = (0..program.nodes.len())
            .map(|node| Step::new(&program, &plan, node, &completion))
            // Most views do nothing at all.
            .filter(|step: &Step| {
                !step.outputs.is_empty() || !step.additions.is_empty() || !step.completes.is_empty()
            })
            .collect();
        let value = program.outputs.first().map(|output| output.value);
        let value = value.ok_or(ExecError::NoOutput(result_name))?;
        let result = match plan.place(&program, value) {
            Place::Arena { storage, range } => {
                let start = plan.span(storage).start;
                start + range.start..start + range.end
            }
            // Nothing computes it.
            Place::Param { .. } | Place::Input { .. } | Place::Grad { .. } => {
                return Err(ExecError::NoOutput(result_name));
            }
        };
        let untouched = (0..completion.len()).filter(|&block| completion[block].is_none());
        let (bounds, inputs_needed) = input_bounds(&program);
        Ok(Self {
            steps,
            arena_len: plan.arena_len,
            result,
            result_shape: program.type_of(value).shape,
            bounds,
            inputs_needed,
            untouched: untouched.collect(),
            program,
        })
    }

    pub(super) fn program(&self) -> &Program {
        &self.program
    }

    pub(super) fn arena_len(&self) -> usize {
        self.arena_len
    }

    pub(super) fn result_shape(&self) -> Shape {
        self.result_shape.clone()
    }

    /// The first output after a run.
    pub(super) fn result<'a>(&self, machine: &'a Machine) -> &'a [f32] {
        &machine.arena[self.result.clone()]
    }

    pub(super) fn timings(&self) -> Vec<Timing> {
        self.steps
            .iter()
            .map(|step| {
                let node = &self.program.nodes[step.node];
                Timing {
                    op: node.op.name(),
                    block: node.block,
                    shape: node.outputs[0].shape.clone(),
                    flops: self.program.node_flops(node),
                    calls: step.calls,
                    total: step.total,
                    last_start: step.last_start,
                    last: step.last,
                }
            })
            .collect()
    }

    /// Buffers have the layout of the program's blocks.
    pub(super) fn check_blocks(
        &self,
        what: &'static str,
        blocks: &[Vec<f32>],
    ) -> Result<(), ExecError> {
        let count = blocks.len().max(self.program.blocks.len());
        for block in 0..count {
            let expected = self.program.blocks.get(block).map_or(0, |info| info.len);
            let found = blocks.get(block).map_or(0, Vec::len);
            if expected != found {
                return Err(ExecError::BlockLen { what, block, expected, found });
            }
        }
        Ok(())
    }

    fn check_inputs(&self, inputs: &[Input<'_>]) -> Result<(), ExecError> {
        let declared = self.program.inputs.len();
        if inputs.len() < self.inputs_needed || inputs.len() > declared {
            return Err(ExecError::InputCount { expected: declared, found: inputs.len() });
        }
        for (index, (input, info)) in inputs.iter().zip(&self.program.inputs).enumerate() {
            let (given, found) = match input {
                Input::I32(data) => (DType::I32, data.len()),
                Input::F32(data) => (DType::F32, data.len()),
            };
            let expected = info.shape.elements();
            if given != info.dtype || found != expected {
                let (name, dtype) = (info.name.clone(), info.dtype);
                return Err(ExecError::InputForm { name, expected, dtype, found, given });
            }
            if let (Input::I32(data), Some((min, end))) = (input, self.bounds[index]) {
                let outside = |&value: &i32| value < min || i64::from(value) >= end as i64;
                if let Some(position) = data.iter().position(outside) {
                    let (name, value) = (info.name.clone(), data[position]);
                    return Err(ExecError::Index { name, position, value, min, end });
                }
            }
        }
        Ok(())
    }

    /// Runs all nodes. `grads` may be empty where the program has none.
    pub(super) fn run(
        &mut self,
        machine: &mut Machine,
        params: &Params,
        inputs: &[Input<'_>],
        grads: &mut [Vec<f32>],
        on_block: &mut dyn FnMut(usize, &mut Vec<f32>),
    ) -> Result<(), ExecError> {
        self.check_blocks("parameters", &params.blocks)?;
        self.check_inputs(inputs)?;
        let begun = machine.start();
        for step in &mut self.steps {
            let started = machine.start();
            step.run(&self.program, machine, params, inputs, grads);
            if let Some(started) = started {
                step.calls += 1;
                step.last = started.elapsed();
                step.total += step.last;
                step.last_start = begun.map_or(Duration::ZERO, |begun| started - begun);
            }
            for &block in &step.completes {
                on_block(block, &mut grads[block]);
            }
        }
        for &block in &self.untouched {
            if let Some(grads) = grads.get_mut(block) {
                on_block(block, grads);
            }
        }
        Ok(())
    }
}

fn completes(completion: &[Option<usize>], node: usize) -> impl Iterator<Item = usize> {
    let at_node = move |&(_, at): &(usize, &Option<usize>)| *at == Some(node);
    completion.iter().enumerate().filter(at_node).map(|(block, _)| block)
}

/// What index inputs may hold, and how many inputs are needed.
fn input_bounds(program: &Program) -> (Vec<Option<(i32, usize)>>, usize) {
    let origin = |mut value: Value| loop {
        match value {
            Value::Input(index) => return Some(index as usize),
            Value::Node(node, _)
                if matches!(program.nodes[node as usize].op, Op::Reshape { .. }) =>
            {
                value = program.nodes[node as usize].inputs[0];
            }
            _ => return None,
        }
    };
    let mut bounds: Vec<Option<(i32, usize)>> = vec![None; program.inputs.len()];
    let mut needed = 0;
    for node in &program.nodes {
        let shape = |place: usize| program.type_of(node.inputs[place]).shape;
        for (place, &value) in node.inputs.iter().enumerate() {
            let Some(input) = origin(value) else { continue };
            needed = needed.max(input + 1);
            let (min, end) = match (&node.op, place) {
                (Op::Embedding, 1) => (0, shape(0)[0]),
                (Op::EmbeddingGrad { rows }, 0) => (0, *rows),
                (Op::CrossEntropy | Op::CrossEntropyGrad, 1) => (-1, shape(0).last()),
                (Op::LinearCrossEntropy | Op::LinearCrossEntropyGrad, 2) => (-1, shape(1)[0]),
                _ => continue,
            };
            let tighter = bounds[input].map_or((min, end), |(a, b)| (a.max(min), b.min(end)));
            bounds[input] = Some(tighter);
        }
    }
    (bounds, needed)
}

/// Collects the storages that a node touches, each once.
#[derive(Default)]
struct Parts(Vec<usize>);

impl Parts {
    fn of(&mut self, storage: usize) -> usize {
        self.0.iter().position(|&other| other == storage).unwrap_or_else(|| {
            self.0.push(storage);
            self.0.len() - 1
        })
    }
}

impl Step {
    fn new(program: &Program, plan: &Plan, index: usize, completion: &[Option<usize>]) -> Self {
        let node = &program.nodes[index];
        let mut step = Self {
            node: index,
            parts: Default::default(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            scratch: None,
            in_place: plan.in_place[index],
            first_read: plan.first_read[index],
            grad_block: 0,
            grad_ranges: Default::default(),
            chain: None,
            additions: plan.additions[index].clone(),
            completes: completes(completion, index).collect(),
            calls: 0,
            total: Duration::ZERO,
            last_start: Duration::ZERO,
            last: Duration::ZERO,
        };
        for addition in &mut step.additions {
            // Ranges of the arena are absolute from here on.
            if let Place::Arena { storage, range } = &mut addition.from {
                let start = plan.span(*storage).start;
                *range = range.start + start..range.end + start;
            }
        }
        if plan.view[index] {
            // Computes nothing, but may be a contribution to a gradient.
            return step;
        }
        let mut parts = Parts::default();
        step.place_outputs(program, plan, &mut parts);
        step.place_inputs(program, plan, &mut parts);
        step.scratch = plan.scratch[index].map(|storage| parts.of(storage));
        for (span, &storage) in step.parts.iter_mut().zip(&parts.0) {
            *span = plan.span(storage);
        }
        let shapes: Vec<&Shape> = step.inputs.iter().map(|(_, shape)| shape).collect();
        step.chain = ElementChain::new(&node.op, &shapes, &node.outputs[0].shape, step.in_place);
        step
    }

    fn place_outputs(&mut self, program: &Program, plan: &Plan, parts: &mut Parts) {
        for slot in 0..program.nodes[self.node].outputs.len() {
            let value = Value::Node(self.node as u32, slot as u8);
            self.outputs.push(match plan.place(program, value) {
                Place::Arena { storage, .. } => Target::Part(parts.of(storage)),
                Place::Grad { block, range } => {
                    self.grad_block = block;
                    self.grad_ranges[slot] = range;
                    Target::Grad(slot)
                }
                Place::Param { .. } | Place::Input { .. } => {
                    unreachable!("only views lie in parameters and inputs")
                }
            });
        }
    }

    fn place_inputs(&mut self, program: &Program, plan: &Plan, parts: &mut Parts) {
        for (place, &value) in program.nodes[self.node].inputs.iter().enumerate() {
            let source = match plan.place(program, value) {
                Place::Arena { .. } if self.in_place == Some(place) => Source::Output,
                Place::Arena { storage, range } => Source::Part { part: parts.of(storage), range },
                Place::Param { block, range } => Source::Param { block, range },
                Place::Input { index, range } => Source::Input { index, range },
                Place::Grad { .. } => unreachable!("nothing reads what is only added up"),
            };
            self.inputs.push((source, program.type_of(value).shape));
        }
    }

    fn run(
        &self,
        program: &Program,
        machine: &mut Machine,
        params: &Params,
        inputs: &[Input<'_>],
        grads: &mut [Vec<f32>],
    ) {
        if !self.outputs.is_empty() {
            self.compute(program, machine, params, inputs, grads);
        }
        for addition in &self.additions {
            let from = match &addition.from {
                Place::Arena { range, .. } => &machine.arena[range.clone()],
                Place::Param { block, range } => &params.blocks[*block][range.clone()],
                Place::Input { index, range } => match inputs[*index] {
                    Input::F32(data) => &data[range.clone()],
                    Input::I32(_) => unreachable!("a gradient has the parameter's type"),
                },
                Place::Grad { .. } => unreachable!("the operator has added it already"),
            };
            let to = &mut grads[addition.block][addition.range.clone()];
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        }
    }

    fn compute(
        &self,
        program: &Program,
        machine: &mut Machine,
        params: &Params,
        inputs: &[Input<'_>],
        grads: &mut [Vec<f32>],
    ) {
        let disjoint = "the memory plan keeps what lives at the same time apart";
        let parts = machine.arena.get_disjoint_mut(self.parts.clone()).expect(disjoint);
        let mut parts = parts.map(Some);
        let mut grad_parts = match grads.get_mut(self.grad_block) {
            Some(block) => block.get_disjoint_mut(self.grad_ranges.clone()).expect(disjoint),
            None => Default::default(),
        }
        .map(Some);
        let mut outs: [Out<'_>; NODE_OUTPUTS_MAX] =
            std::array::from_fn(|_| Out { data: &mut [], add: false });
        for (out, target) in outs.iter_mut().zip(&self.outputs) {
            let (data, add) = match target {
                Target::Part(part) => (parts[*part].take(), false),
                Target::Grad(slot) => (grad_parts[*slot].take(), true),
            };
            *out = Out { data: data.expect("each output has a storage of its own"), add };
        }
        let scratch = self.scratch.and_then(|part| parts[part].take()).unwrap_or_default();
        let empty = Shape::scalar();
        let mut operands: [Operand<'_, f32>; NODE_INPUTS_MAX] =
            std::array::from_fn(|_| Operand { shape: &empty, data: Data::Real(&[]) });
        for (operand, (source, shape)) in operands.iter_mut().zip(&self.inputs) {
            let data = match source {
                Source::Part { part, range } => {
                    let part = parts[*part].as_deref();
                    Data::Real(&part.expect("an input is no output")[range.clone()])
                }
                Source::Param { block, range } => Data::Real(&params.blocks[*block][range.clone()]),
                Source::Input { index, range } => match inputs[*index] {
                    Input::I32(data) => Data::Index(&data[range.clone()]),
                    Input::F32(data) => Data::Real(&data[range.clone()]),
                },
                Source::Output => Data::Real(&[]),
            };
            *operand = Operand { shape, data };
        }
        let node = &program.nodes[self.node];
        let mut machine = kernel::Machine {
            pool: &machine.pool,
            scratch: &mut machine.scratch,
            precision: machine.precision,
        };
        machine.run(kernel::Call {
            node,
            inputs: &operands[..self.inputs.len()],
            in_place: self.in_place,
            first_read: self.first_read,
            chain: self.chain.as_ref(),
            scratch,
            outputs: &mut outs[..self.outputs.len()],
        });
    }
}
