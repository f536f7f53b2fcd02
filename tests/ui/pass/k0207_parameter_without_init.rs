//! Each parameter says how it starts.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden" }

/// Feed-forward network.
#[layer]
pub fn mlp(
    x: Tensor<B, D>,
    #[param(init = xavier)] up: Tensor<D, F>,
    #[param(init = normal(0.02))] down: Tensor<F, D>,
    #[param(init = ones)] #[frozen] scale: Tensor<D>,
) -> Tensor<B, D> {
    x.matmul(up).gelu().matmul(down) * scale
}
