//! A child layer lacks its attribute.

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
    //~ K0205 Repeat<Block, L>
    blocks: Repeat<Block, L>,
    //~ K0205 Block
    last: Block,
) -> Tensor<B, D> {
    let mut x = x;
    for block in blocks {
        x = block.forward(x);
    }
    last.forward(x)
}
