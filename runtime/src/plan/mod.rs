//! Plan: a linked model becomes a complete list of steps over buffers with fixed offsets, before anything is allocated.
//!
//! `schedule` unrolls the model's tree into steps and logical buffers; [`arena`] gives every buffer its offset. The executor
//! decides nothing: it runs the steps in order.

pub mod arena;
mod ids;
mod schedule;

pub use ids::{IdError, IdLimit};
pub use schedule::{build, build_forward};

use kiln_compiler::fuse::Region;
use kiln_compiler::ir::{Attrs, Axis, DType, Sizes, Type};
use kiln_compiler::ops::{self, Op};
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3Default;

/// Index of a buffer in [`Plan::buffers`].
pub type BufferId = usize;

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
        self.elements * self.dtype.bytes()
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
            let Buffer { name, dtype, elements, segment, life, offset } = b;
            format!("{name} {dtype}[{elements}] {segment:?} {life:?} at {offset}")
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
