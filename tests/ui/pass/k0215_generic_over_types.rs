//! A layer that is generic over axes.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden" }

/// One projection.
#[layer]
pub fn linear<In: Axis>(x: Tensor<B, In>, #[param(init = xavier)] w: Tensor<In, F>) -> Tensor<B, F> {
    x.matmul(w)
}

/// Another one.
#[layer]
pub fn biased(x: Tensor<B, D>, #[param(init = zeros)] b: Tensor<D>) -> Tensor<B, D> {
    x + b
}
