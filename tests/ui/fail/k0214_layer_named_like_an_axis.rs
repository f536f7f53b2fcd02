//! The struct of the layer would be the axis.

use kiln::prelude::*;

axes! { B: "batch", D: "model", Head: "width of a head" }

/// Projects to one head.
#[layer]
//~ K0214 head
pub fn head(x: Tensor<B, D>, #[param(init = xavier)] w: Tensor<D, Head>) -> Tensor<B, Head> {
    x.matmul(w)
}
