//! Layer and axis have two names.

use kiln::prelude::*;

axes! { B: "batch", D: "model", Head: "width of a head" }

/// Projects to one head.
#[layer]
pub fn head_projection(x: Tensor<B, D>, #[param(init = xavier)] w: Tensor<D, Head>) -> Tensor<B, Head> {
    x.matmul(w)
}
