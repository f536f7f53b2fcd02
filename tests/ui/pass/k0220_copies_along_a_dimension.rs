//! The copies have an axis of their own.

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
    let mut x = x;
    for block in blocks {
        x = block.forward(x);
    }
    x
}
