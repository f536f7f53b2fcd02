//! Arguments have no precision of their own.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden" }

/// One projection.
#[layer]
pub fn project(
    //~ K0416 #[checkpoint]
    #[checkpoint] x: Tensor<B, D>,
    //~ K0416 #[precision(bf16)]
    #[param(init = xavier)] #[precision(bf16)] w: Tensor<D, F>,
) -> Tensor<B, F> {
    x.matmul(w)
}
