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
/// reads, of operators whose kernels add. All of a node's must belong to one block, so that one
/// borrow serves.
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
        let other = (0..node.outputs.len() as u8)
            .filter_map(|slot| direct.get(&Value::Node(index, slot)))
            .any(|&param| program.params[param as usize].block != block);
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
