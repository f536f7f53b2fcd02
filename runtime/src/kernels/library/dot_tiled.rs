//! `dot_general` through shared memory, for devices with fast barriers; offsets come from tables as in [`super::define_dot_general`].
//!
//! A cube computes a square tile of the result: slices of both operands along the contracted axes go through shared memory, each unit keeps
//! a small block of results in registers. Sums are f32, slice by slice, and the totals of slices are added, so that long sums keep their
//! accuracy; the bits depend on sizes alone.

use super::DOT_BLOCK;
use crate::device::cube::Spec;
use crate::kernels::arguments;
use crate::kernels::placeholders::{F0, F1, F2, N1};
use crate::kernels::reduce::store;
use crate::kernels::rounding::{Rounding, round};
use cubecl::prelude::*;

/// Terms of a slice: a tile of 64 × 16 f32 of each operand is 8 KiB, a quarter of the shared memory that every device has.
const SLICE: usize = 16;

/// c\[batch, i, j\] = Σₖ a\[batch, i, k\]·b\[batch, k, j\]. `table` holds, one after the other, the offsets of the batches in a, b and c,
/// of the rows in a and c, of k in a and b, and of the columns in b and c. `side` × `side` units; `a_along_k` and `b_along_k` say along which
/// axis neighbours lie side by side in memory, so that neighbouring units read them.
#[cube]
fn dot_tiled(
    a: &Array<Vector<F0, N1>>,
    b: &Array<Vector<F1, N1>>,
    table: &Array<u32>,
    c: &mut Array<Vector<F2, N1>>,
    batches: usize,
    m: usize,
    n: usize,
    k: usize,
    #[comptime] side: usize,
    #[comptime] block: usize,
    #[comptime] slice: usize,
    #[comptime] a_along_k: bool,
    #[comptime] b_along_k: bool,
    #[comptime] to: Rounding,
    #[comptime] accumulate: bool,
) {
    let tile = comptime!(side * block);
    let mut a_tile = SharedMemory::<f32>::new(comptime!(side * block * slice));
    let mut b_tile = SharedMemory::<f32>::new(comptime!(side * block * slice));
    let tiles_m = (m + tile - 1) / tile;
    let tiles_n = (n + tile - 1) / tile;
    let tiles = tiles_m * tiles_n;
    let at = CUBE_POS;
    if at < batches * tiles {
        let unit = UNIT_POS as usize;
        let batch = at / tiles;
        let row = at % tiles / tiles_n * tile;
        let col = at % tiles_n * tile;
        let a_batch = usize::cast_from(table[batch]);
        let b_batch = usize::cast_from(table[batches + batch]);
        let c_batch = usize::cast_from(table[2 * batches + batch]);
        let a_rows = 3 * batches;
        let c_rows = a_rows + m;
        let a_ks = c_rows + m;
        let b_ks = a_ks + k;
        let b_cols = b_ks + k;
        let c_cols = b_cols + n;
        let own_row = unit / side;
        let own_col = unit % side;
        let mut total = Array::<f32>::new(comptime!(block * block));
        let mut part = Array::<f32>::new(comptime!(block * block));
        #[unroll]
        for i in 0..comptime!(block * block) {
            total[i] = 0.0f32;
        }
        let slices = (k + slice - 1) / slice;
        for s in 0..slices {
            let first = s * slice;
            sync_cube();
            #[unroll]
            for e in 0..comptime!(block * slice / side) {
                let place = unit + e * comptime!(side * side);
                let a_k = if comptime!(a_along_k) { place % slice } else { place / tile };
                let a_row = if comptime!(a_along_k) { place / slice } else { place % tile };
                let b_k = if comptime!(b_along_k) { place % slice } else { place / tile };
                let b_col = if comptime!(b_along_k) { place / slice } else { place % tile };
                let mut x = 0.0f32;
                if row + a_row < m && first + a_k < k {
                    let i = a_batch
                        + usize::cast_from(table[a_rows + row + a_row])
                        + usize::cast_from(table[a_ks + first + a_k]);
                    x = f32::cast_from(a[i]);
                }
                a_tile[a_k * tile + a_row] = x;
                let mut y = 0.0f32;
                if col + b_col < n && first + b_k < k {
                    let j = b_batch
                        + usize::cast_from(table[b_cols + col + b_col])
                        + usize::cast_from(table[b_ks + first + b_k]);
                    y = f32::cast_from(b[j]);
                }
                b_tile[b_k * tile + b_col] = y;
            }
            sync_cube();
            #[unroll]
            for i in 0..comptime!(block * block) {
                part[i] = 0.0f32;
            }
            for kk in 0..slice {
                let line = kk * tile;
                let mut y = Array::<f32>::new(block);
                #[unroll]
                for j in 0..block {
                    y[j] = b_tile[line + own_col + j * side];
                }
                #[unroll]
                for i in 0..block {
                    let x = a_tile[line + own_row + i * side];
                    #[unroll]
                    for j in 0..block {
                        part[i * block + j] += x * y[j];
                    }
                }
            }
            #[unroll]
            for i in 0..comptime!(block * block) {
                total[i] += part[i];
            }
        }
        #[unroll]
        for i in 0..block {
            #[unroll]
            for j in 0..block {
                let r = row + own_row + i * side;
                let s = col + own_col + j * side;
                if r < m && s < n {
                    let place = c_batch + usize::cast_from(table[c_rows + r]) + usize::cast_from(table[c_cols + s]);
                    let value = round::<N1>(Vector::new(total[i * block + j]), to);
                    store::<F2, f32, N1>(c, place, value, accumulate);
                }
            }
        }
    }
}

/// Builds it: buffers a, b, table, c; batches, m, n, k. Slot 3 is what the sums are rounded to before they are stored; the constants say which
/// operand's neighbours lie along k.
pub fn define_dot_general_tiled(builder: &mut KernelBuilder, spec: &Spec) {
    let a = arguments::input::<Vector<F0, N1>>(builder);
    let b = arguments::input::<Vector<F1, N1>>(builder);
    let table = arguments::words(builder);
    let c = arguments::output::<Vector<F2, N1>>(builder);
    let [batches, m, n, k] = std::array::from_fn(|_| arguments::position(builder));
    let (scope, to) = (&mut builder.scope, spec.rounding(3));
    let side = spec.cube_dim.isqrt() as usize;
    let [a_along_k, b_along_k] = spec.constants.map(|c| c == 1);
    let accumulate = spec.accumulate == 1;
    dot_tiled::expand(
        scope, a, b, table, c, batches, m, n, k, side, DOT_BLOCK, SLICE, a_along_k, b_along_k, to, accumulate,
    );
}
