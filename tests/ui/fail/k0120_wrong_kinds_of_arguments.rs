//! Text, numbers and flags stand where axes, a mask and numbers are wanted.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", K: "head" }

/// Attention of one head.
#[layer]
pub fn mix(q: Tensor<B, S, K>, k: Tensor<B, S, K>, v: Tensor<B, S, K>, #[param(init = ones)] w: Tensor<K>) -> Tensor<B, S, K> {
    //~ K0120 2
    let m = q.mean(2);
    //~ K0120 true
    let y = q.attend(k, v, true);
    //~ K0120 w
    let z = y.dropout(w);
    y + z + m.over(K)
}
