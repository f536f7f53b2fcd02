//! Two layers, one for each build.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Scales and shifts.
#[cfg(debug_assertions)]
#[layer]
pub fn affine(
    x: Tensor<B, D>,
    #[param(init = ones)] w: Tensor<D>,
    #[param(init = zeros)] b: Tensor<D>,
) -> Tensor<B, D> {
    x * w + b
}

/// Scales.
#[cfg(not(debug_assertions))]
#[layer]
pub fn affine(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    x * w
}
