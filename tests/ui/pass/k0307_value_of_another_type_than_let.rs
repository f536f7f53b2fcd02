//! The `let` says the type of the value.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", F: "hidden" }

/// Feed-forward network.
#[layer]
pub fn mlp(
    x: Tensor<B, S, D>,
    #[param(init = xavier)] up: Tensor<D, F>,
    #[param(init = xavier)] down: Tensor<F, D>,
) -> Tensor<B, S, D> {
    let h: Tensor<B, S, F> = x.matmul(up);
    let h: Tensor<B, S, F> = h;
    h.silu().matmul(down)
}
