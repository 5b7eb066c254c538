//! The memory plan: where each value of a program lives.
//!
//! All values of a program share one arena. Each gets a span for the time from the node that
//! writes it to the last that reads it; spans whose times overlap do not. Views (reshapes, slices
//! of the outermost axis) share the storage of their origin, an operator may write over an input
//! that ends with it, and gradients of parameters go straight into the caller's buffers where the
//! operator can add to them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::dtype::DType;
use crate::passes::Uses;
use crate::program::{BinaryKind, Node, Op, Program, ReduceKind, Value};

/// Spans begin at multiples of this many elements: a cache line.
const ALIGN: usize = 16;

/// Where a value lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// Elements of a storage of the arena.
    Arena { storage: usize, range: Range<usize> },
    /// Elements of a block of parameters.
    Param { block: usize, range: Range<usize> },
    /// An input of the program.
    Input { index: usize, range: Range<usize> },
    /// Elements of a block of gradients, to which the operator adds.
    Grad { block: usize, range: Range<usize> },
}

impl Place {
    fn within(&self, part: Range<usize>) -> Self {
        let shift = |range: &Range<usize>| range.start + part.start..range.start + part.end;
        match self {
            Self::Arena { storage, range } => {
                Self::Arena { storage: *storage, range: shift(range) }
            }
            Self::Param { block, range } => Self::Param { block: *block, range: shift(range) },
            Self::Input { index, range } => Self::Input { index: *index, range: shift(range) },
            Self::Grad { .. } => unreachable!("nothing reads a value that is only added up"),
        }
    }
}

/// A span of the arena with its life.
#[derive(Debug, Clone)]
struct Storage {
    len: usize,
    /// First and last node, both inclusive.
    first: usize,
    last: usize,
    offset: usize,
}

/// A contribution to a gradient that no operator could add itself.
#[derive(Debug, Clone)]
pub(crate) struct Addition {
    pub(crate) from: Place,
    pub(crate) block: usize,
    pub(crate) range: Range<usize>,
}

/// The plan of a program.
#[derive(Debug)]
pub(crate) struct Plan {
    storages: Vec<Storage>,
    places: Vec<Vec<Place>>,
    /// Whether a node is a view that costs nothing.
    pub(crate) view: Vec<bool>,
    /// Whether anything reads a node's first output.
    pub(crate) first_read: Vec<bool>,
    /// Which input's storage a node's first output takes over.
    pub(crate) in_place: Vec<Option<usize>>,
    /// Additions to gradients after each node.
    pub(crate) additions: Vec<Vec<Addition>>,
    /// Storage that a node needs while it runs.
    pub(crate) scratch: Vec<Option<usize>>,
    /// Elements of the arena.
    pub(crate) arena_len: usize,
}

impl Plan {
    /// Plans a verified program. `scratch_len` says how many elements a node needs while it runs.
    pub(crate) fn new(program: &Program, scratch_len: impl Fn(&Node) -> usize) -> Self {
        let mut planner = Planner::new(program);
        for index in 0..program.nodes.len() {
            planner.place_node(index, scratch_len(&program.nodes[index]));
        }
        planner.finish()
    }

    /// Where a value lives.
    pub(crate) fn place(&self, program: &Program, value: Value) -> Place {
        place_of(program, &self.places, value)
    }

    /// Elements of the arena that a storage takes.
    pub(crate) fn span(&self, storage: usize) -> Range<usize> {
        let storage = &self.storages[storage];
        storage.offset..storage.offset + storage.len
    }

    /// Two storages that live at the same time never share elements.
    fn check(&self) {
        for (index, a) in self.storages.iter().enumerate() {
            for b in &self.storages[index + 1..] {
                let same_time = a.first <= b.last && b.first <= a.last;
                let same_place = a.offset < b.offset + b.len && b.offset < a.offset + a.len;
                assert!(!(same_time && same_place), "{a:?} and {b:?} overlap");
            }
            assert!(a.offset + a.len <= self.arena_len, "{a:?} leaves the arena");
        }
    }
}

fn place_of(program: &Program, places: &[Vec<Place>], value: Value) -> Place {
    match value {
        Value::Param(index) => {
            let param = &program.params[index as usize];
            Place::Param { block: param.block, range: param.range() }
        }
        Value::Input(index) => {
            let len = program.inputs[index as usize].shape.elements();
            Place::Input { index: index as usize, range: 0..len }
        }
        Value::Node(node, slot) => places[node as usize][usize::from(slot)].clone(),
    }
}

struct Planner<'a> {
    program: &'a Program,
    /// Last node that reads each value or a view of it; `nodes.len()` for results.
    last: BTreeMap<Value, usize>,
    /// Contributions that their operators add themselves.
    direct: BTreeMap<Value, u32>,
    plan: Plan,
}

impl<'a> Planner<'a> {
    fn new(program: &'a Program) -> Self {
        let count = program.nodes.len();
        let uses = Uses::of(program);
        let mut last = BTreeMap::new();
        for output in &program.outputs {
            last.insert(output.value, count);
        }
        for index in (0..count).rev() {
            let node = &program.nodes[index];
            // A view's readers read its origin.
            let until = if view_offset(program, node).is_some() {
                last.get(&Value::Node(index as u32, 0)).copied().unwrap_or(index)
            } else {
                index
            };
            for &input in &node.inputs {
                let entry = last.entry(input).or_insert(until);
                *entry = until.max(*entry);
            }
        }
        let direct = direct_grads(program, &uses);
        let plan = Plan {
            storages: Vec::new(),
            places: Vec::with_capacity(count),
            view: vec![false; count],
            first_read: (0..count as u32).map(|node| uses.any(Value::Node(node, 0))).collect(),
            in_place: vec![None; count],
            additions: vec![Vec::new(); count],
            scratch: vec![None; count],
            arena_len: 0,
        };
        Self { program, last, direct, plan }
    }

    fn place_node(&mut self, index: usize, scratch_len: usize) {
        let node = &self.program.nodes[index];
        if let Some(offset) = view_offset(self.program, node) {
            let origin = place_of(self.program, &self.plan.places, node.inputs[0]);
            let len = node.outputs[0].shape.elements();
            self.plan.places.push(vec![origin.within(offset..offset + len)]);
            self.plan.view[index] = true;
            return;
        }
        let mut places = Vec::new();
        for (slot, ty) in node.outputs.iter().enumerate() {
            let value = Value::Node(index as u32, slot as u8);
            let len = ty.shape.elements();
            let last = self.last.get(&value).copied().unwrap_or(index).max(index);
            if let Some(&param) = self.direct.get(&value) {
                let param = &self.program.params[param as usize];
                places.push(Place::Grad { block: param.block, range: param.range() });
            } else if let Some(storage) = self.take_over(index, slot, last) {
                places.push(Place::Arena { storage, range: 0..len });
            } else {
                let storage = self.storage(len, index, last);
                places.push(Place::Arena { storage, range: 0..len });
            }
        }
        if scratch_len > 0 {
            self.plan.scratch[index] = Some(self.storage(scratch_len, index, index));
        }
        self.plan.places.push(places);
    }

    fn storage(&mut self, len: usize, first: usize, last: usize) -> usize {
        self.plan.storages.push(Storage { len, first, last, offset: 0 });
        self.plan.storages.len() - 1
    }

    /// The storage of an input that ends with this node and that the node may write over.
    fn take_over(&mut self, index: usize, slot: usize, last: usize) -> Option<usize> {
        if slot > 0 {
            return None;
        }
        let node = &self.program.nodes[index];
        for &place in overwritable(&node.op) {
            let Some(&input) = node.inputs.get(place) else { continue };
            let alone = node.inputs.iter().filter(|&&other| other == input).count() == 1;
            let same = self.program.type_of(input) == node.outputs[0];
            let len = node.outputs[0].shape.elements();
            let Place::Arena { storage, range } = place_of(self.program, &self.plan.places, input)
            else {
                continue;
            };
            // Another input may be a view of the same storage.
            let shared = node.inputs.iter().enumerate().any(|(other, &value)| {
                let at = place_of(self.program, &self.plan.places, value);
                other != place && matches!(at, Place::Arena { storage: s, .. } if s == storage)
            });
            let whole = range == (0..len) && self.plan.storages[storage].len == len;
            let ends = self.plan.storages[storage].last == index;
            if alone && same && whole && ends && !shared {
                self.plan.storages[storage].last = last;
                self.plan.in_place[index] = Some(place);
                return Some(storage);
            }
        }
        None
    }

    fn finish(mut self) -> Plan {
        for grad in &self.program.grads {
            if self.direct.contains_key(&grad.value) {
                continue;
            }
            let param = &self.program.params[grad.param as usize];
            let from = place_of(self.program, &self.plan.places, grad.value);
            // The storage must still hold the value at the end of the node that yields it, which
            // any storage does.
            if let Value::Node(node, _) = grad.value {
                let addition = Addition { from, block: param.block, range: param.range() };
                self.plan.additions[node as usize].push(addition);
            }
        }
        self.assign();
        self.plan.check();
        self.plan
    }

    /// Offsets, largest storage first, each into the smallest gap that fits among those placed
    /// already that live at the same time.
    fn assign(&mut self) {
        let storages = &mut self.plan.storages;
        let mut order: Vec<usize> = (0..storages.len()).collect();
        order.sort_by_key(|&index| {
            (std::cmp::Reverse(storages[index].len), storages[index].first, index)
        });
        let mut placed: Vec<usize> = Vec::new();
        for index in order {
            let Storage { len, first, last, .. } = storages[index];
            let len = len.next_multiple_of(ALIGN);
            let mut taken: Vec<(usize, usize)> = placed
                .iter()
                .map(|&other| &storages[other])
                .filter(|other| other.first <= last && first <= other.last)
                .map(|other| (other.offset, other.offset + other.len.next_multiple_of(ALIGN)))
                .collect();
            taken.sort_unstable();
            let mut best: Option<(usize, usize)> = None;
            let mut free = 0;
            for (start, end) in taken {
                if start >= free + len && best.is_none_or(|(gap, _)| start - free < gap) {
                    best = Some((start - free, free));
                }
                free = free.max(end);
            }
            let offset = best.map_or(free, |(_, offset)| offset);
            storages[index].offset = offset;
            self.plan.arena_len = self.plan.arena_len.max(offset + len);
            placed.push(index);
        }
    }
}

/// Elements by which a view is displaced in its origin; `None` for nodes that compute.
fn view_offset(program: &Program, node: &Node) -> Option<usize> {
    match &node.op {
        Op::Reshape { .. } => Some(0),
        Op::Slice { axis, start, .. } => {
            let shape = program.type_of(node.inputs[0]).shape;
            let outermost = shape[..*axis].iter().all(|&dim| dim == 1);
            outermost.then(|| start * shape[*axis + 1..].iter().product::<usize>())
        }
        _ => None,
    }
}

/// Inputs whose storage an operator may use for its first output. Its kernel knows.
fn overwritable(op: &Op) -> &'static [usize] {
    match op {
        Op::Binary(BinaryKind::Add) => &[0, 1],
        Op::CrossEntropyGrad => &[0],
        Op::LayerNormGrad => &[5],
        Op::RmsNormGrad => &[4],
        _ => &[],
    }
}

/// Contributions that the operator adds to the caller's buffer itself: those that nothing else
/// reads, of operators whose kernels add. All of a node's must belong to one block and to
/// different parameters, so that one borrow serves.
fn direct_grads(program: &Program, uses: &Uses) -> BTreeMap<Value, u32> {
    let mut direct: BTreeMap<Value, u32> = BTreeMap::new();
    let mut refused = BTreeSet::new();
    for grad in &program.grads {
        let Value::Node(index, slot) = grad.value else { continue };
        let node = &program.nodes[index as usize];
        if !uses.once(grad.value) || !adds_itself(program, node, slot) {
            continue;
        }
        let block = program.params[grad.param as usize].block;
        // A parameter that is both scale and shift of a norm would be borrowed twice.
        let other = (0..node.outputs.len() as u8)
            .filter_map(|slot| direct.get(&Value::Node(index, slot)))
            .any(|&other| other == grad.param || program.params[other as usize].block != block);
        if other || refused.contains(&index) {
            refused.insert(index);
            continue;
        }
        direct.insert(grad.value, grad.param);
    }
    direct
}

fn adds_itself(program: &Program, node: &Node, slot: u8) -> bool {
    let matrix = |place: usize| program.type_of(node.inputs[place]).shape.rank() == 2;
    match (&node.op, slot) {
        (Op::MatMul { .. }, 0) => matrix(0) && matrix(1),
        (Op::Reduce { kind: ReduceKind::Sum, axes, .. }, 0) => {
            axes.iter().copied().eq(0..axes.len())
                && axes.len() < program.type_of(node.inputs[0]).shape.rank()
        }
        (Op::EmbeddingGrad { .. }, 0) => true,
        (Op::LayerNormGrad, 1 | 2) | (Op::RmsNormGrad, 1) => true,
        (Op::LinearCrossEntropyGrad, 1) => true,
        (Op::Conv2dGrad(_), 1 | 2) => true,
        _ => false,
    }
}

/// Bytes of the values of a program if each had memory of its own: what planning saves is the
/// difference.
pub fn unplanned_bytes(program: &Program) -> usize {
    program
        .nodes
        .iter()
        .flat_map(|node| &node.outputs)
        .filter(|ty| ty.dtype == DType::F32)
        .map(|ty| ty.shape.elements() * ty.dtype.bytes())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grad::differentiate;
    use crate::program::{Builder, Epilogue, Init, LOSS, UnaryKind};

    fn plan(program: &Program) -> Plan {
        Plan::new(program, |_| 0)
    }

    /// `x -> tanh -> tanh -> ...`, summed.
    fn tower(depth: usize) -> Program {
        let mut build = Builder::new("tower");
        build.begin_block("all");
        let mut x = build.param("x", [64], Init::Zeros, false).unwrap();
        for _ in 0..depth {
            x = build.unary(UnaryKind::Tanh, x).unwrap();
        }
        let loss = build.reduce(ReduceKind::Sum, x, &[0], false).unwrap();
        build.output(LOSS, loss);
        build.finish().unwrap()
    }

    #[test]
    fn values_that_nobody_reads_any_more_make_room() {
        // Two at a time and the result, however high the tower is.
        assert_eq!(plan(&tower(3)).arena_len, plan(&tower(30)).arena_len);
        assert!(plan(&tower(30)).arena_len <= 2 * 64 + ALIGN);
    }

    #[test]
    fn the_backward_keeps_what_it_reads() {
        let backward = differentiate(&tower(30)).unwrap();
        assert!(plan(&backward).arena_len >= 30 * 64);
    }

    #[test]
    fn views_share_storage_and_keep_it_alive() {
        let mut build = Builder::new("views");
        build.begin_block("all");
        let x = build.param("x", [4, 16], Init::Zeros, false).unwrap();
        let y = build.unary(UnaryKind::Exp, x).unwrap();
        let part = build.slice(y, 0, 1, 3).unwrap();
        let flat = build.reshape(part, [32]).unwrap();
        let z = build.unary(UnaryKind::Exp, x).unwrap();
        let sum = build.reduce(ReduceKind::Sum, z, &[0, 1], false).unwrap();
        let end = build.binary(BinaryKind::Mul, flat, sum).unwrap();
        build.output("end", end);
        let program = build.finish().unwrap();
        let plan = plan(&program);
        let (Place::Arena { storage: a, range }, Place::Arena { storage: b, .. }) =
            (plan.place(&program, flat), plan.place(&program, y))
        else {
            panic!("both are computed");
        };
        assert_eq!((a, range), (b, 16..48));
        assert!(plan.view[1] && plan.view[2] && !plan.view[0]);
        assert_eq!(plan.storages[b].last, 5);
    }

    #[test]
    fn sums_take_over_an_input_that_ends_with_them() {
        let mut build = Builder::new("sums");
        build.begin_block("all");
        let x = build.param("x", [64], Init::Zeros, false).unwrap();
        let y = build.unary(UnaryKind::Exp, x).unwrap();
        let once = build.binary(BinaryKind::Add, x, y).unwrap();
        let doubled = build.binary(BinaryKind::Add, once, once).unwrap();
        build.output("end", doubled);
        let plan = plan(&build.finish().unwrap());
        // The parameter is not overwritten, and nothing is added to itself in place.
        assert_eq!(plan.in_place, [None, Some(1), None]);
    }

    #[test]
    fn gradients_of_weights_go_straight_to_the_caller() {
        let mut build = Builder::new("layer");
        build.begin_block("all");
        let x = build.param("x", [3, 4], Init::Zeros, false).unwrap();
        let w = build.param("w", [5, 4], Init::Zeros, true).unwrap();
        let b = build.param("b", [5], Init::Zeros, false).unwrap();
        let y = build.add(Op::Linear { epilogue: Epilogue::None }, &[x, w, b]).unwrap();
        let loss = build.reduce(ReduceKind::Sum, y, &[0, 1], false).unwrap();
        build.output(LOSS, loss);
        let program = differentiate(&build.finish().unwrap()).unwrap();
        let plan = plan(&program);
        for grad in program.grads() {
            let place = plan.place(&program, grad.value);
            assert!(matches!(place, Place::Grad { .. }), "{grad:?}: {place:?}");
        }
        assert!(plan.additions.iter().all(Vec::is_empty));
    }

    #[test]
    fn one_parameter_in_two_roles_is_added_up_apart() {
        let mut build = Builder::new("norm");
        build.begin_block("all");
        let x = build.param("x", [3, 4], Init::Zeros, false).unwrap();
        let g = build.param("g", [4], Init::Ones, false).unwrap();
        let y = build.layer_norm(x, g, Some(g), 1e-5).unwrap();
        let loss = build.reduce(ReduceKind::Sum, y, &[0, 1], false).unwrap();
        build.output(LOSS, loss);
        let program = differentiate(&build.finish().unwrap()).unwrap();
        let direct = direct_grads(&program, &Uses::of(&program));
        assert!(direct.values().filter(|&&param| param == 1).count() <= 1);
        assert_eq!(
            plan(&program).additions.iter().flatten().count(),
            program.grads().len() - direct.len()
        );
    }
}
