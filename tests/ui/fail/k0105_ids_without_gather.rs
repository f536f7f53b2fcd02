//! Ids are contracted with the table instead of picking its rows.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", V: "vocab", D: "model" }

/// Embedding of tokens.
#[layer]
pub fn embed(ids: Ids<B, S>, #[param(init = normal(0.02))] emb: Tensor<V, D>) -> Tensor<B, S, D> {
    //~ K0105 ids
    ids.matmul(emb)
}
