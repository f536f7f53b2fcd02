//! Copies are dealt out.

use kiln::prelude::*;

axes! { B: "batch", D: "model", L: "layers" }

/// One block.
#[layer]
pub fn block(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    x + x * w
}

/// All blocks in a pipeline.
#[layer]
pub fn stack(x: Tensor<B, D>, #[sub] #[shard(pipeline)] blocks: Repeat<Block, L>) -> Tensor<B, D> {
    let mut x = x;
    for block in blocks {
        x = block.forward(x);
    }
    x
}
