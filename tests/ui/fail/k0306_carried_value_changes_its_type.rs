//! A loop over copies ends with another type than it begins with.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden", L: "layers" }

/// One block.
#[layer]
pub fn block(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    x + x * w
}

/// All blocks.
#[layer]
pub fn stack(x: Tensor<B, D>, #[param(init = xavier)] w: Tensor<D, F>, #[sub] blocks: Repeat<Block, L>) -> Tensor<B, D> {
    let mut x = x;
    for block in blocks {
        let y: Tensor<B, D> = block.forward(x);
        //~ K0306 y.matmul(w)
        x = y.matmul(w);
    }
    x
}
