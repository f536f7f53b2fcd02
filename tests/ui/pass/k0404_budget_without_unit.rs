//! A budget in bytes, with a unit.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Scales.
#[layer]
#[checkpoint(budget = "2GiB")]
pub fn scale(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    x * w
}

/// Shifts.
#[layer]
#[checkpoint(budget = "512MiB")]
pub fn shift(x: Tensor<B, D>, #[param(init = zeros)] b: Tensor<D>) -> Tensor<B, D> {
    x + b
}
