//! The hidden value is returned.

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
    //~ K0308 h * 0.5
    h * 0.5
}

/// A loss, where a tensor is promised.
#[layer]
pub fn classify(x: Tensor<B, D>, labels: Ids<B>, #[param(init = xavier)] w: Tensor<D, F>) -> Tensor<B> {
    //~ K0308 x.matmul(w).cross_entropy(labels)
    x.matmul(w).cross_entropy(labels)
}
