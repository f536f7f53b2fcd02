//! Options that `#[layer]` does not have.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Doubles until it is eight times as large.
//~ K0217 traced
#[layer(traced)]
pub fn eightfold(x: Tensor<B, D>) -> Tensor<B, D> {
    x + x * 7.0
}

/// The same.
//~ K0217 "trace"
#[layer("trace")]
pub fn again(x: Tensor<B, D>) -> Tensor<B, D> {
    x + x * 7.0
}
