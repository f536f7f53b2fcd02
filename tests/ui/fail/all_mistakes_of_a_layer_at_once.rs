//! One block with five mistakes: each is reported once.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", F: "hidden", K: "head" }

/// Attention of one head, then a feed-forward network.
#[layer]
//~ K0407 gradient
#[precision(bf16, gradient = f32)]
pub fn block(
    x: Tensor<B, S, D>,
    rope: Rope<S, K>,
    //~ K0208 one
    #[param(init = one)] n1: Tensor<D>,
    #[param(init = xavier)] wq: Tensor<D, K>,
    #[param(init = xavier)] wk: Tensor<D, K>,
    #[param(init = xavier)] wv: Tensor<D, K>,
    #[param(init = xavier)] wo: Tensor<K, D>,
    #[param(init = xavier)] up: Tensor<D, F>,
    #[param(init = xavier)] down: Tensor<F, D>,
) -> Tensor<B, S, D> {
    let q = x.matmul(wq).rope(rope);
    let k = x.matmul(wk).rope(rope);
    //~ K0120 wv
    let y = q.attend(k, x.matmul(wv), wv);
    let x = x + y.matmul(wo);
    //~ K0101 up
    let h = x.matmul(wq).matmul(up).gelu();
    //~ K0302 drop_out
    let z = x.drop_out(0.1);
    x.rms_norm(n1, 1e-5) + z + h.matmul(down)
}
