//! Attention of one position over all before it, whose keys and values lie in a cache.
//!
//! In: q, k and v of position t. Out: o and its log-sum-exp; row t of the cache holds k and v afterwards. The cache is [groups, capacity,
//! head] twice, and a worker takes whole query heads, so the bits do not depend on the number of workers.

use super::buffer::{Buf, round_in_place};
use super::cpu::{Fma, multiversion};
use super::math::{exp, tree};
use kiln_compiler::ir::{Axis, DType, Sizes};

// Partial sums of a dot product.
const LANES: usize = 16;
// Positions whose values are added to the result together, so that it is loaded and stored once for all of them.
const DEPTH: usize = 4;

/// A planned attention of one position.
#[derive(Clone, Debug)]
pub struct CachedAttention {
    groups: usize,
    /// Query heads of a group.
    group: usize,
    capacity: usize,
    head: usize,
}

/// Memory that one attention step keeps between positions.
#[derive(Clone, Copy)]
pub struct Cache {
    /// Keys: [groups, capacity, head].
    pub k: Buf,
    /// Values, likewise.
    pub v: Buf,
}

impl CachedAttention {
    /// Plans queries over prefix ++ \[R\]? ++ \[S, K\] and keys over prefix ++ \[S, K\], where S has size 1 and `capacity` positions.
    pub fn new(q: &[Axis], k: &[Axis], sizes: &Sizes, capacity: usize) -> CachedAttention {
        let (groups, heads) = (sizes.elements(&k[..k.len() - 2]), sizes.elements(&q[..q.len() - 2]));
        CachedAttention { groups, group: heads / groups.max(1), capacity, head: sizes.of(q[q.len() - 1]) }
    }

    /// Elements of the keys, and of the values, of its cache.
    pub fn cache_len(&self) -> usize {
        self.groups * self.capacity * self.head
    }

    /// Scratch of one worker in f32 elements: scores, and three rows.
    pub fn worker_len(&self) -> usize {
        self.capacity + 3 * self.head
    }

    /// Computes the heads of `worker` of `workers` at position `t`: o, rounded to each of `rounds` in turn, and the f32 log-sum-exp.
    ///
    /// # Panics
    /// If `t` is not below the capacity, or a buffer or the scratch is shorter than planned.
    pub fn run(
        &self,
        (worker, workers): (usize, usize),
        t: usize,
        [q, k, v]: [Buf; 3],
        [o, lse]: [Buf; 2],
        cache: Cache,
        rounds: &[DType],
        scratch: &mut [f32],
    ) {
        let CachedAttention { groups, group, capacity, head } = *self;
        let heads = groups * group;
        assert!(t < capacity, "position {t} of {capacity}");
        assert!(q.len() >= heads * head && o.len() >= heads * head && lse.len() >= heads);
        assert!(k.len() >= groups * head && v.len() >= groups * head);
        assert!(cache.k.len() >= self.cache_len() && cache.v.len() >= self.cache_len());
        let (scores, rest) = scratch[..self.worker_len()].split_at_mut(capacity);
        let (query, rest) = rest.split_at_mut(head);
        let (row, out) = rest.split_at_mut(head);
        let scale = 1.0 / (head as f32).sqrt();
        for h in heads * worker / workers..heads * (worker + 1) / workers {
            let g = h / group;
            q.load(h * head, query);
            query.iter_mut().for_each(|x| *x *= scale);
            let past = g * capacity * head;
            // The newest row comes from the operands: another worker may be writing it to the cache.
            keys(cache.k, past, query, row, &mut scores[..t]);
            k.load(g * head, row);
            keys_row(query, row, &mut scores[t]);
            let (highest, total) = soften(&mut scores[..=t]);
            out.fill(0.0);
            values(cache.v, past, &scores[..t], row, out);
            v.load(g * head, row);
            add_row(scores[t], row, out);
            out.iter_mut().for_each(|x| *x /= total);
            rounds.iter().for_each(|&dtype| round_in_place(dtype, out));
            o.store(h * head, out);
            lse.set(h, highest + total.ln());
            if h % group == 0 {
                for (from, to) in [(k, cache.k), (v, cache.v)] {
                    from.load(g * head, row);
                    to.store(past + t * head, row);
                }
            }
        }
    }
}

multiversion! {
    /// Scores of the query with each key of a cache from element `at` on.
    fn keys(k: Buf, at: usize, query: &[f32], row: &mut [f32], scores: &mut [f32]) = keys_body
}

#[inline(always)]
fn keys_body<F: Fma>(k: Buf, at: usize, query: &[f32], row: &mut [f32], scores: &mut [f32]) {
    let head = query.len();
    if k.dtype() == DType::F32 {
        let all = k.f32s(at, scores.len() * head);
        for (score, key) in scores.iter_mut().zip(all.chunks_exact(head.max(1))) {
            *score = dot::<F>(query, key);
        }
        return;
    }
    for (j, score) in scores.iter_mut().enumerate() {
        k.load(at + j * head, row);
        *score = dot::<F>(query, row);
    }
}

multiversion! {
    /// The score of one key.
    fn keys_row(query: &[f32], key: &[f32], score: &mut f32) = keys_row_body
}

#[inline(always)]
fn keys_row_body<F: Fma>(query: &[f32], key: &[f32], score: &mut f32) {
    *score = dot::<F>(query, key);
}

/// Lanes first, then a tree, then what is left: the order depends on the length alone.
#[inline(always)]
fn dot<F: Fma>(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let whole = x.len() / LANES * LANES;
    for (x, y) in x[..whole].chunks_exact(LANES).zip(y[..whole].chunks_exact(LANES)) {
        for l in 0..LANES {
            lanes[l] = F::fma(x[l], y[l], lanes[l]);
        }
    }
    let sum = tree(lanes, |a, b| a + b);
    x[whole..].iter().zip(&y[whole..]).fold(sum, |sum, (&x, &y)| F::fma(x, y, sum))
}

multiversion! {
    /// Replaces scores by e^(score − highest); gives the highest and the sum.
    fn soften(scores: &mut [f32]) -> (f32, f32) = soften_body
}

#[inline(always)]
fn soften_body<F: Fma>(scores: &mut [f32]) -> (f32, f32) {
    let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|x| *x = exp::<F>(*x - highest));
    let mut lanes = [0.0f32; LANES];
    for part in scores.chunks(LANES) {
        lanes.iter_mut().zip(part).for_each(|(lane, x)| *lane += x);
    }
    (highest, lanes.iter().sum())
}

multiversion! {
    /// Adds the weighted values of a cache from element `at` on.
    fn values(v: Buf, at: usize, weights: &[f32], row: &mut [f32], out: &mut [f32]) = values_body
}

#[inline(always)]
fn values_body<F: Fma>(v: Buf, at: usize, weights: &[f32], row: &mut [f32], out: &mut [f32]) {
    let head = out.len();
    if v.dtype() != DType::F32 {
        for (j, &weight) in weights.iter().enumerate() {
            v.load(at + j * head, row);
            add_row_body::<F>(weight, row, out);
        }
        return;
    }
    let all = v.f32s(at, weights.len() * head);
    let whole = weights.len() / DEPTH * DEPTH;
    for j in (0..whole).step_by(DEPTH) {
        let rows: [&[f32]; DEPTH] = std::array::from_fn(|i| &all[(j + i) * head..][..head]);
        let weights: [f32; DEPTH] = std::array::from_fn(|i| weights[j + i]);
        for (c, x) in out.iter_mut().enumerate() {
            let mut sum = *x;
            for i in 0..DEPTH {
                sum = F::fma(weights[i], rows[i][c], sum);
            }
            *x = sum;
        }
    }
    for j in whole..weights.len() {
        add_row_body::<F>(weights[j], &all[j * head..][..head], out);
    }
}

multiversion! {
    /// out += weight · row
    fn add_row(weight: f32, row: &[f32], out: &mut [f32]) = add_row_body
}

#[inline(always)]
fn add_row_body<F: Fma>(weight: f32, row: &[f32], out: &mut [f32]) {
    for (x, &y) in out.iter_mut().zip(row) {
        *x = F::fma(weight, y, *x);
    }
}
