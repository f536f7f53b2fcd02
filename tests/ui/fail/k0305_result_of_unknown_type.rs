//! The type of what a child returns follows from nothing.

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
    //~ K0305 up.forward(x)
    let h = up.forward(x);
    h.sum(F)
}
