//! Sizes and products stand where names of axes are wanted.

use kiln::prelude::*;

axes! { B: "batch", H: "heads", K: "head", D: "model" }

/// Joins the heads.
#[layer]
//~ K0222 64
//~ K0222 { H * K }
pub fn join(x: Tensor<B, H, 64>) -> Tensor<B, { H * K }> {
    x.merge((H, K), D)
}
