//! Parent and child.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", F: "hidden" }

/// Feed-forward network.
#[layer]
pub fn mlp(
    x: Tensor<B, S, D>,
    #[param(init = xavier)] up: Tensor<D, F>,
    #[param(init = xavier)] down: Tensor<F, D>,
) -> Tensor<B, S, D> {
    x.matmul(up).gelu().matmul(down)
}

/// An activation.
#[layer]
pub fn activation(x: Tensor<B, S, D>) -> Tensor<B, S, D> {
    x.silu()
}

/// Residual block.
#[layer]
pub fn block(x: Tensor<B, S, D>, #[param(init = ones)] n: Tensor<D>, #[sub] act: Activation, #[sub] mlp: Mlp) -> Tensor<B, S, D> {
    let y = x.rms_norm(n, 1e-5);
    let z = x + act.forward(x);
    y + z + mlp.forward(x)
}
