//! Every axis has a letter.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", F: "hidden" }

/// One projection.
#[layer]
pub fn project(x: Tensor<B, S, D>, #[param(init = xavier)] w: Tensor<D, F>) -> Tensor<B, S, F> {
    x.einsum(w, "b s d, d f -> b s f")
}
