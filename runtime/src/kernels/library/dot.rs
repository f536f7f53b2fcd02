//! `dot_general`: any two-operand einsum. Offsets come from tables, so transposes and head layouts are absorbed and never copied.
//!
//! This form has no barrier, for devices on which those are dear; [`super::define_dot_general_tiled`] is the other. One unit computes a small tile of the result in registers, all of the contracted axes in order: the bits depend on sizes alone.
//! Sums are f32, in blocks of K whose totals are added, so that long sums keep their accuracy.

use super::DOT_BLOCK;
use crate::device::cube::Spec;
use crate::kernels::arguments;
use crate::kernels::placeholders::{F0, F1, F2, N1};
use crate::kernels::reduce::store;
use crate::kernels::rounding::{Rounding, round};
use cubecl::prelude::*;

/// Terms of a partial sum.
const BLOCK: usize = 64;

/// c\[batch, i, j\] = Σₖ a\[batch, i, k\]·b\[batch, k, j\]. `table` holds, one after the other, the offsets of the batches in a, b and c,
/// of the rows in a and c, of k in a and b, and of the columns in b and c.
#[cube]
fn dot(
    a: &Array<Vector<F0, N1>>,
    b: &Array<Vector<F1, N1>>,
    table: &Array<u32>,
    c: &mut Array<Vector<F2, N1>>,
    batches: usize,
    m: usize,
    n: usize,
    k: usize,
    #[comptime] tile: usize,
    #[comptime] block: usize,
    #[comptime] to: Rounding,
    #[comptime] accumulate: bool,
) {
    let tiles_m = (m + tile - 1) / tile;
    let tiles_n = (n + tile - 1) / tile;
    let tiles = tiles_m * tiles_n;
    let at = ABSOLUTE_POS;
    if at < batches * tiles {
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
        let mut a_at = Array::<usize>::new(tile);
        let mut b_at = Array::<usize>::new(tile);
        #[unroll]
        for i in 0..tile {
            // Beyond the edge the last row or column is computed again and not stored.
            let r = select(row + i < m, row + i, m - 1);
            let s = select(col + i < n, col + i, n - 1);
            a_at[i] = a_batch + usize::cast_from(table[a_rows + r]);
            b_at[i] = b_batch + usize::cast_from(table[b_cols + s]);
        }
        let mut total = Array::<f32>::new(comptime!(tile * tile));
        let mut part = Array::<f32>::new(comptime!(tile * tile));
        #[unroll]
        for i in 0..comptime!(tile * tile) {
            total[i] = 0.0f32;
        }
        let blocks = (k + block - 1) / block;
        for step in 0..blocks {
            #[unroll]
            for i in 0..comptime!(tile * tile) {
                part[i] = 0.0f32;
            }
            let first = step * block;
            let end = select(first + block < k, first + block, k);
            for kk in first..end {
                let a_k = usize::cast_from(table[a_ks + kk]);
                let b_k = usize::cast_from(table[b_ks + kk]);
                let mut y = Array::<f32>::new(tile);
                #[unroll]
                for j in 0..tile {
                    y[j] = f32::cast_from(b[b_at[j] + b_k]);
                }
                #[unroll]
                for i in 0..tile {
                    let x = f32::cast_from(a[a_at[i] + a_k]);
                    #[unroll]
                    for j in 0..tile {
                        part[i * tile + j] += x * y[j];
                    }
                }
            }
            #[unroll]
            for i in 0..comptime!(tile * tile) {
                total[i] += part[i];
            }
        }
        #[unroll]
        for i in 0..tile {
            #[unroll]
            for j in 0..tile {
                if row + i < m && col + j < n {
                    let place =
                        c_batch + usize::cast_from(table[c_rows + row + i]) + usize::cast_from(table[c_cols + col + j]);
                    let value = round::<N1>(Vector::new(total[i * tile + j]), to);
                    store::<F2, f32, N1>(c, place, value, accumulate);
                }
            }
        }
    }
}

/// Builds it: buffers a, b, table, c; batches, m, n, k. Slot 3 is what the sums are rounded to before they are stored.
pub fn define_dot_general(builder: &mut KernelBuilder, spec: &Spec) {
    let a = arguments::input::<Vector<F0, N1>>(builder);
    let b = arguments::input::<Vector<F1, N1>>(builder);
    let table = arguments::words(builder);
    let c = arguments::output::<Vector<F2, N1>>(builder);
    let [batches, m, n, k] = std::array::from_fn(|_| arguments::position(builder));
    let (scope, to) = (&mut builder.scope, spec.rounding(3));
    dot::expand(scope, a, b, table, c, batches, m, n, k, DOT_BLOCK, BLOCK, to, spec.accumulate == 1);
}
