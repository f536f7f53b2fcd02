//! All copies are called at once, and parameters are read of all.

use kiln::prelude::*;

axes! { B: "batch", D: "model", L: "layers" }

/// One block.
#[layer]
pub fn block(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    x + x * w
}

/// All blocks.
#[layer]
pub fn stack(x: Tensor<B, D>, #[sub] blocks: Repeat<Block, L>) -> Tensor<B, D> {
    //~ K0318 blocks
    let mut y: Tensor<B, D> = blocks.forward(x);
    for block in blocks {
        //~ K0318 block.w
        y = block.forward(y) * block.w;
    }
    //~ K0318 blocks
    y * blocks.w
}
