//! The axis to split is in no parameter.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", F: "hidden" }

/// Feed-forward network.
#[layer]
//~ K0419 S
#[shard(tensor = S)]
pub fn mlp(
    x: Tensor<B, S, D>,
    #[param(init = xavier)] up: Tensor<D, F>,
    #[param(init = xavier)] down: Tensor<F, D>,
) -> Tensor<B, S, D> {
    x.matmul(up).gelu().matmul(down)
}
