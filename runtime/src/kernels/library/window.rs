//! `slice`, `pad` and `concat`: a window of one axis moved into another tensor. `concat` is two windows of one result.

use crate::device::cube::Spec;
use crate::kernels::arguments;
use crate::kernels::placeholders::{F0, F1, N1};
use crate::kernels::rounding::{Rounding, round};
use cubecl::prelude::*;

/// y\[o, to + j\] = x\[o, from + j\] for j < len, where a row of x has `x_row` elements and one of y `y_row`; with `clear` the rest of y is 0.
#[cube]
fn window(
    x: &Array<Vector<F0, N1>>,
    y: &mut Array<Vector<F1, N1>>,
    rows: usize,
    x_row: usize,
    y_row: usize,
    from: usize,
    to: usize,
    len: usize,
    #[comptime] clear: bool,
    #[comptime] rounding: Rounding,
) {
    let at = ABSOLUTE_POS;
    if at < rows * y_row {
        let column = at % y_row;
        let inside = column >= to && column < to + len;
        if inside {
            let value = Vector::<f32, N1>::cast_from(x[at / y_row * x_row + from + column - to]);
            y[at] = Vector::<F1, N1>::cast_from(round::<N1>(value, rounding));
        } else if comptime!(clear) {
            y[at] = Vector::<F1, N1>::cast_from(Vector::<f32, N1>::new(0.0f32));
        }
    }
}

/// Builds it: buffers x, y; rows, elements of a row of x and of y, first element in x and in y, elements. Constant 0: clear the rest.
pub fn define_window(builder: &mut KernelBuilder, spec: &Spec) {
    let x = arguments::input::<Vector<F0, N1>>(builder);
    let y = arguments::output::<Vector<F1, N1>>(builder);
    let [rows, x_row, y_row, from, to, len] = std::array::from_fn(|_| arguments::position(builder));
    let (scope, clear) = (&mut builder.scope, spec.constants[0] == 1);
    window::expand(scope, x, y, rows, x_row, y_row, from, to, len, clear, spec.rounding(1));
}
