//! The value goes back to the model axis.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden" }

/// Feed-forward network.
#[layer]
pub fn mlp(
    x: Tensor<B, D>,
    #[param(init = xavier)] up: Tensor<D, F>,
    #[param(init = xavier)] down: Tensor<F, D>,
) -> Tensor<B, D> {
    let h = x.matmul(up).silu();
    h.matmul(down) * 0.5
}

/// A loss, where a tensor is promised.
#[layer]
pub fn classify(x: Tensor<B, D>, labels: Ids<B>, #[param(init = xavier)] w: Tensor<D, F>) -> Loss {
    x.matmul(w).cross_entropy(labels)
}
