//! Two inputs are taken as a pair.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// The larger of two values.
#[layer]
//~ K0202 (a, b)
pub fn larger((a, b): (Tensor<B, D>, Tensor<B, D>)) -> Tensor<B, D> {
    a.maximum(b)
}
