//! Initial values from the list.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden" }

/// Feed-forward network.
#[layer]
pub fn mlp(
    x: Tensor<B, D>,
    #[param(init = normal(0.02))] up: Tensor<D, F>,
    #[param(init = uniform(-0.1, 0.1))] down: Tensor<F, D>,
) -> Tensor<B, D> {
    x.matmul(up).gelu().matmul(down)
}
