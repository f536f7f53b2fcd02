//! A child is given tensors; numbers are its `#[config]`.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Scales.
#[layer]
pub fn scale(x: Tensor<B, D>, by: Tensor<D>) -> Tensor<B, D> {
    x * by
}

/// Scales twice.
#[layer]
pub fn twice(x: Tensor<B, D>, by: Tensor<D>, #[sub] first: Scale, #[sub] second: Scale) -> Tensor<B, D> {
    let y: Tensor<B, D> = first.forward(x, by * 0.5);
    let z: Tensor<B, D> = second.forward(x, by.gt(0.0).select(1.0, 0.0));
    y + z
}
