//! The axis of the model counts the copies as well.

use kiln::prelude::*;

axes! { B: "batch", D: "model", L: "layers" }

/// One block.
#[layer]
pub fn block(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    x + x * w
}

/// All blocks.
#[layer]
//~ K0220 D
pub fn stack(x: Tensor<B, D>, #[sub] blocks: Repeat<Block, D>) -> Tensor<B, D> {
    let mut x = x;
    for block in blocks {
        x = block.forward(x);
    }
    x
}
