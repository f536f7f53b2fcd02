//! A child layer has `#[sub]`.

use kiln::prelude::*;

axes! { B: "batch", D: "model", L: "layers" }

/// One block.
#[layer]
pub fn block(x: Tensor<B, D>, #[param(init = xavier)] w: Tensor<D>) -> Tensor<B, D> {
    x + (x * w).silu()
}

/// All blocks.
#[layer]
pub fn stack(
    x: Tensor<B, D>,
    #[sub] blocks: Repeat<Block, L>,
    #[sub] last: Block,
) -> Tensor<B, D> {
    let mut x = x;
    for block in blocks {
        x = block.forward(x);
    }
    last.forward(x)
}
