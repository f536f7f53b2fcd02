//! A loop carries one value.

use kiln::prelude::*;

axes! { B: "batch", D: "model", L: "layers" }

/// One block.
#[layer]
pub fn block(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    x + x * w
}

/// All blocks, and the sum of their values.
#[layer]
pub fn stack(x: Tensor<B, D>, #[sub] blocks: Repeat<Block, L>, #[sub] more: Repeat<Block, L>) -> Tensor<B, D> {
    let mut x = x;
    let mut total = x * 2.0;
    for block in blocks {
        x = block.forward(x);
    }
    for block in more {
        total = block.forward(total);
    }
    total + x
}
