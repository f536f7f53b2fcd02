//! Second walk of attention's derivative on tensor cores: tiles of keys against tiles of the queries of all heads of their group, for k̄ and v̄.

use super::tile::{
    LOG2_E, N2, N8, PLANE, SIDE, exp2, fetch, lane_across, lane_down, left, lefts, multiply_across, multiply_down, put,
    store_row, stride, zeros,
};
use super::{keeps_keys, keys_part, keys_rows, to_store, walk_queries};
use crate::device::cube::Spec;
use crate::kernels::arguments;
use crate::kernels::library::attention::visible;
use crate::kernels::placeholders::{F0, F3, N1};
use crate::kernels::rounding::Rounding;
use cubecl::prelude::*;

/// k̄\[g, j\] and v̄\[g, j\], over the queries of all heads of the group in order: a cube for `planes`·16 keys, against `queries` queries at a
/// time, of whose scores a plane holds `part` columns. Keys and values are in registers, or stay in shared memory.
#[cube]
fn attention_keys_mma(
    q: &Array<Vector<F0, N8>>,
    k: &Array<Vector<F0, N8>>,
    v: &Array<Vector<F0, N8>>,
    lse: &Array<Vector<f32, N1>>,
    d_o: &Array<Vector<F0, N8>>,
    delta: &Array<Vector<f32, N1>>,
    d_k: &mut Array<Vector<F3, N2>>,
    d_v: &mut Array<Vector<F3, N2>>,
    heads: usize,
    group: usize,
    s: usize,
    t: usize,
    scale: f32,
    #[comptime] head: usize,
    #[comptime] causal: bool,
    #[comptime] planes: usize,
    #[comptime] queries: usize,
    #[comptime] part: usize,
    #[comptime] in_registers: bool,
    #[comptime] to_k: Rounding,
    #[comptime] to_v: Rounding,
) {
    let units = comptime!(planes * PLANE);
    let keys = comptime!(planes * SIDE);
    // Where queries and cotangents of outputs begin: behind keys and values, if those stay.
    let q_row = comptime!(if in_registers { 0 } else { 2 * planes * SIDE });
    let d_row = comptime!(q_row + queries);
    let mut tile = SharedMemory::<Vector<F0, N8>>::new_aligned(comptime!(keys_rows(head) * stride(head)), 16usize);
    // Of each query lse in powers of two, then δ.
    let mut of_rows = SharedMemory::<f32>::new_aligned(comptime!(2 * queries), 16usize);
    let key_heads = heads / group;
    let tiles = (t + keys - 1) / keys;
    if CUBE_POS < key_heads * tiles {
        let h = CUBE_POS % key_heads;
        // With a causal mask the first keys are seen by the most queries: they start first.
        let first = CUBE_POS / key_heads * keys;
        let unit = UNIT_POS as usize;
        let lane = unit % PLANE;
        let own = unit / PLANE * SIDE;
        let down = lane_down(head);
        let across = lane_across(head);
        let own_down = down + own * comptime!(stride(head));

        let held_k = fetch(k, h * t, first, t, head, keys, units);
        let held_v = fetch(v, h * t, first, t, head, keys, units);
        let mut key = Sequence::<Array<Vector<F0, N2>>>::new();
        let mut value = Sequence::<Array<Vector<F0, N2>>>::new();
        put(&held_k, &mut tile, 0usize, head, keys, units);
        if comptime!(in_registers) {
            sync_cube();
            lefts(&mut key, &tile, own_down, head);
            sync_cube();
            put(&held_v, &mut tile, 0usize, head, keys, units);
            sync_cube();
            lefts(&mut value, &tile, own_down, head);
        } else {
            put(&held_v, &mut tile, keys, head, keys, units);
        }
        let mut sums_k = zeros(head);
        let mut sums_v = zeros(head);

        // Tiles of queries before the first that sees the cube's first key are left out, for each head of the group.
        let since = if comptime!(causal) { select(first + s > t, first + s - t, 0usize) } else { 0usize.runtime() };
        let begin = since / queries;
        let end = (s + queries - 1) / queries;
        let each = select(end > begin, end - begin, 0usize);
        let turns = group * each;
        let power = scale * f32::new(LOG2_E);
        sync_cube();
        if turns > 0 {
            let base = h * group * s;
            let row = begin * queries;
            let held_q = fetch(q, base, row, s, head, queries, units);
            let held_d = fetch(d_o, base, row, s, head, queries, units);
            let held_row = of_row(lse, delta, base, row, s, queries);
            put(&held_q, &mut tile, q_row, head, queries, units);
            put(&held_d, &mut tile, d_row, head, queries, units);
            put_row(held_row, &mut of_rows, queries);
        }
        for turn in 0..turns {
            let row = (begin + turn % each) * queries;
            sync_cube();
            // On their way while this turn's are in use; behind the last turn the last head's are read once more.
            let next = turn + 1;
            let base = (h * group + min(next / each, group - 1)) * s;
            let next_row = (begin + next % each) * queries;
            let held_q = fetch(q, base, next_row, s, head, queries, units);
            let held_d = fetch(d_o, base, next_row, s, head, queries, units);
            let held_row = of_row(lse, delta, base, next_row, s, queries);
            #[unroll]
            for p in 0..comptime!(queries / part) {
                let at = comptime!(p * part);
                let fewest = visible(row + at, s, t, causal);
                let most = visible(row + comptime!(at + part - 1), s, t, causal);
                if first + own < most {
                    let mut weights = zeros(part);
                    let mut d_scores = zeros(part);
                    let q_at = across + comptime!((q_row + at) * stride(head));
                    let d_at = across + comptime!((d_row + at) * stride(head));
                    // In turn, so that fewer operations wait for the one before them.
                    #[unroll]
                    for x in 0..comptime!(head / SIDE) {
                        if comptime!(in_registers) {
                            multiply_across(key.index(x), &tile, q_at + 2 * x, &mut weights, head, part);
                            multiply_across(value.index(x), &tile, d_at + 2 * x, &mut d_scores, head, part);
                        } else {
                            let row = own_down + 2 * x;
                            multiply_across(&left(&tile, row), &tile, q_at + 2 * x, &mut weights, head, part);
                            let row = row + comptime!(planes * SIDE * stride(head));
                            multiply_across(&left(&tile, row), &tile, d_at + 2 * x, &mut d_scores, head, part);
                        }
                    }
                    #[unroll]
                    for n in 0..comptime!(part / 8) {
                        let column = at + n * 8 + lane % 4 * 2;
                        let lse_0 = of_rows[column];
                        let lse_1 = of_rows[column + 1];
                        let delta_0 = of_rows[queries + column];
                        let delta_1 = of_rows[queries + column + 1];
                        #[unroll]
                        for r in 0..2usize {
                            let score = weights.index(n)[r];
                            let along = d_scores.index(n)[r];
                            let mut weight = Vector::<f32, N2>::empty();
                            let mut d_score = Vector::<f32, N2>::empty();
                            weight[0] = exp2(score[0] * power - lse_0);
                            weight[1] = exp2(score[1] * power - lse_1);
                            d_score[0] = weight[0] * (along[0] - delta_0);
                            d_score[1] = weight[1] * (along[1] - delta_1);
                            weights.index_mut(n)[r] = weight;
                            d_scores.index_mut(n)[r] = d_score;
                        }
                    }
                    if row + comptime!(at + part) > s || first + own + SIDE > fewest {
                        #[unroll]
                        for n in 0..comptime!(part / 8) {
                            #[unroll]
                            for c in 0..2usize {
                                let query = row + at + n * 8 + lane % 4 * 2 + c;
                                let seen = select(query < s, visible(query, s, t, causal), 0usize);
                                #[unroll]
                                for r in 0..2usize {
                                    let is_seen = first + own + r * 8 + lane / 4 < seen;
                                    let mut weight = weights.index(n)[r];
                                    let mut d_score = d_scores.index(n)[r];
                                    weight[c] = select(is_seen, weight[c], 0.0f32);
                                    d_score[c] = select(is_seen, d_score[c], 0.0f32);
                                    weights.index_mut(n)[r] = weight;
                                    d_scores.index_mut(n)[r] = d_score;
                                }
                            }
                        }
                    }
                    let q_at = down + comptime!((q_row + at) * stride(head));
                    let d_at = down + comptime!((d_row + at) * stride(head));
                    multiply_down(&weights, &tile, d_at, &mut sums_v, head, part);
                    multiply_down(&d_scores, &tile, q_at, &mut sums_k, head, part);
                }
            }
            sync_cube();
            put(&held_q, &mut tile, q_row, head, queries, units);
            put(&held_d, &mut tile, d_row, head, queries, units);
            put_row(held_row, &mut of_rows, queries);
        }

        #[unroll]
        for r in 0..2usize {
            let row = first + own + r * 8 + lane / 4;
            if row < t {
                store_row(&sums_k, r, scale, d_k, h * t + row, head, to_k);
                store_row(&sums_v, r, 1.0f32, d_v, h * t + row, head, to_v);
            }
        }
    }
}

/// What this unit puts into the cube's list of rows: lse of a query in powers of two, or δ.
#[cube]
fn of_row(
    lse: &Array<Vector<f32, N1>>,
    delta: &Array<Vector<f32, N1>>,
    base: usize,
    row: usize,
    s: usize,
    #[comptime] queries: usize,
) -> f32 {
    let unit = UNIT_POS as usize;
    let at = base + min(row + unit % queries, s - 1);
    let mut value = f32::cast_from(delta[at]);
    if unit < queries {
        value = f32::cast_from(lse[at]) * f32::new(LOG2_E);
    }
    value
}

/// Puts it there.
#[cube]
fn put_row(value: f32, of_rows: &mut SharedMemory<f32>, #[comptime] queries: usize) {
    let unit = UNIT_POS as usize;
    if unit < comptime!(2 * queries) {
        of_rows[unit] = value;
    }
}

/// Builds it: buffers q, k, v, lse, ō, δ, k̄, v̄; heads, heads of a group, S, T; 1/√K. Slots 4 and 5 round k̄ and v̄.
pub fn define_attention_keys_mma(builder: &mut KernelBuilder, spec: &Spec) {
    let q = arguments::input::<Vector<F0, N8>>(builder);
    let k = arguments::input::<Vector<F0, N8>>(builder);
    let v = arguments::input::<Vector<F0, N8>>(builder);
    let lse = arguments::input::<Vector<f32, N1>>(builder);
    let d_o = arguments::input::<Vector<F0, N8>>(builder);
    let delta = arguments::input::<Vector<f32, N1>>(builder);
    let d_k = arguments::output::<Vector<F3, N2>>(builder);
    let d_v = arguments::output::<Vector<F3, N2>>(builder);
    let [heads, group, s, t] = std::array::from_fn(|_| arguments::position(builder));
    let scale = arguments::number(builder);
    let (scope, head, causal) = (&mut builder.scope, spec.constants[0], spec.constants[1] == 1);
    let planes = spec.cube_dim as usize / PLANE;
    let (queries, part, in_registers) = (walk_queries(head), keys_part(head), keeps_keys(head));
    let [to_k, to_v] = [to_store(spec, 4), to_store(spec, 5)];
    attention_keys_mma::expand(
        scope,
        q,
        k,
        v,
        lse,
        d_o,
        delta,
        d_k,
        d_v,
        heads,
        group,
        s,
        t,
        scale,
        head,
        causal,
        planes,
        queries,
        part,
        in_registers,
        to_k,
        to_v,
    );
}
