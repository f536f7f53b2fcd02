//! First walk of attention's derivative on tensor cores: tiles of queries against tiles of keys, for q̄ and for δ, which the second walk reads.

use super::tile::{
    LOG2_E, N2, N8, PLANE, SIDE, exp2, fetch, lane_across, lane_down, left, lefts, multiply_across, multiply_down, put,
    store_row, stride, sum_of_row, zeros,
};
use super::{PART, queries_rows, to_store, walk_keys};
use crate::device::cube::Spec;
use crate::kernels::arguments;
use crate::kernels::library::attention::visible;
use crate::kernels::placeholders::{F0, F3, N1};
use crate::kernels::rounding::Rounding;
use cubecl::prelude::*;

/// q̄\[h, i\] = Σⱼ P·(ō·v − δ)·k/√K and δ\[h, i\] = Σ ō·o: a cube for `planes`·16 queries of a head, against `keys` keys at a time.
#[cube]
fn attention_queries_mma(
    q: &Array<Vector<F0, N8>>,
    k: &Array<Vector<F0, N8>>,
    v: &Array<Vector<F0, N8>>,
    o: &Array<Vector<F0, N8>>,
    lse: &Array<Vector<f32, N1>>,
    d_o: &Array<Vector<F0, N8>>,
    d_q: &mut Array<Vector<F3, N2>>,
    delta: &mut Array<Vector<f32, N1>>,
    heads: usize,
    group: usize,
    s: usize,
    t: usize,
    scale: f32,
    #[comptime] head: usize,
    #[comptime] causal: bool,
    #[comptime] planes: usize,
    #[comptime] keys: usize,
    #[comptime] to: Rounding,
) {
    let units = comptime!(planes * PLANE);
    let queries = comptime!(planes * SIDE);
    // Rows of queries pass through on their way to registers; then keys and values stay for one turn each.
    let mut tile = SharedMemory::<Vector<F0, N8>>::new_aligned(comptime!(queries_rows(head) * stride(head)), 16usize);
    let tiles = (s + queries - 1) / queries;
    if CUBE_POS < heads * tiles {
        let h = CUBE_POS % heads;
        // With a causal mask the last queries see the most keys: they start first.
        let first = (tiles - 1 - CUBE_POS / heads) * queries;
        let lane = UNIT_POS as usize % PLANE;
        let own = UNIT_POS as usize / PLANE * SIDE;
        let down = lane_down(head);
        let across = lane_across(head);
        let own_down = down + own * comptime!(stride(head));

        let held_q = fetch(q, h * s, first, s, head, queries, units);
        let held_d = fetch(d_o, h * s, first, s, head, queries, units);
        let held_o = fetch(o, h * s, first, s, head, queries, units);
        put(&held_q, &mut tile, 0usize, head, queries, units);
        sync_cube();
        let mut query = Sequence::<Array<Vector<F0, N2>>>::new();
        lefts(&mut query, &tile, own_down, head);
        sync_cube();
        put(&held_d, &mut tile, 0usize, head, queries, units);
        sync_cube();
        let mut d = Sequence::<Array<Vector<F0, N2>>>::new();
        lefts(&mut d, &tile, own_down, head);
        sync_cube();
        put(&held_o, &mut tile, 0usize, head, queries, units);
        sync_cube();
        let mut row_delta = Array::<f32>::new(2usize);
        let mut row_lse = Array::<f32>::new(2usize);
        row_delta[0] = 0.0f32;
        row_delta[1] = 0.0f32;
        #[unroll]
        for x in 0..comptime!(head / SIDE) {
            let output = left(&tile, own_down + 2 * x);
            #[unroll]
            for i in 0..4usize {
                let product = Vector::<f32, N2>::cast_from(d.index(x)[i]) * Vector::<f32, N2>::cast_from(output[i]);
                row_delta[comptime!(i % 2)] += product[0] + product[1];
            }
        }
        #[unroll]
        for r in 0..2usize {
            let row = first + own + r * 8 + lane / 4;
            row_delta[r] = sum_of_row(row_delta[r]);
            row_lse[r] = f32::cast_from(lse[h * s + min(row, s - 1)]) * f32::new(LOG2_E);
            if row < s && lane % 4 == 0 {
                delta[h * s + row] = Vector::new(row_delta[r]);
            }
        }
        let mut sums = zeros(head);

        // Keys that some query of the cube sees; those that its plane's last and first query see.
        let last = min(first + queries, s) - 1;
        let turns = (visible(last, s, t, causal) + comptime!(keys - 1)) / keys;
        let most = visible(first + own + comptime!(SIDE - 1), s, t, causal);
        let fewest = visible(first + own, s, t, causal);
        let base = h / group * t;
        let power = scale * f32::new(LOG2_E);
        sync_cube();
        if turns > 0 {
            let held_k = fetch(k, base, 0usize, t, head, keys, units);
            let held_v = fetch(v, base, 0usize, t, head, keys, units);
            put(&held_k, &mut tile, 0usize, head, keys, units);
            put(&held_v, &mut tile, keys, head, keys, units);
        }
        for turn in 0..turns {
            let key = turn * keys;
            sync_cube();
            // On their way while this turn's are in use; behind the last keys the last are read once more.
            let held_k = fetch(k, base, key + keys, t, head, keys, units);
            let held_v = fetch(v, base, key + keys, t, head, keys, units);
            #[unroll]
            for p in 0..comptime!(keys / PART) {
                let begin = comptime!(p * PART);
                if key + begin < most {
                    let mut scores = zeros(PART);
                    let mut along = zeros(PART);
                    let keys_at = across + comptime!(begin * stride(head));
                    let values_at = across + comptime!((keys + begin) * stride(head));
                    // In turn, so that fewer operations wait for the one before them.
                    #[unroll]
                    for x in 0..comptime!(head / SIDE) {
                        multiply_across(query.index(x), &tile, keys_at + 2 * x, &mut scores, head, PART);
                        multiply_across(d.index(x), &tile, values_at + 2 * x, &mut along, head, PART);
                    }
                    #[unroll]
                    for r in 0..2usize {
                        #[unroll]
                        for n in 0..comptime!(PART / 8) {
                            let score = scores.index(n)[r];
                            let value = along.index(n)[r];
                            let mut d_score = Vector::<f32, N2>::empty();
                            d_score[0] = exp2(score[0] * power - row_lse[r]) * (value[0] - row_delta[r]);
                            d_score[1] = exp2(score[1] * power - row_lse[r]) * (value[1] - row_delta[r]);
                            scores.index_mut(n)[r] = d_score;
                        }
                    }
                    if key + comptime!(begin + PART) > fewest {
                        #[unroll]
                        for r in 0..2usize {
                            let seen = visible(first + own + r * 8 + lane / 4, s, t, causal);
                            #[unroll]
                            for n in 0..comptime!(PART / 8) {
                                let mut d_score = scores.index(n)[r];
                                let at = key + begin + n * 8 + lane % 4 * 2;
                                d_score[0] = select(at < seen, d_score[0], 0.0f32);
                                d_score[1] = select(at + 1 < seen, d_score[1], 0.0f32);
                                scores.index_mut(n)[r] = d_score;
                            }
                        }
                    }
                    multiply_down(&scores, &tile, down + comptime!(begin * stride(head)), &mut sums, head, PART);
                }
            }
            sync_cube();
            put(&held_k, &mut tile, 0usize, head, keys, units);
            put(&held_v, &mut tile, keys, head, keys, units);
        }

        #[unroll]
        for r in 0..2usize {
            let row = first + own + r * 8 + lane / 4;
            if row < s {
                store_row(&sums, r, scale, d_q, h * s + row, head, to);
            }
        }
    }
}

/// Builds it: buffers q, k, v, o, lse, ō, q̄, δ; heads, heads of a group, S, T; 1/√K. Slot 4 rounds q̄.
pub fn define_attention_queries_mma(builder: &mut KernelBuilder, spec: &Spec) {
    let q = arguments::input::<Vector<F0, N8>>(builder);
    let k = arguments::input::<Vector<F0, N8>>(builder);
    let v = arguments::input::<Vector<F0, N8>>(builder);
    let o = arguments::input::<Vector<F0, N8>>(builder);
    let lse = arguments::input::<Vector<f32, N1>>(builder);
    let d_o = arguments::input::<Vector<F0, N8>>(builder);
    let d_q = arguments::output::<Vector<F3, N2>>(builder);
    let delta = arguments::output::<Vector<f32, N1>>(builder);
    let [heads, group, s, t] = std::array::from_fn(|_| arguments::position(builder));
    let scale = arguments::number(builder);
    let (scope, head, causal) = (&mut builder.scope, spec.constants[0], spec.constants[1] == 1);
    let (planes, keys, to) = (spec.cube_dim as usize / PLANE, walk_keys(head), to_store(spec, 4));
    attention_queries_mma::expand(
        scope, q, k, v, o, lse, d_o, d_q, delta, heads, group, s, t, scale, head, causal, planes, keys, to,
    );
}
