//! The block.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", F: "hidden", K: "head" }

/// Attention of one head, then a feed-forward network.
#[layer]
#[precision(bf16, grad = f32)]
pub fn block(
    x: Tensor<B, S, D>,
    rope: Rope<S, K>,
    #[param(init = ones)] n1: Tensor<D>,
    #[param(init = xavier)] wq: Tensor<D, K>,
    #[param(init = xavier)] wk: Tensor<D, K>,
    #[param(init = xavier)] wv: Tensor<D, K>,
    #[param(init = xavier)] wo: Tensor<K, D>,
    #[param(init = xavier)] up: Tensor<D, F>,
    #[param(init = xavier)] down: Tensor<F, D>,
) -> Tensor<B, S, D> {
    let q = x.matmul(wq).rope(rope);
    let k = x.matmul(wk).rope(rope);
    let y = q.attend(k, x.matmul(wv), Causal);
    let x = x + y.matmul(wo);
    let h = x.matmul(up).gelu();
    let z = x.dropout(0.1);
    x.rms_norm(n1, 1e-5) + z + h.matmul(down)
}
