//! `attention` and its derivative, tile by tile: no more than a tile of scores is ever held (Dao 2023).
//!
//! Queries are cut into blocks of `QUERIES` positions of one head, keys into blocks of `KEYS`. Every sum over keys or queries
//! goes block by block in order, so the bits do not depend on tasks or threads. Operands are widened to f32 as they are packed.
//!
//! Forward: a task is a few query blocks that share keys; each keeps its running maximum, sum and output while the keys pass by.
//! Backward: one walk gives k̄ and v̄ of a key block while the queries pass by, another q̄ of query blocks as in the forward. Where
//! there are groups enough for all threads, a task is a whole group and its first walk adds up q̄ too, in the same order.
#![allow(unsafe_code)]

use super::buffer::{Buf, round_in_place};
use super::cpu::{Fma, multiversion};
use super::math::{exp, tree};
use super::micro::{Into, Micro, Operands};
use super::pack::{self, Part};
use super::pool::Pool;
use super::share::Shared;
use kiln_compiler::ir::{Axis, DType, Sizes};

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

/// What a strip of rows of a product needs: how many columns, and which steps of the sum.
struct Strip {
    columns: usize,
    from: usize,
    to: usize,
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

    /// How many of the keys of a block the query at position `i` sees.
    fn seen(&self, i: usize, keys: Keys) -> usize {
        self.visible(i).saturating_sub(keys.first).min(keys.count)
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
        rows * (self.k + self.width() + 2) + KEYS * (self.k + self.width()) + QUERIES * KEYS
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
        let (head, width) = (self.k, self.width());
        let scale = 1.0 / (head as f32).sqrt();
        let scratch = Shared::new(workspace);
        self.for_queries(pool, |group, range, worker| {
            let len = self.forward_worker_len();
            // SAFETY: a worker runs one task at a time, and only it uses its part.
            let mut rest = unsafe { scratch.slice(worker * len, len) };
            let n = range.len() * QUERIES;
            let qs = take(&mut rest, n * head);
            let sums = take(&mut rest, n * width);
            let highest = take(&mut rest, n);
            let totals = take(&mut rest, n);
            let kt = take(&mut rest, head * KEYS);
            let vs = take(&mut rest, KEYS * width);
            let tile = take(&mut rest, QUERIES * KEYS);
            sums.fill(0.0);
            highest.fill(f32::NEG_INFINITY);
            totals.fill(0.0);
            let mut keys_end = 0;
            let mut queries = [Rows::default(); BLOCKS_PER_TASK];
            for (b, (i, scratch)) in range.clone().zip(qs.chunks_exact_mut(QUERIES * head)).enumerate() {
                let at = self.queries(group, i);
                queries[b] = self.rows(&q, self.row(at), at.count, head, scratch);
                keys_end = keys_end.max(self.visible(at.first + at.count - 1));
            }
            for j in (0..keys_end).step_by(KEYS) {
                let keys = self.keys(group, j);
                self.transposed(k, keys, scale, kt);
                let vs = self.rows(&v, self.key(keys), keys.count, width, vs);
                for (b, i) in range.clone().enumerate() {
                    let (at, r) = (self.queries(group, i), b * QUERIES);
                    self.scores(at, keys, queries[b], kt, tile);
                    let sums = &mut sums[r * width..(r + QUERIES) * width];
                    let seen = self.seen_by(at, keys);
                    soften(tile, seen, sums, width, &mut highest[r..r + at.count], &mut totals[r..r + at.count]);
                    self.over_keys(at, keys, tile, vs, sums);
                }
            }
            for (b, i) in range.enumerate() {
                let at = self.queries(group, i);
                for r in 0..at.count {
                    let (highest, total) = (highest[b * QUERIES + r], totals[b * QUERIES + r]);
                    let out = &mut sums[(b * QUERIES + r) * width..][..head];
                    // A query that sees no key keeps o = 0 and lse = −∞.
                    if self.visible(at.first + r) > 0 {
                        out.iter_mut().for_each(|x| *x /= total);
                    }
                    let row = self.row(at) + r;
                    finish(o, row * head, rounds, out);
                    lse.f32s_mut(row, 1)[0] = highest + total.ln();
                }
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
        let rows = Shared::new(delta);
        pool.run(self.heads() * self.s.div_ceil(QUERIES), |task, _| {
            let blocks = self.s.div_ceil(QUERIES);
            let first = task % blocks * QUERIES;
            let row = task / blocks * self.s + first;
            // SAFETY: each task has its own rows.
            let delta = unsafe { rows.slice(row, QUERIES.min(self.s - first)) };
            row_dots(o, d_o, row, self.k, delta);
        });
        let (delta, scratch) = (&*delta, Shared::new(scratch));
        let len = self.backward_worker_len();
        let blocks = self.t.div_ceil(KEYS);
        if self.single_walk() {
            return pool.run(self.groups, |group, worker| {
                // SAFETY: a worker runs one task at a time, and only it uses its part.
                let mut part = unsafe { scratch.slice(worker * len, len) };
                self.walk_group(&call, group, delta, take(&mut part, self.group_len()), part);
            });
        }
        pool.run(self.groups * blocks, |task, worker| {
            // SAFETY: a worker runs one task at a time, and only it uses its part.
            let part = unsafe { scratch.slice(worker * len, len) };
            self.walk_queries(&call, self.keys(task / blocks, task % blocks * KEYS), delta, None, part);
        });
        self.for_queries(pool, |group, range, worker| {
            // SAFETY: as above.
            let part = unsafe { scratch.slice(worker * len, len) };
            self.walk_keys(&call, group, range, delta, part);
        });
    }

    /// q̄, k̄ and v̄ of a group.
    fn walk_group(&self, call: &Backward<'_>, group: usize, delta: &[f32], dq: &mut [f32], rest: &mut [f32]) {
        dq.fill(0.0);
        for j in (0..self.t).step_by(KEYS) {
            self.walk_queries(call, self.keys(group, j), delta, Some(dq), rest);
        }
        for i in 0..self.blocks() {
            let at = self.queries(group, i);
            self.finish_queries(call, at, &mut dq[self.row_in_group(at) * self.width()..]);
        }
    }

    /// k̄ and v̄ of one key block, and its part of q̄ of the whole group.
    fn walk_queries(
        &self,
        call: &Backward<'_>,
        keys: Keys,
        delta: &[f32],
        mut dq: Option<&mut [f32]>,
        mut rest: &mut [f32],
    ) {
        let (head, width) = (self.k, self.width());
        let scale = 1.0 / (head as f32).sqrt();
        let qs = take(&mut rest, QUERIES * width);
        let ds = take(&mut rest, QUERIES * width);
        let kt = take(&mut rest, head * KEYS);
        let vt = take(&mut rest, head * KEYS);
        let dk = take(&mut rest, KEYS * width);
        let dv = take(&mut rest, KEYS * width);
        let p = take(&mut rest, QUERIES * KEYS);
        let dp = take(&mut rest, QUERIES * KEYS);
        self.transposed(call.k, keys, scale, kt);
        self.transposed(call.v, keys, 1.0, vt);
        let ks = dq.is_some().then(|| {
            let scratch = take(&mut rest, KEYS * width);
            self.rows(&call.k, self.key(keys), keys.count, width, scratch)
        });
        dk.fill(0.0);
        dv.fill(0.0);
        let start = self.first_query(keys.first) / QUERIES * self.group;
        for i in start..self.blocks() {
            let at = self.queries(keys.group, i);
            let row = self.row(at);
            let qs = self.rows(&call.q, row, at.count, width, qs);
            let ds = self.rows(&call.d_o, row, at.count, width, ds);
            self.scores(at, keys, qs, kt, p);
            self.scores(at, keys, ds, vt, dp);
            let delta = &delta[row..row + at.count];
            differentiate(p, dp, self.seen_by(at, keys), call.lse.f32s(row, at.count), delta);
            self.over_queries(at, keys, p, ds, dv);
            self.over_queries(at, keys, dp, qs, dk);
            if let (Some(dq), Some(ks)) = (&mut dq, ks) {
                self.over_keys(at, keys, dp, ks, &mut dq[self.row_in_group(at) * width..]);
            }
        }
        dk.iter_mut().for_each(|x| *x *= scale);
        for (i, sums) in [(1, dk), (2, dv)] {
            for (j, row) in sums.chunks_exact_mut(width).take(keys.count).enumerate() {
                finish(call.results[i], (self.key(keys) + j) * head, call.rounds[i], &mut row[..head]);
            }
        }
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
        let (head, width) = (self.k, self.width());
        let scale = 1.0 / (head as f32).sqrt();
        let n = range.len() * QUERIES;
        let qs = take(&mut rest, n * head);
        let ds = take(&mut rest, n * head);
        let dq = take(&mut rest, n * width);
        let kt = take(&mut rest, head * KEYS);
        let vt = take(&mut rest, head * KEYS);
        let ks = take(&mut rest, KEYS * width);
        let p = take(&mut rest, QUERIES * KEYS);
        let dp = take(&mut rest, QUERIES * KEYS);
        dq.fill(0.0);
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
            self.transposed(call.k, keys, scale, kt);
            self.transposed(call.v, keys, 1.0, vt);
            let ks = self.rows(&call.k, self.key(keys), keys.count, width, ks);
            for (b, i) in range.clone().enumerate() {
                let at = self.queries(group, i);
                let (r, row) = (b * QUERIES, self.row(at));
                self.scores(at, keys, operands[b][0], kt, p);
                self.scores(at, keys, operands[b][1], vt, dp);
                let delta = &delta[row..row + at.count];
                differentiate(p, dp, self.seen_by(at, keys), call.lse.f32s(row, at.count), delta);
                self.over_keys(at, keys, dp, ks, &mut dq[r * width..(r + QUERIES) * width]);
            }
        }
        for (b, i) in range.enumerate() {
            let at = self.queries(group, i);
            self.finish_queries(call, at, &mut dq[b * QUERIES * width..]);
        }
    }

    /// Stores q̄ of a query block from its sums.
    fn finish_queries(&self, call: &Backward<'_>, at: Queries, sums: &mut [f32]) {
        let scale = 1.0 / (self.k as f32).sqrt();
        for (r, row) in sums.chunks_exact_mut(self.width()).take(at.count).enumerate() {
            let row = &mut row[..self.k];
            row.iter_mut().for_each(|x| *x *= scale);
            finish(call.results[0], (self.row(at) + r) * self.k, call.rounds[0], row);
        }
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

    /// Keys or values times `factor`, transposed.
    fn transposed(&self, src: Buf, keys: Keys, factor: f32, to: &mut [f32]) {
        let part = Part { src, at: self.key(keys) * self.k, stride: self.k, rows: keys.count, columns: self.k };
        pack::transposed(part, KEYS, to);
        if factor != 1.0 {
            to.iter_mut().for_each(|x| *x *= factor);
        }
    }

    fn seen_by(&self, at: Queries, keys: Keys) -> impl Fn(usize) -> usize + Copy {
        let (causal, count) = (self.causal, keys.count);
        // Under the mask row r sees r + 1 + shift keys of the block.
        let shift = (at.first + self.t) as isize - (self.s + keys.first) as isize;
        move |r| if causal { (r as isize + 1 + shift).clamp(0, count as isize) as usize } else { count }
    }

    /// Tile = A · Bᵀ for A rows of the queries and B the transposed keys, where the mask is open.
    fn scores(&self, at: Queries, keys: Keys, a: Rows<'_>, b: &[f32], tile: &mut [f32]) {
        let a_len = (at.count - 1) * a.stride + self.k;
        assert!(a.data.len() >= a_len && b.len() >= self.k * KEYS && tile.len() >= at.count * KEYS);
        let o = Operands {
            k: self.k,
            a: a.data.as_ptr(),
            a_row: a.stride,
            a_k: 1,
            a_run: usize::MAX,
            a_skip: 0,
            b: b.as_ptr(),
            b_k: KEYS,
            c: tile.as_mut_ptr(),
            c_row: KEYS,
        };
        let strip = |last: usize| Strip { columns: self.seen(at.first + last, keys), from: 0, to: self.k };
        // SAFETY: the lengths were checked, and KEYS is a multiple of the columns of a micro-kernel.
        unsafe { self.product(at.count, KEYS, o, Into::Overwrite, |_, last| strip(last)) }
    }

    /// Sums over keys for each query: C[query] += tile · B.
    fn over_keys(&self, at: Queries, keys: Keys, tile: &[f32], b: Rows<'_>, c: &mut [f32]) {
        let width = self.width();
        assert!(
            tile.len() >= at.count * KEYS
                && b.data.len() >= keys.count * b.stride
                && b.stride >= width
                && c.len() >= at.count * width
        );
        let o = Operands {
            k: keys.count,
            a: tile.as_ptr(),
            a_row: KEYS,
            a_k: 1,
            a_run: usize::MAX,
            a_skip: 0,
            b: b.data.as_ptr(),
            b_k: b.stride,
            c: c.as_mut_ptr(),
            c_row: width,
        };
        let strip = |_, last| Strip { columns: width, from: 0, to: self.seen(at.first + last, keys) };
        // SAFETY: the lengths were checked.
        unsafe { self.product(at.count, width, o, Into::Add, strip) }
    }

    /// Sums over queries for each key: C[key] += tileᵀ · B.
    fn over_queries(&self, at: Queries, keys: Keys, tile: &[f32], b: Rows<'_>, c: &mut [f32]) {
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
        let first = |key: usize| self.first_query(keys.first + key).saturating_sub(at.first).min(at.count);
        let strip = |row, _| Strip { columns: width, from: first(row), to: at.count };
        // SAFETY: the lengths were checked.
        unsafe { self.product(keys.count, width, o, Into::Add, strip) }
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
                if j >= s.columns || s.from >= s.to {
                    continue;
                }
                // SAFETY: rows, columns and steps lie inside the ranges that the caller promises.
                unsafe {
                    let part = Operands {
                        k: s.to - s.from,
                        a: o.a.add(i * o.a_row + s.from * o.a_k),
                        b: o.b.add(s.from * o.b_k + j),
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

fn finish(to: Buf, at: usize, rounds: &[DType], row: &mut [f32]) {
    for &dtype in rounds {
        round_in_place(dtype, row);
    }
    to.store(at, row);
}

multiversion! {
    /// delta\[i\] = Σ o·ō over row `row + i`.
    fn row_dots(o: Buf, d_o: Buf, row: usize, head: usize, delta: &mut [f32]) = row_dots_body
}

#[inline(always)]
fn row_dots_body<F: Fma>(o: Buf, d_o: Buf, row: usize, head: usize, delta: &mut [f32]) {
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

/// One step of the running softmax: a row of scores becomes e^(s − highest), 0 behind the mask, and the sums so far are rescaled
/// where the maximum rose.
fn soften(
    tile: &mut [f32],
    seen: impl Fn(usize) -> usize,
    sums: &mut [f32],
    width: usize,
    highest: &mut [f32],
    totals: &mut [f32],
) {
    for (r, row) in tile.chunks_exact_mut(KEYS).take(highest.len()).enumerate() {
        soften_row(row, seen(r), &mut sums[r * width..(r + 1) * width], &mut highest[r], &mut totals[r]);
    }
}

multiversion! {
    fn soften_row(row: &mut [f32], seen: usize, sums: &mut [f32], highest: &mut f32, total: &mut f32) = soften_row_body
}

#[inline(always)]
fn soften_row_body<F: Fma>(row: &mut [f32], seen: usize, sums: &mut [f32], highest: &mut f32, total: &mut f32) {
    if seen == 0 {
        row.fill(0.0);
        return;
    }
    row[seen..].fill(f32::NEG_INFINITY);
    let (lines, tail) = row.split_at_mut(seen.next_multiple_of(LANES));
    tail.fill(0.0);
    let (lines, _) = lines.as_chunks_mut::<LANES>();
    let mut most = [*highest; LANES];
    for line in lines.iter() {
        for l in 0..LANES {
            most[l] = larger(most[l], line[l]);
        }
    }
    let most = tree(most, larger);
    let mut acc = [0.0f32; LANES];
    for line in lines {
        for l in 0..LANES {
            line[l] = exp::<F>(line[l] - most);
            acc[l] += line[l];
        }
    }
    let sum = tree(acc, |a, b| a + b);
    if most > *highest {
        let shrink = exp::<F>(*highest - most);
        *total *= shrink;
        sums.iter_mut().for_each(|x| *x *= shrink);
        *highest = most;
    }
    *total += sum;
}

/// From scores s and ōvᵀ to P = e^(s − lse) and P·(ōvᵀ − δ), 0 behind the mask.
fn differentiate(p: &mut [f32], dp: &mut [f32], seen: impl Fn(usize) -> usize, lse: &[f32], delta: &[f32]) {
    for (r, (p, dp)) in p.chunks_exact_mut(KEYS).zip(dp.chunks_exact_mut(KEYS)).take(lse.len()).enumerate() {
        differentiate_row(p, dp, seen(r), lse[r], delta[r]);
    }
}

multiversion! {
    fn differentiate_row(p: &mut [f32], dp: &mut [f32], seen: usize, lse: f32, delta: f32) = differentiate_row_body
}

#[inline(always)]
fn differentiate_row_body<F: Fma>(p: &mut [f32], dp: &mut [f32], seen: usize, lse: f32, delta: f32) {
    for (p, dp) in p[..seen].iter_mut().zip(&mut dp[..seen]) {
        *p = exp::<F>(*p - lse);
        *dp = *p * (*dp - delta);
    }
    p[seen..].fill(0.0);
    dp[seen..].fill(0.0);
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
        }
    }

    #[test]
    fn queries_before_the_first_key_see_nothing() {
        check(plain([2, 1, 60, 7, 8], true));
        check(plain([1, 2, 200, 140, 8], true));
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
}
