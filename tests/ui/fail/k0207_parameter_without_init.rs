//! Three parameters do not say how they start.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden" }

/// Feed-forward network.
#[layer]
pub fn mlp(
    x: Tensor<B, D>,
    //~ K0207 param
    #[param] up: Tensor<D, F>,
    //~ K0207 std
    #[param(std = 0.02)] down: Tensor<F, D>,
    //~ K0207 frozen
    #[param(init = ones, frozen)] scale: Tensor<D>,
) -> Tensor<B, D> {
    x.matmul(up).gelu().matmul(down) * scale
}
