//! `attention` and its derivative, tile by tile: no more than a tile of scores is ever held (Dao 2023).
//!
//! Queries are cut into blocks of `QUERIES` positions of one head, keys into blocks of `KEYS`. Every sum over keys or queries
//! goes block by block in order, so the bits do not depend on tasks or threads. Operands are widened to f32 as they are packed.
//!
//! Forward: a task is a few query blocks that share keys; each keeps its running maximum, sum and output while the keys pass by.
//! Its scores lie transposed, a row for each key, so that the softmax of neighbouring queries runs in the lanes of a vector.
//! Backward: one walk gives k̄ and v̄ of a key block while the queries pass by, another q̄ of query blocks as in the forward. Where
//! there are groups enough for all threads, a task is a whole group and its first walk adds up q̄ too, in the same order.
#![allow(unsafe_code)]

use super::buffer::{Buf, round_in_place};
use super::cpu::{Fma, multiversion};
use super::math::{exp_flushing, log, tree};
use super::micro::{Into, Micro, Operands};
use super::pack::{self, Part};
use super::pool::Pool;
use super::share::Shared;
use kiln_compiler::ir::{Axis, DType, Sizes};
use std::ops::Range;

// Query positions of a block: a multiple of the rows of every micro-kernel. Its tile of scores is 48 KiB.
const QUERIES: usize = 96;
// Keys of a block: a multiple of the columns of every micro-kernel.
const KEYS: usize = 128;
// Query blocks that a task takes at most, so that packing the keys for it is a twentieth of its work.
const BLOCKS_PER_TASK: usize = 4;
// Tasks per thread that are wanted so that the long rows of a causal mask are spread.
const TASKS_PER_THREAD: usize = 4;
// q̄ of a group is added up during the walk over its keys where it has at most this many elements (2 MiB).
const SINGLE_WALK: usize = 1 << 19;
// Groups per thread that keep the threads busy when a task is a group.
const GROUPS_PER_THREAD: usize = 2;
// Partial sums of a row; a divisor of KEYS.
const LANES: usize = 16;
// Keys whose scores are compared side by side.
const CHAINS: usize = 4;

/// A planned attention: for each of `groups · group` query heads, `s` queries of size `k` meet the `t` keys of their group.
pub struct AttentionPlan {
    micro: &'static Micro,
    threads: usize,
    groups: usize,
    group: usize,
    s: usize,
    t: usize,
    k: usize,
    causal: bool,
}

/// A query block.
#[derive(Clone, Copy)]
struct Queries {
    head: usize,
    first: usize,
    count: usize,
}

/// A key block.
#[derive(Clone, Copy)]
struct Keys {
    group: usize,
    first: usize,
    count: usize,
}

/// What a strip of rows of a product needs: which columns, and which steps of the sum.
struct Strip {
    columns: Range<usize>,
    steps: Range<usize>,
}

/// How many keys of a block the queries of a block see.
#[derive(Clone, Copy)]
struct Mask {
    /// Under a causal mask query r sees r + 1 + shift of them.
    shift: Option<isize>,
    keys: usize,
}

impl Mask {
    fn seen(self, r: usize) -> usize {
        self.shift.map_or(self.keys, |shift| (r as isize + 1 + shift).clamp(0, self.keys as isize) as usize)
    }

    /// The first query that sees key `j`.
    fn first(self, j: usize) -> usize {
        self.shift.map_or(0, |shift| (j as isize - shift).max(0) as usize)
    }
}

/// Rows of a matrix as a micro-kernel reads them.
#[derive(Clone, Copy, Default)]
struct Rows<'a> {
    data: &'a [f32],
    /// From one row to the next.
    stride: usize,
}

/// Operands and results of the derivative.
struct Backward<'a> {
    q: Buf,
    k: Buf,
    v: Buf,
    lse: Buf,
    d_o: Buf,
    results: [Buf; 3],
    rounds: [&'a [DType]; 3],
}

impl AttentionPlan {
    /// Plans queries over prefix ++ \[R\]? ++ \[S, K\] and keys over prefix ++ \[T, K\].
    pub fn new(q: &[Axis], k: &[Axis], sizes: &Sizes, causal: bool, threads: usize) -> AttentionPlan {
        let (queries, [s, head]) = split(q);
        let (keys, [t, _]) = split(k);
        let groups = sizes.elements(keys);
        AttentionPlan {
            micro: Micro::detect(),
            threads: threads.max(1),
            groups,
            group: sizes.elements(queries) / groups.max(1),
            s: sizes.of(*s),
            t: sizes.of(*t),
            k: sizes.of(*head),
            causal,
        }
    }

    fn heads(&self) -> usize {
        self.groups * self.group
    }

    /// Columns of a packed row: the head size, padded for the micro-kernel.
    fn width(&self) -> usize {
        self.k.next_multiple_of(self.micro.nr)
    }

    /// The first `n` keys that the query at position `i` sees.
    fn visible(&self, i: usize) -> usize {
        if self.causal { (i + 1 + self.t).saturating_sub(self.s).min(self.t) } else { self.t }
    }

    /// The first position that sees key `j`.
    fn first_query(&self, j: usize) -> usize {
        if self.causal { (j + self.s).saturating_sub(self.t) } else { 0 }
    }

    /// Keys from `first` on.
    fn keys(&self, group: usize, first: usize) -> Keys {
        Keys { group, first, count: KEYS.min(self.t - first) }
    }

    /// Query block `i` of a group: heads of one position follow each other, since they see the same keys.
    fn queries(&self, group: usize, i: usize) -> Queries {
        let first = i / self.group * QUERIES;
        Queries { head: group * self.group + i % self.group, first, count: QUERIES.min(self.s - first) }
    }

    /// Query blocks of a group.
    fn blocks(&self) -> usize {
        self.s.div_ceil(QUERIES) * self.group
    }

    fn blocks_per_task(&self) -> usize {
        (self.groups * self.blocks() / (TASKS_PER_THREAD * self.threads)).clamp(1, BLOCKS_PER_TASK)
    }

    /// Calls `f(group, blocks, worker)` for ranges of query blocks.
    fn for_queries(&self, pool: &Pool, f: impl Fn(usize, std::ops::Range<usize>, usize) + Sync) {
        let (blocks, step) = (self.blocks(), self.blocks_per_task());
        let tasks = blocks.div_ceil(step);
        pool.run(self.groups * tasks, |task, worker| {
            // Last blocks first: under a causal mask they are the longest.
            let first = (tasks - 1 - task % tasks) * step;
            f(task / tasks, first..blocks.min(first + step), worker);
        });
    }

    fn forward_worker_len(&self) -> usize {
        let rows = BLOCKS_PER_TASK * QUERIES;
        rows * (self.k + self.width() + 2) + KEYS * (self.k + self.width()) + QUERIES * (KEYS + 1)
    }

    /// Padded elements of q̄ of a group.
    fn group_len(&self) -> usize {
        self.group * self.s * self.width()
    }

    fn single_walk(&self) -> bool {
        self.groups >= GROUPS_PER_THREAD * self.threads && self.group_len() <= SINGLE_WALK
    }

    fn backward_worker_len(&self) -> usize {
        let tiles = 2 * QUERIES * KEYS;
        let by_keys = 2 * (QUERIES * self.width() + KEYS * (self.k + self.width()));
        if self.single_walk() {
            return tiles + by_keys + KEYS * self.width() + self.group_len();
        }
        let by_queries = BLOCKS_PER_TASK * QUERIES * (2 * self.k + self.width()) + KEYS * (2 * self.k + self.width());
        tiles + by_keys.max(by_queries)
    }

    /// Scratch of [`AttentionPlan::forward`] in f32 elements.
    pub fn workspace_len(&self) -> usize {
        self.threads * self.forward_worker_len()
    }

    /// Scratch of [`AttentionPlan::backward`] in f32 elements.
    pub fn backward_workspace_len(&self) -> usize {
        self.heads() * self.s + self.threads * self.backward_worker_len()
    }

    /// Floating-point operations of the forward.
    pub fn flops(&self) -> u64 {
        let seen: usize = (0..self.s).map(|i| self.visible(i)).sum();
        4 * (self.heads() * seen * self.k) as u64
    }

    fn check(&self, pool: &Pool, queries: &[Buf], keys: &[Buf], lse: Buf, workspace: (usize, usize)) {
        let (nq, nk) = (self.heads() * self.s * self.k, self.groups * self.t * self.k);
        let rows = self.heads() * self.s;
        assert!(queries.iter().all(|b| b.len() >= nq), "an operand of `attention` has fewer than {nq} elements");
        assert!(keys.iter().all(|b| b.len() >= nk), "an operand of `attention` has fewer than {nk} elements");
        assert!(lse.len() >= rows, "the log-sum-exp of `attention` has {} of {rows} elements", lse.len());
        assert!(pool.threads() <= self.threads, "planned for {} threads", self.threads);
        assert!(workspace.0 >= workspace.1, "workspace of {} f32 is too small", workspace.0);
    }

    /// Computes o, rounded to each of `rounds` in turn, and the f32 log-sum-exp.
    ///
    /// # Panics
    /// If a buffer or the workspace is shorter than planned, or `pool` has more threads than planned.
    pub fn forward(
        &self,
        pool: &Pool,
        q: Buf,
        k: Buf,
        v: Buf,
        o: Buf,
        lse: Buf,
        rounds: &[DType],
        workspace: &mut [f32],
    ) {
        self.check(pool, &[q, o], &[k, v], lse, (workspace.len(), self.workspace_len()));
        let (head, width, scale) = (self.k, self.width(), self.score_scale());
        let scratch = Shared::new(workspace);
        self.for_queries(pool, |group, range, worker| {
            let len = self.forward_worker_len();
            // SAFETY: a worker runs one task at a time, and only it uses its part.
            let mut rest = unsafe { scratch.slice(worker * len, len) };
            let n = range.len() * QUERIES;
            let qt = take(&mut rest, n * head);
            let sums = take(&mut rest, n * width);
            let highest = take(&mut rest, n);
            let totals = take(&mut rest, n);
            let ks = take(&mut rest, KEYS * head);
            let vs = take(&mut rest, KEYS * width);
            let tile = take(&mut rest, QUERIES * KEYS);
            let shrink = take(&mut rest, QUERIES);
            highest.fill(f32::NEG_INFINITY);
            totals.fill(0.0);
            let mut keys_end = 0;
            for (i, qt) in range.clone().zip(qt.chunks_exact_mut(QUERIES * head)) {
                let at = self.queries(group, i);
                self.transposed(q, self.row(at), at.count, QUERIES, qt);
                keys_end = keys_end.max(self.visible(at.first + at.count - 1));
            }
            for j in (0..keys_end).step_by(KEYS) {
                let keys = self.keys(group, j);
                let ks = self.rows(&k, self.key(keys), keys.count, head, ks);
                let vs = self.rows(&v, self.key(keys), keys.count, width, vs);
                for (b, i) in range.clone().enumerate() {
                    let (at, r) = (self.queries(group, i), b * QUERIES);
                    self.scores_of_keys(at, keys, ks, &qt[r * head..(r + QUERIES) * head], tile);
                    let mask = self.mask(at, keys);
                    let (highest, totals) = (&mut highest[r..r + QUERIES], &mut totals[r..r + QUERIES]);
                    soften(tile, at.count, self.micro.mr, mask, scale, highest, totals, shrink);
                    let sums = self.sums(&o, self.row(at), at.count, &mut sums[r * width..]);
                    if j > 0 {
                        rescale(sums, width, shrink);
                    }
                    self.over_keys(at, keys, tile, (1, QUERIES), vs, sums, add_if(j > 0));
                }
            }
            for (b, i) in range.enumerate() {
                let at = self.queries(group, i);
                let (row, r) = (self.row(at), b * QUERIES);
                let sums = self.sums(&o, row, at.count, &mut sums[r * width..]);
                let lse = lse.f32s_mut(row, at.count);
                // Queries before the first key have o = 0 and −∞.
                let blind = (0..at.count).take_while(|&r| self.visible(at.first + r) == 0).count();
                sums[..blind * width].fill(0.0);
                lse[..blind].fill(f32::NEG_INFINITY);
                let seeing = r + blind..r + at.count;
                divide(
                    &mut sums[blind * width..],
                    width,
                    &highest[seeing.clone()],
                    &totals[seeing],
                    scale,
                    &mut lse[blind..],
                );
                self.finish(&o, row, rounds, sums, 1.0);
            }
        });
    }

    /// Computes dq, dk and dv, each rounded to its list of `rounds` in turn.
    ///
    /// # Panics
    /// If a buffer or the workspace is shorter than planned, or `pool` has more threads than planned.
    pub fn backward(
        &self,
        pool: &Pool,
        [q, k, v, o, lse, d_o]: [Buf; 6],
        [dq, dk, dv]: [Buf; 3],
        rounds: [&[DType]; 3],
        workspace: &mut [f32],
    ) {
        let wanted = self.backward_workspace_len();
        self.check(pool, &[q, o, d_o, dq], &[k, v, dk, dv], lse, (workspace.len(), wanted));
        let call = Backward { q, k, v, lse, d_o, results: [dq, dk, dv], rounds };
        let (delta, scratch) = workspace.split_at_mut(self.heads() * self.s);
        let (delta, scratch) = (Shared::new(delta), Shared::new(scratch));
        let len = self.backward_worker_len();
        if self.single_walk() {
            return pool.run(self.groups, |group, worker| {
                let (first, rows) = (group * self.group * self.s, self.group * self.s);
                // SAFETY: each group has its own rows.
                let delta = unsafe { delta.slice(first, rows) };
                row_dots(o, d_o, first, self.k, delta);
                // SAFETY: a worker runs one task at a time, and only it uses its part.
                let mut part = unsafe { scratch.slice(worker * len, len) };
                let dq = self.sums(&dq, first, rows, take(&mut part, self.group_len()));
                self.walk_group(&call, group, delta, dq, part);
            });
        }
        let rows = self.heads() * self.s;
        pool.run(rows.div_ceil(QUERIES), |task, _| {
            let first = task * QUERIES;
            // SAFETY: each task has its own rows.
            let delta = unsafe { delta.slice(first, QUERIES.min(rows - first)) };
            row_dots(o, d_o, first, self.k, delta);
        });
        // SAFETY: from here on they are only read.
        let delta = &*unsafe { delta.slice(0, rows) };
        let blocks = self.t.div_ceil(KEYS);
        pool.run(self.groups * blocks, |task, worker| {
            // SAFETY: a worker runs one task at a time, and only it uses its part.
            let part = unsafe { scratch.slice(worker * len, len) };
            let keys = self.keys(task / blocks, task % blocks * KEYS);
            self.walk_queries(&call, keys, &delta[keys.group * self.group * self.s..], None, part);
        });
        self.for_queries(pool, |group, range, worker| {
            // SAFETY: as above.
            let part = unsafe { scratch.slice(worker * len, len) };
            self.walk_keys(&call, group, range, delta, part);
        });
    }

    /// q̄, k̄ and v̄ of a group; `delta` and `dq` are those of its rows.
    fn walk_group(&self, call: &Backward<'_>, group: usize, delta: &[f32], dq: &mut [f32], rest: &mut [f32]) {
        for j in (0..self.t).step_by(KEYS) {
            self.walk_queries(call, self.keys(group, j), delta, Some(dq), rest);
        }
        // Queries before the first key.
        for i in 0..if self.t > 0 { self.first_block(0) } else { self.blocks() } {
            let at = self.queries(group, i);
            dq[self.row_in_group(at) * self.width()..][..at.count * self.width()].fill(0.0);
        }
        let first = group * self.group * self.s;
        self.finish(&call.results[0], first, call.rounds[0], dq, self.score_scale());
    }

    /// k̄ and v̄ of one key block, and its part of q̄ of the whole group; `delta` and `dq` are those of the group's rows.
    fn walk_queries(
        &self,
        call: &Backward<'_>,
        keys: Keys,
        delta: &[f32],
        mut dq: Option<&mut [f32]>,
        mut rest: &mut [f32],
    ) {
        let (head, width, scale) = (self.k, self.width(), self.score_scale());
        let qs = take(&mut rest, QUERIES * width);
        let ds = take(&mut rest, QUERIES * width);
        let kt = take(&mut rest, head * KEYS);
        let vt = take(&mut rest, head * KEYS);
        let first = self.key(keys);
        let [dk, dv] = [1, 2].map(|i| self.sums(&call.results[i], first, keys.count, take(&mut rest, KEYS * width)));
        let p = take(&mut rest, QUERIES * KEYS);
        let dp = take(&mut rest, QUERIES * KEYS);
        self.transposed(call.k, first, keys.count, KEYS, kt);
        self.transposed(call.v, first, keys.count, KEYS, vt);
        let ks = dq.is_some().then(|| {
            let scratch = take(&mut rest, KEYS * width);
            self.rows(&call.k, first, keys.count, width, scratch)
        });
        let start = self.first_block(keys.first);
        if start >= self.blocks() {
            dk.fill(0.0);
            dv.fill(0.0);
        }
        for i in start..self.blocks() {
            let at = self.queries(keys.group, i);
            let (row, in_group) = (self.row(at), self.row_in_group(at));
            let qs = self.rows(&call.q, row, at.count, width, qs);
            let ds = self.rows(&call.d_o, row, at.count, width, ds);
            self.scores(at, keys, qs, kt, p);
            self.scores(at, keys, ds, vt, dp);
            let delta = &delta[in_group..in_group + at.count];
            differentiate(p, dp, self.micro.mr, self.mask(at, keys), scale, call.lse.f32s(row, at.count), delta);
            self.over_queries(at, keys, p, ds, dv, add_if(i > start));
            self.over_queries(at, keys, dp, qs, dk, add_if(i > start));
            if let (Some(dq), Some(ks)) = (&mut dq, ks) {
                self.over_keys(at, keys, dp, (KEYS, 1), ks, &mut dq[in_group * width..], add_if(keys.first > 0));
            }
        }
        self.finish(&call.results[1], first, call.rounds[1], dk, scale);
        self.finish(&call.results[2], first, call.rounds[2], dv, 1.0);
    }

    /// q̄ of some query blocks.
    fn walk_keys(
        &self,
        call: &Backward<'_>,
        group: usize,
        range: std::ops::Range<usize>,
        delta: &[f32],
        mut rest: &mut [f32],
    ) {
        let (head, width, scale) = (self.k, self.width(), self.score_scale());
        let n = range.len() * QUERIES;
        let qs = take(&mut rest, n * head);
        let ds = take(&mut rest, n * head);
        let dq = take(&mut rest, n * width);
        let kt = take(&mut rest, head * KEYS);
        let vt = take(&mut rest, head * KEYS);
        let ks = take(&mut rest, KEYS * width);
        let p = take(&mut rest, QUERIES * KEYS);
        let dp = take(&mut rest, QUERIES * KEYS);
        let mut keys_end = 0;
        let mut operands = [[Rows::default(); 2]; BLOCKS_PER_TASK];
        let scratch = qs.chunks_exact_mut(QUERIES * head).zip(ds.chunks_exact_mut(QUERIES * head));
        for (b, (i, (qs, ds))) in range.clone().zip(scratch).enumerate() {
            let at = self.queries(group, i);
            let row = self.row(at);
            let [q, d_o] = [&call.q, &call.d_o];
            operands[b] = [self.rows(q, row, at.count, head, qs), self.rows(d_o, row, at.count, head, ds)];
            keys_end = keys_end.max(self.visible(at.first + at.count - 1));
        }
        for j in (0..keys_end).step_by(KEYS) {
            let keys = self.keys(group, j);
            self.transposed(call.k, self.key(keys), keys.count, KEYS, kt);
            self.transposed(call.v, self.key(keys), keys.count, KEYS, vt);
            let ks = self.rows(&call.k, self.key(keys), keys.count, width, ks);
            for (b, i) in range.clone().enumerate() {
                let at = self.queries(group, i);
                let row = self.row(at);
                self.scores(at, keys, operands[b][0], kt, p);
                self.scores(at, keys, operands[b][1], vt, dp);
                let delta = &delta[row..row + at.count];
                differentiate(p, dp, self.micro.mr, self.mask(at, keys), scale, call.lse.f32s(row, at.count), delta);
                let dq = self.sums(&call.results[0], row, at.count, &mut dq[b * QUERIES * width..]);
                self.over_keys(at, keys, dp, (KEYS, 1), ks, dq, add_if(j > 0));
            }
        }
        for (b, i) in range.enumerate() {
            let at = self.queries(group, i);
            let row = self.row(at);
            let dq = self.sums(&call.results[0], row, at.count, &mut dq[b * QUERIES * width..]);
            if keys_end == 0 {
                dq.fill(0.0);
            }
            self.finish(&call.results[0], row, call.rounds[0], dq, scale);
        }
    }

    /// Whether rows of a buffer lie as a micro-kernel reads and writes them.
    fn in_place(&self, b: &Buf) -> bool {
        b.dtype() == DType::F32 && self.width() == self.k
    }

    /// Where `count` rows from row `first` on are added up: in the result, or in `scratch`, [`AttentionPlan::width`] elements apart.
    fn sums<'a>(&self, to: &'a Buf, first: usize, count: usize, scratch: &'a mut [f32]) -> &'a mut [f32] {
        if self.in_place(to) {
            return to.f32s_mut(first * self.k, count * self.k);
        }
        &mut scratch[..count * self.width()]
    }

    /// Multiplies [`AttentionPlan::sums`] by `factor`, rounds them, and stores them if they are not in the result.
    fn finish(&self, to: &Buf, first: usize, rounds: &[DType], sums: &mut [f32], factor: f32) {
        if factor != 1.0 {
            sums.iter_mut().for_each(|x| *x *= factor);
        }
        for &dtype in rounds {
            round_in_place(dtype, sums);
        }
        if self.in_place(to) {
            return;
        }
        for (r, row) in sums.chunks_exact(self.width()).enumerate() {
            to.store((first + r) * self.k, &row[..self.k]);
        }
    }

    /// What a product q·k is multiplied by.
    fn score_scale(&self) -> f32 {
        1.0 / (self.k as f32).sqrt()
    }

    /// The first query block of a group that sees key `j`.
    fn first_block(&self, j: usize) -> usize {
        self.first_query(j) / QUERIES * self.group
    }

    /// The first row of a query block among those of its group.
    fn row_in_group(&self, at: Queries) -> usize {
        at.head % self.group * self.s + at.first
    }

    /// The first row of a query block among all queries.
    fn row(&self, at: Queries) -> usize {
        at.head * self.s + at.first
    }

    /// The first row of a key block among all keys.
    fn key(&self, keys: Keys) -> usize {
        keys.group * self.t + keys.first
    }

    /// `count` rows from row `first` on, `width` elements apart: where they lie if they are, or in `scratch`.
    fn rows<'a>(&self, src: &'a Buf, first: usize, count: usize, width: usize, scratch: &'a mut [f32]) -> Rows<'a> {
        let head = self.k;
        if src.dtype() == DType::F32 && width == head {
            return Rows { data: src.f32s(first * head, count * head), stride: head };
        }
        pack::rows(Part { src: *src, at: first * head, stride: head, rows: count, columns: head }, width, scratch);
        Rows { data: scratch, stride: width }
    }

    /// `count` rows from row `first` on, transposed: the columns in rows of `width`.
    fn transposed(&self, src: Buf, first: usize, count: usize, width: usize, to: &mut [f32]) {
        let part = Part { src, at: first * self.k, stride: self.k, rows: count, columns: self.k };
        pack::transposed(part, width, to);
    }

    fn mask(&self, at: Queries, keys: Keys) -> Mask {
        let shift = (at.first + self.t) as isize - (self.s + keys.first) as isize;
        Mask { shift: self.causal.then_some(shift), keys: keys.count }
    }

    /// Tile = A · Bᵀ for A rows of the queries and B the transposed keys, where the mask is open.
    fn scores(&self, at: Queries, keys: Keys, a: Rows<'_>, b: &[f32], tile: &mut [f32]) {
        let mask = self.mask(at, keys);
        self.dots(at.count, KEYS, a, b, tile, |_, last| 0..mask.seen(last));
    }

    /// As [`AttentionPlan::scores`], transposed: A is rows of the keys and B the transposed queries.
    fn scores_of_keys(&self, at: Queries, keys: Keys, a: Rows<'_>, b: &[f32], tile: &mut [f32]) {
        let mask = self.mask(at, keys);
        self.dots(keys.count, QUERIES, a, b, tile, |first, _| mask.first(first)..at.count);
    }

    /// C[m×n] = A · B for rows of A as long as a head and `n` QUERIES or KEYS, multiples of the columns of a micro-kernel; of each strip
    /// of rows at least the columns that `columns(first, last)` names.
    fn dots(
        &self,
        m: usize,
        n: usize,
        a: Rows<'_>,
        b: &[f32],
        c: &mut [f32],
        columns: impl Fn(usize, usize) -> Range<usize>,
    ) {
        assert!(a.data.len() >= (m - 1) * a.stride + self.k && b.len() >= self.k * n && c.len() >= m * n);
        let o = Operands {
            k: self.k,
            a: a.data.as_ptr(),
            a_row: a.stride,
            a_k: 1,
            a_run: usize::MAX,
            a_skip: 0,
            b: b.as_ptr(),
            b_k: n,
            c: c.as_mut_ptr(),
            c_row: n,
        };
        let strip = |first, last| Strip { columns: columns(first, last), steps: 0..self.k };
        // SAFETY: the lengths were checked, and `n` is a multiple of the columns of a micro-kernel.
        unsafe { self.product(m, n, o, Into::Overwrite, strip) }
    }

    /// Sums over keys for each query: C[query] = or += tile · B, for a tile with `strides` from query to query and from key to key.
    fn over_keys(
        &self,
        at: Queries,
        keys: Keys,
        tile: &[f32],
        strides: (usize, usize),
        b: Rows<'_>,
        c: &mut [f32],
        into: Into,
    ) {
        let width = self.width();
        assert!(
            tile.len() > (at.count - 1) * strides.0 + (keys.count - 1) * strides.1
                && b.data.len() >= keys.count * b.stride
                && b.stride >= width
                && c.len() >= at.count * width
        );
        let o = Operands {
            k: keys.count,
            a: tile.as_ptr(),
            a_row: strides.0,
            a_k: strides.1,
            a_run: usize::MAX,
            a_skip: 0,
            b: b.data.as_ptr(),
            b_k: b.stride,
            c: c.as_mut_ptr(),
            c_row: width,
        };
        let mask = self.mask(at, keys);
        let strip = |_, last| Strip { columns: 0..width, steps: 0..mask.seen(last) };
        // SAFETY: the lengths were checked.
        unsafe { self.product(at.count, width, o, into, strip) }
    }

    /// Sums over queries for each key: C[key] = or += tileᵀ · B.
    fn over_queries(&self, at: Queries, keys: Keys, tile: &[f32], b: Rows<'_>, c: &mut [f32], into: Into) {
        let width = self.width();
        assert!(
            tile.len() >= at.count * KEYS
                && b.data.len() >= at.count * b.stride
                && b.stride >= width
                && c.len() >= keys.count * width
        );
        let o = Operands {
            k: at.count,
            a: tile.as_ptr(),
            a_row: 1,
            a_k: KEYS,
            a_run: usize::MAX,
            a_skip: 0,
            b: b.data.as_ptr(),
            b_k: b.stride,
            c: c.as_mut_ptr(),
            c_row: width,
        };
        let mask = self.mask(at, keys);
        let strip = |key, _| Strip { columns: 0..width, steps: mask.first(key).min(at.count)..at.count };
        // SAFETY: the lengths were checked.
        unsafe { self.product(keys.count, width, o, into, strip) }
    }

    /// C[m×n] = or += A · B, for each strip of rows from `first` to `last` only what `strip(first, last)` says.
    ///
    /// # Safety
    /// As for [`Micro::call`], with `n` columns.
    unsafe fn product(&self, m: usize, n: usize, o: Operands, into: Into, strip: impl Fn(usize, usize) -> Strip) {
        let Micro { mr, nr, .. } = *self.micro;
        for j in (0..n).step_by(nr) {
            for i in (0..m).step_by(mr) {
                let rows = mr.min(m - i);
                let s = strip(i, i + rows - 1);
                let nothing = s.steps.is_empty() && into == Into::Add;
                if j >= s.columns.end || j + nr <= s.columns.start || nothing {
                    continue;
                }
                // SAFETY: rows, columns and steps lie inside the ranges that the caller promises.
                unsafe {
                    let part = Operands {
                        k: s.steps.len(),
                        a: o.a.add(i * o.a_row + s.steps.start * o.a_k),
                        b: o.b.add(s.steps.start * o.b_k + j),
                        c: o.c.add(i * o.c_row + j),
                        ..o
                    };
                    self.micro.call(rows, part, into);
                }
            }
        }
    }
}

/// Leading axes, and the last two.
fn split(shape: &[Axis]) -> (&[Axis], &[Axis; 2]) {
    shape.split_last_chunk().expect("the type rule of `attention` demands two axes")
}

/// The next `n` elements of a worker's scratch.
fn take<'a>(rest: &mut &'a mut [f32], n: usize) -> &'a mut [f32] {
    rest.split_off_mut(..n).expect("a worker's scratch holds what its length counts")
}

fn add_if(more: bool) -> Into {
    if more { Into::Add } else { Into::Overwrite }
}

multiversion! {
    /// delta\[i\] = Σ o·ō over row `row + i`.
    fn row_dots(o: Buf, d_o: Buf, row: usize, head: usize, delta: &mut [f32]) = row_dots_body
}

#[inline(always)]
fn row_dots_body<F: Fma>(o: Buf, d_o: Buf, row: usize, head: usize, delta: &mut [f32]) {
    if o.dtype() == DType::F32 && d_o.dtype() == DType::F32 && head.is_multiple_of(LANES) {
        let [x, y] = [&o, &d_o].map(|b| b.f32s(row * head, delta.len() * head).as_chunks::<LANES>().0);
        let lines = head / LANES;
        for (delta, (x, y)) in delta.iter_mut().zip(x.chunks_exact(lines).zip(y.chunks_exact(lines))) {
            let mut acc = [0.0f32; LANES];
            for (x, y) in x.iter().zip(y) {
                for l in 0..LANES {
                    acc[l] = F::fma(x[l], y[l], acc[l]);
                }
            }
            *delta = tree(acc, |a, b| a + b);
        }
        return;
    }
    for (i, delta) in delta.iter_mut().enumerate() {
        let mut acc = [0.0f32; LANES];
        for c in (0..head).step_by(LANES) {
            let n = LANES.min(head - c);
            let (mut x, mut y) = ([0.0f32; LANES], [0.0f32; LANES]);
            o.load((row + i) * head + c, &mut x[..n]);
            d_o.load((row + i) * head + c, &mut y[..n]);
            for l in 0..LANES {
                acc[l] = F::fma(x[l], y[l], acc[l]);
            }
        }
        *delta = tree(acc, |a, b| a + b);
    }
}

/// The larger; a NaN is passed over, and comes back through the exponential.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

multiversion! {
    /// One step of the running softmax for `count` queries: a tile of scores, a row for each key, becomes e^(scale·(s − highest)), 0
    /// behind the mask and for `slack` queries more, with which a strip of rows may begin. `shrink` is what earlier sums are to be
    /// multiplied by.
    fn soften(
        tile: &mut [f32],
        count: usize,
        slack: usize,
        mask: Mask,
        scale: f32,
        highest: &mut [f32],
        totals: &mut [f32],
        shrink: &mut [f32],
    ) = soften_body
}

#[inline(always)]
fn soften_body<F: Fma>(
    tile: &mut [f32],
    count: usize,
    slack: usize,
    mask: Mask,
    scale: f32,
    highest: &mut [f32],
    totals: &mut [f32],
    shrink: &mut [f32],
) {
    let [(highest, _), (totals, _), (shrink, _)] = [highest, totals, shrink].map(|x| x.as_chunks_mut::<LANES>());
    for q in (0..count).step_by(LANES) {
        let (highest, total, shrink) = (&mut highest[q / LANES], &mut totals[q / LANES], &mut shrink[q / LANES]);
        let (all, any) = (mask.seen(q), mask.seen((q + LANES).min(count) - 1));
        for j in all..any {
            let hidden = mask.first(j) - q;
            line(tile, j, q)[..hidden].fill(f32::NEG_INFINITY);
        }
        let mut most = [*highest; CHAINS];
        for j in (0..any).step_by(CHAINS) {
            for (c, most) in most.iter_mut().enumerate().take(any - j) {
                let line = line(tile, j + c, q);
                for l in 0..LANES {
                    most[l] = larger(most[l], line[l]);
                }
            }
        }
        let mut base = [0.0f32; LANES];
        for l in 0..LANES {
            let most = larger(larger(most[0][l], most[1][l]), larger(most[2][l], most[3][l]));
            // A query that has seen no key yet.
            base[l] = if most == f32::NEG_INFINITY { 0.0 } else { most * scale };
            shrink[l] = exp_flushing::<F>(highest[l] * scale - base[l]);
            highest[l] = most;
        }
        let mut sum = [0.0f32; LANES];
        for j in 0..any {
            let line = line(tile, j, q);
            for l in 0..LANES {
                line[l] = exp_flushing::<F>(line[l] * scale - base[l]);
                sum[l] += line[l];
            }
        }
        for l in 0..LANES {
            total[l] = F::fma(total[l], shrink[l], sum[l]);
        }
        for j in any..mask.seen((q + LANES + slack).min(count) - 1) {
            line(tile, j, q).fill(0.0);
        }
    }
}

/// Scores of key `j` from query `q` on.
#[inline(always)]
fn line(tile: &mut [f32], j: usize, q: usize) -> &mut [f32; LANES] {
    tile[j * QUERIES + q..][..LANES].as_mut_array().expect("the range has as many elements")
}

/// Multiplies each row by its factor.
fn rescale(sums: &mut [f32], width: usize, factors: &[f32]) {
    for (row, &factor) in sums.chunks_exact_mut(width).zip(factors) {
        if factor != 1.0 {
            row.iter_mut().for_each(|x| *x *= factor);
        }
    }
}

multiversion! {
    /// Divides each row by its total, and gives the log-sum-exp.
    fn divide(sums: &mut [f32], width: usize, highest: &[f32], totals: &[f32], scale: f32, lse: &mut [f32]) = divide_body
}

#[inline(always)]
fn divide_body<F: Fma>(sums: &mut [f32], width: usize, highest: &[f32], totals: &[f32], scale: f32, lse: &mut [f32]) {
    for (row, total) in sums.chunks_exact_mut(width).zip(totals) {
        row.iter_mut().for_each(|x| *x /= total);
    }
    for (lse, (highest, &total)) in lse.iter_mut().zip(highest.iter().zip(totals)) {
        *lse = highest * scale + log::<F>(total);
    }
}

multiversion! {
    /// From q·k and ō·v to P = e^(scale·q·k − lse) and P·(ō·v − δ), 0 behind the mask.
    fn differentiate(
        p: &mut [f32], dp: &mut [f32], slack: usize, mask: Mask, scale: f32, lse: &[f32], delta: &[f32],
    ) = differentiate_body
}

#[inline(always)]
fn differentiate_body<F: Fma>(
    p: &mut [f32],
    dp: &mut [f32],
    slack: usize,
    mask: Mask,
    scale: f32,
    lse: &[f32],
    delta: &[f32],
) {
    let rows = p.chunks_exact_mut(KEYS).zip(dp.chunks_exact_mut(KEYS)).zip(lse.iter().zip(delta));
    for (r, ((p, dp), (&lse, &delta))) in rows.enumerate() {
        let seen = mask.seen(r);
        let end = seen.next_multiple_of(LANES);
        p[seen..end].fill(f32::NEG_INFINITY);
        dp[seen..end].fill(delta);
        for (p, dp) in p[..end].as_chunks_mut::<LANES>().0.iter_mut().zip(dp[..end].as_chunks_mut::<LANES>().0) {
            for l in 0..LANES {
                p[l] = exp_flushing::<F>(p[l] * scale - lse);
                dp[l] = p[l] * (dp[l] - delta);
            }
        }
        // Strips of keys, or of queries, that begin before the end.
        let slack = (seen + slack).min(KEYS).max(end);
        p[end..slack].fill(0.0);
        dp[end..slack].fill(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::buffer::testing::{Owned, noise};
    use super::super::oracle::{axes, eval, half_ulp, sizes};
    use super::*;
    use kiln_compiler::ir::Attrs;

    /// Axes of q and k: groups, then heads of a group, queries, keys, head.
    const NAMES: &str = "grstk";

    struct Case {
        dims: [usize; 5],
        causal: bool,
        /// Of the operands, and of the results.
        dtypes: [DType; 2],
        rounds: &'static [DType],
        /// Size of the elements of q and k: large ones give sharp maxima.
        amplitude: f32,
    }

    fn close(what: &str, case: &Case, got: &[f32], want: &[f64], error: f64) {
        let ulp = case.rounds.iter().chain([&case.dtypes[1]]).map(|&d| half_ulp(d)).sum::<f64>();
        assert_eq!(got.len(), want.len());
        for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
            // The smallest step of f16.
            let bound = error + ulp * (w.abs() + error) + if ulp > 0.0 { 6e-8 } else { 0.0 };
            let same = g.is_infinite() && f64::from(g) == w;
            assert!(
                same || (f64::from(g) - w).abs() <= bound,
                "{what}[{i}] of {:?}, causal {}: {g} for {w}, bound {bound}",
                case.dims,
                case.causal
            );
        }
    }

    fn check(case: Case) {
        let [g, r, s, t, k] = case.dims;
        let bound = sizes(NAMES, &case.dims);
        let (nq, nk, rows) = (g * r * s * k, g * t * k, g * r * s);
        let [input, output] = case.dtypes;
        let scaled = |seed, n| -> Vec<f32> { noise(seed, n).iter().map(|x| x * case.amplitude).collect() };
        let mut q = Owned::of(input, &scaled(1, nq));
        let mut key = Owned::of(input, &scaled(2, nk));
        let mut v = Owned::of(input, &noise(3, nk));
        let mut d_o = Owned::of(input, &noise(4, nq));
        let attrs = Attrs::new().with("causal", case.causal);
        let want =
            eval("attention", attrs.clone(), &mut [(&mut q, "grsk"), (&mut key, "gtk"), (&mut v, "gtk")], &bound);
        let kept = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<f32>>();
        let (mut o_kept, mut lse_kept) = (Owned::of(input, &kept(&want[0])), Owned::of(DType::F32, &kept(&want[1])));
        let mut all = [
            (&mut q, "grsk"),
            (&mut key, "gtk"),
            (&mut v, "gtk"),
            (&mut o_kept, "grsk"),
            (&mut lse_kept, "grs"),
            (&mut d_o, "grsk"),
        ];
        let want_backward = eval("attention_vjp", attrs, &mut all, &bound);

        // A score is a sum of k products of this size over √k, whose roundings add up like a random walk.
        let square = f64::from(case.amplitude).powi(2);
        let steps = 4.0 * (k as f64).sqrt() * square + 2.0 * ((r * s + t) as f64).sqrt() + 16.0;
        let eps = f64::from(f32::EPSILON) * steps;
        let most = |x: &[f64]| x.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let slope = (k as f64).sqrt() * f64::from(case.amplitude);

        let mut first: Option<Vec<Vec<u32>>> = None;
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads).unwrap();
            let plan = AttentionPlan::new(&axes("grsk"), &axes("gtk"), &bound, case.causal, threads);
            let mut o = Owned::poisoned(output, nq);
            let mut lse = Owned::poisoned(DType::F32, rows);
            let mut workspace = vec![f32::NAN; plan.workspace_len()];
            let (qb, kb, vb) = (q.buf(), key.buf(), v.buf());
            plan.forward(&pool, qb, kb, vb, o.buf(), lse.buf(), case.rounds, &mut workspace);
            close("o", &case, &o.values(), &want[0], eps);
            let plain = Case { rounds: &[], dtypes: [DType::F32; 2], ..case };
            close("lse", &plain, &lse.values(), &want[1], eps * (1.0 + slope));

            let (mut dq, mut dk, mut dv) =
                (Owned::poisoned(output, nq), Owned::poisoned(output, nk), Owned::poisoned(output, nk));
            let mut workspace = vec![f32::NAN; plan.backward_workspace_len()];
            let operands = [qb, kb, vb, o_kept.buf(), lse_kept.buf(), d_o.buf()];
            plan.backward(&pool, operands, [dq.buf(), dk.buf(), dv.buf()], [case.rounds; 3], &mut workspace);
            for (name, got, want) in [("dq", &mut dq, 0), ("dk", &mut dk, 1), ("dv", &mut dv, 2)] {
                let want = &want_backward[want];
                close(name, &case, &got.values(), want, eps * (most(want) + 1.0 + slope));
            }
            let bits = [&mut o, &mut lse, &mut dq, &mut dk, &mut dv].map(Owned::bits).to_vec();
            assert!(first.get_or_insert(bits.clone()) == &bits, "{:?}: {threads} threads", case.dims);
        }
    }

    fn plain(dims: [usize; 5], causal: bool) -> Case {
        Case { dims, causal, dtypes: [DType::F32; 2], rounds: &[], amplitude: 1.0 }
    }

    #[test]
    fn every_size_agrees_with_the_interpreter() {
        for causal in [false, true] {
            for n in [1, 2, 11, 13, 47, 48, 49, 67, 97] {
                check(plain([1, 1, n, n, 8], causal));
            }
            for k in [1, 3, 16, 31, 32, 33, 64] {
                check(plain([2, 1, 13, 13, k], causal));
            }
            check(plain([1, 1, 131, 257, 24], causal));
            check(plain([1, 1, 129, 129, 16], causal));
            check(plain([1, 1, 3, 260, 16], causal));
        }
    }

    #[test]
    fn grouped_queries_share_keys() {
        for causal in [false, true] {
            check(plain([3, 2, 50, 50, 16], causal));
            check(plain([2, 5, 97, 130, 8], causal));
            check(plain([1, 7, 1, 128, 32], causal));
            // Heads as wide as a tile: results are added up where they lie.
            check(plain([3, 2, 50, 50, 64], causal));
            check(plain([2, 5, 97, 130, 32], causal));
        }
    }

    #[test]
    fn queries_before_the_first_key_see_nothing() {
        check(plain([2, 1, 60, 7, 8], true));
        check(plain([1, 2, 200, 140, 8], true));
        check(plain([2, 1, 60, 7, 32], true));
        check(plain([1, 2, 200, 140, 32], true));
        check(plain([1, 1, 5, 0, 32], true));
        check(plain([1, 1, 5, 0, 8], true));
        check(plain([1, 1, 5, 0, 8], false));
        check(plain([1, 1, 0, 5, 8], true));
    }

    #[test]
    fn low_precision_is_widened_and_rounded() {
        for d in [DType::Bf16, DType::F16] {
            for causal in [false, true] {
                check(Case { dtypes: [d, d], ..plain([2, 2, 53, 53, 24], causal) });
                check(Case { dtypes: [d, DType::F32], ..plain([1, 1, 53, 53, 24], causal) });
            }
        }
        check(Case { rounds: &[DType::Bf16], ..plain([1, 1, 53, 53, 24], true) });
        check(Case { rounds: &[DType::F16, DType::Bf16], ..plain([1, 1, 53, 53, 24], true) });
    }

    #[test]
    fn large_scores_do_not_overflow() {
        for amplitude in [10.0, 40.0] {
            check(Case { amplitude, ..plain([1, 1, 150, 150, 16], true) });
        }
    }

    #[test]
    fn a_nan_is_not_hidden() {
        let bound = sizes(NAMES, &[1, 1, 3, 3, 8]);
        let mut x: Vec<f32> = noise(1, 24);
        x[8] = f32::NAN;
        let (mut q, mut k, mut v) =
            (Owned::of(DType::F32, &noise(2, 24)), Owned::of(DType::F32, &x), Owned::of(DType::F32, &noise(3, 24)));
        let (mut o, mut lse) = (Owned::poisoned(DType::F32, 24), Owned::of(DType::F32, &[0.0; 3]));
        let plan = AttentionPlan::new(&axes("grsk"), &axes("gtk"), &bound, true, 1);
        let mut workspace = vec![0.0; plan.workspace_len()];
        plan.forward(&Pool::serial(), q.buf(), k.buf(), v.buf(), o.buf(), lse.buf(), &[], &mut workspace);
        assert_eq!(lse.values().iter().map(|x| x.is_nan()).collect::<Vec<_>>(), [false, true, true]);
        assert_eq!(o.values().chunks(8).map(|row| row[0].is_nan()).collect::<Vec<_>>(), [false, true, true]);
    }

    #[test]
    fn a_query_whose_scores_are_all_minus_infinity_is_not_one_without_keys() {
        let bound = sizes(NAMES, &[1, 1, 3, 3, 8]);
        let mut q = Owned::of(DType::F32, &[1.0; 24]);
        let (mut k, mut v) = (Owned::of(DType::F32, &[f32::NEG_INFINITY; 24]), Owned::of(DType::F32, &noise(3, 24)));
        let (mut o, mut lse) = (Owned::poisoned(DType::F32, 24), Owned::of(DType::F32, &[0.0; 3]));
        let plan = AttentionPlan::new(&axes("grsk"), &axes("gtk"), &bound, true, 1);
        let mut workspace = vec![0.0; plan.workspace_len()];
        plan.forward(&Pool::serial(), q.buf(), k.buf(), v.buf(), o.buf(), lse.buf(), &[], &mut workspace);
        assert!(o.values().iter().all(|x| x.is_nan()));
    }
}
