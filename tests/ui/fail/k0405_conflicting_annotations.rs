//! Annotations that stand twice contradict each other.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden" }

/// Feed-forward network.
#[layer]
#[checkpoint]
//~ K0405 checkpoint
#[checkpoint(never)]
//~ K0405 master
#[precision(bf16, master = f32, master = bf16)]
#[shard(tensor)]
//~ K0405 shard
#[shard(tensor = D)]
pub fn mlp(
    x: Tensor<B, D>,
    //~ K0405 param
    #[param(init = xavier)] #[param(init = zeros)] up: Tensor<D, F>,
    #[param(init = xavier)] down: Tensor<F, D>,
) -> Tensor<B, D> {
    x.matmul(up).gelu().matmul(down)
}

/// Scales.
#[layer]
//~ K0405 layer
#[layer(trace)]
pub fn scale(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    x * w
}
