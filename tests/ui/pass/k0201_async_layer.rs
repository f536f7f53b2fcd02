//! A layer is a plain function.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden" }

/// One projection.
#[layer]
pub fn project(x: Tensor<B, D>, #[param(init = xavier)] w: Tensor<D, F>) -> Tensor<B, F> {
    x.matmul(w)
}

/// Another one.
#[layer]
pub fn again(x: Tensor<B, D>, #[param(init = xavier)] w: Tensor<D, F>) -> Tensor<B, F> {
    x.matmul(w)
}
