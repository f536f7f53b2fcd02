//! One argument, one kind.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Scales by one value per feature.
#[layer]
pub fn scale(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    x * w
}

/// Scales and keeps the input.
#[layer]
pub fn block(x: Tensor<B, D>, #[sub] inner: Scale) -> Tensor<B, D> {
    x + inner.forward(x)
}
