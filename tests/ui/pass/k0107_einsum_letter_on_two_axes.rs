//! Each axis has its letter.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", F: "hidden" }

/// Back from the hidden axis.
#[layer]
pub fn back(x: Tensor<B, S, D>, #[param(init = xavier)] w: Tensor<F, D>) -> Tensor<B, S, F> {
    x.einsum(w, "b s d, f d -> b s f")
}
