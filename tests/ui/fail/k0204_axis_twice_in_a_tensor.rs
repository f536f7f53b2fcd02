//! Scores have one name for two axes.

use kiln::prelude::*;

axes! { B: "batch", S: "queries", T: "keys" }

/// Scores become weights.
#[layer]
//~ K0204 S
pub fn weights(scores: Tensor<B, S, S>) -> Tensor<B, S, T> {
    scores.softmax(T)
}
