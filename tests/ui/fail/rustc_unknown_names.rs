//! Axes, variables and layers that do not exist are reported by rustc, once each.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden" }

/// Feed-forward network.
#[layer]
pub fn mlp(
    x: Tensor<B, D>,
    #[param(init = xavier)] up: Tensor<D, F>,
    //~ rustc H
    #[param(init = xavier)] gate: Tensor<D, H>,
    #[param(init = xavier)] down: Tensor<H, D>,
) -> Tensor<B, D> {
    x.matmul(gate).matmul(down) + x.matmul(up).gelu().sum(F).over(D)
}

/// Another one.
#[layer]
pub fn again(x: Tensor<B, D>, #[param(init = xavier)] up: Tensor<D, F>, #[param(init = xavier)] down: Tensor<F, D>) -> Tensor<B, D> {
    let hidden = x.matmul(up).gelu();
    //~ rustc hiden
    hiden.matmul(down)
}

/// A block.
#[layer]
//~ rustc Mpl
pub fn block(x: Tensor<B, D>, #[sub] mlp: Mpl) -> Tensor<B, D> {
    x + mlp.forward(x)
}
