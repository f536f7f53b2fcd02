//! Both branches give the same axes.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden" }

/// Feed-forward network with or without a projection.
#[layer]
pub fn mlp(
    x: Tensor<B, D>,
    #[param(init = xavier)] w: Tensor<D, F>,
    #[config] wide: bool,
    #[config] gated: bool,
) -> Tensor<B, F> {
    let mut y = x.silu().matmul(w);
    if gated {
        y = x.matmul(w);
    }
    let z = if wide {
        x.matmul(w)
    } else {
        x.silu().matmul(w)
    };
    y + z
}
