//! The child is called as it is.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", V: "vocab", D: "model", K: "head" }

/// Turns by position.
#[layer]
pub fn turn(x: Tensor<B, S, D>, rope: Rope<S, K>, #[param(init = xavier)] w: Tensor<D, K>) -> Tensor<B, S, K> {
    x.matmul(w).rope(rope)
}

/// Gives ids for a tensor.
#[layer]
pub fn first(ids: Ids<B, S>, #[param(init = ones)] emb: Tensor<V, D>, rope: Rope<S, K>, #[sub] turn: Turn) -> Tensor<B, S, K> {
    turn.forward(emb.gather(ids), rope)
}

/// Forgets the positions.
#[layer]
pub fn second(x: Tensor<B, S, D>, #[sub] turn: Turn) -> Tensor<B, S, K> {
    turn.forward(x, Rope::new(10_000.0))
}

/// Reads a parameter that the child does not have.
#[layer]
pub fn third(x: Tensor<B, S, D>, #[sub] turn: Turn) -> Tensor<B, S, K> {
    x.matmul(turn.w)
}
