//! Options and storage types that do not exist.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Scales.
#[layer]
//~ K0407 accumulate
//~ K0407 f64
#[precision(bf16, accumulate = f32, grad = f64)]
pub fn scale(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    x * w
}
