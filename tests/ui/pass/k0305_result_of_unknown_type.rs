//! The type stands at the `let`.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden" }

/// One projection.
#[layer]
pub fn up(x: Tensor<B, D>, #[param(init = xavier)] w: Tensor<D, F>) -> Tensor<B, F> {
    x.matmul(w)
}

/// The sum of its features.
#[layer]
pub fn total(x: Tensor<B, D>, #[sub] up: Up) -> Tensor<B> {
    let h: Tensor<B, F> = up.forward(x);
    h.sum(F)
}
