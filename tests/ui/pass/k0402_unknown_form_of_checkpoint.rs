//! Forms from the list.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Scales.
#[layer]
#[checkpoint]
pub fn scale(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    x * w
}

/// Shifts.
#[layer]
#[checkpoint(never)]
pub fn shift(x: Tensor<B, D>, #[param(init = zeros)] b: Tensor<D>) -> Tensor<B, D> {
    x + b
}

/// Scales and shifts.
#[layer]
#[checkpoint(save = [y])]
pub fn affine(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>, #[param(init = zeros)] b: Tensor<D>) -> Tensor<B, D> {
    let y = x * w;
    y + b
}
