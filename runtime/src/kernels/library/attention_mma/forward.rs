//! Attention forward on tensor cores: tiles of queries against tiles of keys, with scores and probabilities in registers.

use super::tile::{
    LOG2_E, LOWEST, N2, N8, PLANE, SIDE, exp2, fetch, lane_across, lane_down, left_of_sums, lefts, max_of_row,
    multiply, put, right, store_row, stride, sum_of_row, zeros,
};
use super::{KEYS, forward_rows, to_store};
use crate::device::cube::Spec;
use crate::kernels::arguments;
use crate::kernels::library::attention::visible;
use crate::kernels::placeholders::{F0, F3, N1};
use crate::kernels::rounding::Rounding;
use cubecl::prelude::*;

/// o\[h, i\] and lse\[h, i\]: a cube for `planes`·`blocks`·16 queries of a head, of which a plane has `blocks` times 16.
#[cube]
fn attention_mma(
    q: &Array<Vector<F0, N8>>,
    k: &Array<Vector<F0, N8>>,
    v: &Array<Vector<F0, N8>>,
    o: &mut Array<Vector<F3, N2>>,
    lse: &mut Array<Vector<f32, N1>>,
    heads: usize,
    group: usize,
    s: usize,
    t: usize,
    scale: f32,
    #[comptime] head: usize,
    #[comptime] causal: bool,
    #[comptime] planes: usize,
    #[comptime] blocks: usize,
    #[comptime] to: Rounding,
) {
    let units = comptime!(planes * PLANE);
    let queries = comptime!(planes * blocks * SIDE);
    // Queries pass through on their way to registers; then keys and values stay for one turn each.
    let mut tile = SharedMemory::<Vector<F0, N8>>::new_aligned(comptime!(forward_rows(head) * stride(head)), 16usize);
    let tiles = (s + queries - 1) / queries;
    if CUBE_POS < heads * tiles {
        let h = CUBE_POS % heads;
        // With a causal mask the last queries see the most keys: they start first.
        let first = (tiles - 1 - CUBE_POS / heads) * queries;
        let lane = UNIT_POS as usize % PLANE;
        let own = UNIT_POS as usize / PLANE * comptime!(blocks * SIDE);
        let down = lane_down(head);
        let across = lane_across(head);

        let held = fetch(q, h * s, first, s, head, queries, units);
        put(&held, &mut tile, 0usize, head, queries, units);
        sync_cube();
        let mut query = Sequence::<Array<Vector<F0, N2>>>::new();
        #[unroll]
        for b in 0..blocks {
            lefts(&mut query, &tile, down + (own + b * SIDE) * comptime!(stride(head)), head);
        }
        let mut sums = Sequence::<Sequence<Array<Vector<f32, N2>>>>::new();
        let mut highest = Array::<f32>::new(comptime!(2 * blocks));
        let mut total = Array::<f32>::new(comptime!(2 * blocks));
        #[unroll]
        for b in 0..blocks {
            sums.push(zeros(head));
            #[unroll]
            for r in 0..2usize {
                highest[comptime!(2 * b + r)] = f32::new(LOWEST);
                total[comptime!(2 * b + r)] = 0.0f32;
            }
        }

        // Keys that some query of the cube sees; those that its plane's last and first query see.
        let last = min(first + queries, s) - 1;
        let turns = (visible(last, s, t, causal) + comptime!(KEYS - 1)) / KEYS;
        let most = visible(first + own + comptime!(blocks * SIDE - 1), s, t, causal);
        let fewest = visible(first + own, s, t, causal);
        let keys = h / group * t;
        let power = scale * f32::new(LOG2_E);
        sync_cube();
        if turns > 0 {
            let held = fetch(k, keys, 0usize, t, head, KEYS, units);
            put(&held, &mut tile, 0usize, head, KEYS, units);
        }
        for turn in 0..turns {
            let key = turn * KEYS;
            sync_cube();
            let held = fetch(v, keys, key, t, head, KEYS, units);
            let is_seen = key < most;
            let mut scores = Sequence::<Sequence<Array<Vector<f32, N2>>>>::new();
            #[unroll]
            for _ in 0..blocks {
                scores.push(zeros(KEYS));
            }
            if is_seen {
                #[unroll]
                for d in 0..comptime!(head / SIDE) {
                    #[unroll]
                    for n in 0..comptime!(KEYS / SIDE) {
                        let pair = right(&tile, across + comptime!(n * SIDE * stride(head) + 2 * d), false);
                        #[unroll]
                        for b in 0..blocks {
                            let operand = query.index(comptime!(b * (head / SIDE) + d));
                            #[unroll]
                            for i in 0..2usize {
                                multiply(operand, pair.index(i), scores.index_mut(b).index_mut(comptime!(2 * n + i)));
                            }
                        }
                    }
                }
            }
            put(&held, &mut tile, KEYS, head, KEYS, units);
            sync_cube();
            let held = fetch(k, keys, key + KEYS, t, head, KEYS, units);
            if is_seen {
                if key + KEYS > fewest {
                    #[unroll]
                    for b in 0..blocks {
                        #[unroll]
                        for r in 0..2usize {
                            let seen = visible(first + own + b * SIDE + r * 8 + lane / 4, s, t, causal);
                            #[unroll]
                            for n in 0..comptime!(KEYS / 8) {
                                let mut value = scores.index(b).index(n)[r];
                                let at = key + n * 8 + lane % 4 * 2;
                                value[0] = select(at < seen, value[0], f32::new(LOWEST));
                                value[1] = select(at + 1 < seen, value[1], f32::new(LOWEST));
                                scores.index_mut(b).index_mut(n)[r] = value;
                            }
                        }
                    }
                }
                #[unroll]
                for b in 0..blocks {
                    #[unroll]
                    for r in 0..2usize {
                        let of = comptime!(2 * b + r);
                        let mut top = f32::new(LOWEST);
                        #[unroll]
                        for n in 0..comptime!(KEYS / 8) {
                            let value = scores.index(b).index(n)[r];
                            top = max(top, max(value[0], value[1]));
                        }
                        let next = max(highest[of], max_of_row(top));
                        let fade = exp2((highest[of] - next) * power);
                        highest[of] = next;
                        let next = next * power;
                        let mut sum = total[of] * fade;
                        #[unroll]
                        for n in 0..comptime!(KEYS / 8) {
                            let value = scores.index(b).index(n)[r];
                            let mut weight = Vector::<f32, N2>::empty();
                            weight[0] = exp2(value[0] * power - next);
                            weight[1] = exp2(value[1] * power - next);
                            sum += weight[0] + weight[1];
                            scores.index_mut(b).index_mut(n)[r] = weight;
                        }
                        total[of] = sum;
                        #[unroll]
                        for d in 0..comptime!(head / 8) {
                            sums.index_mut(b).index_mut(d)[r] = sums.index(b).index(d)[r] * Vector::new(fade);
                        }
                    }
                }
                #[unroll]
                for n in 0..comptime!(KEYS / SIDE) {
                    let mut weights = Sequence::<Array<Vector<F0, N2>>>::new();
                    #[unroll]
                    for b in 0..blocks {
                        weights.push(left_of_sums(scores.index(b), comptime!(2 * n)));
                    }
                    #[unroll]
                    for d in 0..comptime!(head / SIDE) {
                        let pair = right(&tile, down + comptime!((KEYS + n * SIDE) * stride(head) + 2 * d), true);
                        #[unroll]
                        for b in 0..blocks {
                            #[unroll]
                            for i in 0..2usize {
                                multiply(
                                    weights.index(b),
                                    pair.index(i),
                                    sums.index_mut(b).index_mut(comptime!(2 * d + i)),
                                );
                            }
                        }
                    }
                }
            }
            put(&held, &mut tile, 0usize, head, KEYS, units);
        }

        #[unroll]
        for b in 0..blocks {
            #[unroll]
            for r in 0..2usize {
                let of = comptime!(2 * b + r);
                let row = first + own + b * SIDE + r * 8 + lane / 4;
                // A query that sees no key has the output 0.
                let sum = select(visible(row, s, t, causal) > 0, sum_of_row(total[of]), 0.0f32);
                let share = select(sum > 0.0f32, 1.0f32 / sum, 0.0f32);
                if row < s {
                    let at = h * s + row;
                    store_row(sums.index(b), r, share, o, at, head, to);
                    if lane % 4 == 0 {
                        lse[at] = Vector::new(highest[of] * scale + sum.ln());
                    }
                }
            }
        }
    }
}

/// Builds it: buffers q, k, v, o, lse; heads, heads of a group, S, T; 1/√K. Slot 4 is what o is rounded to before it is stored.
pub fn define_attention_mma(builder: &mut KernelBuilder, spec: &Spec) {
    let q = arguments::input::<Vector<F0, N8>>(builder);
    let k = arguments::input::<Vector<F0, N8>>(builder);
    let v = arguments::input::<Vector<F0, N8>>(builder);
    let o = arguments::output::<Vector<F3, N2>>(builder);
    let lse = arguments::output::<Vector<f32, N1>>(builder);
    let [heads, group, s, t] = std::array::from_fn(|_| arguments::position(builder));
    let scale = arguments::number(builder);
    let (scope, head, causal) = (&mut builder.scope, spec.constants[0], spec.constants[1] == 1);
    let planes = spec.cube_dim as usize / PLANE;
    let (blocks, to) = (super::query_blocks(head), to_store(spec, 4));
    attention_mma::expand(scope, q, k, v, o, lse, heads, group, s, t, scale, head, causal, planes, blocks, to);
}
