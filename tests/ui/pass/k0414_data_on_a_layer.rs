//! Parameters are stored in parts.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Scales.
#[layer]
pub fn scale(x: Tensor<B, D>, #[param(init = ones)] #[shard(data)] w: Tensor<D>) -> Tensor<B, D> {
    x * w
}

/// Shifts.
#[layer]
pub fn shift(x: Tensor<B, D>, #[param(init = zeros)] b: Tensor<D>) -> Tensor<B, D> {
    x + b
}
