//! The batch axis has no letter.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", F: "hidden" }

/// One projection.
#[layer]
pub fn project(x: Tensor<B, S, D>, #[param(init = xavier)] w: Tensor<D, F>) -> Tensor<B, S, F> {
    //~ K0106 "s d, d f -> s f"
    x.einsum(w, "s d, d f -> s f")
}
