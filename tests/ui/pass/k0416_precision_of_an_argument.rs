//! The layer has a precision.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden" }

/// One projection.
#[layer]
#[checkpoint]
#[precision(bf16)]
pub fn project(
    x: Tensor<B, D>,
    #[param(init = xavier)] w: Tensor<D, F>,
) -> Tensor<B, F> {
    x.matmul(w)
}
