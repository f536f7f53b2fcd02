//! Annotations stand on layers.

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
#[precision(bf16)]
pub fn shift(x: Tensor<B, D>, #[param(init = zeros)] b: Tensor<D>) -> Tensor<B, D> {
    x + b
}

/// Names of splits.
pub enum Split {
    /// Over ranks.
    Ranks,
}
