//! Plan: a linked model becomes a complete list of steps over buffers with fixed offsets, before anything is allocated.
//!
//! `schedule` unrolls the model's tree into steps and logical buffers; [`arena`] gives every buffer its offset; [`decode`] plans one
//! position at a time. The executor decides nothing: it runs the steps in order.

pub mod arena;
pub mod cost;
pub mod decode;
mod ids;
mod schedule;

pub use ids::{IdError, IdLimit};
pub use schedule::{build, build_forward};

use crate::random;
use kiln_compiler::fuse::{Region, Stream};
use kiln_compiler::ir::{Attr, Attrs, Axis, DType, Sizes, Type};
use kiln_compiler::ops::{self, Op};
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3Default;

/// Index of a buffer in [`Plan::buffers`].
pub type BufferId = usize;

/// How a device stores tensors: what a plan must know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Memory {
    /// Bytes of an element of bf16, f16 and bool: 4 where the device has no such storage and keeps rounded values in 32 bits.
    pub widths: [usize; 3],
    /// Largest piece of memory; no tensor crosses a multiple of it.
    pub chunk: usize,
}

impl Memory {
    /// The host: every type as it is, in one piece.
    pub const HOST: Memory = Memory { widths: [2, 2, 1], chunk: usize::MAX };

    /// Bytes of a stored element.
    pub fn width(self, dtype: DType) -> usize {
        match dtype {
            DType::Bf16 => self.widths[0],
            DType::F16 => self.widths[1],
            DType::Bool => self.widths[2],
            DType::F32 | DType::I32 | DType::Compute | DType::Sub(_) => dtype.bytes(),
        }
    }

    /// The first place from `at` where `bytes` cross no chunk; a larger tensor begins a chunk.
    pub fn next(self, at: usize, bytes: usize) -> usize {
        if at % self.chunk + bytes <= self.chunk { at } else { at.next_multiple_of(self.chunk) }
    }

    /// Whether a chunk begins at `at`.
    pub fn starts_chunk(self, at: usize) -> bool {
        at.is_multiple_of(self.chunk)
    }
}

/// Where a buffer lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Segment {
    /// f32 master of parameter `i`.
    Param(usize),
    /// Copy of parameter `i` in a narrower type, written by the optimizer.
    Shadow(usize),
    /// f32 gradient of parameter `i`.
    Grad(usize),
    /// Written by the host before each step: a batch, the loss scale.
    Host,
    /// Lives for some steps.
    Temporary,
}

/// One buffer.
#[derive(Clone, Debug)]
pub struct Buffer {
    /// For people: layer path and value.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Number of elements.
    pub elements: usize,
    /// Bytes of an element, as the device stores it.
    pub width: usize,
    /// Where it lives.
    pub segment: Segment,
    /// First step that writes it, last step that reads it; both 0 for buffers that live always.
    pub life: (usize, usize),
    /// Offset in the arena, in bytes.
    pub offset: usize,
}

impl Buffer {
    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.elements * self.width
    }
}

/// Which part of training a step belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// First forward.
    Forward,
    /// Forward run again for backward.
    Replay,
    /// Backward.
    Backward,
}

/// How a result enters a gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Overwrites.
    Store,
    /// Overwrites in the first micro-batch, adds in later ones.
    StoreThenAdd,
    /// Always adds.
    Add,
}

/// What a step does.
#[derive(Clone, Debug)]
pub enum Work {
    /// A fused region; `dtypes` resolves its slots.
    Region {
        /// The region.
        region: Arc<Region>,
        /// Element type of each slot.
        dtypes: Vec<DType>,
    },
    /// A library operation.
    Library {
        /// The operation.
        op: Op,
        /// Its constants.
        attrs: Attrs,
        /// Resolved operand types.
        inputs: Vec<Type>,
        /// Resolved result types.
        outputs: Vec<Type>,
        /// Roundings of each result before it is stored.
        rounds: Vec<Vec<DType>>,
        /// How the results are written.
        write: Vec<Write>,
    },
    /// Adds (or first copies) the operand to the result, element by element.
    Accumulate(Write),
    /// The sum of the operand over the ranks of a mesh axis.
    AllReduce {
        /// Mesh axis.
        mesh: String,
    },
}

/// One step.
#[derive(Clone, Debug)]
pub struct Step {
    /// What it does.
    pub work: Work,
    /// Operands.
    pub inputs: Vec<BufferId>,
    /// Results.
    pub outputs: Vec<BufferId>,
    /// Path of the layer instance; random streams are keyed by it.
    pub path: Arc<str>,
    /// Source file of the layer.
    pub file: Arc<str>,
    /// Line of the user's operation.
    pub line: u32,
    /// Part of training.
    pub phase: Phase,
    /// Sizes of the axes as this rank's part of the layer sees them.
    pub sizes: Arc<Sizes>,
    /// The axis of which this rank holds a part, if there is one.
    pub split: Option<SplitAxis>,
}

/// This rank's part of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitAxis {
    /// The axis.
    pub axis: Axis,
    /// Global index of the first element.
    pub offset: usize,
    /// Size of the whole axis.
    pub whole: usize,
}

/// A complete plan of one micro-batch.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Steps in order.
    pub steps: Vec<Step>,
    /// All buffers.
    pub buffers: Vec<Buffer>,
    /// The batch: first axis of the root's inputs.
    pub batch: Axis,
    /// The root's inputs.
    pub inputs: Vec<BufferId>,
    /// For each input the bound of its ids, where there is one.
    pub id_limits: Vec<Option<IdLimit>>,
    /// The root's outputs: (sum, count) for a loss.
    pub outputs: Vec<BufferId>,
    /// The loss scale, where backward starts; absent in a forward plan.
    pub loss_scale: Option<BufferId>,
    /// Bytes of temporaries.
    pub temporary_bytes: usize,
}

impl Plan {
    /// Bytes that this rank gives to collectives in one run.
    pub fn collective_bytes(&self) -> usize {
        let reduced = self.steps.iter().filter(|s| matches!(s.work, Work::AllReduce { .. }));
        reduced.map(|s| self.buffers[s.inputs[0]].bytes()).sum()
    }

    /// Steps of losses and of their derivatives where nothing reads the loss before: both can run at once, at the derivative's place, and
    /// logits need not be computed twice.
    pub fn losses_with_derivatives(&self) -> Vec<(usize, usize)> {
        let is = |step: &Step, name: &str| matches!(&step.work, Work::Library { op, .. } if op.name == name);
        let mut pairs = Vec::new();
        for (derivative, step) in self.steps.iter().enumerate() {
            if !is(step, "linear_cross_entropy_vjp") {
                continue;
            }
            // Inputs of both: x, w, targets; then lse.
            let is_loss = |&i: &usize| {
                let of = &self.steps[i];
                is(of, "linear_cross_entropy") && of.inputs[..3] == step.inputs[..3] && of.outputs[2] == step.inputs[3]
            };
            let Some(loss) = (0..derivative).rev().find(is_loss) else { continue };
            let results = &self.steps[loss].outputs;
            let uses = |s: &Step, b: &BufferId| s.inputs.contains(b) || s.outputs.contains(b);
            let waits = self.steps[loss + 1..derivative].iter().all(|s| results.iter().all(|b| !uses(s, b)));
            // A result that nobody reads later has given its memory to others by then.
            let lives = |b: &BufferId| self.outputs.contains(b) || self.steps[derivative..].iter().any(|s| uses(s, b));
            if waits && results.iter().all(lives) {
                pairs.push((loss, derivative));
            }
        }
        pairs
    }

    /// Key of a random stream of a step's region, and how many of its numbers one part of the batch takes: none if the stream does not run
    /// over the batch.
    pub fn stream(&self, step: &Step, region: &Region, stream: &Stream, seed: u64) -> (u64, u64) {
        let key = random::stream_key(seed, &step.path, stream.site, random::Purpose::Operation);
        let axes: Vec<Axis> = stream.axes.iter().map(|&a| region.domain[a]).collect();
        if axes.first() != Some(&self.batch) {
            return (key, 0);
        }
        let whole = |a: &Axis| step.split.filter(|s| s.axis == *a).map_or(step.sizes.of(*a), |s| s.whole);
        (key, axes.iter().map(whole).product::<usize>() as u64)
    }

    /// Names the steps in order, as an event log would: phase, layer, operation.
    pub fn log(&self) -> Vec<String> {
        self.steps.iter().map(|s| format!("{:?} {} {}", s.phase, s.path, s.work.name())).collect()
    }

    /// All that ranks must agree on, a line for each step and buffer; only which part of an axis a rank holds is left out.
    pub fn lines(&self) -> Vec<String> {
        let step = |s: &Step| {
            let Step { phase, path, inputs, outputs, sizes, .. } = s;
            format!("{phase:?} {path} {} {inputs:?} -> {outputs:?} {sizes:?}", s.work.contents())
        };
        let buffer = |b: &Buffer| {
            let Buffer { name, dtype, elements, width, segment, life, offset } = b;
            format!("{name} {dtype}[{elements}] of {width} {segment:?} {life:?} at {offset}")
        };
        self.steps.iter().map(step).chain(self.buffers.iter().map(buffer)).collect()
    }

    /// A hash of [`Plan::lines`].
    pub fn hash(&self) -> u64 {
        let mut h = Xxh3Default::new();
        for line in self.lines() {
            h.update(line.as_bytes());
            h.update(b"\n");
        }
        h.digest()
    }
}

/// A position among an operation's constants: a number, or an axis that stands for its size.
pub fn position(attrs: &Attrs, name: &str, sizes: &Sizes) -> usize {
    match attrs.get(name) {
        Some(Attr::Axis(a)) => sizes.of(*a),
        _ => attrs.int(name) as usize,
    }
}

impl Write {
    /// Whether the result is added to, in micro-batch `micro`.
    pub fn adds(self, micro: usize) -> bool {
        match self {
            Write::Store => false,
            Write::StoreThenAdd => micro > 0,
            Write::Add => true,
        }
    }
}

impl Work {
    /// Everything that decides what is computed.
    fn contents(&self) -> String {
        match self {
            Work::Region { region, dtypes } => format!("region {:016x} {dtypes:?}", region.hash()),
            Work::Library { op, attrs, inputs, outputs, rounds, write } => {
                format!("{} {attrs:?} {inputs:?} -> {outputs:?} {rounds:?} {write:?}", op.name)
            }
            Work::Accumulate(write) => format!("accumulate {write:?}"),
            Work::AllReduce { mesh } => format!("all_reduce {mesh}"),
        }
    }

    /// A short name.
    pub fn name(&self) -> String {
        match self {
            Work::Region { region, .. } => format!("{:?}", region.template).to_lowercase(),
            Work::Library { op, attrs, .. } => ops::word(op, attrs).to_owned(),
            Work::Accumulate(_) => "accumulate".to_owned(),
            Work::AllReduce { .. } => "all_reduce".to_owned(),
        }
    }
}
