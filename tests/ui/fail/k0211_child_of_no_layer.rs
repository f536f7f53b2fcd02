//! Children of types that are no layers.

use kiln::prelude::*;

axes! { B: "batch", D: "model", L: "layers" }

/// One block.
#[layer]
pub fn block(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    x + x * w
}

/// Blocks and a last one.
#[layer]
pub fn stack(
    x: Tensor<B, D>,
    //~ K0211 Repeat<Block>
    #[sub] blocks: Repeat<Block>,
    //~ K0211 Tensor<D>
    #[sub] last: Tensor<D>,
) -> Tensor<B, D> {
    let mut x = x;
    for block in blocks {
        x = block.forward(x);
    }
    last.forward(x)
}
