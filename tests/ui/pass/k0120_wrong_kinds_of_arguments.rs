//! Every argument is of its kind.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", K: "head" }

/// Attention of one head.
#[layer]
pub fn mix(q: Tensor<B, S, K>, k: Tensor<B, S, K>, v: Tensor<B, S, K>, #[param(init = ones)] w: Tensor<K>) -> Tensor<B, S, K> {
    let m = q.mean(K);
    let y = q.attend(k, v, Causal);
    let z = y.rms_norm(w, 1e-5);
    y + z + m.over(K)
}
