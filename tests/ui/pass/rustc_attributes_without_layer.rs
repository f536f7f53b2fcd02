//! The layer has its attribute.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Scales.
#[layer]
pub fn scale(
    x: Tensor<B, D>,
    #[param(init = ones)] w: Tensor<D>,
    #[config] by: f64,
) -> Tensor<B, D> {
    x * w * by
}
