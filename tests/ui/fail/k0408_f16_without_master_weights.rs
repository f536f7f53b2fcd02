//! Weights of half precision would lose small updates.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Scales.
#[layer]
//~ K0408 f16
#[precision(f16, master = f16)]
pub fn scale(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    x * w
}
