//! Rows are picked by real numbers.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", V: "vocab", D: "model" }

/// Embedding of tokens.
#[layer]
pub fn embed(tokens: Tensor<B, S>, #[param(init = normal(0.02))] emb: Tensor<V, D>) -> Tensor<B, S, D> {
    //~ K0105 tokens
    emb.gather(tokens)
}
