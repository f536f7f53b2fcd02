//! Three layers.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", F: "hidden", V: "vocab", L: "layers" }

/// Feed-forward network.
#[layer]
pub fn mlp(
    x: Tensor<B, S, D>,
    #[param(init = xavier)] up: Tensor<D, F>,
    #[param(init = xavier)] down: Tensor<F, D>,
) -> Tensor<B, S, D> {
    x.matmul(up).gelu().matmul(down)
}

/// Residual block.
#[layer]
pub fn block(x: Tensor<B, S, D>, #[param(init = ones)] n: Tensor<D>, #[sub] mlp: Mlp) -> Tensor<B, S, D> {
    x + mlp.forward(x.rms_norm(n, 1e-5))
}

/// Language model that reads a parameter of the wrong layer.
#[layer]
pub fn model(ids: Ids<B, S>, #[param(init = normal(0.02))] emb: Tensor<V, D>, #[sub] blocks: Repeat<Block, L>, #[sub] last: Mlp) -> Tensor<B, S, V> {
    let mut x = emb.gather(ids);
    for block in blocks {
        x = block.forward(x);
    }
    let up: Tensor<D, F> = last.up;
    let down: Tensor<F, D> = last.down;
    let h = x.matmul(up).gelu().matmul(down) + last.forward(x);
    h.einsum(emb, "b s d, v d -> b s v")
}
