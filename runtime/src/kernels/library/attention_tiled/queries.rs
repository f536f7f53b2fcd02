//! First walk of attention's derivative through shared memory: tiles of queries against tiles of keys, for q̄ and δ.

use super::tile::{across_rows, add_weighted, fetch, own_weights, products, put_weights, store, zeros};
use super::{N4, ROWS, SIDE, SLICE_LEN, WEIGHTS_LEN, WIDTH, has_plane, share};
use crate::device::cube::Spec;
use crate::kernels::arguments;
use crate::kernels::library::attention::visible;
use crate::kernels::placeholders::{F0, F1, F2, F3, N1};
use crate::kernels::rounding::Rounding;
use cubecl::prelude::*;

/// q̄\[h, i\] and δ\[h, i\]: a cube for 64 queries of a head.
#[cube]
fn attention_queries_tiled(
    q: &Array<Vector<F0, N4>>,
    k: &Array<Vector<F1, N4>>,
    v: &Array<Vector<F1, N4>>,
    o: &Array<Vector<F2, N4>>,
    lse: &Array<Vector<f32, N1>>,
    d_o: &Array<Vector<F2, N4>>,
    d_q: &mut Array<Vector<F3, N4>>,
    delta: &mut Array<Vector<f32, N1>>,
    heads: usize,
    group: usize,
    s: usize,
    t: usize,
    scale: f32,
    #[comptime] head: usize,
    #[comptime] causal: bool,
    #[comptime] has_plane: bool,
    #[comptime] to: Rounding,
) {
    let mut a_slice = SharedMemory::<Vector<f32, N4>>::new_aligned(SLICE_LEN, 16usize);
    let mut b_slice = SharedMemory::<Vector<f32, N4>>::new_aligned(SLICE_LEN, 16usize);
    let mut weights = SharedMemory::<Vector<f32, N4>>::new_aligned(WEIGHTS_LEN, 16usize);
    let tiles = (s + comptime!(ROWS - 1)) / ROWS;
    if CUBE_POS < heads * tiles {
        let h = CUBE_POS % heads;
        // With a causal mask the last queries see the most keys: they start first.
        let first = (tiles - 1 - CUBE_POS / heads) * ROWS;
        let queries = min(s - first, ROWS);
        let query_row = h * s + first;
        let unit = UNIT_POS as usize;
        let row = unit / SIDE * WIDTH;
        let column = unit % SIDE * WIDTH;
        let mut sums = zeros(head);
        let mut norms = Array::<f32>::new(WIDTH);
        let mut part = Array::<f32>::new(WIDTH);
        #[unroll]
        for i in 0..WIDTH {
            norms[i] = f32::cast_from(lse[query_row + min(row + i, queries - 1)]);
            let mut sum = 0.0f32;
            #[unroll]
            for c in 0..comptime!(share(head)) {
                let vector = unit % SIDE + comptime!(c * SIDE);
                let x = fetch::<F2>(o, query_row, queries, row + i, vector, head);
                let y = fetch::<F2>(d_o, query_row, queries, row + i, vector, head);
                #[unroll]
                for e in 0..WIDTH {
                    sum += x[e] * y[e];
                }
            }
            part[i] = sum;
        }
        let own = across_rows(&part, &mut weights, has_plane, false);
        let turns = (visible(first + queries - 1, s, t, causal) + comptime!(ROWS - 1)) / ROWS;
        for turn in 0..turns {
            let key = turn * ROWS;
            let key_row = h / group * t + key;
            let keys = min(t - key, ROWS);
            let mut block =
                products::<F0, F1>(q, query_row, queries, k, key_row, keys, &mut a_slice, &mut b_slice, head);
            #[unroll]
            for i in 0..WIDTH {
                let seen = visible(first + row + i, s, t, causal);
                #[unroll]
                for j in 0..WIDTH {
                    let at = comptime!(i * WIDTH + j);
                    let weight = (block[at] * scale - norms[i]).exp();
                    block[at] = select(key + column + j < seen, weight, 0.0f32);
                }
            }
            put_weights(&block, &mut weights);
            let mut along =
                products::<F2, F1>(d_o, query_row, queries, v, key_row, keys, &mut a_slice, &mut b_slice, head);
            let block = own_weights(&weights);
            #[unroll]
            for i in 0..WIDTH {
                #[unroll]
                for j in 0..WIDTH {
                    let at = comptime!(i * WIDTH + j);
                    along[at] = block[at] * (along[at] - own[i]) * scale;
                }
            }
            put_weights(&along, &mut weights);
            add_weighted::<F1>(&weights, k, key_row, keys, &mut a_slice, &mut sums, head);
        }
        let mut ones = Array::<f32>::new(WIDTH);
        #[unroll]
        for i in 0..WIDTH {
            ones[i] = 1.0f32;
            if column == 0 && row + i < queries {
                delta[query_row + row + i] = Vector::new(own[i]);
            }
        }
        store(&sums, &ones, d_q, query_row, queries, head, to);
    }
}

/// Builds it: buffers q, k, v, o, lse, ō, q̄, δ; heads, heads of a group, S, T; 1/√K. Slot 4 rounds q̄.
pub fn define_attention_queries_tiled(builder: &mut KernelBuilder, spec: &Spec) {
    let q = arguments::input::<Vector<F0, N4>>(builder);
    let k = arguments::input::<Vector<F1, N4>>(builder);
    let v = arguments::input::<Vector<F1, N4>>(builder);
    let o = arguments::input::<Vector<F2, N4>>(builder);
    let lse = arguments::input::<Vector<f32, N1>>(builder);
    let d_o = arguments::input::<Vector<F2, N4>>(builder);
    let d_q = arguments::output::<Vector<F3, N4>>(builder);
    let delta = arguments::output::<Vector<f32, N1>>(builder);
    let [heads, group, s, t] = std::array::from_fn(|_| arguments::position(builder));
    let scale = arguments::number(builder);
    let (scope, head, causal) = (&mut builder.scope, spec.constants[0], spec.constants[1] == 1);
    let (plane, to) = (has_plane(spec), spec.rounding(4));
    attention_queries_tiled::expand(
        scope, q, k, v, o, lse, d_o, d_q, delta, heads, group, s, t, scale, head, causal, plane, to,
    );
}
