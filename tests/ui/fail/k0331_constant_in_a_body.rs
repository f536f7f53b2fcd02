//! The macro cannot see the value of a constant.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Share of dropped elements.
pub const RATE: f64 = 0.1;

/// RMSNorm with dropout.
#[layer]
pub fn norm(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    //~ K0331 RATE
    x + x.rms_norm(w, 1e-5).dropout(RATE)
}
