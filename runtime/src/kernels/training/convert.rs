//! Copies within the device: words as they are, numbers into another element type, one number everywhere.

use crate::device::cube::Spec;
use crate::kernels::arguments;
use crate::kernels::placeholders::{F0, F1, N0};
use crate::kernels::reduce::store;
use crate::kernels::rounding::{Rounding, round};
use cubecl::prelude::*;

/// y = x.
#[cube]
fn copy_words(x: &Array<u32>, y: &mut Array<u32>, len: usize) {
    let at = ABSOLUTE_POS;
    if at < len {
        y[at] = x[at];
    }
}

/// Builds it: buffers x and y; words.
pub fn define_copy_words(builder: &mut KernelBuilder, _: &Spec) {
    let x = arguments::words(builder);
    let y = arguments::output::<u32>(builder);
    let len = arguments::position(builder);
    copy_words::expand(&mut builder.scope, x, y, len);
}

/// y = value.
#[cube]
fn fill(y: &mut Array<Vector<f32, N0>>, len: usize, value: f32) {
    let at = ABSOLUTE_POS;
    if at < len {
        y[at] = Vector::new(value);
    }
}

/// Builds it: buffer y; vectors; value.
pub fn define_fill(builder: &mut KernelBuilder, _: &Spec) {
    let y = arguments::output::<Vector<f32, N0>>(builder);
    let len = arguments::position(builder);
    let value = arguments::number(builder);
    fill::expand(&mut builder.scope, y, len, value);
}

/// y = x or y += x, rounded to the type of y.
#[cube]
fn convert(
    x: &Array<Vector<F0, N0>>,
    y: &mut Array<Vector<F1, N0>>,
    len: usize,
    #[comptime] to: Rounding,
    #[comptime] accumulate: bool,
) {
    let at = ABSOLUTE_POS;
    if at < len {
        let value = round::<N0>(Vector::<f32, N0>::cast_from(x[at]), to);
        store::<F1, f32, N0>(y, at, value, accumulate);
    }
}

/// Builds it: buffers x and y; vectors.
pub fn define_convert(builder: &mut KernelBuilder, spec: &Spec) {
    let x = arguments::input::<Vector<F0, N0>>(builder);
    let y = arguments::output::<Vector<F1, N0>>(builder);
    let len = arguments::position(builder);
    convert::expand(&mut builder.scope, x, y, len, spec.rounding(1), spec.accumulate == 1);
}
