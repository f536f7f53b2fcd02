//! The tensor ends in positions and head.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", H: "heads", K: "head" }

/// Turns by position.
#[layer]
pub fn turn(x: Tensor<B, S, H, K>, positions: Rope<S, K>) -> Tensor<B, H, S, K> {
    x.permute((B, H, S, K)).rope(positions)
}
