//! A literal, or a value fixed at build.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Share of dropped elements.
pub const RATE: f64 = 0.1;

/// RMSNorm with dropout.
#[layer]
pub fn norm(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>, #[config] rate: f64) -> Tensor<B, D> {
    x + x.rms_norm(w, 1e-5).dropout(rate)
}
