//! The split axes are private.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden" }

/// Feed-forward network.
#[layer]
#[shard(tensor = F)]
pub fn mlp(
    x: Tensor<B, D>,
    #[param(init = xavier)] up: Tensor<D, F>,
    #[param(init = xavier)] down: Tensor<F, D>,
) -> Tensor<B, D> {
    x.matmul(up).gelu().matmul(down)
}

/// An activation.
#[layer]
pub fn activation(h: Tensor<B, F>) -> Tensor<B, F> {
    h.gelu()
}

/// Feed-forward network without a child between its projections.
#[layer]
#[shard(tensor = F)]
pub fn outer(
    x: Tensor<B, D>,
    #[param(init = xavier)] up: Tensor<D, F>,
    #[param(init = xavier)] down: Tensor<F, D>,
) -> Tensor<B, D> {
    let h: Tensor<B, F> = x.matmul(up).gelu();
    h.matmul(down)
}
