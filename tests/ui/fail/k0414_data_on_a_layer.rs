//! A layer cannot be split over the batch or dealt out by itself.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Scales.
#[layer]
//~ K0414 data
#[shard(data)]
pub fn scale(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    x * w
}

/// Shifts.
#[layer]
//~ K0414 pipeline
#[shard(pipeline)]
pub fn shift(x: Tensor<B, D>, #[param(init = zeros)] b: Tensor<D>) -> Tensor<B, D> {
    x + b
}
