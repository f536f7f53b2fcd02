//! A child is called by another name than `forward`.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Scales.
#[layer]
pub fn scale(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    x * w
}

/// Scales and keeps the input.
#[layer]
pub fn block(x: Tensor<B, D>, #[sub] inner: Scale) -> Tensor<B, D> {
    //~ K0317 apply
    x + inner.apply(x)
}
