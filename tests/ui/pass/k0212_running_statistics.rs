//! The statistics come in and go out.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Moves towards the mean of the batch.
#[layer]
pub fn centre(
    x: Tensor<B, D>,
    mean: Tensor<D>,
) -> (Tensor<B, D>, Tensor<D>) {
    let next = mean * 0.9 + x.mean(B) * 0.1;
    (x - next, next)
}
