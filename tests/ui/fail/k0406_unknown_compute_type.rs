//! Types in which no layer computes.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Scales.
#[layer]
//~ K0406 fp16
#[precision(fp16)]
pub fn scale(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    x * w
}

/// Shifts.
#[layer]
//~ K0406 master
#[precision(master = f32)]
pub fn shift(x: Tensor<B, D>, #[param(init = zeros)] b: Tensor<D>) -> Tensor<B, D> {
    x + b
}

/// Negates.
#[layer]
//~ K0406 precision
#[precision]
pub fn negate(x: Tensor<B, D>) -> Tensor<B, D> {
    -x
}
