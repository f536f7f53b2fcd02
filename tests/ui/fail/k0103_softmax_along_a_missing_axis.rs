//! Scores have no axis of the model.

use kiln::prelude::*;

axes! { B: "batch", S: "queries", T: "keys", D: "model" }

/// Attention of one head, written out.
#[layer]
pub fn mix(q: Tensor<B, S, D>, k: Tensor<B, T, D>, v: Tensor<B, T, D>) -> Tensor<B, S, D> {
    let scores = q.einsum(k, "b s d, b t d -> b s t");
    //~ K0103 D
    scores.softmax(D).einsum(v, "b s t, b t d -> b s d")
}
