//! Every axis is a name.

use kiln::prelude::*;

axes! { B: "batch", H: "heads", K: "head", D: "model" }

/// Joins the heads.
#[layer]
pub fn join(x: Tensor<B, H, K>) -> Tensor<B, D> {
    x.merge((H, K), D)
}
