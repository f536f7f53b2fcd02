//! The axis to split is none of the layer.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", F: "hidden", Q: "queries" }

/// Feed-forward network.
#[layer]
//~ K0203 Q
#[shard(tensor = Q)]
pub fn mlp(
    x: Tensor<B, S, D>,
    #[param(init = normal(0.02))] up: Tensor<D, F>,
    #[param(init = normal(0.02))] down: Tensor<F, D>,
) -> Tensor<B, S, D> {
    x.matmul(up).gelu().matmul(down)
}
