//! The head has one row per token.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", V: "vocab" }

/// Loss of the next token.
#[layer]
pub fn next_token(
    h: Tensor<B, S, D>,
    next: Ids<B, S>,
    #[param(init = normal(0.02))] head: Tensor<V, D>,
) -> Loss {
    h.linear_cross_entropy(head, next)
}
