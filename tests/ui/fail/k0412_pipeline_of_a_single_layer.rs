//! A single layer cannot be dealt out to the ranks of a pipeline.

use kiln::prelude::*;

axes! { B: "batch", D: "model", L: "layers" }

/// One block.
#[layer]
pub fn block(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    x + x * w
}

/// One block in a pipeline.
#[layer]
//~ K0412 pipeline
pub fn stack(x: Tensor<B, D>, #[sub] #[shard(pipeline)] block: Block) -> Tensor<B, D> {
    block.forward(x)
}
