//! A weight-only type has no gradient.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden" }

/// One projection.
#[layer]
//~ K0415 int8
#[precision(int8)]
pub fn project(x: Tensor<B, D>, #[param(init = xavier)] w: Tensor<D, F>) -> Tensor<B, F> {
    x.matmul(w)
}
