//! The tile engine: executes a fused region tile by tile in cache, every instruction as one vectorised loop over the tile.
//!
//! Planning (`lower`) splits the domain into three groups of axes: *outer* axes are looped over one index at a time, *rows* and
//! *columns* span a tile. A register that depends on no row axis is computed once per outer index (the cosines of a rotary embedding,
//! widened weights), one that depends on no column once per row (the scale of a norm). Row reductions see whole rows; column sums
//! are summed over chunks of rows that depend on shapes alone, then in a tree. Dear values over few axes are computed before all that
//! (`hoist`). Operands and results of f32 whose tiles are in one piece are registers themselves; others are copied.
#![allow(unsafe_code)]

mod exec;
mod hoist;
mod lower;
#[cfg(test)]
mod tests;

use super::buffer::{Buf, round};
use super::pool::Pool;
use super::share::Shared;
use hoist::Hoisted;
use kiln_compiler::fuse::Region;
use kiln_compiler::ir::{Axis, DType, Sizes};
use lower::Program;
use smallvec::SmallVec;
use thiserror::Error;

/// Why a region cannot be planned for the host.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TileError {
    /// A scalar is still the name of a configuration value.
    #[error("the value of configuration `{0}` is not known")]
    UnboundConfig(String),
    /// A scalar is no number.
    #[error("a scalar of a fused region is no number")]
    ScalarType,
    /// A rotated axis has an odd size.
    #[error("axis `{0}` is rotated by half and has odd size {1}")]
    OddRotation(Axis, usize),
    /// More axes than the engine's tables hold.
    #[error("a fused region has {0} axes, the host takes at most {max}", max = lower::MAX_AXES)]
    TooManyAxes(usize),
    /// An instruction has operands of a kind that it does not take.
    #[error("instruction {0} of a fused region takes other kinds of operands")]
    OperandType(usize),
    /// An output's element type does not fit the kind of its value.
    #[error("output {0} of a fused region cannot be stored as {1}")]
    OutputType(usize, DType),
}

/// This rank's part of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Global index of its first element.
    pub offset: usize,
    /// Size of the whole axis.
    pub whole: usize,
}

/// Key and position of a random stream for one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamArg {
    /// [`crate::random::stream_key`] of this instance.
    pub key: u64,
    /// Added to every index: where the micro-batch starts in the whole batch.
    pub offset: u64,
}

/// Arguments of one run.
#[derive(Clone, Copy)]
pub struct TileArgs<'a> {
    /// In the order of [`Region::inputs`].
    pub inputs: &'a [Buf],
    /// In the order of [`Region::outputs`]. An output may be the same memory as an input with the same layout and element type.
    pub outputs: &'a [Buf],
    /// For each output whether to add to its old f32 values; empty if none is.
    pub accumulate: &'a [bool],
    /// In the order of [`Region::streams`].
    pub streams: &'a [StreamArg],
    /// Number of the training step, for random streams.
    pub step: u64,
}

/// A region planned for sizes and element types.
pub struct TileProgram {
    first: Option<First>,
    program: Program,
    threads: usize,
}

/// What is computed before the rest.
struct First {
    program: Box<TileProgram>,
    /// Operands that it reads.
    inputs: Vec<usize>,
    /// Elements of each table.
    tables: Vec<usize>,
}

impl TileProgram {
    /// Plans `region`; `dtype` resolves the types of layers, `part` says which part of an axis this rank holds (`None`: all of it).
    ///
    /// # Errors
    /// Where the region uses something that the engine does not execute.
    pub fn new(
        region: &Region,
        sizes: &Sizes,
        dtype: impl Fn(DType) -> DType,
        part: impl Fn(Axis) -> Option<Part>,
        threads: usize,
    ) -> Result<TileProgram, TileError> {
        TileProgram::planned(region, sizes, &dtype, &part, threads.max(1))
    }

    fn planned(
        region: &Region,
        sizes: &Sizes,
        dtype: &dyn Fn(DType) -> DType,
        part: &dyn Fn(Axis) -> Option<Part>,
        threads: usize,
    ) -> Result<TileProgram, TileError> {
        let planned = |region: &Region, first| {
            Ok(TileProgram { first, program: lower::run(region, sizes, dtype, part)?, threads })
        };
        match hoist::hoisted(region, sizes, part) {
            None => planned(region, None),
            Some(Hoisted { first, inputs, tables, rest }) => {
                let program = Box::new(planned(&first, None)?);
                planned(&rest, Some(First { program, inputs, tables }))
            }
        }
    }

    /// Scratch in f32 elements.
    pub fn workspace_len(&self) -> usize {
        let own = self.program.partial_len() + self.threads * self.program.worker_len;
        self.first
            .as_ref()
            .map_or(own, |first| first.tables.iter().sum::<usize>() + own.max(first.program.workspace_len()))
    }

    /// Executes the region.
    ///
    /// # Panics
    /// If a buffer is shorter than planned or of another type, or the workspace is too small.
    pub fn run(&self, pool: &Pool, args: &TileArgs<'_>, workspace: &mut [f32]) {
        assert!(pool.threads() <= self.threads, "planned for {} threads", self.threads);
        assert!(workspace.len() >= self.workspace_len(), "workspace of {} f32 is too small", workspace.len());
        let Some(first) = &self.first else { return self.run_rest(pool, args, workspace) };
        let (values, workspace) = workspace.split_at_mut(first.tables.iter().sum());
        let (mut rest, mut tables) = (values, SmallVec::<[Buf; 4]>::new());
        for &n in &first.tables {
            let table = rest.split_off_mut(..n).expect("the workspace holds what its length counts");
            // SAFETY: the part is borrowed from the workspace until this call returns; the first program writes it, the rest reads it.
            tables.push(unsafe { Buf::new(table.as_mut_ptr().cast(), size_of_val(table), DType::F32) });
        }
        let inputs: SmallVec<[Buf; 4]> = first.inputs.iter().map(|&i| args.inputs[i]).collect();
        let before = TileArgs { inputs: &inputs, outputs: &tables, accumulate: &[], streams: &[], step: args.step };
        first.program.run(pool, &before, workspace);
        let inputs: SmallVec<[Buf; 16]> = args.inputs.iter().chain(&tables).copied().collect();
        self.run_rest(pool, &TileArgs { inputs: &inputs, ..*args }, workspace);
    }

    fn run_rest(&self, pool: &Pool, args: &TileArgs<'_>, workspace: &mut [f32]) {
        let p = &self.program;
        assert_eq!(args.streams.len(), p.streams, "one key per random stream");
        p.check_buffers(args);
        let (partials, workers) = workspace.split_at_mut(p.partial_len());
        let partials = Shared::new(partials);
        let memory = Shared::new(workers);
        let serial = Pool::serial();
        let pool = if p.work < lower::SERIAL_WORK { &serial } else { pool };
        let in_place = p.in_place(args);
        pool.run(p.tasks(), |task, worker| {
            // SAFETY: a worker runs one task at a time, and only it uses its part.
            let registers = unsafe { memory.slice(worker * p.worker_len, p.worker_len) };
            for unit in p.units_of(task) {
                exec::unit(p, args, in_place, unit, Shared::new(registers), partials);
            }
        });
        for (i, sum) in p.column_sums.iter().enumerate() {
            pool.run(p.cols.div_ceil(COLUMNS_PER_TASK), |task, _| {
                let first = task * COLUMNS_PER_TASK;
                let columns = first..p.cols.min(first + COLUMNS_PER_TASK);
                exec::add_chunks(partials, i * p.chunks() * p.cols, p.chunks(), p.cols, columns.clone());
                for c in columns {
                    // SAFETY: each task has its own columns, and the first phase has ended.
                    let total = match p.chunks() {
                        0 => 0.0,
                        _ => unsafe { partials.read(i * p.chunks() * p.cols + c, 1)[0] },
                    };
                    let total = sum.rounds.iter().fold(total, |x, &d| round(d, x));
                    let at = sum.store.column(c);
                    let out = args.outputs[sum.output];
                    let old = if args.accumulate.get(sum.output) == Some(&true) { out.get(at) } else { 0.0 };
                    out.set(at, old + total);
                }
            });
        }
    }
}

// Columns of one task of the second stage of column sums.
const COLUMNS_PER_TASK: usize = 256;
