//! The parameters are frozen.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden" }

/// One projection.
#[layer]
#[precision(int8)]
pub fn project(x: Tensor<B, D>, #[param(init = xavier)] #[frozen] w: Tensor<D, F>) -> Tensor<B, F> {
    x.matmul(w)
}
