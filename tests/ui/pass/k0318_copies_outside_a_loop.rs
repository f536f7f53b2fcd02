//! A loop goes through the copies.

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
    let mut y: Tensor<B, D> = x * 2.0;
    for block in blocks {
        y = block.forward(y);
    }
    y
}
