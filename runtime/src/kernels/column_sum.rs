//! Second stage of column sums: the partial sums of the teams, added in an order that sizes alone determine.

use super::arguments;
use super::placeholders::{F0, N1};
use super::reduce::store;
use super::rounding::{Rounding, round};
use crate::device::cube::Spec;
use cubecl::prelude::*;

/// A cube adds `cube_dim / slices` columns: each of its slices every `slices`-th partial sum, then the first slice those of all.
#[cube]
fn column_sum(
    partial: &Array<Vector<f32, N1>>,
    sum: &mut Array<Vector<F0, N1>>,
    len: usize,
    partials: usize,
    #[comptime] cube_dim: u32,
    #[comptime] slices: usize,
    #[comptime] to: Rounding,
    #[comptime] accumulate: bool,
) {
    let columns = comptime!(cube_dim as usize / slices);
    let unit = UNIT_POS as usize;
    let at = CUBE_POS * columns + unit % columns;
    let mut total = Vector::<f32, N1>::new(0.0f32);
    if at < len {
        for p in range_stepped(unit / columns, partials, slices) {
            total += partial[p * len + at];
        }
    }
    if comptime!(slices > 1) {
        let mut shared = SharedMemory::<f32>::new(comptime!(cube_dim as usize));
        shared[unit] = f32::cast_from(total);
        sync_cube();
        if unit < columns {
            #[unroll]
            for slice in 1..slices {
                total += Vector::new(shared[slice * columns + unit]);
            }
        }
    }
    if unit < columns && at < len {
        store::<F0, f32, N1>(sum, at, round::<N1>(total, to), accumulate);
    }
}

/// Builds it: buffers partial and sum; elements of a row, partial sums. Constant 0: slices.
pub fn define_column_sum(builder: &mut KernelBuilder, spec: &Spec) {
    let partial = arguments::input::<Vector<f32, N1>>(builder);
    let sum = arguments::output::<Vector<F0, N1>>(builder);
    let len = arguments::position(builder);
    let partials = arguments::position(builder);
    let (scope, slices) = (&mut builder.scope, spec.constants[0]);
    column_sum::expand(
        scope,
        partial,
        sum,
        len,
        partials,
        spec.cube_dim,
        slices,
        spec.rounding(0),
        spec.accumulate == 1,
    );
}
