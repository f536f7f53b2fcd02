//! Every type has its axes.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", K: "head" }

/// Turns by position.
#[layer]
pub fn turn(
    x: Tensor<B, S, K>,
    rope: Rope<S, K>,
) -> Tensor<B, S, K> {
    x.rope(rope)
}
