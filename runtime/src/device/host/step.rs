//! Kernels of steps: what a plan's step becomes on the host, with everything precomputed, so that running it allocates nothing.

use super::arena::Arena;
use super::attention::AttentionPlan;
use super::buffer::Buf;
use super::copy::CopyPlan;
use super::gemm::{Epilogue, GemmError, GemmPlan};
use super::loss::{Gradient, LossOperands, LossPlan, LossResults};
use super::pool::Pool;
use super::scatter::SortPlan;
use super::tile::{Part, StreamArg, TileArgs, TileError, TileProgram};
use super::user_op::ReferencePlan;
use crate::exec::comm::Member;
use crate::exec::layout::ArenaLayout;
use crate::plan::{self, BufferId, Plan, Step, Work, Write};
use crate::user_op;
use kiln_compiler::ir::{Attrs, Axis, DType, Sizes, Type};
use kiln_compiler::ops;
use smallvec::SmallVec;

/// A step that the host cannot run.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// No kernel for an operation.
    #[error("K0804: {file}:{line}: the host has no kernel for `{op}` (layer `{path}`)")]
    Unsupported {
        /// Operation.
        op: String,
        /// Layer instance.
        path: String,
        /// File.
        file: String,
        /// Line.
        line: u32,
    },
    /// A product that cannot be planned.
    #[error(transparent)]
    Gemm(#[from] GemmError),
    /// A region that cannot be planned.
    #[error("K0809: {file}:{line}: {error} (layer `{path}`)")]
    Tile {
        /// Reason.
        error: TileError,
        /// Layer instance.
        path: String,
        /// File.
        file: String,
        /// Line.
        line: u32,
    },
}

/// What a running step sees.
pub struct RunCx<'a> {
    /// Memory.
    pub arena: &'a Arena,
    /// Its parts.
    pub layout: &'a ArenaLayout,
    /// Workers.
    pub pool: &'a Pool,
    /// The plan that the step belongs to.
    pub plan: &'a Plan,
    /// Training step: counter of random streams.
    pub step: u64,
    /// Micro-batch.
    pub micro: usize,
    /// Which part of the whole batch this run sees: micro-batches and data ranks, counted together.
    pub part: usize,
    /// This rank on mesh axis `tensor`.
    pub tensor: &'a Member,
    /// Whether every step computes its own results, even where two could be computed at once.
    pub apart: bool,
}

impl RunCx<'_> {
    /// A buffer's bytes.
    pub fn buffer(&self, id: BufferId) -> Buf {
        let b = &self.plan.buffers[id];
        self.arena.buf(b.offset, b.bytes(), b.dtype)
    }

    /// Scratch.
    #[allow(unsafe_code, clippy::mut_from_ref)]
    pub(super) fn workspace(&self) -> &mut [f32] {
        let bytes = self.layout.workspace_bytes;
        let ptr = self.arena.at(self.layout.workspace, bytes).cast();
        // SAFETY: in range and aligned; steps run one after another and each takes the scratch once.
        unsafe { std::slice::from_raw_parts_mut(ptr, bytes / size_of::<f32>()) }
    }

    /// The f32 values of a buffer that the running step writes.
    #[allow(unsafe_code, clippy::mut_from_ref)]
    fn f32s_mut(&self, id: BufferId) -> &mut [f32] {
        let b = &self.plan.buffers[id];
        assert_eq!(b.dtype, DType::F32, "`{}` is reduced over ranks, so it is f32", b.name);
        let ptr = self.arena.at(b.offset, b.bytes()).cast();
        // SAFETY: in range and aligned by the plan; the running step is the only user of its results.
        unsafe { std::slice::from_raw_parts_mut(ptr, b.elements) }
    }

    fn accumulates(&self, write: Write) -> bool {
        write.adds(self.micro)
    }
}

/// One prepared step.
pub enum Kernel {
    /// Fused region, with the key of each random stream and its elements per part of the batch.
    Region(TileProgram, Vec<(u64, u64)>),
    /// Matrix product.
    Gemm(GemmPlan, Option<DType>, Write),
    /// Attention forward: (o, lse).
    Attention(AttentionPlan, Vec<Vec<DType>>),
    /// Attention backward: (dq, dk, dv).
    AttentionVjp(AttentionPlan, Vec<Vec<DType>>),
    /// Linear cross-entropy: (sum, count, lse). Whether it waits for its derivative, which runs both.
    Loss(LossPlan, bool),
    /// Its derivative: (dx, dw).
    LossVjp(LossVjp),
    /// Ids in order: (order, starts, ends).
    Sort(SortPlan),
    /// `slice`, `pad`, `concat`.
    Copy(CopyPlan),
    /// The user's own operation: its reference.
    Reference(ReferencePlan),
    /// Gradient sum.
    Accumulate(Write),
    /// Sum over the ranks of mesh axis `tensor`.
    AllReduce,
}

/// The derivative of linear cross-entropy.
pub struct LossVjp {
    plan: LossPlan,
    /// The type in which dx is stored sizes the scratch.
    dx: DType,
    rounds: Vec<Vec<DType>>,
    write: Vec<Write>,
    /// Sum and count of the loss that runs together with it.
    with: Option<[BufferId; 2]>,
}

impl Kernel {
    /// Scratch that it needs, in f32s.
    pub fn workspace_len(&self) -> usize {
        match self {
            Kernel::Region(p, _) => p.workspace_len(),
            Kernel::Gemm(p, ..) => p.workspace_len(),
            Kernel::Attention(p, _) => p.workspace_len(),
            Kernel::AttentionVjp(p, _) => p.backward_workspace_len(),
            Kernel::Loss(p, _) => p.workspace_len(),
            Kernel::LossVjp(l) => match l.with {
                Some(_) => l.plan.both_workspace_len(l.dx),
                None => l.plan.backward_workspace_len(l.dx),
            },
            Kernel::Sort(p) => p.workspace_len(),
            Kernel::Accumulate(_) | Kernel::AllReduce | Kernel::Copy(_) | Kernel::Reference(_) => 0,
        }
    }

    /// Runs it.
    pub fn run(&self, cx: &RunCx<'_>, step: &Step) {
        let input = |i: usize| cx.buffer(step.inputs[i]);
        let output = |i: usize| cx.buffer(step.outputs[i]);
        match self {
            Kernel::Region(program, streams) => {
                let inputs: SmallVec<[Buf; 16]> = step.inputs.iter().map(|&b| cx.buffer(b)).collect();
                let outputs: SmallVec<[Buf; 8]> = step.outputs.iter().map(|&b| cx.buffer(b)).collect();
                let stream = |&(key, len): &(u64, u64)| StreamArg { key, offset: len * cx.part as u64 };
                let streams: SmallVec<[StreamArg; 4]> = streams.iter().map(stream).collect();
                let (inputs, outputs, streams) = (inputs.as_slice(), outputs.as_slice(), streams.as_slice());
                let args = TileArgs { inputs, outputs, accumulate: &[], streams, step: cx.step };
                program.run(cx.pool, &args, cx.workspace());
            }
            Kernel::Gemm(plan, round, write) => {
                let epilogue = Epilogue { round: *round, accumulate: cx.accumulates(*write) };
                plan.run(cx.pool, input(0), input(1), output(0), epilogue, cx.workspace());
            }
            Kernel::Attention(plan, rounds) => {
                let (o, lse) = (output(0), output(1));
                plan.forward(cx.pool, input(0), input(1), input(2), o, lse, &rounds[0], cx.workspace());
            }
            Kernel::AttentionVjp(plan, rounds) => {
                let results = [output(0), output(1), output(2)];
                let rounds = [rounds[0].as_slice(), &rounds[1], &rounds[2]];
                let operands = [input(0), input(1), input(2), input(3), input(4), input(5)];
                plan.backward(cx.pool, operands, results, rounds, cx.workspace());
            }
            Kernel::Loss(_, true) if !cx.apart => {}
            Kernel::Loss(plan, _) => {
                let operands = [input(0), input(1), input(2)];
                let results = LossResults { sum: output(0), count: output(1), lse: output(2) };
                plan.forward(cx.pool, operands, results, cx.workspace());
            }
            Kernel::LossVjp(LossVjp { plan, rounds, write, with, .. }) => {
                let [x, w, targets, lse, d_sum] = [input(0), input(1), input(2), input(3), input(4)];
                let operands = LossOperands { x, w, targets, lse, d_sum };
                let dw = Gradient { to: output(1), rounds: &rounds[1], accumulate: cx.accumulates(write[1]) };
                let (pool, dx, rounds) = (cx.pool, output(0), &rounds[0]);
                match with.filter(|_| !cx.apart) {
                    Some(results) => {
                        plan.both(pool, operands, results.map(|b| cx.buffer(b)), dx, rounds, dw, cx.workspace());
                    }
                    None => plan.backward(pool, operands, dx, rounds, dw, cx.workspace()),
                }
            }
            Kernel::Sort(plan) => plan.run(cx.pool, input(0), output(0), output(1), output(2), cx.workspace()),
            Kernel::Copy(plan) => {
                let operands: SmallVec<[Buf; 8]> = step.inputs.iter().map(|&b| cx.buffer(b)).collect();
                plan.run(cx.pool, &operands, output(0));
            }
            Kernel::Reference(plan) => {
                let operands: Vec<Buf> = step.inputs.iter().map(|&b| cx.buffer(b)).collect();
                let results: Vec<Buf> = step.outputs.iter().map(|&b| cx.buffer(b)).collect();
                plan.run(&operands, &results);
            }
            Kernel::AllReduce => {
                accumulate(cx, input(0), output(0), false);
                cx.tensor.all_reduce(cx.f32s_mut(step.outputs[0]));
            }
            Kernel::Accumulate(write) => accumulate(cx, input(0), output(0), cx.accumulates(*write)),
        }
    }
}

// Elements that one task of `accumulate` moves through its stack.
const CHUNK: usize = 512;

fn accumulate(cx: &RunCx<'_>, from: Buf, to: Buf, add: bool) {
    cx.pool.run(from.len().div_ceil(CHUNK), |task, _| {
        let (at, mut x, mut y) = (task * CHUNK, [0.0f32; CHUNK], [0.0f32; CHUNK]);
        let n = CHUNK.min(from.len() - at);
        from.load(at, &mut x[..n]);
        if add {
            to.load(at, &mut y[..n]);
            x[..n].iter_mut().zip(&y[..n]).for_each(|(x, y)| *x += y);
        }
        to.store(at, &x[..n]);
    });
}

/// A kernel for every step of a plan.
pub fn prepare(plan: &Plan, threads: usize, seed: u64) -> Result<Vec<Kernel>, StepError> {
    let mut kernels = plan.steps.iter().map(|s| prepare_step(plan, s, threads, seed)).collect::<Result<Vec<_>, _>>()?;
    for (loss, derivative) in plan.losses_with_derivatives() {
        if let Kernel::LossVjp(vjp) = &mut kernels[derivative]
            && vjp.plan.keeps()
        {
            vjp.with = Some([plan.steps[loss].outputs[0], plan.steps[loss].outputs[1]]);
            if let Kernel::Loss(_, waits) = &mut kernels[loss] {
                *waits = true;
            }
        }
    }
    Ok(kernels)
}

/// The kernel of one step.
pub(super) fn prepare_step(plan: &Plan, step: &Step, threads: usize, seed: u64) -> Result<Kernel, StepError> {
    let unsupported = |op: &str| StepError::Unsupported {
        op: op.to_owned(),
        path: step.path.to_string(),
        file: step.file.to_string(),
        line: step.line,
    };
    match &step.work {
        Work::Accumulate(write) => Ok(Kernel::Accumulate(*write)),
        Work::AllReduce { .. } => Ok(Kernel::AllReduce),
        Work::Region { region, dtypes } => {
            let resolve = |d: DType| region.dtypes.iter().zip(dtypes).find(|(s, _)| **s == d).map_or(d, |(_, r)| *r);
            let part = |axis: Axis| {
                let split = step.split.filter(|s| s.axis == axis);
                split.map(|s| Part { offset: s.offset, whole: s.whole })
            };
            let program = TileProgram::new(region, &step.sizes, resolve, part, threads).map_err(|error| {
                let (path, file) = (step.path.to_string(), step.file.to_string());
                StepError::Tile { error, path, file, line: step.line }
            })?;
            let streams = region.streams.iter().map(|s| plan.stream(step, region, s, seed)).collect();
            Ok(Kernel::Region(program, streams))
        }
        Work::Library { op, attrs, inputs, outputs, rounds, write } => {
            library(&step.sizes, op.name, attrs, inputs, outputs, rounds, write, threads)
                .unwrap_or_else(|| Err(unsupported(ops::word(op, attrs))))
        }
    }
}

fn library(
    sizes: &Sizes,
    op: &str,
    attrs: &Attrs,
    inputs: &[Type],
    outputs: &[Type],
    rounds: &[Vec<DType>],
    write: &[Write],
    threads: usize,
) -> Option<Result<Kernel, StepError>> {
    match op {
        "dot_general" => {
            let product = GemmPlan::new(&inputs[0].shape, &inputs[1].shape, &outputs[0].shape, sizes, threads);
            let round = rounds[0].first().copied();
            Some(product.map(|p| Kernel::Gemm(p, round, write[0])).map_err(StepError::from))
        }
        "sort_index" => {
            let (n, bins) = (sizes.elements(&inputs[0].shape), sizes.of(attrs.axis("axis")));
            Some(Ok(Kernel::Sort(SortPlan::new(n, bins, threads))))
        }
        "slice" | "pad" | "concat" => {
            let (shape, axis, to) = (&inputs[0].shape, attrs.axis("axis"), attrs.axis("to"));
            Some(Ok(Kernel::Copy(match op {
                "slice" => CopyPlan::slice(shape, axis, plan::position(attrs, "start", sizes), to, sizes),
                "pad" => CopyPlan::pad(shape, axis, plan::position(attrs, "before", sizes), to, sizes),
                _ => CopyPlan::concat(shape, axis, attrs.axis("other"), sizes),
            })))
        }
        "linear_cross_entropy" => {
            Some(Ok(Kernel::Loss(LossPlan::new(&inputs[0].shape, &inputs[1].shape, sizes, threads), false)))
        }
        "linear_cross_entropy_vjp" => {
            let plan = LossPlan::new(&inputs[0].shape, &inputs[1].shape, sizes, threads);
            let (dx, rounds, write) = (outputs[0].dtype, rounds.to_vec(), write.to_vec());
            Some(Ok(Kernel::LossVjp(LossVjp { plan, dx, rounds, write, with: None })))
        }
        "opaque" => {
            let op = user_op::find(attrs.str("name"))?;
            Some(Ok(Kernel::Reference(ReferencePlan::new(op, inputs, outputs, rounds, sizes))))
        }
        "attention" | "attention_vjp" => {
            let attention =
                AttentionPlan::new(&inputs[0].shape, &inputs[1].shape, sizes, attrs.flag("causal"), threads);
            let rounds = rounds.to_vec();
            let forward = op == "attention";
            Some(Ok(if forward {
                Kernel::Attention(attention, rounds)
            } else {
                Kernel::AttentionVjp(attention, rounds)
            }))
        }
        _ => None,
    }
}
