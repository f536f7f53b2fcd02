//! Second stage of column sums: the partial sums of the cubes, added in the order of the cubes.

use super::placeholders::F0;
use super::reduce::store;
use super::rounding::{Rounding, round};
use super::{arguments, placeholders::N0};
use crate::device::cube::Spec;
use cubecl::prelude::*;

#[cube]
fn column_sum(
    partial: &Array<Vector<f32, N0>>,
    sum: &mut Array<Vector<F0, N0>>,
    len: usize,
    cubes: usize,
    #[comptime] to: Rounding,
    #[comptime] accumulate: bool,
) {
    let at = ABSOLUTE_POS;
    if at < len {
        let mut total = partial[at];
        for cube in 1..cubes {
            total += partial[cube * len + at];
        }
        store::<F0, f32, N0>(sum, at, round::<N0>(total, to), accumulate);
    }
}

/// Builds it: buffers partial and sum; elements of a row, cubes.
pub fn define_column_sum(builder: &mut KernelBuilder, spec: &Spec) {
    let partial = arguments::input::<Vector<f32, N0>>(builder);
    let sum = arguments::output::<Vector<F0, N0>>(builder);
    let len = arguments::position(builder);
    let cubes = arguments::position(builder);
    column_sum::expand(&mut builder.scope, partial, sum, len, cubes, spec.rounding(0), spec.accumulate == 1);
}
