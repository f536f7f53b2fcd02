//! `#[layer(trace)]` records the body at start-up.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Doubles until it is eight times as large.
#[layer(trace)]
pub fn eightfold(x: Tensor<B, D>) -> Tensor<B, D> {
    x + x * 7.0
}

/// The same.
#[layer(trace)]
pub fn again(x: Tensor<B, D>) -> Tensor<B, D> {
    x + x * 7.0
}
