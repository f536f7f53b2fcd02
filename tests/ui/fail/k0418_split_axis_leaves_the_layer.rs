//! Split axes show in an input, and go to a child.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden" }

/// Feed-forward network.
#[layer]
//~ K0418 D
#[shard(tensor = D)]
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

/// Feed-forward network with a child between its projections.
#[layer]
#[shard(tensor = F)]
pub fn outer(
    x: Tensor<B, D>,
    #[param(init = xavier)] up: Tensor<D, F>,
    #[param(init = xavier)] down: Tensor<F, D>,
    #[sub] activation: Activation,
) -> Tensor<B, D> {
    //~ K0418 forward
    let h: Tensor<B, F> = activation.forward(x.matmul(up));
    h.matmul(down)
}
