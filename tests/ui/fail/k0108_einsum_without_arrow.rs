//! The text of an einsum names no result, then one from nowhere.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", F: "hidden" }

/// Two projections.
#[layer]
pub fn project(
    x: Tensor<B, S, D>,
    #[param(init = xavier)] up: Tensor<D, F>,
    #[param(init = xavier)] gate: Tensor<D, F>,
) -> Tensor<B, S, F> {
    //~ K0108 "b s d, d f"
    let h = x.einsum(up, "b s d, d f");
    //~ K0108 "b s d, d f -> b s g"
    let g = x.einsum(gate, "b s d, d f -> b s g");
    h * g.sigmoid()
}
