//! A parameter exists in some builds only.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Scales, and shifts where debug assertions are on.
#[layer]
pub fn affine(
    x: Tensor<B, D>,
    #[param(init = ones)] w: Tensor<D>,
    //~ K0216 #[cfg(debug_assertions)]
    #[cfg(debug_assertions)]
    #[param(init = zeros)]
    b: Tensor<D>,
) -> Tensor<B, D> {
    x * w + b
}
