//! The down projection reads the input instead of the hidden value.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", F: "hidden" }

/// SwiGLU feed-forward network.
#[layer]
pub fn swiglu(
    x: Tensor<B, S, D>,
    #[param(init = normal(0.02))] gate: Tensor<D, F>,
    #[param(init = normal(0.02))] up: Tensor<D, F>,
    #[param(init = normal(0.02))] down: Tensor<F, D>,
) -> Tensor<B, S, D> {
    let h = x.matmul(gate).silu() * x.matmul(up);
    //~ K0101 down
    x.matmul(down)
}
