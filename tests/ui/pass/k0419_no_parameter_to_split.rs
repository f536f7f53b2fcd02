//! The hidden axis of the parameters is split.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", F: "hidden" }

/// Feed-forward network.
#[layer]
#[shard(tensor = F)]
pub fn mlp(
    x: Tensor<B, S, D>,
    #[param(init = xavier)] up: Tensor<D, F>,
    #[param(init = xavier)] down: Tensor<F, D>,
) -> Tensor<B, S, D> {
    x.matmul(up).gelu().matmul(down)
}
