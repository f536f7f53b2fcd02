//! Three layers.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden" }

/// It returns an optional tensor.
#[layer]
pub fn up(x: Tensor<B, D>, #[param(init = xavier)] w: Tensor<D, F>) -> Tensor<B, F> {
    x.matmul(w)
}

/// It takes a slice.
#[layer]
pub fn down(
    h: Tensor<B, F>,
    #[param(init = xavier)] w: Tensor<F, D>,
) -> Tensor<B, D> {
    h.matmul(w)
}

/// Feed-forward network.
#[layer]
pub fn mlp(x: Tensor<B, D>, #[sub] up: Up, #[sub] down: Down) -> Tensor<B, D> {
    let h: Tensor<B, F> = up.forward(x);
    x + down.forward(h.gelu())
}
