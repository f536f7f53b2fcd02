//! The loop carries one type.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden", L: "layers" }

/// One block.
#[layer]
pub fn block(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    x + x * w
}

/// All blocks.
#[layer]
pub fn stack(x: Tensor<B, D>, #[param(init = xavier)] w: Tensor<F, D>, #[sub] blocks: Repeat<Block, L>) -> Tensor<B, D> {
    let mut x = x;
    for block in blocks {
        let y: Tensor<B, D> = block.forward(x);
        x = y.einsum(w, "b d, f d -> b f").matmul(w);
    }
    x
}
