//! The scores of a sequence with itself need two names for it.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", T: "keys", D: "model" }

/// Similarity of every pair of positions.
#[layer]
pub fn similarity(x: Tensor<B, S, D>, #[param(init = xavier)] w: Tensor<D, S>) -> Tensor<B, S, T> {
    //~ K0104 w
    let a = x.matmul(w);
    //~ K0104 B
    let keys = x.rename(S, B);
    a.einsum(keys, "b s t, b t d -> b s d").einsum(keys, "b s d, b t d -> b s t")
}
