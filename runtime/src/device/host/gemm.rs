//! `dot_general`: any two-operand einsum as one packed matrix product per batch index.
//!
//! The axes of the operands fall into batch, rows (M), columns (N) and contracted (K). Offsets are tables: element (i, k) of A lies
//! at `a_row[i] + a_k[k]`, and so for B and C. Transposes and head layouts are therefore absorbed by packing and never copied.
//! Inputs are widened to f32 while packing, sums are f32, and the result is rounded once.
//!
//! K is summed in blocks of a size that depends on K alone, in order, so the bits do not depend on the split into tasks or threads.
//!
//! Where the processor multiplies bf16 itself, products of two bf16 operands use that (twice the rate of f32; it adds two products at
//! a time and flushes subnormals to zero).
//!
//! Own kernels rather than a crate: the crates measured (gemm, matrixmultiply, faer) need contiguous or strided operands, allocate
//! their packing buffers, and give other bits for another number of threads.
#![allow(unsafe_code)]

use super::buffer::{Buf, round_in_place};
use super::cpu::{Fma, multiversion};
use super::math::tree;
use super::micro::{Into, Micro, Operands};
use super::pool::Pool;
use super::share::Shared;
use super::transpose::{self, SIDE};
use kiln_compiler::ir::{Axis, DType, Sizes};
use thiserror::Error;

/// Why a product cannot be planned.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GemmError {
    /// The result has an axis that no operand has.
    #[error("axis `{0}` of the result of `dot_general` is in neither operand")]
    UnknownAxis(Axis),
    /// An axis of one operand only is missing from the result.
    #[error("axis `{0}` is in one operand of `dot_general` and not in its result")]
    LostAxis(Axis),
}

/// How the sums become the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epilogue {
    /// Round to this type before storing.
    pub round: Option<DType>,
    /// Add to the old f32 values instead of overwriting them.
    pub accumulate: bool,
}

impl Epilogue {
    /// Overwrite, rounded to the type of the result buffer only.
    pub const STORE: Epilogue = Epilogue { round: None, accumulate: false };
}

// Longest block of K: a panel of B (32 columns) is 32 KiB, two thirds of the first-level cache.
const K_BLOCK: usize = 256;
// Rows per task: a block of A (about 120 × 256) is 120 KiB, and stays in the second-level cache.
const ROWS_PER_TASK: usize = 120;
// Columns per task: its panels of B are 512 KiB.
const COLUMNS_PER_TASK: usize = 512;
// Packed B is at most this many elements (8 MiB); wider products are done in column ranges.
const PACKED_B: usize = 2 << 20;
// Packed B of more elements than this (1 MiB) is better packed by those who need it, if K is long.
const DEEP_B: usize = 1 << 16;
// Elements of a task that packs for itself: operands of a block of K and its part of C (1.5 MiB) stay in the second-level cache.
const DEEP_TASK: usize = 3 << 17;
// Runs of K of at least so many steps are worth to be read in place.
const SHORTEST_RUN: usize = 16;
// Steps of K that lie at most so many elements apart are read in place; farther ones miss the caches too often.
const NEAR: usize = 256;
// Steps of K that are packed for all rows or columns of a task before the next ones.
const PACKED_STEPS: usize = 64;
// Below this many multiply-adds, waking a thread costs more than it saves.
const SERIAL_WORK: usize = 1 << 16;
// Up to this many rows, B is read once in place instead of being packed.
const SKINNY_ROWS: usize = 4;
// Columns of one task of the skinny kernel: a row of B is read 2 KiB at a time, which the prefetcher follows.
const SKINNY_WIDTH: usize = 512;
// Rows of B that one pass over the sums takes, so that the sums are loaded and stored once for all of them.
const SKINNY_DEPTH: usize = 8;
// Partial sums of a dot product in the skinny kernel, and columns that it sums in registers.
const LANES: usize = 32;
// Tasks per thread that are wanted so that an uneven machine stays busy.
const TASKS_PER_THREAD: usize = 4;

/// Element offsets along a group of axes, and how far they are consecutive.
struct Table {
    at: Vec<usize>,
    /// `run[i]`: how many entries from `i` on increase by one.
    run: Vec<u32>,
}

impl Table {
    /// Offsets of all index tuples of `axes` (row-major) in a contiguous tensor over `shape`.
    fn new(axes: &[Axis], shape: &[Axis], sizes: &Sizes) -> Table {
        let mut at = vec![0];
        for &axis in axes {
            let stride = match shape.iter().position(|&a| a == axis) {
                Some(p) => sizes.elements(&shape[p + 1..]),
                None => 0,
            };
            let n = sizes.of(axis);
            at = at.iter().flat_map(|&base| (0..n).map(move |i| base + i * stride)).collect();
        }
        let mut run = vec![1; at.len()];
        for i in (1..at.len()).rev() {
            if at[i] == at[i - 1] + 1 {
                run[i - 1] = run[i] + 1;
            }
        }
        Table { at, run }
    }

    fn len(&self) -> usize {
        self.at.len()
    }

    /// Whether entries `i..i + n` are consecutive.
    #[inline(always)]
    fn unit(&self, i: usize, n: usize) -> bool {
        self.run[i] as usize >= n
    }

    /// How entries `i..i + n` follow each other: in runs of a constant step, all as long and as far apart, except that the last may be
    /// shorter.
    fn runs(&self, i: usize, n: usize) -> Option<Runs> {
        let t = &self.at[i..i + n];
        let [first, second, ..] = t else { return Some(Runs { step: 1, run: 1, skip: 0 }) };
        let step = second.checked_sub(*first)?;
        let run = t.windows(2).position(|w| w[1].checked_sub(w[0]) != Some(step)).map_or(n, |p| p + 1);
        let skip = if run < n { t[run].checked_sub(first + run * step)? } else { 0 };
        let fits = (0..n).all(|k| t[k] == first + k * step + k / run * skip);
        fits.then_some(Runs { step, run, skip })
    }

    /// The constant step of entries `i..i + n`, if there is one.
    #[inline(always)]
    fn stride(&self, i: usize, n: usize) -> Option<usize> {
        let t = &self.at[i..i + n];
        let [first, second, ..] = t else { return Some(0) };
        let step = second.checked_sub(*first)?;
        t.windows(2).all(|w| w[1].checked_sub(w[0]) == Some(step)).then_some(step)
    }
}

/// Offsets `step` apart, and after every `run` of them `skip` more.
#[derive(Clone, Copy)]
struct Runs {
    step: usize,
    run: usize,
    skip: usize,
}

/// A planned product.
pub struct GemmPlan {
    micro: &'static Micro,
    threads: usize,
    /// The operands are exchanged, so that columns of C are contiguous where possible.
    swapped: bool,
    a_batch: Table,
    b_batch: Table,
    c_batch: Table,
    a_row: Table,
    a_k: Table,
    b_k: Table,
    b_col: Table,
    c_row: Table,
    c_col: Table,
    elements: [usize; 3],
    way: Way,
}

/// How the work is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// B is packed once by all threads, then tasks are blocks of C.
    Shared,
    /// A long K and a small C: a task is a block of C, and its thread packs what it needs of both operands, one block of K after the
    /// other, so that they never leave its cache.
    Deep { rows: usize, cols: usize },
    /// A task is a batch index, and its thread packs for itself.
    PerBatch,
    /// Few rows: B is read in place; tasks are ranges of columns.
    Skinny,
}

impl GemmPlan {
    /// Plans `out = Σ a · b`: axes in both operands and not in `out` are contracted, in both and in `out` are batch.
    ///
    /// # Errors
    /// Where an axis of one operand is not in `out`, or one of `out` is in no operand.
    pub fn new(a: &[Axis], b: &[Axis], out: &[Axis], sizes: &Sizes, threads: usize) -> Result<GemmPlan, GemmError> {
        check_axes(a, b, out)?;
        let only = |x: &[Axis], y: &[Axis]| -> Vec<Axis> {
            out.iter().copied().filter(|o| x.contains(o) && !y.contains(o)).collect()
        };
        let (rows, cols) = (sizes.elements(&only(a, b)), sizes.elements(&only(b, a)));
        let last_in_a = out.last().is_some_and(|o| a.contains(o) && !b.contains(o));
        // Contiguous columns of C matter most, except that few columns are better seen as few rows.
        let swapped = if rows.min(cols) <= SKINNY_ROWS { cols < rows } else { last_in_a };
        let (a, b) = if swapped { (b, a) } else { (a, b) };

        let batch: Vec<Axis> = out.iter().copied().filter(|o| a.contains(o) && b.contains(o)).collect();
        let contracted: Vec<Axis> = a.iter().copied().filter(|x| b.contains(x) && !out.contains(x)).collect();
        let (rows, cols) = (only(a, b), only(b, a));
        let mut plan = GemmPlan {
            micro: Micro::detect(),
            threads: threads.max(1),
            swapped,
            a_batch: Table::new(&batch, a, sizes),
            b_batch: Table::new(&batch, b, sizes),
            c_batch: Table::new(&batch, out, sizes),
            a_row: Table::new(&rows, a, sizes),
            a_k: Table::new(&contracted, a, sizes),
            b_k: Table::new(&contracted, b, sizes),
            b_col: Table::new(&cols, b, sizes),
            c_row: Table::new(&rows, out, sizes),
            c_col: Table::new(&cols, out, sizes),
            elements: [sizes.elements(a), sizes.elements(b), sizes.elements(out)],
            way: Way::Shared,
        };
        plan.way = plan.choose_way();
        Ok(plan)
    }

    fn choose_way(&self) -> Way {
        let (m, n, k) = (self.a_row.len(), self.b_col.len(), self.a_k.len());
        let in_place = n > 0 && k > 0 && (self.b_k.unit(0, k) || self.b_col.unit(0, n.min(SKINNY_WIDTH)));
        if m <= SKINNY_ROWS && in_place {
            Way::Skinny
        } else if self.a_batch.len() >= 2 && (self.a_batch.len() >= 2 * self.threads || m * n * k < SERIAL_WORK) {
            Way::PerBatch
        } else if m < k && k * n > DEEP_B {
            let (rows, cols) = self.deep_shape();
            Way::Deep { rows, cols }
        } else {
            Way::Shared
        }
    }

    /// Rows and columns of a task that packs for itself: one for each thread, since more would pack more, or as many as stay in the cache; as
    /// square as it takes to pack little.
    fn deep_shape(&self) -> (usize, usize) {
        let (m, n) = (self.a_row.len(), self.b_col.len());
        let (mr, nr) = (self.micro.mr, self.micro.nr);
        let shape = |down: usize, across: usize| {
            (m.div_ceil(down).next_multiple_of(mr), n.div_ceil(across).next_multiple_of(nr))
        };
        let mut tasks = self.threads;
        loop {
            // Every row of A is packed once for each task across, every column of B once for each down.
            let splits = (1..=tasks).map(|down| (down, tasks.div_ceil(down)));
            let fits = splits.filter(|&(down, across)| {
                let (rows, cols) = shape(down, across);
                rows <= MOST_STRIPS * mr && (rows + cols) * K_BLOCK + rows * cols <= DEEP_TASK
            });
            match fits.min_by_key(|&(down, across)| m * across + n * down) {
                Some((down, across)) => return shape(down, across),
                None => tasks *= 2,
            }
        }
    }

    fn padded_columns(&self, n: usize) -> usize {
        n.next_multiple_of(self.micro.nr)
    }

    /// Length of every block of K but the last; a function of K alone.
    fn k_block(&self) -> usize {
        even_blocks(self.a_k.len())
    }

    /// Columns packed at a time.
    fn column_range(&self) -> usize {
        let fit = PACKED_B / self.a_k.len().max(1) / COLUMNS_PER_TASK * COLUMNS_PER_TASK;
        self.padded_columns(self.b_col.len()).min(fit.max(COLUMNS_PER_TASK))
    }

    /// Rows and columns of a task.
    fn task_shape(&self, columns: usize) -> (usize, usize) {
        let m = self.a_row.len();
        let (mr, nr) = (self.micro.mr, self.micro.nr);
        let even = |n: usize, most: usize, unit: usize| n.div_ceil(n.div_ceil(most)).next_multiple_of(unit);
        let mut rows = even(m, ROWS_PER_TASK, mr);
        let mut cols = even(columns, COLUMNS_PER_TASK, nr);
        while m.div_ceil(rows) * columns.div_ceil(cols) < TASKS_PER_THREAD * self.threads {
            if cols > 4 * nr && cols >= rows {
                cols = (cols / 2).next_multiple_of(nr);
            } else if rows > 2 * mr {
                rows = (rows / 2).next_multiple_of(mr);
            } else {
                break;
            }
        }
        (rows, cols)
    }

    /// Packed operands, and sums that wait for the last block of K, of one worker of [`Way::Deep`].
    fn deep_worker_len(&self, rows: usize, cols: usize) -> usize {
        (rows + cols) * self.k_block() + rows * cols
    }

    /// Packed A, and sums that wait for the last block of K, of one worker.
    fn worker_len(&self) -> usize {
        let rows = (ROWS_PER_TASK + 2 * self.micro.mr).min(self.a_row.len().next_multiple_of(self.micro.mr));
        let cols = (COLUMNS_PER_TASK + self.micro.nr).min(self.padded_columns(self.b_col.len()));
        rows * self.k_block() + if self.a_k.len() > self.k_block() { rows * cols } else { 0 }
    }

    /// Scratch in f32 elements.
    pub fn workspace_len(&self) -> usize {
        let k = self.a_k.len();
        match self.way {
            Way::Shared => k * self.column_range() + self.threads * self.worker_len(),
            Way::Deep { rows, cols } => self.threads * self.deep_worker_len(rows, cols),
            Way::PerBatch => self.threads * (k * self.column_range() + self.worker_len()),
            Way::Skinny => self.a_row.len() * k,
        }
    }

    /// Floating-point operations.
    pub fn flops(&self) -> u64 {
        2 * (self.a_batch.len() * self.a_row.len() * self.b_col.len() * self.a_k.len()) as u64
    }

    /// Computes `c` from `a` and `b`, in the order of the operation's operands.
    ///
    /// # Panics
    /// If a buffer or the workspace is shorter than planned, or `pool` has more threads than planned.
    pub fn run(&self, pool: &Pool, a: Buf, b: Buf, c: Buf, epilogue: Epilogue, workspace: &mut [f32]) {
        let (a, b) = if self.swapped { (b, a) } else { (a, b) };
        for (buf, &n) in [a, b, c].iter().zip(&self.elements) {
            assert!(buf.len() >= n, "an operand of `dot_general` has {} of {n} elements", buf.len());
        }
        assert!(pool.threads() <= self.threads, "planned for {} threads", self.threads);
        assert!(workspace.len() >= self.workspace_len(), "workspace of {} f32 is too small", workspace.len());
        let (m, n, k) = (self.a_row.len(), self.b_col.len(), self.a_k.len());
        let batch = self.a_batch.len();
        if batch * m * n == 0 || (k == 0 && epilogue.accumulate) {
            return;
        }
        let serial = Pool::serial();
        let pool = if batch * m * n * k < SERIAL_WORK { &serial } else { pool };
        let pairs = match (a.dtype(), b.dtype()) {
            (DType::Bf16, DType::Bf16) => Micro::detect_pairs(),
            _ => None,
        };
        let (micro, depth) = pairs.map_or((self.micro, k), |p| (p, k.div_ceil(2)));
        let call = Call { plan: self, a, b, c, epilogue, micro, pairs: pairs.is_some(), depth };
        match self.way {
            Way::Shared => (0..batch).for_each(|i| call.shared(pool, i, workspace)),
            Way::PerBatch => {
                let each = workspace.len() / self.threads;
                let scratch = Shared::new(workspace);
                pool.run(batch, |i, worker| {
                    // SAFETY: a worker runs one task at a time, and only it uses its part.
                    let part = unsafe { scratch.slice(worker * each, each) };
                    call.shared(&Pool::serial(), i, part);
                });
            }
            Way::Deep { rows, cols } => (0..batch).for_each(|i| call.deep(pool, i, (rows, cols), workspace)),
            Way::Skinny => (0..batch).for_each(|i| call.skinny(pool, i, workspace)),
        }
    }
}

/// `n` in blocks of at most K_BLOCK, as even as possible.
fn even_blocks(n: usize) -> usize {
    n.div_ceil(n.div_ceil(K_BLOCK).max(1)).max(1)
}

fn check_axes(a: &[Axis], b: &[Axis], out: &[Axis]) -> Result<(), GemmError> {
    if let Some(&o) = out.iter().find(|o| !a.contains(o) && !b.contains(o)) {
        return Err(GemmError::UnknownAxis(o));
    }
    let lost = a.iter().chain(b).find(|x| !(out.contains(x) || a.contains(x) && b.contains(x)));
    lost.map_or(Ok(()), |&x| Err(GemmError::LostAxis(x)))
}

/// One execution.
struct Call<'a> {
    plan: &'a GemmPlan,
    a: Buf,
    b: Buf,
    c: Buf,
    epilogue: Epilogue,
    micro: &'static Micro,
    /// A packed word holds two bf16 neighbours along K, instead of one f32.
    pairs: bool,
    /// Words along K.
    depth: usize,
}

/// Where a block of C lies.
#[derive(Clone, Copy)]
struct Block {
    batch: usize,
    row: usize,
    rows: usize,
    col: usize,
    cols: usize,
}

impl Call<'_> {
    /// One batch index: for each range of columns, B is packed by all threads, then blocks of C are computed.
    fn shared(&self, pool: &Pool, batch: usize, workspace: &mut [f32]) {
        let p = self.plan;
        let (m, n, k) = (p.a_row.len(), p.b_col.len(), self.depth);
        let nr = self.micro.nr;
        let (packed, rest) = workspace.split_at_mut(k * p.column_range());
        let workers = Shared::new(rest);
        for first in (0..n).step_by(p.column_range()) {
            let range = p.column_range().min(n - first);
            let panels = range.div_ceil(nr);
            let shared = Shared::new(packed);
            pool.run(panels, |panel, _| {
                // SAFETY: each task has its own panel.
                let dst = unsafe { shared.slice(panel * nr * k, nr * k) };
                let col = first + panel * nr;
                let lanes = Lanes { table: &p.b_col, first: col, count: nr.min(n - col), width: nr };
                self.pack(self.b, p.b_batch.at[batch], lanes, &p.b_k, 0, k, dst);
            });
            let (task_rows, task_cols) = p.task_shape(range);
            let down = m.div_ceil(task_rows);
            pool.run(down * range.div_ceil(task_cols), |task, worker| {
                let (row, col) = (task % down * task_rows, task / down * task_cols);
                let block = Block {
                    batch,
                    row,
                    rows: task_rows.min(m - row),
                    col: first + col,
                    cols: task_cols.min(range - col),
                };
                // SAFETY: a worker runs one task at a time, and only it uses its part; nobody writes the packed panels now.
                let (scratch, b) = unsafe {
                    let len = p.worker_len();
                    (workers.slice(worker * len, len), shared.read(col * k, block.cols.next_multiple_of(nr) * k))
                };
                self.block(block, Panels::Whole(b), scratch);
            });
        }
    }

    /// One batch index whose tasks pack for themselves.
    fn deep(&self, pool: &Pool, batch: usize, (rows, cols): (usize, usize), workspace: &mut [f32]) {
        let p = self.plan;
        let (m, n) = (p.a_row.len(), p.b_col.len());
        let (down, len) = (m.div_ceil(rows), p.deep_worker_len(rows, cols));
        let workers = Shared::new(workspace);
        pool.run(down * n.div_ceil(cols), |task, worker| {
            let (row, col) = (task % down * rows, task / down * cols);
            let block = Block { batch, row, rows: rows.min(m - row), col, cols: cols.min(n - col) };
            // SAFETY: a worker runs one task at a time, and only it uses its part.
            let scratch = unsafe { workers.slice(worker * len, len) };
            let (panels, scratch) = scratch.split_at_mut(cols * p.k_block());
            self.block(block, Panels::Own(panels), scratch);
        });
    }

    /// One block of C.
    fn block(&self, at: Block, mut b: Panels<'_>, scratch: &mut [f32]) {
        let p = self.plan;
        let (mr, nr, k, step) = (self.micro.mr, self.micro.nr, self.depth, even_blocks(self.depth));
        let plain = self.c.dtype() == DType::F32 && matches!(self.epilogue.round, None | Some(DType::F32));
        let (packed, sums) = scratch.split_at_mut(at.rows.next_multiple_of(mr) * step);
        // Rounding must wait for the whole sum.
        let wait = !plain && k > step;
        let sums_row = at.cols.next_multiple_of(nr);
        let mut tile = [0.0f32; MOST_TILE];
        for k0 in (0..k.max(1)).step_by(step) {
            let depth = step.min(k - k0);
            let add = k0 > 0 || self.epilogue.accumulate;
            let mut strips = [Strip::default(); MOST_STRIPS];
            assert!(at.rows <= MOST_STRIPS * mr, "a block of {} rows is too tall", at.rows);
            let a_base = p.a_batch.at[at.batch];
            let rows = Lanes { table: &p.a_row, first: at.row, count: at.rows, width: mr };
            let steps = p.a_k.runs(k0, depth).filter(|steps| steps.run >= depth.min(SHORTEST_RUN));
            let mut any_in_place = false;
            for (strip, (i, lanes)) in strips.iter_mut().zip(rows.panels()) {
                let place = steps.and_then(|steps| self.in_place(a_base, lanes, k0, depth, steps));
                any_in_place |= place.is_some();
                let in_order = (packed[i * depth..].as_ptr(), 1, Runs { step: mr, run: depth.max(1), skip: 0 });
                let (a, row, steps) = place.unwrap_or(in_order);
                let c = if plain { p.c_row.stride(lanes.first, lanes.count) } else { None };
                *strip = Strip { rows: lanes.count, a, row, steps, c };
            }
            if any_in_place {
                for (strip, (i, lanes)) in strips.iter().zip(rows.panels()) {
                    let dst = &mut packed[i * depth..(i + mr) * depth];
                    if strip.a == dst.as_ptr() {
                        self.pack(self.a, a_base, lanes, &p.a_k, k0, depth, dst);
                    }
                }
            } else {
                self.pack(self.a, a_base, rows, &p.a_k, k0, depth, packed);
            }
            if let Panels::Own(own) = &mut b {
                let columns = Lanes { table: &p.b_col, first: at.col, count: at.cols, width: nr };
                self.pack(self.b, p.b_batch.at[at.batch], columns, &p.b_k, k0, depth, own);
            }
            for j in (0..at.cols).step_by(nr) {
                let width = nr.min(at.cols - j);
                let panel = match &b {
                    Panels::Whole(b) => &b[j * k + k0 * nr..j * k + (k0 + depth) * nr],
                    Panels::Own(b) => &b[j * depth..(j + nr) * depth],
                };
                // Whether the micro-kernel may write its tiles of the result itself.
                let direct = width == nr && p.c_col.unit(at.col + j, nr);
                let column = p.c_batch.at[at.batch] + p.c_col.at[at.col + j];
                for (strip, i) in strips.iter().zip((0..at.rows).step_by(mr)) {
                    let Strip { rows, a, row: a_row, steps, c: stride } = *strip;
                    let (c, c_row, into) = if wait {
                        let into = if k0 > 0 { Into::Add } else { Into::Overwrite };
                        (sums[i * sums_row + j..].as_mut_ptr(), sums_row, into)
                    } else if let Some(stride) = stride.filter(|_| direct) {
                        let place = self.c.f32s_mut(column + p.c_row.at[at.row + i], (rows - 1) * stride + nr);
                        (place.as_mut_ptr(), stride, if add { Into::Add } else { Into::Overwrite })
                    } else {
                        (tile.as_mut_ptr(), nr, Into::Overwrite)
                    };
                    // SAFETY: strips and panels hold `rows × depth` and `depth × nr` elements; C has room for `rows` rows of `nr`: the
                    // tile and the sums by their sizes, the result as was checked.
                    unsafe {
                        let Runs { step: a_k, run: a_run, skip: a_skip } = steps;
                        let b = panel.as_ptr();
                        let o = Operands { k: depth, a, a_row, a_k, a_run, a_skip, b, b_k: nr, c, c_row };
                        self.micro.call(rows, o, into);
                    }
                    if c == tile.as_mut_ptr() {
                        let here = Block { row: at.row + i, rows, col: at.col + j, cols: width, ..at };
                        self.finish(here, &mut tile, nr, add);
                    }
                }
            }
        }
        if wait {
            for i in (0..at.rows).step_by(mr) {
                let here = Block { row: at.row + i, rows: mr.min(at.rows - i), ..at };
                self.finish(here, &mut sums[i * sums_row..], sums_row, self.epilogue.accumulate);
            }
        }
    }

    /// Rows of A where they lie, how far apart, and how K goes on, if they are as good as packed: f32, each of them in pieces, or all of
    /// them beside each other at every step of K.
    fn in_place(
        &self,
        base: usize,
        lanes: Lanes<'_>,
        k0: usize,
        depth: usize,
        steps: Runs,
    ) -> Option<(*const f32, usize, Runs)> {
        let p = self.plan;
        if self.pairs || self.a.dtype() != DType::F32 || depth == 0 {
            return None;
        }
        let row =
            if matches!(p.way, Way::Deep { .. }) && lanes.table.unit(lanes.first, lanes.count) && steps.step <= NEAR {
                1
            } else if steps.step == 1 {
                lanes.table.stride(lanes.first, lanes.count)?
            } else {
                return None;
            };
        let first = base + lanes.table.at[lanes.first] + p.a_k.at[k0];
        let last = p.a_k.at[k0 + depth - 1] - p.a_k.at[k0];
        let all = self.a.f32s(first, (lanes.count - 1) * row + last + 1);
        Some((all.as_ptr(), row, steps))
    }

    /// Packs words `k0..k0 + depth` of all panels, some of them before the next ones, so that memory is read in order.
    fn pack(&self, src: Buf, base: usize, lanes: Lanes<'_>, ks: &Table, k0: usize, depth: usize, dst: &mut [f32]) {
        for k in (0..depth).step_by(PACKED_STEPS) {
            let steps = PACKED_STEPS.min(depth - k);
            for (i, panel) in lanes.panels() {
                let dst = &mut dst[i * depth + k * lanes.width..][..steps * lanes.width];
                if self.pairs {
                    pack_pairs(src, base, panel, ks, k0 + k, steps, dst);
                } else {
                    pack_floats(src, base, panel, ks, k0 + k, steps, dst);
                }
            }
        }
    }

    /// Rounds sums and stores them in the result.
    fn finish(&self, at: Block, sums: &mut [f32], sums_row: usize, add: bool) {
        let p = self.plan;
        for i in 0..at.rows {
            let row = &mut sums[i * sums_row..i * sums_row + at.cols];
            if let Some(dtype) = self.epilogue.round {
                round_in_place(dtype, row);
            }
            let base = p.c_batch.at[at.batch] + p.c_row.at[at.row + i];
            let mut j = 0;
            while j < at.cols {
                let n = (p.c_col.run[at.col + j] as usize).min(at.cols - j);
                let to = base + p.c_col.at[at.col + j];
                if add {
                    self.c.add(to, &row[j..j + n]);
                } else {
                    self.c.store(to, &row[j..j + n]);
                }
                j += n;
            }
        }
    }

    /// One batch index with few rows: memory bound, so B is read once, where it lies.
    fn skinny(&self, pool: &Pool, batch: usize, workspace: &mut [f32]) {
        let p = self.plan;
        let (m, n, k) = (p.a_row.len(), p.b_col.len(), p.a_k.len());
        let a = &mut workspace[..m * k];
        for (i, row) in a.chunks_exact_mut(k).enumerate() {
            let base = p.a_batch.at[batch] + p.a_row.at[i];
            let mut kk = 0;
            while kk < k {
                let run = (p.a_k.run[kk] as usize).min(k - kk);
                self.a.load(base + p.a_k.at[kk], &mut row[kk..kk + run]);
                kk += run;
            }
        }
        let a = &*a;
        let b_base = p.b_batch.at[batch];
        let width = n.div_ceil(TASKS_PER_THREAD * self.plan.threads).next_multiple_of(2 * LANES).min(SKINNY_WIDTH);
        pool.run(n.div_ceil(width), |task, _| {
            let col = task * width;
            let cols = width.min(n - col);
            let mut sums = [[0.0f32; SKINNY_WIDTH]; SKINNY_ROWS];
            if p.b_k.unit(0, k) {
                skinny_dots(self.b, b_base + p.b_k.at[0], &p.b_col.at[col..col + cols], a, k, &mut sums);
            } else {
                skinny_axpys(self.b, b_base, &p.b_k.at, &p.b_col, col, cols, a, &mut sums);
            }
            for (i, sums) in sums[..m].iter_mut().enumerate() {
                let here = Block { batch, row: i, rows: 1, col, cols };
                self.finish(here, sums, SKINNY_WIDTH, self.epilogue.accumulate);
            }
        });
    }
}

/// Packed columns of B of one block of C.
enum Panels<'a> {
    /// Along all of K, packed before.
    Whole(&'a [f32]),
    /// Room for a block of K, packed when it is its turn.
    Own(&'a mut [f32]),
}

/// Some rows of A, `row` elements apart, and how K goes on; and from one of their rows in C to the next, if that is constant.
#[derive(Clone, Copy)]
struct Strip {
    rows: usize,
    a: *const f32,
    row: usize,
    steps: Runs,
    c: Option<usize>,
}

impl Default for Strip {
    fn default() -> Strip {
        Strip { rows: 0, a: std::ptr::null(), row: 0, steps: Runs { step: 0, run: 1, skip: 0 }, c: None }
    }
}

// Strips of the tallest task with the lowest micro-kernel.
const MOST_STRIPS: usize = 128;

// Rows times columns of the largest micro-kernel.
const MOST_TILE: usize = 12 * 32;

/// Rows of A or columns of B that become the lanes of a panel.
#[derive(Clone, Copy)]
struct Lanes<'a> {
    table: &'a Table,
    first: usize,
    /// How many exist; the others of a panel become zero.
    count: usize,
    width: usize,
}

impl<'a> Lanes<'a> {
    /// Its panels, with the number of the first lane of each.
    fn panels(self) -> impl Iterator<Item = (usize, Lanes<'a>)> {
        (0..self.count)
            .step_by(self.width)
            .map(move |i| (i, Lanes { first: self.first + i, count: self.width.min(self.count - i), ..self }))
    }
}

multiversion! {
    /// Widens a panel into `dst[k][lane]`.
    fn pack_floats(src: Buf, base: usize, lanes: Lanes<'_>, ks: &Table, k0: usize, depth: usize, dst: &mut [f32]) = pack_floats_body
}

#[inline(always)]
fn pack_floats_body<F: Fma>(
    src: Buf,
    base: usize,
    lanes: Lanes<'_>,
    ks: &Table,
    k0: usize,
    depth: usize,
    dst: &mut [f32],
) {
    let Lanes { table, first, count, width } = lanes;
    if depth == 0 {
        return;
    }
    if src.dtype() == DType::F32 {
        return pack_f32::<F>(src.f32s(0, src.len()), base, lanes, ks, k0, depth, dst);
    }
    if table.unit(first, count) {
        for (k, row) in dst.chunks_exact_mut(width).enumerate() {
            src.load(base + table.at[first] + ks.at[k0 + k], &mut row[..count]);
            row[count..].fill(0.0);
        }
        return;
    }
    if count < width {
        dst.fill(0.0);
    }
    let mut k = 0;
    while k < depth {
        let n = (ks.run[k0 + k] as usize).min(depth - k).min(SIDE);
        let part = &mut dst[k * width..];
        let at = |lane: usize| base + table.at[first + lane] + ks.at[k0 + k];
        let whole = if n == SIDE { count / SIDE * SIDE } else { 0 };
        for lane in (0..whole).step_by(SIDE) {
            let mut square = [[0.0f32; SIDE]; SIDE];
            for (i, row) in square.iter_mut().enumerate() {
                src.load(at(lane + i), row);
            }
            transpose::square::<F>(square.each_ref(), &mut part[lane..], width);
        }
        for lane in whole..count {
            let mut line = [0.0f32; SIDE];
            src.load(at(lane), &mut line[..n]);
            for (i, &x) in line[..n].iter().enumerate() {
                part[i * width + lane] = x;
            }
        }
        k += n;
    }
}

/// As [`pack_floats`], straight from memory.
#[inline(always)]
fn pack_f32<F: Fma>(src: &[f32], base: usize, lanes: Lanes<'_>, ks: &Table, k0: usize, depth: usize, dst: &mut [f32]) {
    let Lanes { table, first, count, width } = lanes;
    let dst = &mut dst[..depth * width];
    if count < width {
        dst.fill(0.0);
    }
    let mut lane = 0;
    while lane < count {
        let run = (table.run[first + lane] as usize).min(count - lane);
        // Lanes that lie apart are transposed, if neighbours along K lie beside each other; all others are copied.
        if run < transpose::SMALL && ks.run[k0] as usize >= transpose::SMALL {
            let at = |i: usize| base + table.at[first + lane + i];
            let to = &mut dst[lane..];
            lane += match count - lane {
                SIDE.. => transpose_lanes::<F, SIDE>(src, std::array::from_fn(at), ks, k0, depth, to, width),
                transpose::SMALL.. => {
                    transpose_lanes::<F, { transpose::SMALL }>(src, std::array::from_fn(at), ks, k0, depth, to, width)
                }
                _ => transpose_lanes::<F, 1>(src, [at(0)], ks, k0, depth, to, width),
            };
            continue;
        }
        let (from, to) = (&src[base + table.at[first + lane]..], &mut dst[lane..]);
        let at = &ks.at[k0..k0 + depth];
        match run {
            32 => copy_lanes::<32>(from, at, to, width),
            16 => copy_lanes::<16>(from, at, to, width),
            12 => copy_lanes::<12>(from, at, to, width),
            8 => copy_lanes::<8>(from, at, to, width),
            6 => copy_lanes::<6>(from, at, to, width),
            4 => copy_lanes::<4>(from, at, to, width),
            _ => {
                for (k, &at) in at.iter().enumerate() {
                    to[k * width..][..run].copy_from_slice(&from[at..at + run]);
                }
            }
        }
        lane += run;
    }
}

/// N lanes that lie beside each other, in a number of elements that the compiler knows.
#[inline(always)]
fn copy_lanes<const N: usize>(from: &[f32], ks: &[usize], dst: &mut [f32], width: usize) {
    for (k, &at) in ks.iter().enumerate() {
        dst[k * width..][..N].copy_from_slice(&from[at..at + N]);
    }
}

/// N lanes that begin at `at`, along K in squares where its neighbours lie beside each other. Gives N.
#[inline(always)]
fn transpose_lanes<F: Fma, const N: usize>(
    src: &[f32],
    at: [usize; N],
    ks: &Table,
    k0: usize,
    depth: usize,
    dst: &mut [f32],
    width: usize,
) -> usize {
    let mut k = 0;
    while k < depth {
        let run = (ks.run[k0 + k] as usize).min(depth - k);
        let from = at.map(|at| &src[at + ks.at[k0 + k]..][..run]);
        let squares = if N == 1 { 0 } else { run / N };
        for i in 0..squares {
            transpose::lanes::<F, N>(from.map(|row| &row[i * N..][..N]), &mut dst[(k + i * N) * width..], width);
        }
        for i in squares * N..run {
            for (to, row) in dst[(k + i) * width..].iter_mut().zip(from) {
                *to = row[i];
            }
        }
        k += run;
    }
    N
}

multiversion! {
    /// Packs bf16 in `dst[word][lane]`: a word is two neighbours along K, the second one 0 behind the end.
    fn pack_pairs(src: Buf, base: usize, lanes: Lanes<'_>, ks: &Table, k0: usize, depth: usize, dst: &mut [f32]) = pack_pairs_body
}

#[inline(always)]
fn pack_pairs_body<F: Fma>(
    src: Buf,
    base: usize,
    lanes: Lanes<'_>,
    ks: &Table,
    k0: usize,
    depth: usize,
    dst: &mut [f32],
) {
    let Lanes { table, first, count, width } = lanes;
    let word = |low: u16, high: u16| f32::from_bits(u32::from(high) << 16 | u32::from(low));
    if count < width {
        dst.fill(0.0);
    }
    let end = ks.len();
    if table.unit(first, count) {
        let zeros = [0u16; MOST_WIDTH];
        for (w, row) in dst.chunks_exact_mut(width).enumerate() {
            let k = 2 * (k0 + w);
            let from = base + table.at[first];
            let low = src.bf16_bits(from + ks.at[k], count);
            let high = if k + 1 < end { src.bf16_bits(from + ks.at[k + 1], count) } else { &zeros[..count] };
            for ((to, &low), &high) in row.iter_mut().zip(low).zip(high) {
                *to = word(low, high);
            }
        }
        return;
    }
    let mut w = 0;
    while w < depth {
        let k = 2 * (k0 + w);
        let run = (ks.run[k] as usize / 2).min(depth - w).min(SIDE);
        let part = &mut dst[w * width..];
        let at = |lane: usize| base + table.at[first + lane] + ks.at[k];
        let whole = if run == SIDE { count / SIDE * SIDE } else { 0 };
        for lane in (0..whole).step_by(SIDE) {
            let mut square = [[0.0f32; SIDE]; SIDE];
            for (i, row) in square.iter_mut().enumerate() {
                let (pairs, _) = src.bf16_bits(at(lane + i), 2 * SIDE).as_chunks::<2>();
                for (to, &[low, high]) in row.iter_mut().zip(pairs) {
                    *to = word(low, high);
                }
            }
            transpose::square::<F>(square.each_ref(), &mut part[lane..], width);
        }
        // At least one word: its neighbours may lie apart, or the second may not exist.
        let n = run.max(1);
        for lane in whole..count {
            for i in 0..n {
                let k = k + 2 * i;
                let from = base + table.at[first + lane];
                let low = src.bf16_bits(from + ks.at[k], 1)[0];
                let high = if k + 1 < end { src.bf16_bits(from + ks.at[k + 1], 1)[0] } else { 0 };
                part[i * width + lane] = word(low, high);
            }
        }
        w += n;
    }
}

// Columns of the widest micro-kernel.
const MOST_WIDTH: usize = 32;

type SkinnySums = [[f32; SKINNY_WIDTH]; SKINNY_ROWS];

multiversion! {
    /// Dot products of contiguous columns of B with the rows of A, each in `LANES` chains and a tree.
    fn skinny_dots(b: Buf, base: usize, cols: &[usize], a: &[f32], k: usize, sums: &mut SkinnySums) = skinny_dots_body
}

#[inline(always)]
fn skinny_dots_body<F: Fma>(b: Buf, base: usize, cols: &[usize], a: &[f32], k: usize, sums: &mut SkinnySums) {
    for (j, &col) in cols.iter().enumerate() {
        for (i, row) in a.chunks_exact(k).enumerate() {
            let mut acc = [0.0f32; LANES];
            let mut at = 0;
            while at + LANES <= k {
                let mut x = [0.0f32; LANES];
                b.load(base + col + at, &mut x);
                let y: &[f32; LANES] = row[at..at + LANES].try_into().expect("the range has LANES elements");
                for l in 0..LANES {
                    acc[l] = F::fma(x[l], y[l], acc[l]);
                }
                at += LANES;
            }
            let mut x = [0.0f32; LANES];
            b.load(base + col + at, &mut x[..k - at]);
            for (l, &y) in row[at..].iter().enumerate() {
                acc[l] = F::fma(x[l], y, acc[l]);
            }
            sums[i][j] = tree(acc, |a, b| a + b);
        }
    }
}

multiversion! {
    /// Sums rows of B, scaled by the elements of A.
    fn skinny_axpys(
        b: Buf, base: usize, ks: &[usize], b_col: &Table, col: usize, cols: usize, a: &[f32], sums: &mut SkinnySums,
    ) = skinny_axpys_body
}

#[inline(always)]
fn skinny_axpys_body<F: Fma>(
    b: Buf,
    base: usize,
    ks: &[usize],
    b_col: &Table,
    col: usize,
    cols: usize,
    a: &[f32],
    sums: &mut SkinnySums,
) {
    let (m, depth) = (a.len() / ks.len(), ks.len());
    for k0 in (0..depth).step_by(SKINNY_DEPTH) {
        let block = &ks[k0..depth.min(k0 + SKINNY_DEPTH)];
        for j0 in (0..cols).step_by(LANES) {
            let width = LANES.min(cols - j0);
            let mut x = [[0.0f32; LANES]; SKINNY_DEPTH];
            for (x, &row) in x.iter_mut().zip(block) {
                if width == LANES && b_col.unit(col + j0, LANES) {
                    b.load(base + row + b_col.at[col + j0], x);
                    continue;
                }
                let mut j = 0;
                while j < width {
                    let n = (b_col.run[col + j0 + j] as usize).min(width - j);
                    b.load(base + row + b_col.at[col + j0 + j], &mut x[j..j + n]);
                    j += n;
                }
            }
            for i in 0..m {
                let y = &a[i * depth + k0..][..block.len()];
                let sums: &mut [f32; LANES] =
                    (&mut sums[i][j0..j0 + LANES]).try_into().expect("the range has LANES elements");
                for (x, &y) in x.iter().zip(y) {
                    for l in 0..LANES {
                        sums[l] = F::fma(x[l], y, sums[l]);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::buffer::testing::{Owned, noise};
    use super::*;

    fn axes(names: &str) -> Vec<Axis> {
        names.chars().map(|c| Axis::new(&c.to_string())).collect()
    }

    /// Plain f64 einsum, and Σ|a·b| for the error bound.
    fn einsum(a: &[Axis], b: &[Axis], out: &[Axis], sizes: &Sizes, x: &[f32], y: &[f32]) -> Vec<(f64, f64)> {
        let mut all = out.to_vec();
        all.extend(a.iter().filter(|i| !out.contains(i)));
        let offset = |shape: &[Axis], index: &[usize]| {
            shape.iter().fold(0, |o, ax| o * sizes.of(*ax) + index[all.iter().position(|i| i == ax).unwrap()])
        };
        let mut result = vec![(0.0, 0.0); sizes.elements(out)];
        let mut index = vec![0; all.len()];
        for _ in 0..sizes.elements(&all) {
            let p = f64::from(x[offset(a, &index)]) * f64::from(y[offset(b, &index)]);
            let r = &mut result[offset(out, &index)];
            *r = (r.0 + p, r.1 + p.abs());
            for d in (0..all.len()).rev() {
                index[d] += 1;
                if index[d] < sizes.of(all[d]) {
                    break;
                }
                index[d] = 0;
            }
        }
        result
    }

    fn check(spec: &str, dims: &[usize], dtypes: [DType; 3], epilogue: Epilogue) {
        let mut parts = spec.split(',');
        let [a, b, out] = [0; 3].map(|_| axes(parts.next().unwrap()));
        let mut names: Vec<Axis> = a.iter().chain(&b).copied().collect();
        names.sort();
        names.dedup();
        let sizes: Sizes = names.iter().copied().zip(dims.iter().copied()).collect();
        let (na, nb, nc) = (sizes.elements(&a), sizes.elements(&b), sizes.elements(&out));
        let mut x = Owned::of(dtypes[0], &noise(1, na));
        let mut y = Owned::of(dtypes[1], &noise(2, nb));
        let old = noise(3, nc);
        let want = einsum(&a, &b, &out, &sizes, &x.values(), &y.values());
        let mut first: Option<Vec<u32>> = None;
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads).unwrap();
            let plan = GemmPlan::new(&a, &b, &out, &sizes, threads).unwrap();
            let mut c = if epilogue.accumulate { Owned::of(dtypes[2], &old) } else { Owned::poisoned(dtypes[2], nc) };
            let mut workspace = vec![f32::NAN; plan.workspace_len()];
            plan.run(&pool, x.buf(), y.buf(), c.buf(), epilogue, &mut workspace);
            let got = c.values();
            let k = (na.max(1) * nb.max(1)) as f64;
            let ulp = match epilogue.round.unwrap_or(dtypes[2]) {
                DType::Bf16 => 2f64.powi(-8),
                DType::F16 => 2f64.powi(-11),
                _ => 0.0,
            };
            for (i, (&g, &(w, magnitude))) in got.iter().zip(&want).enumerate() {
                let start = if epilogue.accumulate { f64::from(old[i]) } else { 0.0 };
                let bound =
                    (k.log2() + 2.0) * 2.0 * f64::from(f32::EPSILON) * (magnitude + start.abs()) + ulp * w.abs();
                let error = (f64::from(g) - w - start).abs();
                assert!(error <= bound, "{spec} {dims:?} [{i}]: {g} for {}, bound {bound}", w + start);
            }
            let bits = c.bits();
            assert_eq!(*first.get_or_insert(bits.clone()), bits, "{spec} {dims:?}: {threads} threads");
        }
    }

    const F: [DType; 3] = [DType::F32; 3];

    #[test]
    fn products_of_all_sizes() {
        for m in [0, 1, 2, 5, 12, 13, 31, 125] {
            for n in [0, 1, 7, 32, 33, 67] {
                for k in [0, 1, 3, 37] {
                    check("ik,kj,ij", &[m, n, k], F, Epilogue::STORE);
                }
            }
        }
        check("ik,kj,ij", &[241, 521, 523], F, Epilogue::STORE);
        check("ik,kj,ij", &[1, 1031, 257], F, Epilogue::STORE);
        check("ik,jk,ij", &[3, 131, 517], F, Epilogue::STORE);
    }

    #[test]
    fn layouts_are_absorbed() {
        let accumulate = Epilogue { round: None, accumulate: true };
        for e in [Epilogue::STORE, accumulate] {
            for spec in
                ["ik,kj,ij", "ik,jk,ij", "ki,kj,ij", "ki,jk,ij", "ik,kj,ji", "ki,jk,ji", "k,kj,j", "ik,k,i", "k,k,"]
            {
                let dims: &[usize] = match spec {
                    "k,kj,j" | "ik,k,i" => &[67, 300],
                    "k,k," => &[301],
                    _ => &[35, 67, 300],
                };
                check(spec, dims, F, e);
            }
            // Heads: [b,s,d]·[h,e,d] → [b,h,s,e], its transposes, and batched products.
            check("bsd,hed,bhse", &[2, 40, 33, 3, 13], F, e);
            check("bsd,hed,bshe", &[2, 40, 34, 3, 13], F, e);
            check("bhse,hed,bsd", &[2, 21, 34, 3, 13], F, e);
            check("bhse,bsd,hed", &[2, 21, 34, 3, 13], F, e);
            check("bik,bkj,bij", &[9, 14, 35, 7], F, e);
            check("bik,bkj,ibj", &[3, 60, 35, 70], F, e);
            check("bk,bk,b", &[11, 70], F, e);
            check("i,j,ij", &[50, 70], F, e);
        }
    }

    #[test]
    fn low_precision_is_widened_and_rounded_once() {
        for d in [DType::Bf16, DType::F16] {
            for (m, k) in [(3, 70), (40, 70), (40, 600)] {
                check("ik,jk,ij", &[m, 67, k], [d; 3], Epilogue::STORE);
                check("ik,kj,ji", &[m, 67, k], [d, DType::F32, DType::F32], Epilogue::STORE);
                let rounded = Epilogue { round: Some(d), accumulate: true };
                check("ki,kj,ij", &[m, 67, k], [d, d, DType::F32], rounded);
            }
        }
    }

    #[test]
    fn rounding_is_that_of_the_exact_sum() {
        let sizes: Sizes = axes("ijk").into_iter().zip([5, 40, 300]).collect();
        let (a, b, o) = (axes("ik"), axes("kj"), axes("ij"));
        let mut x = Owned::of(DType::F32, &noise(1, 1500));
        let mut y = Owned::of(DType::F32, &noise(2, 12000));
        let pool = Pool::serial();
        let plan = GemmPlan::new(&a, &b, &o, &sizes, 1).unwrap();
        let mut workspace = vec![f32::NAN; plan.workspace_len()];
        let (mut wide, mut narrow) = (Owned::poisoned(DType::F32, 200), Owned::poisoned(DType::Bf16, 200));
        plan.run(&pool, x.buf(), y.buf(), wide.buf(), Epilogue::STORE, &mut workspace);
        plan.run(&pool, x.buf(), y.buf(), narrow.buf(), Epilogue::STORE, &mut workspace);
        let rounded: Vec<f32> = wide.values().iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect();
        assert_eq!(rounded, narrow.values());
    }

    #[test]
    fn pairs_of_bf16_in_all_layouts() {
        let d = [DType::Bf16, DType::Bf16, DType::F32];
        for k in [0, 1, 2, 3, 15, 16, 17, 33, 600] {
            for spec in ["ik,kj,ij", "ik,jk,ij", "ki,kj,ij", "ki,jk,ij"] {
                check(spec, &[40, 67, k], d, Epilogue::STORE);
            }
        }
        check("bhse,hed,bsd", &[2, 21, 34, 3, 13], d, Epilogue::STORE);
        check("bik,bkj,bij", &[9, 14, 35, 7], d, Epilogue { round: None, accumulate: true });
    }

    #[test]
    fn axes_that_fit_nowhere_are_errors() {
        let sizes = Sizes::new();
        let plan = |a, b, o| GemmPlan::new(&axes(a), &axes(b), &axes(o), &sizes, 1).err();
        assert_eq!(plan("i", "j", "ijk"), Some(GemmError::UnknownAxis(Axis::new("k"))));
        assert_eq!(plan("ik", "j", "ij"), Some(GemmError::LostAxis(Axis::new("k"))));
    }
}
