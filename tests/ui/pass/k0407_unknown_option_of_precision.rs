//! Options from the list.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Scales.
#[layer]
#[precision(bf16, reduce = f32, grad = f32)]
pub fn scale(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    x * w
}
