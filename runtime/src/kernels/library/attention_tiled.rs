//! `attention` and its derivative through shared memory, for devices with fast barriers: tiles of 64 queries against tiles of 64 keys (Dao 2023,
//! "FlashAttention-2"), with multiply-adds of f32 that round operands of no type.
//!
//! Each kernel takes the arguments of its scalar form (`attention.rs`) and gives the same but for the order of sums. A unit keeps a block of
//! 4 × 4 scores, and of 4 rows of a result every 16th vector. Slices of both operands of the scores go through shared memory, a vector of each
//! for every unit; so do the rows that weights are multiplied with, and the weights. Sums have one owner and a fixed order: the bits depend on
//! sizes alone.

use super::attention::visible;
use crate::device::cube::Spec;
use crate::kernels::arguments;
use crate::kernels::placeholders::{F0, F1, F2, F3, N1};
use crate::kernels::rounding::{Rounding, round};
use cubecl::prelude::*;

type N4 = Const<4>;

/// Lanes of the vectors in which operands are read and results written.
pub const WIDTH: usize = 4;
/// Units along a side of a cube.
const SIDE: usize = 16;
/// Units of a cube.
pub const UNITS: u32 = (SIDE * SIDE) as u32;
/// Rows of a tile.
pub const ROWS: usize = SIDE * WIDTH;
/// Vectors of a slice's row: so many of 64 rows are one for each unit.
const SLICE: usize = 4;
/// Vectors from one row of a slice to the next: odd, so that the rows that neighbouring units read lie in different banks.
const SLICE_STRIDE: usize = SLICE + 1;
/// Vectors from one row of the weights to the next.
const WEIGHTS_STRIDE: usize = SIDE + 1;
/// Vectors of a slice, and of the weights.
const SLICE_LEN: usize = ROWS * SLICE_STRIDE;
const WEIGHTS_LEN: usize = ROWS * WEIGHTS_STRIDE;
/// The lowest finite number: shading languages have no infinity.
const LOWEST: f32 = -3.402_823_4e38;

/// Bytes of shared memory that a cube takes: two slices and the weights, whatever the size of a head.
pub const BYTES: usize = (2 * SLICE_LEN + WEIGHTS_LEN) * WIDTH * size_of::<f32>();

/// Whether heads of this size have the form: rows of whole vectors, few enough for the registers.
pub const fn fits(head: usize) -> bool {
    head > 0 && head.is_multiple_of(WIDTH) && head <= 128
}

/// Vectors that a unit has of a row of a result.
const fn share(head: usize) -> usize {
    head.div_ceil(ROWS)
}

/// A vector of row `base` + `row` of a tensor; zeros behind `rows` rows and behind the end of a row.
#[cube]
fn fetch<F: Scalar>(
    from: &Array<Vector<F, N4>>,
    base: usize,
    rows: usize,
    row: usize,
    vector: usize,
    #[comptime] head: usize,
) -> Vector<f32, N4> {
    let mut value = Vector::<f32, N4>::new(0.0f32);
    if row < rows && vector < comptime!(head / WIDTH) {
        value = Vector::cast_from(from[(base + row) * comptime!(head / WIDTH) + vector]);
    }
    value
}

/// This unit's 4 × 4 products of rows `a_row`.. of a and `b_row`.. of b: its rows of a are four times its row in the cube and the next three, its
/// rows of b the same of its column. Behind `a_rows` and `b_rows` they are 0.
#[cube]
fn products<A: Scalar, B: Scalar>(
    a: &Array<Vector<A, N4>>,
    a_row: usize,
    a_rows: usize,
    b: &Array<Vector<B, N4>>,
    b_row: usize,
    b_rows: usize,
    a_slice: &mut SharedMemory<Vector<f32, N4>>,
    b_slice: &mut SharedMemory<Vector<f32, N4>>,
    #[comptime] head: usize,
) -> Array<f32> {
    let unit = UNIT_POS as usize;
    let (row, vector) = (unit / SLICE, unit % SLICE);
    // Every fourth row lies beside the other: those are what neighbouring units read.
    let place = (row % WIDTH * SIDE + row / WIDTH) * SLICE_STRIDE + vector;
    let a_own = unit / SIDE * SLICE_STRIDE;
    let b_own = unit % SIDE * SLICE_STRIDE;
    let mut sums = Array::<f32>::new(comptime!(WIDTH * WIDTH));
    #[unroll]
    for i in 0..comptime!(WIDTH * WIDTH) {
        sums[i] = 0.0f32;
    }
    let mut held_a = fetch::<A>(a, a_row, a_rows, row, vector, head);
    let mut held_b = fetch::<B>(b, b_row, b_rows, row, vector, head);
    for slice in 0..comptime!(head.div_ceil(SLICE * WIDTH)) {
        sync_cube();
        a_slice[place] = held_a;
        b_slice[place] = held_b;
        sync_cube();
        // On their way while this slice is in use.
        let next = (slice + 1) * SLICE + vector;
        held_a = fetch::<A>(a, a_row, a_rows, row, next, head);
        held_b = fetch::<B>(b, b_row, b_rows, row, next, head);
        #[unroll]
        for v in 0..SLICE {
            let mut y = Array::<Vector<f32, N4>>::new(WIDTH);
            #[unroll]
            for j in 0..WIDTH {
                y[j] = b_slice[b_own + comptime!(j * SIDE * SLICE_STRIDE + v)];
            }
            #[unroll]
            for i in 0..WIDTH {
                let x = a_slice[a_own + comptime!(i * SIDE * SLICE_STRIDE + v)];
                #[unroll]
                for j in 0..WIDTH {
                    let other = y[j];
                    #[unroll]
                    for e in 0..WIDTH {
                        sums[comptime!(i * WIDTH + j)] += x[e] * other[e];
                    }
                }
            }
        }
    }
    sums
}

/// Puts this unit's block where [`add_weighted`] reads it.
#[cube]
fn put_weights(block: &Array<f32>, weights: &mut SharedMemory<Vector<f32, N4>>) {
    let unit = UNIT_POS as usize;
    let own = unit / SIDE * WEIGHTS_STRIDE + unit % SIDE;
    #[unroll]
    for i in 0..WIDTH {
        let mut line = Vector::<f32, N4>::empty();
        #[unroll]
        for j in 0..WIDTH {
            line[j] = block[comptime!(i * WIDTH + j)];
        }
        weights[own + comptime!(i * SIDE * WEIGHTS_STRIDE)] = line;
    }
}

/// This unit's block of the weights, as [`put_weights`] put it: a product of other rows needs its registers meanwhile.
#[cube]
fn own_weights(weights: &SharedMemory<Vector<f32, N4>>) -> Array<f32> {
    let unit = UNIT_POS as usize;
    let own = unit / SIDE * WEIGHTS_STRIDE + unit % SIDE;
    let mut block = Array::<f32>::new(comptime!(WIDTH * WIDTH));
    #[unroll]
    for i in 0..WIDTH {
        let line = weights[own + comptime!(i * SIDE * WEIGHTS_STRIDE)];
        #[unroll]
        for j in 0..WIDTH {
            block[comptime!(i * WIDTH + j)] = line[j];
        }
    }
    block
}

/// sums += weights·x over rows `x_row`.. of x, of which there are `x_rows`, 64 at most.
#[cube]
fn add_weighted<X: Scalar>(
    weights: &SharedMemory<Vector<f32, N4>>,
    x: &Array<Vector<X, N4>>,
    x_row: usize,
    x_rows: usize,
    slice: &mut SharedMemory<Vector<f32, N4>>,
    sums: &mut Array<Vector<f32, N4>>,
    #[comptime] head: usize,
) {
    let unit = UNIT_POS as usize;
    let (row, column) = (unit / SIDE, unit % SIDE);
    let own = row * WEIGHTS_STRIDE;
    #[unroll]
    for c in 0..comptime!(share(head)) {
        let vector = column + comptime!(c * SIDE);
        let mut held = fetch::<X>(x, x_row, x_rows, row, vector, head);
        for part in 0..comptime!(ROWS / SIDE) {
            sync_cube();
            slice[unit] = held;
            sync_cube();
            held = fetch::<X>(x, x_row, x_rows, (part + 1) * SIDE + row, vector, head);
            let from = own + part * comptime!(SIDE / WIDTH);
            #[unroll]
            for v in 0..comptime!(SIDE / WIDTH) {
                let mut factors = Array::<Vector<f32, N4>>::new(WIDTH);
                #[unroll]
                for i in 0..WIDTH {
                    factors[i] = weights[from + comptime!(i * SIDE * WEIGHTS_STRIDE + v)];
                }
                #[unroll]
                for e in 0..WIDTH {
                    let y = slice[comptime!((v * WIDTH + e) * SIDE) + column];
                    #[unroll]
                    for i in 0..WIDTH {
                        let factor = factors[i];
                        let at = comptime!(i * share(head) + c);
                        sums[at] = sums[at] + y * Vector::new(factor[e]);
                    }
                }
            }
        }
    }
}

/// Sums, all zero.
#[cube]
fn zeros(#[comptime] head: usize) -> Array<Vector<f32, N4>> {
    let mut sums = Array::<Vector<f32, N4>>::new(comptime!(WIDTH * share(head)));
    #[unroll]
    for i in 0..comptime!(WIDTH * share(head)) {
        sums[i] = Vector::new(0.0f32);
    }
    sums
}

/// Stores sums times `factors` into rows `to_row`.. of a tensor, of which there are `rows`.
#[cube]
fn store(
    sums: &Array<Vector<f32, N4>>,
    factors: &Array<f32>,
    to: &mut Array<Vector<F3, N4>>,
    to_row: usize,
    rows: usize,
    #[comptime] head: usize,
    #[comptime] rounding: Rounding,
) {
    let unit = UNIT_POS as usize;
    #[unroll]
    for i in 0..WIDTH {
        let row = unit / SIDE * WIDTH + i;
        #[unroll]
        for c in 0..comptime!(share(head)) {
            let vector = unit % SIDE + comptime!(c * SIDE);
            if row < rows && vector < comptime!(head / WIDTH) {
                let value = sums[comptime!(i * share(head) + c)] * Vector::new(factors[i]);
                let place = (to_row + row) * comptime!(head / WIDTH) + vector;
                to[place] = Vector::<F3, N4>::cast_from(round::<N4>(value, rounding));
            }
        }
    }
}

/// Over the 16 units that share rows, for each of their four rows: by halves of a plane, or through the place of the weights. No unit may still be
/// reading weights, and none may write them before all have returned: `across_rows` waits for that.
#[cube]
fn across_rows(
    own: &Array<f32>,
    weights: &mut SharedMemory<Vector<f32, N4>>,
    #[comptime] has_plane: bool,
    #[comptime] is_max: bool,
) -> Array<f32> {
    let mut all = Array::<f32>::new(WIDTH);
    if comptime!(has_plane) {
        #[unroll]
        for i in 0..WIDTH {
            let mut value = own[i];
            #[unroll]
            for step in 0..comptime!(SIDE.ilog2()) {
                let mask = comptime!(1u32 << step).runtime();
                value = join(value, plane_shuffle_xor::<f32>(value, mask), is_max);
            }
            all[i] = value;
        }
    } else {
        let unit = UNIT_POS as usize;
        let line = unit / SIDE * SIDE;
        let mut four = Vector::<f32, N4>::empty();
        #[unroll]
        for i in 0..WIDTH {
            four[i] = own[i];
        }
        weights[unit] = four;
        sync_cube();
        let first = weights[line];
        #[unroll]
        for i in 0..WIDTH {
            all[i] = first[i];
        }
        for other in 1..SIDE {
            let value = weights[line + other];
            #[unroll]
            for i in 0..WIDTH {
                all[i] = join(all[i], value[i], is_max);
            }
        }
        sync_cube();
    }
    all
}

#[cube]
fn join(a: f32, b: f32, #[comptime] is_max: bool) -> f32 {
    if comptime!(is_max) { select(a > b, a, b) } else { a + b }
}

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

/// Whether the units that share rows are of one plane.
fn has_plane(spec: &Spec) -> bool {
    spec.plane.is_some_and(|units| (units as usize).is_multiple_of(SIDE))
}

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
