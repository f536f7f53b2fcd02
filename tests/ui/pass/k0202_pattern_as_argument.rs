//! Every input is an argument.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// The larger of two values.
#[layer]
pub fn larger(a: Tensor<B, D>, b: Tensor<B, D>) -> Tensor<B, D> {
    a.maximum(b)
}
