//! Tensors as matrices: a vendor's product reads and writes rows at one distance. Where the axes of an operand do not lie so, a copy does.

use crate::device::cube::Spec;
use crate::kernels::arguments;
use crate::kernels::placeholders::{F0, F1, N0};
use crate::kernels::reduce::store;
use cubecl::prelude::*;

/// Where vector `at` of a \[batches, outer, inner\] matrix lies in its tensor. `table` holds the offsets of batches, then of outer, then of
/// inner, all in vectors.
#[cube]
fn place(table: &Array<u32>, at: usize, batches: usize, outer: usize, inner: usize) -> usize {
    let of_batch = usize::cast_from(table[at / inner / outer]);
    let of_outer = usize::cast_from(table[batches + at / inner % outer]);
    of_batch + of_outer + usize::cast_from(table[batches + outer + at % inner])
}

/// y\[batch, outer, inner\] = x\[place\].
#[cube]
fn pack(
    x: &Array<Vector<F0, N0>>,
    table: &Array<u32>,
    y: &mut Array<Vector<F0, N0>>,
    batches: usize,
    outer: usize,
    inner: usize,
) {
    let at = ABSOLUTE_POS;
    if at < batches * outer * inner {
        y[at] = x[place(table, at, batches, outer, inner)];
    }
}

/// Builds it: buffers x, table, y; batches, outer, inner in vectors.
pub fn define_pack(builder: &mut KernelBuilder, _: &Spec) {
    let x = arguments::input::<Vector<F0, N0>>(builder);
    let table = arguments::words(builder);
    let y = arguments::output::<Vector<F0, N0>>(builder);
    let [batches, outer, inner] = std::array::from_fn(|_| arguments::position(builder));
    pack::expand(&mut builder.scope, x, table, y, batches, outer, inner);
}

/// y\[place\] = x\[batch, outer, inner\], or is added to.
#[cube]
fn unpack(
    x: &Array<Vector<F0, N0>>,
    table: &Array<u32>,
    y: &mut Array<Vector<F1, N0>>,
    batches: usize,
    outer: usize,
    inner: usize,
    #[comptime] accumulate: bool,
) {
    let at = ABSOLUTE_POS;
    if at < batches * outer * inner {
        let value = Vector::<f32, N0>::cast_from(x[at]);
        store::<F1, f32, N0>(y, place(table, at, batches, outer, inner), value, accumulate);
    }
}

/// Builds it: buffers x, table, y; batches, outer, inner in vectors.
pub fn define_unpack(builder: &mut KernelBuilder, spec: &Spec) {
    let x = arguments::input::<Vector<F0, N0>>(builder);
    let table = arguments::words(builder);
    let y = arguments::output::<Vector<F1, N0>>(builder);
    let [batches, outer, inner] = std::array::from_fn(|_| arguments::position(builder));
    unpack::expand(&mut builder.scope, x, table, y, batches, outer, inner, spec.accumulate == 1);
}
