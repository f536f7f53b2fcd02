//! What the types of a child say is reported by rustc, once each.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", V: "vocab", D: "model", K: "head" }

/// Turns by position.
#[layer]
pub fn turn(x: Tensor<B, S, D>, rope: Rope<S, K>, #[param(init = xavier)] w: Tensor<D, K>) -> Tensor<B, S, K> {
    x.matmul(w).rope(rope)
}

/// Gives ids for a tensor.
#[layer]
pub fn first(ids: Ids<B, S>, rope: Rope<S, K>, #[sub] turn: Turn) -> Tensor<B, S, K> {
    //~ rustc ids
    turn.forward(ids, rope)
}

/// Forgets the positions.
#[layer]
pub fn second(x: Tensor<B, S, D>, #[sub] turn: Turn) -> Tensor<B, S, K> {
    //~ rustc forward
    turn.forward(x)
}

/// Reads a parameter that the child does not have.
#[layer]
pub fn third(x: Tensor<B, S, D>, #[sub] turn: Turn) -> Tensor<B, S, K> {
    //~ rustc weight
    x.matmul(turn.weight)
}
