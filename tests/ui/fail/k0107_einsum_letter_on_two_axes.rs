//! Letter `d` stands for the model and for the hidden axis.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", F: "hidden" }

/// Back from the hidden axis.
#[layer]
pub fn back(x: Tensor<B, S, D>, #[param(init = xavier)] w: Tensor<F, D>) -> Tensor<B, S, F> {
    //~ K0107 "b s d, d f -> b s f"
    x.einsum(w, "b s d, d f -> b s f")
}
