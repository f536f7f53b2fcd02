//! The keys have a name of their own.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", T: "keys", D: "model" }

/// Similarity of every pair of positions.
#[layer]
pub fn similarity(x: Tensor<B, S, D>, #[param(init = xavier)] w: Tensor<D, T>) -> Tensor<B, S, T> {
    let a = x.matmul(w);
    let keys = x.rename(S, T);
    a.einsum(keys, "b s t, b t d -> b s d").einsum(keys, "b s d, b t d -> b s t")
}
