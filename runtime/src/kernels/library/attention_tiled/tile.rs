//! What a cube does together: products of rows of two tensors, rows times weights, maxima and sums over the units of a row.

use super::{N4, ROWS, SIDE, SLICE, SLICE_STRIDE, WEIGHTS_STRIDE, WIDTH, share};
use crate::kernels::placeholders::F3;
use crate::kernels::rounding::{Rounding, round};
use cubecl::prelude::*;

/// A vector of row `base` + `row` of a tensor; zeros behind `rows` rows and behind the end of a row.
#[cube]
pub fn fetch<F: Scalar>(
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
pub fn products<A: Scalar, B: Scalar>(
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
pub fn put_weights(block: &Array<f32>, weights: &mut SharedMemory<Vector<f32, N4>>) {
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
pub fn own_weights(weights: &SharedMemory<Vector<f32, N4>>) -> Array<f32> {
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
pub fn add_weighted<X: Scalar>(
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
pub fn zeros(#[comptime] head: usize) -> Array<Vector<f32, N4>> {
    let mut sums = Array::<Vector<f32, N4>>::new(comptime!(WIDTH * share(head)));
    #[unroll]
    for i in 0..comptime!(WIDTH * share(head)) {
        sums[i] = Vector::new(0.0f32);
    }
    sums
}

/// Stores sums times `factors` into rows `to_row`.. of a tensor, of which there are `rows`.
#[cube]
pub fn store(
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
pub fn across_rows(
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
