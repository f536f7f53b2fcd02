//! The axis is split into heads and head.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", H: "heads", K: "head" }

/// Takes the heads apart.
#[layer]
pub fn heads(x: Tensor<B, S, D>) -> Tensor<B, S, H, K> {
    x.split(D, (H, K))
}
