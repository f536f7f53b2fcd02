//! Attention forward through shared memory: tiles of queries against tiles of keys, with a running maximum and sum of each query.

use super::tile::{across_rows, add_weighted, products, put_weights, store, zeros};
use super::{N4, ROWS, SIDE, SLICE_LEN, WEIGHTS_LEN, WIDTH, has_plane, share};
use crate::device::cube::Spec;
use crate::kernels::arguments;
use crate::kernels::library::attention::visible;
use crate::kernels::placeholders::{F0, F1, F2, F3, N1};
use crate::kernels::rounding::Rounding;
use cubecl::prelude::*;

/// The lowest finite number: shading languages have no infinity.
const LOWEST: f32 = -3.402_823_4e38;

/// o\[h, i\] and lse\[h, i\]: a cube for 64 queries of a head.
#[cube]
fn attention_tiled(
    q: &Array<Vector<F0, N4>>,
    k: &Array<Vector<F1, N4>>,
    v: &Array<Vector<F2, N4>>,
    o: &mut Array<Vector<F3, N4>>,
    lse: &mut Array<Vector<f32, N1>>,
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
        let unit = UNIT_POS as usize;
        let row = unit / SIDE * WIDTH;
        let column = unit % SIDE * WIDTH;
        let mut sums = zeros(head);
        let mut highest = Array::<f32>::new(WIDTH);
        let mut total = Array::<f32>::new(WIDTH);
        #[unroll]
        for i in 0..WIDTH {
            highest[i] = f32::new(LOWEST);
            total[i] = 0.0f32;
        }
        let turns = (visible(first + queries - 1, s, t, causal) + comptime!(ROWS - 1)) / ROWS;
        for turn in 0..turns {
            let key = turn * ROWS;
            let key_row = h / group * t + key;
            let keys = min(t - key, ROWS);
            let mut block =
                products::<F0, F1>(q, h * s + first, queries, k, key_row, keys, &mut a_slice, &mut b_slice, head);
            let mut top = Array::<f32>::new(WIDTH);
            #[unroll]
            for i in 0..WIDTH {
                let seen = visible(first + row + i, s, t, causal);
                let mut highest_own = highest[i];
                #[unroll]
                for j in 0..WIDTH {
                    let at = comptime!(i * WIDTH + j);
                    let score = select(key + column + j < seen, block[at] * scale, f32::new(LOWEST));
                    highest_own = select(score > highest_own, score, highest_own);
                    block[at] = score;
                }
                top[i] = highest_own;
            }
            let next = across_rows(&top, &mut weights, has_plane, true);
            #[unroll]
            for i in 0..WIDTH {
                let seen = visible(first + row + i, s, t, causal);
                let fade = (highest[i] - next[i]).exp();
                let mut sum = total[i] * fade;
                #[unroll]
                for j in 0..WIDTH {
                    let at = comptime!(i * WIDTH + j);
                    let weight = select(key + column + j < seen, (block[at] - next[i]).exp(), 0.0f32);
                    sum += weight;
                    block[at] = weight;
                }
                total[i] = sum;
                highest[i] = next[i];
                #[unroll]
                for c in 0..comptime!(share(head)) {
                    let at = comptime!(i * share(head) + c);
                    sums[at] = sums[at] * Vector::new(fade);
                }
            }
            put_weights(&block, &mut weights);
            add_weighted::<F2>(&weights, v, key_row, keys, &mut a_slice, &mut sums, head);
        }
        sync_cube();
        let total = across_rows(&total, &mut weights, has_plane, false);
        let mut shares = Array::<f32>::new(WIDTH);
        #[unroll]
        for i in 0..WIDTH {
            // A query that sees no key has the output 0.
            shares[i] = select(total[i] > 0.0f32, 1.0f32 / total[i], 0.0f32);
            if column == 0 && row + i < queries {
                lse[h * s + first + row + i] = Vector::new(highest[i] + total[i].ln());
            }
        }
        store(&sums, &shares, o, h * s + first, queries, head, to);
    }
}

/// Builds it: buffers q, k, v, o, lse; heads, heads of a group, S, T; 1/√K. Slot 4 is what o is rounded to before it is stored.
pub fn define_attention_tiled(builder: &mut KernelBuilder, spec: &Spec) {
    let q = arguments::input::<Vector<F0, N4>>(builder);
    let k = arguments::input::<Vector<F1, N4>>(builder);
    let v = arguments::input::<Vector<F2, N4>>(builder);
    let o = arguments::output::<Vector<F3, N4>>(builder);
    let lse = arguments::output::<Vector<f32, N1>>(builder);
    let [heads, group, s, t] = std::array::from_fn(|_| arguments::position(builder));
    let scale = arguments::number(builder);
    let (scope, head, causal) = (&mut builder.scope, spec.constants[0], spec.constants[1] == 1);
    let (plane, to) = (has_plane(spec), spec.rounding(4));
    attention_tiled::expand(scope, q, k, v, o, lse, heads, group, s, t, scale, head, causal, plane, to);
}
