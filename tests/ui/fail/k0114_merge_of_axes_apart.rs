//! Heads and head are merged across the positions.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", H: "heads", K: "head", D: "model" }

/// Joins the heads.
#[layer]
pub fn join(x: Tensor<B, H, S, K>) -> Tensor<B, S, D> {
    //~ K0114 (H, K)
    x.merge((H, K), D)
}
