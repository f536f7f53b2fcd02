//! `linear_cross_entropy` and its derivative: logits x·wᵀ exist one tile at a time.
//!
//! The vocabulary is cut into blocks. Forward: each block is packed once, and every row keeps its running maximum and sum. Backward:
//! for each block, and in it each chunk of rows, E = (P − onehot)·s̄ is computed where the tile lies; x̄ adds up over the blocks, w̄
//! of the block over the chunks. Blocks depend on sizes alone and sums go in order, so the bits do not depend on threads.
//!
//! Where nothing happens between the two and all logits fit in [`MOST_KEPT`], both run at once: what the forward leaves of its tiles
//! is what the backward starts from, and the logits are not computed again.
#![allow(unsafe_code)]

use super::buffer::{Buf, round_in_place};
use super::cpu::{Fma, multiversion};
use super::math::{exp_flushing, tree};
use super::micro::{Into, Micro, Operands};
use super::pack::{self, Part};
use super::pool::Pool;
use super::share::Shared;
use kiln_compiler::ir::{Axis, DType, Sizes};

// Most rows of a task: a multiple of the rows of every micro-kernel. With the widest block its tile is 192 KiB.
const ROWS: usize = 96;
// Widest and narrowest block of the vocabulary, multiples of the columns of every micro-kernel.
const VOCAB: usize = 512;
const NARROW_VOCAB: usize = 128;
// A packed block is at most this many elements (4 MiB) unless it is the narrowest.
const PACKED: usize = 1 << 20;
// Longest chain of multiply-adds: a panel of 32 columns is 32 KiB.
const DEPTH: usize = 256;
// Rows of the tile are this much longer than a block, so that its columns fall into different cache sets.
const SKEW: usize = 16;
// Chunks of rows hold DEPTH rows per thread, within these limits.
const CHUNK_THREADS: std::ops::RangeInclusive<usize> = 2..=16;
// Tasks per thread that are wanted so that an uneven machine stays busy.
const TASKS_PER_THREAD: usize = 4;
/// Most elements of all logits (64 MiB) that are kept from the forward for the backward.
pub const MOST_KEPT: usize = 16 << 20;
// Partial sums of a row of logits.
const LANES: usize = 16;

/// A planned loss over `rows` rows of `d` elements and `vocab` classes.
pub struct LossPlan {
    micro: &'static Micro,
    threads: usize,
    rows: usize,
    vocab: usize,
    d: usize,
}

/// Operands of the derivative.
#[derive(Clone, Copy)]
pub struct LossOperands {
    /// x: rows × D.
    pub x: Buf,
    /// w: V × D.
    pub w: Buf,
    /// i32, one per row; negative ones are ignored.
    pub targets: Buf,
    /// The forward's f32 log-sum-exp.
    pub lse: Buf,
    /// The cotangent of the sum: one f32.
    pub d_sum: Buf,
}

/// Results of the forward.
#[derive(Clone, Copy)]
pub struct LossResults {
    /// Sum of the losses: one f32.
    pub sum: Buf,
    /// How many there are: one f32.
    pub count: Buf,
    /// Log-sum-exp of every row, f32.
    pub lse: Buf,
}

/// What the forward leaves for the backward: for every block of the vocabulary, the tiles of exponentials of all rows, and per row the
/// maximum that was taken off the logits.
struct Kept<'a> {
    tiles: &'a mut [f32],
    maxima: &'a mut [f32],
}

/// How a gradient is stored.
#[derive(Clone, Copy)]
pub struct Gradient<'a> {
    /// Where.
    pub to: Buf,
    /// Rounded to each of these in turn.
    pub rounds: &'a [DType],
    /// Added to the old f32 values instead of overwriting them.
    pub accumulate: bool,
}

/// Left operand of a product: element (i, k) lies at `strip·(i / mr) + row·(i % mr) + step·k`.
#[derive(Clone, Copy)]
struct Left<'a> {
    data: &'a [f32],
    strip: usize,
    row: usize,
    step: usize,
}

impl LossPlan {
    /// Plans x over i ++ \[D\] and w over \[V, D\].
    pub fn new(x: &[Axis], w: &[Axis], sizes: &Sizes, threads: usize) -> LossPlan {
        let [vocab, d] = w else { panic!("the type rule of `linear_cross_entropy` demands a weight with two axes") };
        LossPlan {
            micro: Micro::detect(),
            threads: threads.max(1),
            rows: sizes.elements(&x[..x.len() - 1]),
            vocab: sizes.of(*vocab),
            d: sizes.of(*d),
        }
    }

    /// Columns of a block of the vocabulary; a function of D alone, as long as there are more.
    fn block(&self) -> usize {
        let fit = PACKED / self.d.max(1) / NARROW_VOCAB * NARROW_VOCAB;
        fit.clamp(NARROW_VOCAB, VOCAB).min(self.vocab.max(1).next_multiple_of(self.micro.nr))
    }

    /// From one row of a tile to the next.
    fn tile_row(&self) -> usize {
        self.block() + SKEW
    }

    /// D padded for the micro-kernel.
    fn width(&self) -> usize {
        self.d.next_multiple_of(self.micro.nr)
    }

    /// Rows of a chunk of the backward.
    fn chunk(&self) -> usize {
        let threads = self.threads.clamp(*CHUNK_THREADS.start(), *CHUNK_THREADS.end());
        (DEPTH * threads).min(self.rows)
    }

    /// Rows of a task that shares `n` rows with others.
    fn task_rows(&self, n: usize) -> usize {
        let unit = self.micro.mr;
        let mut rows = n.div_ceil(n.div_ceil(ROWS).max(1)).next_multiple_of(unit);
        while n.div_ceil(rows.max(1)) < TASKS_PER_THREAD * self.threads && rows > 2 * unit {
            rows = (rows / 2).next_multiple_of(unit);
        }
        rows.max(unit)
    }

    fn strips(&self, rows: usize) -> usize {
        rows.next_multiple_of(self.micro.mr) * self.d
    }

    fn forward_worker_len(&self) -> usize {
        ROWS * (self.d + self.tile_row())
    }

    fn backward_worker_len(&self) -> usize {
        ROWS * (self.d + self.width()).max(self.chunk())
    }

    /// Scratch of [`LossPlan::forward`] in f32 elements.
    pub fn workspace_len(&self) -> usize {
        3 * self.rows + self.d * self.block() + self.threads * self.forward_worker_len()
    }

    /// Scratch of [`LossPlan::backward`] in f32 elements; sums of x̄ that is not stored as f32 need their own place.
    pub fn backward_workspace_len(&self, dx: DType) -> usize {
        let sums = if dx == DType::F32 { 0 } else { self.rows * self.d };
        let packed = self.block() * (self.d + 2 * self.width()) + self.rows * self.width();
        sums + packed + self.chunk() * self.tile_row() + self.threads * self.backward_worker_len()
    }

    /// Scratch of [`LossPlan::both`] in f32 elements.
    pub fn both_workspace_len(&self, dx: DType) -> usize {
        self.kept_len() + self.workspace_len().max(self.backward_workspace_len(dx))
    }

    /// Whether all logits are few enough to be kept.
    pub fn keeps(&self) -> bool {
        self.kept_len() <= MOST_KEPT
    }

    /// Blocks of the vocabulary.
    fn blocks(&self) -> usize {
        self.vocab.div_ceil(self.block())
    }

    fn kept_len(&self) -> usize {
        self.blocks() * self.rows * (self.tile_row() + 1)
    }

    /// Floating-point operations of the forward.
    pub fn flops(&self) -> u64 {
        2 * (self.rows * self.vocab * self.d) as u64
    }

    fn check(&self, pool: &Pool, x: &[Buf], w: &[Buf], rows: &[Buf], workspace: (usize, usize)) {
        let what = "of `linear_cross_entropy` is shorter than planned";
        assert!(x.iter().all(|b| b.len() >= self.rows * self.d), "x or its gradient {what}");
        assert!(w.iter().all(|b| b.len() >= self.vocab * self.d), "w or its gradient {what}");
        assert!(rows.iter().all(|b| b.len() >= self.rows), "an operand {what}");
        assert!(pool.threads() <= self.threads, "planned for {} threads", self.threads);
        assert!(workspace.0 >= workspace.1, "workspace of {} f32 is too small", workspace.0);
    }

    fn targets<'a>(&self, targets: &'a Buf) -> &'a [i32] {
        let all = targets.i32s(0, self.rows);
        if let Some(t) = all.iter().find(|&&t| t >= 0 && t as usize >= self.vocab) {
            panic!("`linear_cross_entropy`: target {t} of {} classes", self.vocab);
        }
        all
    }

    /// Computes the sum of the losses, how many there are, and the log-sum-exp of every row.
    ///
    /// # Panics
    /// If a buffer or the workspace is shorter than planned, `pool` has more threads than planned, or a target is no class.
    pub fn forward(&self, pool: &Pool, operands: [Buf; 3], results: LossResults, workspace: &mut [f32]) {
        self.run_forward(pool, operands, results, None, workspace);
    }

    /// Computes what [`LossPlan::forward`] and [`LossPlan::backward`] do, from logits that are computed once.
    ///
    /// # Panics
    /// As they do, and if [`LossPlan::keeps`] is false.
    pub fn both(
        &self,
        pool: &Pool,
        operands: LossOperands,
        [sum, count]: [Buf; 2],
        dx: Buf,
        dx_rounds: &[DType],
        dw: Gradient<'_>,
        workspace: &mut [f32],
    ) {
        assert!(self.keeps(), "the logits of `linear_cross_entropy` are too many to be kept");
        let wanted = self.both_workspace_len(dx.dtype());
        assert!(workspace.len() >= wanted, "workspace of {} f32 is too small", workspace.len());
        let mut rest = workspace;
        let tiles = take(&mut rest, self.blocks() * self.rows * self.tile_row());
        let maxima = take(&mut rest, self.blocks() * self.rows);
        let LossOperands { x, w, targets, lse, .. } = operands;
        let results = LossResults { sum, count, lse };
        self.run_forward(pool, [x, w, targets], results, Some(Kept { tiles, maxima }), rest);
        self.run_backward(pool, operands, dx, dx_rounds, dw, Some(Kept { tiles, maxima }), rest);
    }

    fn run_forward(
        &self,
        pool: &Pool,
        [x, w, targets]: [Buf; 3],
        LossResults { sum, count, lse }: LossResults,
        kept: Option<Kept<'_>>,
        workspace: &mut [f32],
    ) {
        self.check(pool, &[x], &[w], &[targets, lse], (workspace.len(), self.workspace_len()));
        let targets = self.targets(&targets);
        let mut rest = workspace;
        let highest = take(&mut rest, self.rows);
        let totals = take(&mut rest, self.rows);
        let losses = take(&mut rest, self.rows);
        let packed = take(&mut rest, self.d * self.block());
        highest.fill(f32::NEG_INFINITY);
        totals.fill(0.0);
        losses.fill(0.0);
        let state = [&mut *highest, &mut *totals, &mut *losses].map(Shared::new);
        let workers = Shared::new(rest);
        let kept = kept.map(|k| (Shared::new(k.tiles), Shared::new(k.maxima)));
        let (step, tile_row) = (self.task_rows(self.rows), self.tile_row());
        for (block, first) in (0..self.vocab).step_by(self.block()).enumerate() {
            let n = self.block().min(self.vocab - first);
            self.pack_classes(pool, w, first, n, packed);
            let packed = &*packed;
            pool.run(self.rows.div_ceil(step), |task, worker| {
                let (row, len) = (task * step, self.forward_worker_len());
                let m = step.min(self.rows - row);
                // SAFETY: a worker runs one task at a time, and only it uses its part; each task has its own rows.
                let (scratch, [highest, totals, losses]) =
                    unsafe { (workers.slice(worker * len, len), state.map(|s| s.slice(row, m))) };
                let (strips, own) = scratch.split_at_mut(ROWS * self.d);
                let place = block * self.rows + row;
                let tile = match kept {
                    // SAFETY: each task has its own rows of each block.
                    Some((tiles, _)) => unsafe { tiles.slice(place * tile_row, m * tile_row) },
                    None => own,
                };
                self.logits(x, row, m, n, packed, strips, tile);
                for (i, line) in tile.chunks_exact_mut(tile_row).take(m).enumerate() {
                    if let Some(t) = class_in(targets[row + i], first).filter(|&t| t < n) {
                        losses[i] = -line[t];
                    }
                    add_exponentials(line, n, &mut highest[i], &mut totals[i]);
                    if let Some((_, maxima)) = kept {
                        // SAFETY: as for the tiles.
                        unsafe { maxima.slice(place + i, 1)[0] = highest[i] };
                    }
                    if first + n == self.vocab {
                        let l = highest[i] + totals[i].ln();
                        lse.f32s_mut(row + i, 1)[0] = l;
                        losses[i] += l;
                    }
                }
            });
        }
        let counted = || targets.iter().zip(losses.iter()).filter(|&(&t, _)| t >= 0);
        sum.set(0, counted().map(|(_, &l)| f64::from(l)).sum::<f64>() as f32);
        count.set(0, counted().count() as f32);
    }

    /// Computes x̄, which overwrites, and w̄.
    ///
    /// # Panics
    /// As [`LossPlan::forward`].
    pub fn backward(
        &self,
        pool: &Pool,
        operands: LossOperands,
        dx: Buf,
        dx_rounds: &[DType],
        dw: Gradient<'_>,
        workspace: &mut [f32],
    ) {
        self.run_backward(pool, operands, dx, dx_rounds, dw, None, workspace);
    }

    fn run_backward(
        &self,
        pool: &Pool,
        operands: LossOperands,
        dx: Buf,
        dx_rounds: &[DType],
        dw: Gradient<'_>,
        kept: Option<Kept<'_>>,
        workspace: &mut [f32],
    ) {
        let LossOperands { x, w, targets, lse, d_sum } = operands;
        let wanted = self.backward_workspace_len(dx.dtype());
        self.check(pool, &[x, dx], &[w, dw.to], &[targets, lse], (workspace.len(), wanted));
        let (targets, d_sum) = (self.targets(&targets), d_sum.get(0));
        let (width, nr, tile_row) = (self.width(), self.micro.nr, self.tile_row());
        let mut rest = workspace;
        let classes = take(&mut rest, self.d * self.block());
        let weights = take(&mut rest, width * self.block());
        let d_block = take(&mut rest, width * self.block());
        let inputs = take(&mut rest, width * self.rows);
        let own_errors = take(&mut rest, tile_row * self.chunk());
        let (mut tiles, maxima) = kept.map_or((None, None), |k| (Some(k.tiles), Some(&*k.maxima)));
        let sums = if dx.dtype() == DType::F32 {
            dx
        } else {
            let sums = take(&mut rest, self.rows * self.d);
            // SAFETY: the slice is borrowed from the workspace until this call returns; tasks use disjoint rows.
            unsafe { Buf::new(sums.as_mut_ptr().cast(), size_of_val(sums), DType::F32) }
        };
        let workers = Shared::new(rest);
        if self.rows == 0 {
            d_block.fill(0.0);
        }
        let chunks = || (0..self.rows).step_by(self.chunk().max(1));
        for chunk in chunks() {
            let rows = self.chunk().min(self.rows - chunk);
            self.pack_rows(pool, x, chunk, rows, &mut inputs[chunk * width..]);
        }
        for (block, first) in (0..self.vocab).step_by(self.block()).enumerate() {
            let n = self.block().min(self.vocab - first);
            if maxima.is_none() {
                self.pack_classes(pool, w, first, n, classes);
            }
            self.pack_rows(pool, w, first, n, weights);
            let (classes, weights) = (&*classes, &*weights);
            for chunk in chunks() {
                let rows = self.chunk().min(self.rows - chunk);
                let place = block * self.rows + chunk;
                let errors = match &mut tiles {
                    Some(tiles) => &mut tiles[place * tile_row..(place + rows) * tile_row],
                    None => &mut *own_errors,
                };
                let shared = Shared::new(errors);
                let step = self.task_rows(rows);
                pool.run(rows.div_ceil(step), |task, worker| {
                    let (row, len) = (task * step, self.backward_worker_len());
                    let m = step.min(rows - row);
                    // SAFETY: a worker runs one task at a time, and only it uses its part; each task has its own rows.
                    let (scratch, e) =
                        unsafe { (workers.slice(worker * len, len), shared.slice(row * tile_row, m * tile_row)) };
                    let (strips, tile) = scratch.split_at_mut(ROWS * self.d);
                    if maxima.is_none() {
                        self.logits(x, chunk + row, m, n, classes, strips, e);
                    }
                    for (i, line) in e.chunks_exact_mut(tile_row).enumerate() {
                        let (at, line) = (chunk + row + i, &mut line[..n]);
                        let (target, lse) = (class_in(targets[at], first), lse.get(at));
                        match maxima {
                            _ if targets[at] < 0 => line.fill(0.0),
                            Some(maxima) => error_from_exponentials(line, target, maxima[place + row + i] - lse, d_sum),
                            None => error_from_logits(line, target, lse, d_sum),
                        }
                    }
                    let left = Left { data: e, strip: self.micro.mr * tile_row, row: tile_row, step: 1 };
                    self.multiply(m, width / nr, n, left, weights, n * nr, tile, width);
                    for (i, line) in tile.chunks_exact_mut(width).take(m).enumerate() {
                        let to = (chunk + row + i) * self.d;
                        let line = &mut line[..self.d];
                        if first > 0 {
                            line.iter_mut().zip(sums.f32s(to, self.d)).for_each(|(x, sum)| *x += sum);
                        }
                        if first + n < self.vocab {
                            sums.store(to, line);
                        } else {
                            dx_rounds.iter().for_each(|&dtype| round_in_place(dtype, line));
                            dx.store(to, line);
                        }
                    }
                });
                let (errors, inputs) = (&*errors, &inputs[chunk * width..]);
                let sums = Shared::new(d_block);
                let step = self.task_rows(n);
                pool.run(n.div_ceil(step), |task, worker| {
                    let (class, len) = (task * step, self.backward_worker_len());
                    let m = step.min(n - class);
                    // SAFETY: a worker runs one task at a time, and only it uses its part; each task has its own classes.
                    let (strips, sums) =
                        unsafe { (workers.slice(worker * len, len), sums.slice(class * width, m * width)) };
                    let mr = self.micro.mr;
                    pack::strips(&errors[class..], tile_row, rows, m, mr, strips);
                    let left = Left { data: strips, strip: mr * rows, row: 1, step: mr };
                    let into = if chunk == 0 { Into::Overwrite } else { Into::Add };
                    self.multiply_into(m, width / nr, rows, left, inputs, rows * nr, sums, width, into);
                    if chunk + rows == self.rows {
                        self.finish(dw, first + class, sums);
                    }
                });
            }
            if self.rows == 0 {
                self.finish(dw, first, &mut d_block[..n * width]);
            }
        }
    }

    /// Stores finished rows of w̄ from class `first` on.
    fn finish(&self, dw: Gradient<'_>, first: usize, sums: &mut [f32]) {
        for (i, line) in sums.chunks_exact_mut(self.width()).enumerate() {
            let (to, line) = ((first + i) * self.d, &mut line[..self.d]);
            dw.rounds.iter().for_each(|&dtype| round_in_place(dtype, line));
            if dw.accumulate { dw.to.add(to, line) } else { dw.to.store(to, line) }
        }
    }

    /// Packs `n` classes from `first` on as columns: panels of `[D][nr]`.
    fn pack_classes(&self, pool: &Pool, w: Buf, first: usize, n: usize, packed: &mut [f32]) {
        let (nr, d) = (self.micro.nr, self.d);
        let packed = Shared::new(packed);
        pool.run(n.div_ceil(nr), |panel, _| {
            let class = panel * nr;
            let rows = nr.min(n - class);
            let part = Part { src: w, at: (first + class) * d, stride: d, rows, columns: d };
            // SAFETY: each task has its own panel.
            pack::transposed(part, nr, unsafe { packed.slice(panel * nr * d, nr * d) });
        });
    }

    /// Packs `n` rows of D elements from row `first` on: panels of `[n][nr]`.
    fn pack_rows(&self, pool: &Pool, src: Buf, first: usize, n: usize, packed: &mut [f32]) {
        let (nr, d) = (self.micro.nr, self.d);
        let packed = Shared::new(packed);
        pool.run(d.div_ceil(nr), |panel, _| {
            let column = panel * nr;
            let part = Part { src, at: first * d + column, stride: d, rows: n, columns: nr.min(d - column) };
            // SAFETY: each task has its own panel.
            pack::rows(part, nr, unsafe { packed.slice(panel * nr * n, nr * n) });
        });
    }

    /// Logits of `m` rows from `row` on and the `n` packed classes.
    fn logits(&self, x: Buf, row: usize, m: usize, n: usize, packed: &[f32], strips: &mut [f32], tile: &mut [f32]) {
        let (mr, nr, d) = (self.micro.mr, self.micro.nr, self.d);
        if x.dtype() == DType::F32 {
            let left = Left { data: x.f32s(row * d, m * d), strip: mr * d, row: d, step: 1 };
            return self.multiply(m, n.div_ceil(nr), d, left, packed, d * nr, tile, self.tile_row());
        }
        let strips = &mut strips[..self.strips(m)];
        for (s, strip) in strips.chunks_exact_mut(mr * d).enumerate() {
            let part = Part { src: x, at: (row + s * mr) * d, stride: d, rows: mr.min(m - s * mr), columns: d };
            pack::transposed(part, mr, strip);
        }
        let left = Left { data: strips, strip: mr * d, row: 1, step: mr };
        self.multiply(m, n.div_ceil(nr), d, left, packed, d * nr, tile, self.tile_row());
    }

    fn multiply(
        &self,
        m: usize,
        panels: usize,
        k: usize,
        a: Left<'_>,
        b: &[f32],
        panel: usize,
        c: &mut [f32],
        c_row: usize,
    ) {
        self.multiply_into(m, panels, k, a, b, panel, c, c_row, Into::Overwrite);
    }

    /// C = or += A·B in chains of [`DEPTH`], with B in panels of `[k][nr]`, `panel` elements apart.
    fn multiply_into(
        &self,
        m: usize,
        panels: usize,
        k: usize,
        a: Left<'_>,
        b: &[f32],
        panel: usize,
        c: &mut [f32],
        c_row: usize,
        into: Into,
    ) {
        let (mr, nr) = (self.micro.mr, self.micro.nr);
        assert!(m > 0 && panels > 0 && k > 0);
        let last = (m - 1) / mr * a.strip + (m - 1) % mr * a.row + (k - 1) * a.step;
        assert!(a.strip >= (mr - 1) * a.row, "the last row is the one with the largest offset");
        assert!(last < a.data.len() && (panels - 1) * panel + k * nr <= b.len());
        assert!(panels * nr <= c_row && (m - 1) * c_row + panels * nr <= c.len());
        for k0 in (0..k).step_by(DEPTH) {
            let into = if k0 > 0 { Into::Add } else { into };
            for j in 0..panels {
                for i in (0..m).step_by(mr) {
                    // SAFETY: the largest offsets of A, B and C were compared with their lengths.
                    unsafe {
                        let o = Operands {
                            k: DEPTH.min(k - k0),
                            a: a.data.as_ptr().add(i / mr * a.strip + k0 * a.step),
                            a_row: a.row,
                            a_k: a.step,
                            a_run: usize::MAX,
                            a_skip: 0,
                            b: b.as_ptr().add(j * panel + k0 * nr),
                            b_k: nr,
                            c: c.as_mut_ptr().add(i * c_row + j * nr),
                            c_row,
                        };
                        self.micro.call(mr.min(m - i), o, into);
                    }
                }
            }
        }
    }
}

/// The next `n` elements of the scratch.
fn take<'a>(rest: &mut &'a mut [f32], n: usize) -> &'a mut [f32] {
    rest.split_off_mut(..n).expect("the workspace holds what its length counts")
}

/// The larger; a NaN is passed over, and comes back through the exponential.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// Where the class of a row lies among those from `first` on.
fn class_in(target: i32, first: usize) -> Option<usize> {
    usize::try_from(target).ok()?.checked_sub(first)
}

multiversion! {
    /// Adds `n` logits to the running maximum and sum of their row, and leaves their exponentials, less that maximum. The row is longer
    /// than `n` by [`SKEW`] at least.
    fn add_exponentials(row: &mut [f32], n: usize, highest: &mut f32, total: &mut f32) = add_exponentials_body
}

#[inline(always)]
fn add_exponentials_body<F: Fma>(row: &mut [f32], n: usize, highest: &mut f32, total: &mut f32) {
    let row = &mut row[..n.next_multiple_of(LANES)];
    row[n..].fill(f32::NEG_INFINITY);
    let (lines, _) = row.as_chunks_mut::<LANES>();
    let mut most = [*highest; LANES];
    for line in &*lines {
        for l in 0..LANES {
            most[l] = larger(most[l], line[l]);
        }
    }
    let most = tree(most, larger);
    let mut sums = [0.0f32; LANES];
    for line in lines {
        for l in 0..LANES {
            line[l] = exp_flushing::<F>(line[l] - most);
            sums[l] += line[l];
        }
    }
    if most > *highest {
        *total *= exp_flushing::<F>(*highest - most);
        *highest = most;
    }
    *total += tree(sums, |a, b| a + b);
}

multiversion! {
    /// From logits to (P − onehot)·s̄.
    fn error_from_logits(row: &mut [f32], target: Option<usize>, lse: f32, d_sum: f32) = error_from_logits_body
}

#[inline(always)]
fn error_from_logits_body<F: Fma>(row: &mut [f32], target: Option<usize>, lse: f32, d_sum: f32) {
    error_row(row, target, d_sum, |x| exp_flushing::<F>(x - lse));
}

multiversion! {
    /// From exponentials of logits less a maximum to (P − onehot)·s̄; `above` is that maximum less the log-sum-exp.
    fn error_from_exponentials(row: &mut [f32], target: Option<usize>, above: f32, d_sum: f32) = error_from_exponentials_body
}

#[inline(always)]
fn error_from_exponentials_body<F: Fma>(row: &mut [f32], target: Option<usize>, above: f32, d_sum: f32) {
    let factor = exp_flushing::<F>(above);
    error_row(row, target, d_sum, |x| x * factor);
}

#[inline(always)]
fn error_row(row: &mut [f32], target: Option<usize>, d_sum: f32, p: impl Fn(f32) -> f32) {
    let right = target.filter(|&t| t < row.len()).map(|t| (t, p(row[t])));
    row.iter_mut().for_each(|x| *x = p(*x) * d_sum);
    if let Some((t, p)) = right {
        row[t] = (p - 1.0) * d_sum;
    }
}

#[cfg(test)]
mod tests {
    use super::super::buffer::testing::{Owned, noise};
    use super::super::oracle::{axes, eval, half_ulp, sizes};
    use super::*;
    use kiln_compiler::ir::Attrs;

    struct Case {
        /// Rows, vocabulary, D.
        dims: [usize; 3],
        /// Of x and w, of x̄, and of w̄.
        dtypes: [DType; 3],
        rounds: &'static [DType],
        accumulate: bool,
        amplitude: f32,
    }

    fn close(what: &str, dims: [usize; 3], got: &[f32], want: &[f64], error: f64, ulp: f64) {
        assert_eq!(got.len(), want.len());
        for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
            let bound = error + ulp * (w.abs() + error);
            assert!((f64::from(g) - w).abs() <= bound, "{what}[{i}] of {dims:?}: {g} for {w}, bound {bound}");
        }
    }

    fn check(case: Case) {
        let [n, v, d] = case.dims;
        let bound = sizes("nvd", &case.dims);
        let scaled = |seed, n| -> Vec<f32> { noise(seed, n).iter().map(|x| x * case.amplitude).collect() };
        let mut x = Owned::of(case.dtypes[0], &scaled(1, n * d));
        let mut w = Owned::of(case.dtypes[0], &noise(2, v * d));
        // Every third row is ignored; the first and the last class occur.
        let ids: Vec<i32> = (0..n).map(|i| if i % 3 == 2 { -1 - i as i32 } else { (i * 7919 % v) as i32 }).collect();
        let ids: Vec<i32> = ids.iter().map(|&t| if t == 1 { v as i32 - 1 } else { t }).collect();
        let mut targets = Owned::ids(&ids);
        let mut d_sum = Owned::of(DType::F32, &[-0.75]);
        let mut three = [(&mut x, "nd"), (&mut w, "vd"), (&mut targets, "n")];
        let want = eval("linear_cross_entropy", Attrs::new(), &mut three, &bound);
        let kept: Vec<f32> = want[2].iter().map(|&x| x as f32).collect();
        let mut lse_kept = Owned::of(DType::F32, &kept);
        let mut five = [(&mut x, "nd"), (&mut w, "vd"), (&mut targets, "n"), (&mut lse_kept, "n"), (&mut d_sum, "")];
        let want_backward = eval("linear_cross_entropy_vjp", Attrs::new(), &mut five, &bound);

        // A logit is a chain of d products of this size, whose roundings add up like a random walk.
        let steps = 4.0 * d as f64 * f64::from(case.amplitude) + 2.0 * ((n + v) as f64).sqrt() + 16.0;
        let eps = f64::from(f32::EPSILON) * steps;
        let most = |x: &[f64]| x.iter().fold(1.0f64, |m, x| m.max(x.abs()));
        let ulp = |d: DType| half_ulp(d) + case.rounds.iter().map(|&d| half_ulp(d)).sum::<f64>();
        let old = noise(5, v * d);

        let mut first: [Option<Vec<Vec<u32>>>; 2] = [None, None];
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads).unwrap();
            let plan = LossPlan::new(&axes("nd"), &axes("vd"), &bound, threads);
            assert!(plan.keeps());
            // Forward and backward, then both at once.
            for both in [false, true] {
                let [mut sum, mut count] = [(); 2].map(|()| Owned::poisoned(DType::F32, 1));
                let mut lse = Owned::poisoned(DType::F32, n);
                let mut dx = Owned::poisoned(case.dtypes[1], n * d);
                let mut dw =
                    if case.accumulate { Owned::of(DType::F32, &old) } else { Owned::poisoned(case.dtypes[2], v * d) };
                let to = Gradient { to: dw.buf(), rounds: case.rounds, accumulate: case.accumulate };
                let results = LossResults { sum: sum.buf(), count: count.buf(), lse: lse.buf() };
                let [x, w, targets, d_sum] = [&mut x, &mut w, &mut targets, &mut d_sum].map(Owned::buf);
                let mut operands = LossOperands { x, w, targets, lse: results.lse, d_sum };
                if both {
                    let mut workspace = vec![f32::NAN; plan.both_workspace_len(case.dtypes[1])];
                    plan.both(&pool, operands, [results.sum, results.count], dx.buf(), case.rounds, to, &mut workspace);
                } else {
                    let mut workspace = vec![f32::NAN; plan.workspace_len()];
                    plan.forward(&pool, [x, w, targets], results, &mut workspace);
                    let mut workspace = vec![f32::NAN; plan.backward_workspace_len(case.dtypes[1])];
                    operands.lse = lse_kept.buf();
                    plan.backward(&pool, operands, dx.buf(), case.rounds, to, &mut workspace);
                }
                close("sum", case.dims, &sum.values(), &want[0], eps * n as f64 * most(&want[2]), 0.0);
                close("count", case.dims, &count.values(), &want[1], 0.0, 0.0);
                close("lse", case.dims, &lse.values(), &want[2], eps * most(&want[2]), 0.0);
                let want_dx = &want_backward[0];
                close("dx", case.dims, &dx.values(), want_dx, eps * most(want_dx), ulp(case.dtypes[1]));
                let mut want_dw = want_backward[1].clone();
                let rounding = ulp(case.dtypes[2]) * most(&want_dw);
                if case.accumulate {
                    want_dw.iter_mut().zip(&old).for_each(|(w, &o)| *w += f64::from(o));
                }
                close("dw", case.dims, &dw.values(), &want_dw, eps * most(&want_dw) + rounding, 0.0);
                let bits = [&mut sum, &mut count, &mut lse, &mut dx, &mut dw].map(Owned::bits).to_vec();
                let first = &mut first[usize::from(both)];
                assert!(first.get_or_insert(bits.clone()) == &bits, "{:?}: {threads} threads", case.dims);
            }
        }
    }

    fn plain(dims: [usize; 3]) -> Case {
        Case { dims, dtypes: [DType::F32; 3], rounds: &[], accumulate: false, amplitude: 1.0 }
    }

    #[test]
    fn every_size_agrees_with_the_interpreter() {
        for rows in [1, 2, 11, 13, 97] {
            check(plain([rows, 37, 19]));
        }
        for vocab in [1, 2, 31, 33, 511, 512, 513, 1031] {
            check(plain([5, vocab, 7]));
        }
        for d in [1, 15, 16, 31, 33, 257, 521] {
            check(plain([14, 40, d]));
        }
        check(plain([0, 5, 3]));
    }

    #[test]
    fn chunks_of_rows_add_up() {
        check(plain([523, 67, 9]));
        check(Case { accumulate: true, ..plain([1025, 33, 5]) });
    }

    #[test]
    fn low_precision_is_widened_and_rounded() {
        for d in [DType::Bf16, DType::F16] {
            check(Case { dtypes: [d, d, DType::F32], ..plain([37, 600, 33]) });
            check(Case { dtypes: [d, d, d], ..plain([37, 67, 33]) });
            check(Case { dtypes: [d, DType::F32, DType::F32], accumulate: true, ..plain([37, 67, 33]) });
        }
        check(Case { rounds: &[DType::Bf16], accumulate: true, ..plain([37, 600, 33]) });
    }

    #[test]
    fn large_logits_do_not_overflow() {
        check(Case { amplitude: 60.0, ..plain([13, 700, 16]) });
    }

    #[test]
    #[should_panic(expected = "target 5 of 5 classes")]
    fn a_target_beyond_the_vocabulary_is_refused() {
        let bound = sizes("nvd", &[1, 5, 3]);
        let plan = LossPlan::new(&axes("nd"), &axes("vd"), &bound, 1);
        let [mut x, mut w, mut out] = [3, 15, 1].map(|n| Owned::of(DType::F32, &noise(1, n)));
        let mut workspace = vec![0.0; plan.workspace_len()];
        let mut targets = Owned::ids(&[5]);
        let operands = [x.buf(), w.buf(), targets.buf()];
        let results = LossResults { sum: out.buf(), count: out.buf(), lse: out.buf() };
        plan.forward(&Pool::serial(), operands, results, &mut workspace);
    }
}
