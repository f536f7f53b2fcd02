//! The table of the embedding is read as if it lay the other way round.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", V: "vocab", D: "model" }

/// Embedding of tokens.
#[layer]
pub fn trunk(ids: Ids<B, S>, #[param(init = normal(0.02))] emb: Tensor<V, D>) -> Tensor<B, S, D> {
    emb.gather(ids)
}

/// Scores of the next token, with the table as head.
#[layer]
pub fn logits(ids: Ids<B, S>, #[sub] trunk: Trunk) -> Tensor<B, S, V> {
    let h: Tensor<B, S, D> = trunk.forward(ids);
    //~ K0505 trunk.emb
    h.matmul(trunk.emb)
}
