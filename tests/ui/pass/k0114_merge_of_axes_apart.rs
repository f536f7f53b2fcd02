//! Heads and head stand side by side.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", H: "heads", K: "head", D: "model" }

/// Joins the heads.
#[layer]
pub fn join(x: Tensor<B, H, S, K>) -> Tensor<B, S, D> {
    x.permute((B, S, H, K)).merge((H, K), D)
}
