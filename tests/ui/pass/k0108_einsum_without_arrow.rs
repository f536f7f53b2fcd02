//! The text names both operands and the result.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", F: "hidden" }

/// Two projections.
#[layer]
pub fn project(
    x: Tensor<B, S, D>,
    #[param(init = xavier)] up: Tensor<D, F>,
    #[param(init = xavier)] gate: Tensor<D, F>,
) -> Tensor<B, S, F> {
    let h = x.einsum(up, "b s d, d f -> b s f");
    let g = x.einsum(gate, "b s d, d f -> b s f");
    h * g.sigmoid()
}
