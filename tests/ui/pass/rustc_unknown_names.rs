//! Every name exists.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden" }

/// Feed-forward network.
#[layer]
pub fn mlp(
    x: Tensor<B, D>,
    #[param(init = xavier)] up: Tensor<D, F>,
    #[param(init = xavier)] gate: Tensor<D, F>,
    #[param(init = xavier)] down: Tensor<F, D>,
) -> Tensor<B, D> {
    x.matmul(gate).matmul(down) + x.matmul(up).gelu().sum(F).over(D)
}

/// Another one.
#[layer]
pub fn again(x: Tensor<B, D>, #[param(init = xavier)] up: Tensor<D, F>, #[param(init = xavier)] down: Tensor<F, D>) -> Tensor<B, D> {
    let hidden = x.matmul(up).gelu();
    hidden.matmul(down)
}

/// A block.
#[layer]
pub fn block(x: Tensor<B, D>, #[sub] mlp: Mlp) -> Tensor<B, D> {
    x + mlp.forward(x)
}
