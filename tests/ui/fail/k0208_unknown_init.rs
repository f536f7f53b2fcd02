//! Initial values that do not exist.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden" }

/// Feed-forward network.
#[layer]
pub fn mlp(
    x: Tensor<B, D>,
    //~ K0208 gaussian(0.02)
    #[param(init = gaussian(0.02))] up: Tensor<D, F>,
    //~ K0208 uniform(0.1)
    #[param(init = uniform(0.1))] down: Tensor<F, D>,
) -> Tensor<B, D> {
    x.matmul(up).gelu().matmul(down)
}
