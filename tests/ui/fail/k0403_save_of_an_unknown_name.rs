//! A value to keep has a name that the body does not bind.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden" }

/// Feed-forward network.
#[layer]
//~ K0403 hiden
#[checkpoint(save = [hiden])]
pub fn mlp(
    x: Tensor<B, D>,
    #[param(init = xavier)] up: Tensor<D, F>,
    #[param(init = xavier)] down: Tensor<F, D>,
) -> Tensor<B, D> {
    let hidden = x.matmul(up).gelu();
    hidden.matmul(down)
}
