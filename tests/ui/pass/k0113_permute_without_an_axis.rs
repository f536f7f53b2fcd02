//! The new order names every axis once.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", H: "heads", K: "head", D: "model" }

/// Heads before positions, and back.
#[layer]
pub fn turn(x: Tensor<B, S, H, K>) -> Tensor<B, S, H, K> {
    let y = x.permute((B, H, S, K));
    let z = x.permute((B, H, S, K));
    (y + z).permute((B, S, H, K))
}
