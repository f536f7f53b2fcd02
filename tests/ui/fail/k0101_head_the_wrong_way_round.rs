//! The head of a language model lies the other way round.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", V: "vocab" }

/// Loss of the next token.
#[layer]
pub fn next_token(
    h: Tensor<B, S, D>,
    next: Ids<B, S>,
    #[param(init = normal(0.02))] head: Tensor<D, V>,
) -> Loss {
    //~ K0101 head
    h.linear_cross_entropy(head, next)
}
