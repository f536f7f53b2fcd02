//! Layers compute in the types of the list.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Scales.
#[layer]
#[precision(f16)]
pub fn scale(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    x * w
}

/// Shifts.
#[layer]
#[precision(bf16, master = f32)]
pub fn shift(x: Tensor<B, D>, #[param(init = zeros)] b: Tensor<D>) -> Tensor<B, D> {
    x + b
}

/// Negates.
#[layer]
#[precision(bf16)]
pub fn negate(x: Tensor<B, D>) -> Tensor<B, D> {
    -x
}
