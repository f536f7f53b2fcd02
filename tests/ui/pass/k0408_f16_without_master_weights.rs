//! The weights are kept in f32.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Scales.
#[layer]
#[precision(f16, master = f32)]
pub fn scale(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    x * w
}
