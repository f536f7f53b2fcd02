//! Mesh axes that do not exist, and a split that is no axis.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden" }

/// Feed-forward network.
#[layer]
//~ K0409 model
#[shard(model = F)]
pub fn mlp(
    x: Tensor<B, D>,
    #[param(init = xavier)] up: Tensor<D, F>,
    #[param(init = xavier)] down: Tensor<F, D>,
) -> Tensor<B, D> {
    x.matmul(up).gelu().matmul(down)
}

/// The same.
#[layer]
//~ K0409 2
#[shard(tensor = 2)]
pub fn again(
    x: Tensor<B, D>,
    #[param(init = xavier)] up: Tensor<D, F>,
    #[param(init = xavier)] down: Tensor<F, D>,
) -> Tensor<B, D> {
    x.matmul(up).gelu().matmul(down)
}
