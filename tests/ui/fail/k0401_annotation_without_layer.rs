//! Annotations stand on functions and types that are no layers.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Scales.
//~ K0401 #[checkpoint]
#[checkpoint]
pub fn scale(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    x * w
}

/// Shifts.
//~ K0401 #[precision(bf16)]
#[precision(bf16)]
pub fn shift(x: Tensor<B, D>, #[param(init = zeros)] b: Tensor<D>) -> Tensor<B, D> {
    x + b
}

/// Names of splits.
//~ K0401 #[shard(tensor)]
#[shard(tensor)]
pub enum Split {
    /// Over ranks.
    Ranks,
}
