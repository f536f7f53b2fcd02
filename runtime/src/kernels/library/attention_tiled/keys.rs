//! Second walk of attention's derivative through shared memory: tiles of keys against tiles of the queries of all heads of their group, for k̄
//! and v̄.

use super::tile::{add_weighted, own_weights, products, put_weights, store, zeros};
use super::{N4, ROWS, SIDE, SLICE_LEN, WEIGHTS_LEN, WIDTH};
use crate::device::cube::Spec;
use crate::kernels::arguments;
use crate::kernels::library::attention::visible;
use crate::kernels::placeholders::{F0, F1, F2, F3, N1};
use crate::kernels::rounding::Rounding;
use cubecl::prelude::*;

/// k̄\[g, j\] and v̄\[g, j\], over the queries of all heads of the group in order: a cube for 64 keys, whose scores against queries lie with keys down
/// the rows.
#[cube]
fn attention_keys_tiled(
    q: &Array<Vector<F0, N4>>,
    k: &Array<Vector<F1, N4>>,
    v: &Array<Vector<F1, N4>>,
    lse: &Array<Vector<f32, N1>>,
    d_o: &Array<Vector<F2, N4>>,
    delta: &Array<Vector<f32, N1>>,
    d_k: &mut Array<Vector<F3, N4>>,
    d_v: &mut Array<Vector<F3, N4>>,
    heads: usize,
    group: usize,
    s: usize,
    t: usize,
    scale: f32,
    #[comptime] head: usize,
    #[comptime] causal: bool,
    #[comptime] to_k: Rounding,
    #[comptime] to_v: Rounding,
) {
    let mut a_slice = SharedMemory::<Vector<f32, N4>>::new_aligned(SLICE_LEN, 16usize);
    let mut b_slice = SharedMemory::<Vector<f32, N4>>::new_aligned(SLICE_LEN, 16usize);
    let mut weights = SharedMemory::<Vector<f32, N4>>::new_aligned(WEIGHTS_LEN, 16usize);
    let key_heads = heads / group;
    let tiles = (t + comptime!(ROWS - 1)) / ROWS;
    if CUBE_POS < key_heads * tiles {
        let h = CUBE_POS % key_heads;
        // With a causal mask the first keys are seen by the most queries: they start first.
        let first = CUBE_POS / key_heads * ROWS;
        let keys = min(t - first, ROWS);
        let key_row = h * t + first;
        let unit = UNIT_POS as usize;
        let row = unit / SIDE * WIDTH;
        let column = unit % SIDE * WIDTH;
        let mut sums_k = zeros(head);
        let mut sums_v = zeros(head);
        // Tiles of queries before the first that sees the cube's first key are left out, for each head of the group.
        let since = if comptime!(causal) { select(first + s > t, first + s - t, 0usize) } else { 0usize.runtime() };
        let begin = since / ROWS;
        let end = (s + comptime!(ROWS - 1)) / ROWS;
        let each = select(end > begin, end - begin, 0usize);
        for turn in 0..group * each {
            let query = (begin + turn % each) * ROWS;
            let query_row = (h * group + turn / each) * s + query;
            let queries = min(s - query, ROWS);
            let mut block =
                products::<F1, F0>(k, key_row, keys, q, query_row, queries, &mut a_slice, &mut b_slice, head);
            #[unroll]
            for j in 0..WIDTH {
                let norm = f32::cast_from(lse[query_row + min(column + j, queries - 1)]);
                let seen = select(column + j < queries, visible(query + column + j, s, t, causal), 0usize);
                #[unroll]
                for i in 0..WIDTH {
                    let at = comptime!(i * WIDTH + j);
                    let weight = (block[at] * scale - norm).exp();
                    block[at] = select(first + row + i < seen, weight, 0.0f32);
                }
            }
            put_weights(&block, &mut weights);
            add_weighted::<F2>(&weights, d_o, query_row, queries, &mut a_slice, &mut sums_v, head);
            let mut along =
                products::<F1, F2>(v, key_row, keys, d_o, query_row, queries, &mut a_slice, &mut b_slice, head);
            let block = own_weights(&weights);
            #[unroll]
            for j in 0..WIDTH {
                let own = f32::cast_from(delta[query_row + min(column + j, queries - 1)]);
                #[unroll]
                for i in 0..WIDTH {
                    let at = comptime!(i * WIDTH + j);
                    along[at] = block[at] * (along[at] - own) * scale;
                }
            }
            put_weights(&along, &mut weights);
            add_weighted::<F0>(&weights, q, query_row, queries, &mut a_slice, &mut sums_k, head);
        }
        let mut ones = Array::<f32>::new(WIDTH);
        #[unroll]
        for i in 0..WIDTH {
            ones[i] = 1.0f32;
        }
        store(&sums_k, &ones, d_k, key_row, keys, head, to_k);
        store(&sums_v, &ones, d_v, key_row, keys, head, to_v);
    }
}

/// Builds it: buffers q, k, v, lse, ō, δ, k̄, v̄; heads, heads of a group, S, T; 1/√K. Slots 4 and 5 round k̄ and v̄.
pub fn define_attention_keys_tiled(builder: &mut KernelBuilder, spec: &Spec) {
    let q = arguments::input::<Vector<F0, N4>>(builder);
    let k = arguments::input::<Vector<F1, N4>>(builder);
    let v = arguments::input::<Vector<F1, N4>>(builder);
    let lse = arguments::input::<Vector<f32, N1>>(builder);
    let d_o = arguments::input::<Vector<F2, N4>>(builder);
    let delta = arguments::input::<Vector<f32, N1>>(builder);
    let d_k = arguments::output::<Vector<F3, N4>>(builder);
    let d_v = arguments::output::<Vector<F3, N4>>(builder);
    let [heads, group, s, t] = std::array::from_fn(|_| arguments::position(builder));
    let scale = arguments::number(builder);
    let (scope, head, causal) = (&mut builder.scope, spec.constants[0], spec.constants[1] == 1);
    let [to_k, to_v] = [spec.rounding(4), spec.rounding(5)];
    attention_keys_tiled::expand(
        scope, q, k, v, lse, d_o, delta, d_k, d_v, heads, group, s, t, scale, head, causal, to_k, to_v,
    );
}
