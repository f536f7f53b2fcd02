//! The keys have their own name.

use kiln::prelude::*;

axes! { B: "batch", S: "queries", T: "keys" }

/// Scores become weights.
#[layer]
pub fn weights(scores: Tensor<B, S, T>) -> Tensor<B, S, T> {
    scores.softmax(T)
}
